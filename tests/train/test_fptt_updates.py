"""FPTT and its relatives against recorded updates, loops written by hand, and known limits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fptt_cases import (
    ADAM,
    CELLS,
    CLASSES,
    EXAMPLES,
    GOLDEN,
    SLOW,
    assert_close,
    batch_of,
    cross_entropy,
    distance,
    loop_by_hand,
    network,
    plain_loss,
    ramp,
    ramp_and_uniform,
    squared_error,
    started,
    task_of,
    updated,
)
from sweeps import swept

from jaxeff import ode
from jaxeff.train.algorithms import BPTT, FPTT, Task, TruncatedBPTT
from jaxeff.train.fptt_optimizer import dynamic_penalty

# Recorded updates.


class Recorded(nn.Module):
    """A layer of PyTorch's LSTM with a head, under PyTorch's names."""

    @nn.nowrap
    def initial_carry(self, inputs):
        return (ode.LSTM(5).initial_carry(inputs.shape[:1], inputs.dtype),)

    @nn.compact
    def __call__(self, inputs, *, train=False, carry=None, return_carry=False):
        shapes = {"weight_ih_l0": (20, 3), "weight_hh_l0": (20, 5)}
        shapes |= {"bias_ih_l0": (20,), "bias_hh_l0": (20,)}
        zeros = nn.initializers.zeros
        arrays = {n: self.param(f"rnn.{n}", zeros, s, inputs.dtype) for n, s in shapes.items()}
        weight = self.param("head.weight", zeros, (4, 5), inputs.dtype)
        bias = self.param("head.bias", zeros, (4,), inputs.dtype)
        after, state = ode.unroll(
            ode.LSTM(5),
            ode.lstm_from_pytorch(arrays),
            inputs.swapaxes(0, 1),
            None if carry is None else carry[0],
            return_sequence=False,
        )
        outputs = state @ weight.T + bias
        return (outputs, (after,)) if return_carry else outputs


class Witness(FPTT):
    """Keeps every part's loss, regulariser included, and what its update left."""

    def descend(self, grads, opt_state, params, **extra):
        penalty = dynamic_penalty(
            params, opt_state, self.options["alpha"], quadratic=self.options["quadratic"]
        )
        params, opt_state = super().descend(grads, opt_state, params, **extra)
        self.left = penalty, params, opt_state.running, opt_state.multiplier
        return params, opt_state

    def observe(self, outputs, batch, number, axis_name):
        _, losses = self.local_objective(outputs, batch, {}, number, self.parts)
        penalty, *trees = self.left
        return losses.mean() + penalty, trees

    def absorb(self, algo_state, observed, axis_name):
        return {"seen": observed}


@pytest.mark.parametrize("name", swept(["a", "b"], "b"))
def test_every_update_is_that_of_the_authors_code(x64, name):
    recorded = np.load(GOLDEN / f"fptt_lstm_{name}.npz")
    number = {field: float(recorded[field]) for field in ("alpha", "beta", "lr", "quad")}
    inputs = jnp.asarray(recorded["x"]).swapaxes(0, 1)
    algorithm = Witness(
        Recorded(),
        cross_entropy,
        optax.sgd(number["lr"]),
        Task("classification", 4, inputs.shape[1], 1000),
        parts=int(recorded["parts"]),
        alpha=number["alpha"],
        beta=number["beta"],
        quadratic=number["quad"],
        auxiliary="uniform",
    )
    start = "init_"
    params = {k[len(start) :]: jnp.asarray(recorded[k]) for k in recorded if k.startswith(start)}
    labels = jnp.asarray(recorded["y"])
    batch = {"inputs": inputs, "labels": labels, "weight": jnp.ones(len(labels))}
    state = started(algorithm, batch, params)
    step = jax.jit(algorithm.update)
    for number in range(2):
        state, _ = step(state.replace(algo_state={}), batch)
        losses, trees = jax.tree.map(np.asarray, state.algo_state["seen"])
        for part in range(5):
            which = f"u{number}_{part}"
            np.testing.assert_allclose(losses[part], recorded[f"{which}_loss"], rtol=1e-12)
            for kind, tree in zip(("W", "Wbar", "lam"), trees, strict=True):
                found = {name: tree[name][part] for name in params}
                assert_close(found, {name: recorded[f"{which}_{kind}_{name}"] for name in params})


