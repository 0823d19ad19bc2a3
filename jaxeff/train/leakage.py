"""What a model has seen before a training builds on it, and that nothing of that is judged anew.

Splits of one data set are compared by the rows that they take of its arrays, whatever fields of the
config led to them. Training rows are those that an algorithm learns from.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxeff.data.base import GeneratedSplit
from jaxeff.errors import ConfigError

if TYPE_CHECKING:
    from jaxeff.train.experiment import Experiment

#: Fields of ``config.data`` that say which examples are in which split.
SPLITTING = ("split_seed", "validation_fraction", "calibration_fraction")


@dataclasses.dataclass(frozen=True)
class Rows:
    """Examples of an array.

    Attributes:
      source: what makes the array known again: data set, part of it, digest of its labels.
      numbers: of the rows, ``[examples]``.
    """

    source: tuple[str, ...]
    numbers: np.ndarray

    def shared(self, other: Rows) -> int:
        """Returns the number of examples that are in both."""
        if self.source != other.source:
            return 0
        return len(np.intersect1d(self.numbers, other.numbers))


@dataclasses.dataclass(frozen=True)
class Experience:
    """What one training sees.

    Attributes:
      where: names it below ``config.prerequisites``; "" is the run itself.
      data: fields of its ``config.data``.
      trained: rows that it learns from; None if they cannot be told.
      chosen: rows of its validation split, by which its weights are chosen.
    """

    where: str
    data: Mapping[str, Any]
    trained: Rows | None
    chosen: Rows | None


def experience(
    experiment: Experiment, prerequisites: Mapping[str, tuple[Experience, ...]]
) -> tuple[Experience, ...]:
    """Returns what an experiment sees, and what its prerequisites have seen."""
    count = len(experiment.dataset.splits["train"])
    learned = experiment.algorithm.learned_rows(count)
    own = Experience(
        "",
        experiment.config.data.to_dict(),
        rows(experiment, "train", learned),
        rows(experiment, "validation"),
    )
    below = [
        dataclasses.replace(
            seen, where=f"{name}.prerequisites.{seen.where}" if seen.where else name
        )
        for name, each in prerequisites.items()
        for seen in each
    ]
    return own, *below


def rows(experiment: Experiment, split: str, chosen: np.ndarray | None = None) -> Rows | None:
    """Returns the rows of a split, or of some of its examples; None if it does not show them."""
    splits = experiment.dataset.splits
    found: Any = splits.get(split)
    numbers, labels = getattr(found, "indices", None), getattr(found, "labels", None)
    if numbers is None or labels is None:
        return None
    part = "train" if labels is getattr(splits["train"], "labels", None) else split
    digest = hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest()
    source = experiment.dataset.name, part, digest
    return Rows(source, numbers if chosen is None else numbers[chosen])


def check(experiment: Experiment, prerequisites: Mapping[str, tuple[Experience, ...]]) -> None:
    """Refuses prerequisites that have seen what the experiment is judged or calibrated by.

    These are its test and calibration examples, which no choice may depend on either, its
    validation examples, and what its algorithm needs to be new.

    Raises:
      ConfigError: an example is in both, or splits that do not show their examples differ.
    """
    if not prerequisites:
        return
    seen = [each for each in experience(experiment, prerequisites) if each.where]
    new = experiment.algorithm.unseen_rows(len(experiment.dataset.splits["train"]))
    for each in seen:
        field = f"config.prerequisites.{each.where}"
        for split, known in _judged(experiment, each):
            shared = known[0].shared(known[1])
            if shared:
                raise ConfigError(
                    f"{field} would see {shared} of the {len(known[1].numbers)} {split} examples "
                    f"of this training; give its data the same {', '.join(SPLITTING)}"
                )
        if _unknown(experiment, each):
            raise ConfigError(
                f"{field}.data splits '{experiment.dataset.name}' in another way than config.data; "
                f"give both the same {', '.join(SPLITTING)}"
            )
        if each.trained is None or not len(new):
            continue
        kept = rows(experiment, "train", new)
        shared = kept.shared(each.trained) if kept is not None else 0
        if shared:
            raise ConfigError(
                f"{field} learns from {shared} of the {len(new)} training examples that "
                "config.algorithm needs to be new; set its algorithm to 'bptt_without_fold' with "
                "folds equal to config.algorithm.router_folds and fold=0"
            )


def _judged(experiment: Experiment, seen: Experience) -> Iterator[tuple[str, tuple[Rows, Rows]]]:
    """Yields splits with what a prerequisite must not have seen of them, and them."""
    for split in ("test", "calibration", "validation"):
        own = rows(experiment, split)
        for known in (seen.trained, None if split == "validation" else seen.chosen):
            if own is not None and known is not None:
                yield split, (known, own)


def _unknown(experiment: Experiment, seen: Experience) -> bool:
    """Whether splits of one data set may overlap without showing it."""
    own = experiment.config.data
    split = experiment.dataset.splits["train"]
    if seen.trained is not None or isinstance(split, GeneratedSplit):
        return False  # compared, or drawn by streams of their own
    same = all(own.get(name) == seen.data.get(name) for name in ("name", "dir"))
    return same and any(own.get(name) != seen.data.get(name) for name in SPLITTING)
