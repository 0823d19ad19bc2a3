"""Training without one fold of the examples, which a router learns from later."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxeff.errors import ConfigError
from jaxeff.train.algorithms.base import ALGORITHMS
from jaxeff.train.algorithms.bptt import BPTT
from jaxeff.train.state import TrainState
from jaxeff.typing import Array, Batch


def held_out(index: Any, folds: int, fold: int = 0) -> Any:
    """Returns which examples ``[batch]``, given their indices, belong to a fold."""
    return index % folds == fold


@ALGORITHMS.register("bptt_without_fold")
class BPTTWithoutFold(BPTT):
    """`BPTT` on all examples except one fold, which is reserved for a router.

    Args:
      folds: number of folds.
      fold: index of the fold that is left out.
      **options: of `BPTT`.
    """

    needs_index = True

    def __init__(self, *, folds: int = 5, fold: int = 0, **options: Any):
        if not 0 <= fold < folds or folds < 2:
            raise ConfigError(f"fold must be in [0, folds={folds}) and folds above 1, not {fold}")
        super().__init__(**options)
        self.folds, self.fold = folds, fold

    def learned_rows(self, count: int) -> np.ndarray:
        """See `Algorithm.learned_rows`."""
        numbers: np.ndarray = np.arange(count)
        learned: np.ndarray = numbers[~held_out(numbers, self.folds, self.fold)]
        return learned

    def update(
        self, state: TrainState, batch: Batch, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """See `Algorithm.update`."""
        kept = ~held_out(batch["index"], self.folds, self.fold)
        return super().update(state, {**batch, "weight": batch["weight"] * kept}, axis_name)