# Limits and loops written by hand.


@pytest.mark.parametrize("kind", ["classification", pytest.param("tagging", marks=SLOW)])
def test_one_part_without_regulariser_is_one_update_of_bptt(x64, kind):
    model = network(readout="every_step" if kind == "tagging" else "last")
    batch, task = batch_of(kind), task_of(kind)
    fptt = FPTT(model, cross_entropy, ADAM, task, parts=1, alpha=0.0)
    bptt = BPTT(model, cross_entropy, ADAM, task)
    state = started(bptt, batch)
    expected, metrics = updated(bptt, state, batch)
    state = state.replace(opt_state=fptt.init_optimizer(state.params))
    found, own = updated(fptt, state, batch)
    assert_close(found.params, expected.params, atol=1e-15)
    assert_close(found.opt_state.inner, expected.opt_state, atol=1e-15)
    np.testing.assert_allclose(own["loss"], metrics["loss"], rtol=1e-14)


HAND = {
    # cell, layers, kind, fields, local loss; 7 steps in 3 parts of 2 and a remainder of 1.
    "lstm_uniform": (
        *("lstm", 1, "classification", {"auxiliary": "uniform"}),
        ramp_and_uniform(3, jnp.mean),
    ),
    "two_layers_sum_classes": (
        *("lstm", 2, "classification"),
        {"auxiliary": "uniform", "auxiliary_reduction": "sum_classes"},
        ramp_and_uniform(3, jnp.sum),
    ),
    "tarnn_per_step": ("tarnn", 1, "tagging", {}, plain_loss),
    "irnn_per_step": ("irnn", 2, "tagging", {}, plain_loss),
    "irnn_regression": ("irnn", 1, "regression", {}, ramp),
}


# The others cost as much and say little more.
FAST = ("two_layers_sum_classes", "tarnn_per_step", "irnn_regression")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=SLOW) for case in HAND]
)
def test_sweep_equals_a_loop_by_hand(x64, case):
    cell, layers, kind, fields, loss = HAND[case]
    readout = "every_step" if kind == "tagging" else "last"
    outputs = 1 if kind == "regression" else CLASSES
    model = network(cell, layers, readout, outputs)
    objective = squared_error if kind == "regression" else cross_entropy
    batch = batch_of(kind)
    fptt = FPTT(model, objective, ADAM, task_of(kind), parts=3, alpha=0.2, beta=0.3, **fields)
    state = started(fptt, batch)
    params, mean, lam, moments, _ = loop_by_hand(
        model, objective, ADAM, state.params, batch, 3, loss, dynamic=(0.2, 0.3)
    )
    found, _ = updated(fptt, state, batch)
    assert_close(found.params, params)
    assert_close(found.opt_state.running, mean)
    assert_close(found.opt_state.multiplier, lam)
    assert_close(found.opt_state.inner, moments)
    assert int(optax.tree.get(moments, "count")) == 4
    assert int(found.step) == 1


@pytest.mark.slow
def test_truncated_bptt_is_fptt_without_regulariser_for_labels_at_every_step(x64):
    model, batch, task = network(readout="every_step"), batch_of("tagging"), task_of("tagging")
    tbptt = TruncatedBPTT(model, cross_entropy, ADAM, task, parts=3)
    state = started(tbptt, batch)
    params, _, _, moments, history = loop_by_hand(
        model, cross_entropy, ADAM, state.params, batch, 3, plain_loss
    )
    assert len(history) == 4
    found, _ = updated(tbptt, state, batch)
    assert_close(found.params, params)
    assert_close(found.opt_state, moments)
    fptt = FPTT(model, cross_entropy, ADAM, task, parts=3, alpha=0.0)
    found, _ = updated(fptt, started(fptt, batch), batch)
    assert_close(found.params, params)
    assert_close(found.opt_state.inner, moments)
    assert_close(found.opt_state.running, params, atol=1e-15)


