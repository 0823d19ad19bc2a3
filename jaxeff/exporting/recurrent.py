"""Recurrent models: the whole sequence, and one step with an explicit state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.exporting.entry import BATCH, LENGTH, Entry, Input
from jaxeff.exporting.systems import Exportable, entries
from jaxeff.models.sequence import SequenceModel
from jaxeff.ode import CarryParts
from jaxeff.programs import Program, trace_step
from jaxeff.typing import Array, Carry


@entries.register
def _(model: SequenceModel, source: Exportable) -> list[Entry]:
    """The whole sequence, and one step with an explicit state."""
    variables = source.constants

    def sequence(x: Array, mask: Array | None = None) -> tuple[Array, ...]:
        outputs: Any = model.apply(variables, x, mask=mask)
        return (outputs,)

    inputs, examples = {"inputs": source.input(BATCH, LENGTH)}, {"inputs": source.inputs}
    if source.mask is not None:
        inputs["mask"] = Input((BATCH, LENGTH), str(source.mask.dtype))
        examples["mask"] = source.mask
    whole = Entry(
        "sequence", sequence, inputs, ("outputs",), examples, instead="step", metadata=source.facts
    )
    return [whole, recurrent_step(model, source)]


def recurrent_step(model: SequenceModel, source: Exportable) -> Entry:
    """Returns one step of a recurrent model: input and state to outputs and the next state.

    The state is every array of the carries of all layers, by their place: ``state_0`` and so on.
    """
    params = source.constants["params"]
    carries = model.initial_carry(jnp.zeros((1, *source.inputs.shape[1:])))
    leaves, structure = jax.tree.flatten(carries)
    names = [f"state_{number}" for number in range(len(leaves))]

    def step(x: Array, *state: Array) -> tuple[Array, ...]:
        carries, after = jax.tree.unflatten(structure, state), []
        if source.inputs.ndim == 2:
            x = params["Embed_0"]["embedding"][x]
        for layer, carry in enumerate(carries):
            carry, x = model.cell.step(params[f"cell_{layer}"], carry, x)
            after.append(carry)
        readout = params["readout"]
        outputs = x @ readout["kernel"] + readout["bias"]
        return outputs, *jax.tree.leaves(tuple(after))

    def last(x: Array) -> Array:
        outputs: Any = model.apply(source.variables, x)
        final: Array = outputs[:, -1] if model.readout == "every_step" else outputs
        return final

    def program() -> Program:
        width = None if source.inputs.ndim == 2 else source.inputs.shape[-1]
        return trace_step(model, source.variables, width)

    rows = [Input((BATCH, *leaf.shape[1:]), str(leaf.dtype)) for leaf in leaves]
    return Entry(
        "step",
        step,
        {"inputs": Input((BATCH, *source.inputs.shape[2:]), str(source.inputs.dtype))}
        | dict(zip(names, rows, strict=True)),
        ("outputs", *(f"next_{name}" for name in names)),
        {"inputs": source.inputs},
        state={f"next_{name}": name for name in names},
        initial_state={n: np.asarray(a[0]) for n, a in zip(names, leaves, strict=True)},
        counters=tuple(n for n, counts in zip(names, _counters(carries), strict=True) if counts),
        whole=last,
        program=program,
        metadata=source.facts,
    )


def _counters(carries: tuple[Carry, ...]) -> list[bool]:
    """Returns for every array of the carries whether it counts steps."""
    flags = []
    for carry in carries:
        parts = jax.tree.map(lambda _: False, carry)
        counts = isinstance(parts, CarryParts) and parts.steps is not None
        flags.append(parts._replace(steps=True) if counts else parts)
    return jax.tree.leaves(flags)
