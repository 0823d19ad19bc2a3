"""Converts parameters of other codebases to those of the package's cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxeff.errors import ConfigError
from jaxeff.ode.tarnn import TARNN
from jaxeff.typing import Array

TARNN_NAMES = ("W1", "W2", "U1", "U2", "B1", "B2", "Wg", "Ug", "bg", "b1")


def tarnn_from_reference(cell: TARNN, arrays: Mapping[str, Any]) -> dict[str, Array]:
    """Returns `TARNN` parameters from those of the authors' PyTorch or TensorFlow file.

    Args:
      cell: the cell to fill; with ``step_size_mode="per_time_step"`` its ``length`` is the number
        of columns of A1. In the other modes A1 must be constant along the axes that share a step
        size.
      arrays: W1, W2, U1, U2, B1, B2, Wg, Ug, bg, b1 and A1 ``[K, time]`` (the TensorFlow file calls
        it alpha). Their b2 is unused and ignored.

    Raises:
      ConfigError: a name is missing, a shape differs, or the step sizes do not fit the cell.
    """
    named = dict(arrays)
    if "A1" not in named and "alpha" in named:
        named["A1"] = named["alpha"]
    missing = [name for name in (*TARNN_NAMES, "A1") if name not in named]
    if missing:
        raise ConfigError(f"the TARNN parameters lack {', '.join(missing)}")
    params = {name: jnp.asarray(named[name]) for name in TARNN_NAMES}
    specs = cell.param_specs(params["W1"].shape[0])
    for name in TARNN_NAMES:
        if params[name].shape != specs[name].shape:
            raise ConfigError(
                f"the TARNN parameter {name} has shape {params[name].shape}, but a cell of "
                f"{cell.features} features needs {specs[name].shape}"
            )
    etas = np.asarray(named["A1"])
    if etas.ndim != 2 or etas.shape[0] != cell.num_inner_steps:
        raise ConfigError(
            f"A1 has shape {etas.shape}, but the cell takes num_inner_steps={cell.num_inner_steps}"
            " inner steps"
        )
    if not cell.learn_step_size:
        if not (etas == cell.step_size).all():
            raise ConfigError("A1 differs from the cell's fixed step_size; set learn_step_size")
        return params
    return params | {"step_size": _step_sizes(cell, etas)}


def _step_sizes(cell: TARNN, etas: np.ndarray) -> Array:
    """Returns the parameter step_size that gives the step sizes ``[K, time]``."""
    shapes = {
        "shared": ((), etas[0, 0]),
        "per_inner_step": ((cell.num_inner_steps,), etas[:, :1]),
        "per_time_step": ((cell.num_inner_steps, cell.length), etas),
    }
    shape, kept = shapes[cell.step_size_mode]
    if cell.timed and etas.shape != shape:
        raise ConfigError(f"A1 has shape {etas.shape}, but the cell has length={cell.length}")
    if not np.array_equal(np.broadcast_to(kept, etas.shape), etas):
        raise ConfigError(
            f"A1 differs between steps that share a step size with step_size_mode="
            f"'{cell.step_size_mode}'; use 'per_time_step' with length={etas.shape[1]}"
        )
    kept = np.reshape(kept, shape)
    if not cell.bounded:
        return jnp.asarray(kept)
    if not ((kept > 0) & (kept < cell.max_step_size)).all():
        raise ConfigError(
            f"A1 has step sizes outside (0, {cell.max_step_size}), which step_size_param="
            "'bounded' cannot hold; use 'raw'"
        )
    return jnp.asarray(np.log(kept / (cell.max_step_size - kept)))


def lstm_from_pytorch(arrays: Mapping[str, Any], suffix: str = "_l0") -> dict[str, Array]:
    """Returns `LSTM` parameters from those of a layer of ``torch.nn.LSTM``.

    PyTorch keeps the gates (input, forget, candidate, output) in rows and has two biases; here the
    gates are columns and the biases are summed.

    Args:
      arrays: ``weight_ih``, ``weight_hh``, ``bias_ih`` and ``bias_hh`` with the suffix.
      suffix: of the layer's parameter names.

    Raises:
      ConfigError: a name is missing.
    """
    w, u, b, more = _pytorch_layer("LSTM", arrays, suffix)
    return {"W": w.T, "U": u.T, "b": b + more}


def gru_from_pytorch(arrays: Mapping[str, Any], suffix: str = "_l0") -> dict[str, Array]:
    """Returns `GRU` parameters from those of a layer of ``torch.nn.GRU``.

    PyTorch keeps the gates (reset, update, candidate) in rows and two biases; here they are in
    columns, and of the second bias only the candidate's share stays apart.

    Args:
      arrays: see `lstm_from_pytorch`.
      suffix: which layer.

    Raises:
      ConfigError: a name is missing.
    """
    w, u, b, more = _pytorch_layer("GRU", arrays, suffix)
    gates = 2 * (len(b) // 3)
    bias = jnp.concatenate([b[:gates] + more[:gates], b[gates:]])
    return {"W": w.T, "U": u.T, "b": bias, "b_n": more[gates:]}


def _pytorch_layer(kind: str, arrays: Mapping[str, Any], suffix: str) -> list[Array]:
    names = [f"{name}{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ConfigError(f"the {kind} parameters lack {', '.join(missing)}")
    return [jnp.asarray(arrays[name]) for name in names]