@pytest.mark.parametrize("kind", ["tagging", "classification"])
def test_only_one_label_per_sequence_is_ramped_and_only_by_fptt(x64, kind):
    batch, task = batch_of(kind), task_of(kind)
    shape = (EXAMPLES, *((7,) if kind == "tagging" else ()), CLASSES)
    outputs = np.random.default_rng(3).normal(size=shape)
    whole = jax.jit(lambda outputs: cross_entropy(outputs, batch)["loss"])(outputs)
    for cls in (TruncatedBPTT, FPTT):
        algorithm = cls(network(), cross_entropy, ADAM, task, parts=3)
        local = jax.jit(algorithm.local_objective, static_argnums=4)
        for number in range(4):
            values, losses = local(outputs, batch, {}, number, 4)
            ramped = cls is FPTT and kind == "classification"
            share = (number + 1) / 4 if ramped else 1
            np.testing.assert_allclose(losses, np.asarray(whole) * share)
            np.testing.assert_array_equal(values["loss"], whole)


def test_one_step_per_part_treats_the_state_before_as_constant(x64):
    cell, batch = CELLS["lstm"], batch_of("tagging", length=2)
    model = network(readout="every_step")
    fptt = FPTT(model, cross_entropy, optax.sgd(0.3), task_of("tagging", 2), parts=2, alpha=0.0)
    state = started(fptt, batch)
    found, _ = updated(fptt, state, batch)

    def loss(params, h, number):
        h, y = cell.step(params["cell_0"], h, batch["inputs"][:, number])
        logits = y @ params["readout"]["kernel"] + params["readout"]["bias"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"][:, number])
        return jnp.sum(losses * batch["weight"]) / batch["weight"].sum(), h

    # The gradient through the state before is no small thing here.
    def through(params):
        _, h = loss(params, cell.initial_carry((EXAMPLES,), jnp.float64), 0)
        return loss(params, h, 1)[0]

    @jax.jit
    def by_hand(params):
        h = cell.initial_carry((EXAMPLES,), jnp.float64)
        for number in range(2):
            grads, after = jax.grad(loss, has_aux=True)(params, h, number)
            params, before, h = jax.tree.map(lambda w, g: w - 0.3 * g, params, grads), params, after
        whole = jax.tree.map(lambda w, g: w - 0.3 * g, before, jax.grad(through)(before))
        return params, whole

    params, whole = by_hand(state.params)
    assert_close(found.params, params)
    assert distance(whole, params) > 1e-4


@pytest.mark.slow
def test_inputs_before_a_part_matter_only_through_the_state(x64):
    """Two pasts that leave the same state make the same update of what follows."""
    model, task = network("irnn", readout="every_step"), task_of("tagging", 4)
    fptt = FPTT(model, cross_entropy, optax.sgd(0.3), task, parts=4, alpha=0.0)
    batch = batch_of("tagging", length=4)
    state = started(fptt, batch)
    # Steps whose mask is zero leave the state as it is, and no loss.
    first_two = np.arange(4) < 2
    lead = np.tile(np.where(first_two, 0.0, 1.0), (EXAMPLES, 1))
    other = np.asarray(batch["inputs"]) + 5.0 * first_two[:, None]
    first, _ = updated(fptt, state, {**batch, "mask": lead})
    second, _ = updated(fptt, state, {**batch, "mask": lead, "inputs": other})
    assert_close(first.params, second.params, atol=0)
    seen, _ = updated(fptt, state, {**batch, "mask": np.ones_like(lead), "inputs": other})
    assert distance(first.params, seen.params) > 1e-4
