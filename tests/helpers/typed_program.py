"""A newcomer's program, which `tests/test_typing.py` runs and checks by mypy's strict rules."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, assert_type

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

import jaxeff
from jaxeff import config_files, ode
from jaxeff.exporting import ExportReport
from jaxeff.layers import RNN, RecurrentCell, from_pure
from jaxeff.train.trained_model import LoadedModel


@ode.CELLS.register("typed_leaky")
@dataclasses.dataclass(frozen=True)
class Leaky(ode.FusedCell):
    """``h = decay h + (1 - decay) tanh(x W + h U + b)``."""

    decay: float = 0.9

    def param_specs(self, input_size: int) -> dict[str, ode.ParamSpec]:
        d, draw = self.features, initializers.normal(0.1)
        shapes = {"W": (input_size, d), "U": (d, d), "b": (d,)}
        return {name: ode.ParamSpec(shape, draw) for name, shape in shapes.items()}

    def prepare(self, params: Mapping[str, Any]) -> ode.Kernels:
        return ode.Kernels((params["U"],), (params["W"],), (params["b"],))

    def update(
        self, coefficients: Any, state: jax.Array, t: tuple[jax.Array, ...], at: ode.InnerStep
    ) -> jax.Array:
        return self.decay * state + (1 - self.decay) * t[0]


def cells() -> None:
    xs = jnp.ones((5, 2, 3))  # [time, batch, features]
    cell = ode.IRNN(features=8, num_inner_steps=2)
    params = cell.init(jax.random.key(0), input_size=3)
    assert_type(params, dict[str, jax.Array])
    carry, outputs = ode.unroll(cell, params, xs, return_sequence=False)
    assert_type(outputs, jax.Array)
    carry, outputs = ode.unroll(cell, params, xs, carry, backward="remat")

    leaky = Leaky(4, decay=0.5)
    params = leaky.init(jax.random.key(1), 3)
    _, outputs = ode.unroll_parallel(leaky, params, xs)
    assert_type(outputs, jax.Array)
    _, outputs, info = ode.unroll_parallel(leaky, params, xs, diagnostics=True)
    assert_type(info, ode.ParallelInfo)
    layer = from_pure(leaky)
    assert_type(layer, RecurrentCell)
    batch = jnp.swapaxes(xs, 0, 1)
    network = nn.Sequential([RNN(layer, return_sequence=False), nn.Dense(10)])
    network.apply(network.init(jax.random.key(0), batch), batch)


def models(folder: str) -> None:
    model = jaxeff.create_model("typed_leaky", num_classes=10, cell={"features": 4})
    assert_type(model, nn.Module)
    series = jnp.ones((2, 5, 3))
    model.apply(model.init(jax.random.key(0), series), series)
    assert_type(jaxeff.list_models("*global*"), list[str])

    trained = jaxeff.load("digits-tarnn")
    assert_type(trained, LoadedModel)
    images = np.zeros((2, 8, 8), np.uint8)
    answers = trained.predict(images)
    assert_type(answers.labels, np.ndarray | None)
    report = jaxeff.export(trained, inputs=images, folder=folder, to="stablehlo")
    assert_type(report, ExportReport)


def mistakes(cell: ode.Cell, xs: jax.Array) -> None:
    """Is not called; mypy finds each of these, or complains of a comment that ignores nothing."""
    jaxeff.creat_model  # type: ignore[attr-defined]
    ode.Elmann  # type: ignore[attr-defined]
    ode.IRNN(feature=8)  # type: ignore[call-arg]
    ode.IRNN(features="8")  # type: ignore[arg-type]
    ode.unroll(cell, {}, xs, backward=None)  # type: ignore[arg-type]
    ode.fixed_point(lambda z: z, 0, xs, 10)  # type: ignore[misc, arg-type]
    jaxeff.create_model("lstm")  # type: ignore[call-arg]
    jaxeff.load(3)  # type: ignore[arg-type]
    jaxeff.train.run(config_files.load("irnn.py"), "runs")["metrics"]  # type: ignore[index]
    jaxeff.layers.GlobalLayer(num_steps="2")  # type: ignore[arg-type]


if __name__ == "__main__":
    cells()
    models(sys.argv[1])
