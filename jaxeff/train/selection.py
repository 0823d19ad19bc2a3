"""Selection of a run's parameters: those of the best validation, or the last ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxeff.errors import CheckpointError
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.experiment import Experiment
from jaxeff.train.state import TrainState

CHECKPOINTS = "checkpoints"  # folder of a run


@dataclasses.dataclass(frozen=True)
class Selection:
    """The selected parameters of a run.

    Attributes:
      chosen: ``params`` and ``model_state``.
      step: at which they were saved.
      weights: their kind, for example "live" or "running".
      steps: updates made by the run.
    """

    chosen: dict[str, Any]
    step: int
    weights: str
    steps: int


def named(experiment: Experiment, state: TrainState, weights: str) -> dict[str, Any]:
    """Returns the named weights of a state, with the model's other collections."""
    algorithm = experiment.algorithm
    return {
        "params": algorithm.candidates(state)[weights],
        "model_state": algorithm.statistics(state, weights),
    }


def shapes(experiment: Experiment, state: TrainState) -> dict[str, Any]:
    """Returns the shapes of a run's selected parameters, given those of its state."""

    def first(state: TrainState) -> dict[str, Any]:
        return named(experiment, state, next(iter(experiment.algorithm.candidates(state))))

    placed = experiment.devices.replicated
    shapes_of_first: dict[str, Any] = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=placed),
        jax.eval_shape(first, state),
    )
    return shapes_of_first


def select(
    experiment: Experiment, state: TrainState, best: dict[str, Any], values: dict[str, Any]
) -> Selection:
    """Returns the config's selection from a run's state, best parameters and plain values."""
    steps = int(state.step)
    if experiment.config.eval.select == "best" and values["best_step"] >= 0:
        return Selection(best, values["best_step"], values["best_weights"], steps)
    return Selection(named(experiment, state, values["weights"]), steps, values["weights"], steps)


def require_checkpoints(workdir: Path) -> None:
    """Raises `CheckpointError` if a run has no finished checkpoint."""
    if not Checkpoints(workdir / CHECKPOINTS).steps:
        raise CheckpointError(
            f"{workdir} holds no checkpoints to evaluate; run --mode=train with it first"
        )


def read(experiment: Experiment, workdir: Path, warn: Callable[[str], None]) -> Selection:
    """Returns the selection of a run's newest intact checkpoint; does not modify its folder.

    The optimiser's state, the random key and the position within sequences are not read, so their
    shapes may differ from those of the current code.

    Raises:
      CheckpointError: there is none, or it does not fit the experiment.
    """
    require_checkpoints(workdir)
    state = experiment.state_shapes()
    best = shapes(experiment, state)
    used = {name: getattr(state, name) for name in ("step", "params", "algo_state", "model_state")}
    like = {"train": used, "best": best}
    restored = Checkpoints(workdir / CHECKPOINTS, warn=warn).restore(like, part=True)
    assert restored is not None
    _, tree, values = restored
    return select(experiment, state.replace(**tree["train"]), tree["best"], values)
