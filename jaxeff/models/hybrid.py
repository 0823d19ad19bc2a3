"""Hybrid models: a small base answers, and a router sends some inputs to an expert."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxeff.arguments import checked_labels, require
from jaxeff.errors import ConfigError
from jaxeff.hybrid import cost, curves
from jaxeff.hybrid.route import Stage, checked_thresholds, route
from jaxeff.layers.router import build as build_router
from jaxeff.models.base import MODELS, apply_with_features
from jaxeff.models.staged import (
    ABSTAINED,
    Answers,
    Classifier,
    StagedModel,
    checked_classifier,
    confident_stage,
    last_stage,
)
from jaxeff.typing import Array

PARTS = ("base", "expert", "router")


def part(variables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the variables of one part of a `HybridNetwork`."""
    return {kind: tree[name] for kind, tree in variables.items() if name in tree}


class HybridNetwork(nn.Module):
    """Base, expert and router as one model for training and saving, with a fixed coverage.

    Of a batch of n the base keeps ``floor(coverage n)``; the inputs with the highest scores go to
    the expert, which runs only on them. A deployed model has a threshold instead, see
    `HybridModel`.

    Attributes:
      base: runs on every input.
      expert: the more accurate, more expensive model.
      router: see `jaxeff.layers.router`.
      coverage: fraction of the inputs that the base keeps.
    """

    base: nn.Module
    expert: nn.Module
    router: nn.Module
    coverage: float = 0.75

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False) -> Array:
        """Maps a batch to ``[batch, classes]``.

        Raises:
          ValueError: ``train`` is set; the algorithm "hybrid" trains the parts one by one.
          ConfigError: a coverage outside [0, 1].
        """
        require("coverage", self.coverage, "[0, 1]")
        if train:
            raise ValueError("a hybrid network is trained by config.algorithm.name='hybrid'")
        if self.is_initializing():
            self.base(inputs)
            self.expert(inputs)
        base = self.base.clone(parent=None, name=None)
        logits, features, _ = apply_with_features(base, self.base.variables, inputs)
        scores = self.router(logits, features["penultimate"])
        queries = len(inputs) - math.floor(self.coverage * len(inputs) + 1e-6)
        if not queries:
            return logits
        everything = jnp.ones(len(inputs), bool)
        return route(self.expert, inputs, logits, scores, everything, queries)[0]


@MODELS.register("hybrid")
def hybrid(
    *,
    num_outputs: int,
    base: Mapping[str, Any],
    expert: Mapping[str, Any],
    router: Mapping[str, Any] | None = None,
    coverage: float = 0.75,
) -> HybridNetwork:
    """Builds a `HybridNetwork`.

    Args:
      num_outputs: classes.
      base: name and fields of a model.
      expert: name and fields of a model.
      router: name and fields in `jaxeff.layers.router.ROUTERS`; None is the slim one.
      coverage: fraction of the inputs that the base keeps.

    Raises:
      ConfigError: an impossible coverage, or models that cannot be built.
    """
    require("coverage", coverage, "[0, 1]")
    return HybridNetwork(
        MODELS.build(base, "model.base", num_outputs=num_outputs),
        MODELS.build(expert, "model.expert", num_outputs=num_outputs),
        build_router(router or {"name": "slim"}),
        coverage,
    )


def routed_stage(base: Classifier, router: Classifier) -> Stage:
    """Returns the first stage: a base with the scores of a trained router."""
    (model, base_variables), (scorer, of_router) = map(checked_classifier, (base, router))

    def call(variables: Any, payload: Any) -> tuple[Array, Array, Any]:
        base_variables, of_router = variables
        options = {name: value for name, value in payload.items() if name != "inputs"}
        logits, features, _ = apply_with_features(
            model, base_variables, payload["inputs"], **options
        )
        scores: Any = scorer.apply(of_router, logits, features["penultimate"])
        return logits, scores, payload

    return Stage(call, (base_variables, of_router))


class HybridModel(StagedModel):
    """A trained base and expert with a router between them; or a base that abstains.

    For an expert in a cloud, set `cost` to a `jaxeff.hybrid.EdgeCloud`; on one device, `measure`
    fits it. Without an expert the model abstains instead of deferring.

        hybrid = HybridModel((small, variables), (large, others), batch_size=256)
        hybrid.calibrate(images, labels, coverage=0.75)
        answers = hybrid.predict(more_images)

    Args:
      base: module and variables.
      expert: module and variables, or None to abstain.
      router: module and variables of a trained router, or the name of a confidence of the base in
        `jaxeff.selective.confidence.OF_LOGITS`.
      threshold: inputs with a score above it are deferred; by default none, until calibrated.
      **options: of `StagedModel`.
    """

    def __init__(
        self,
        base: Classifier,
        expert: Classifier | None,
        router: Classifier | str = "softmax response",
        *,
        threshold: float = np.inf,
        **options: Any,
    ):
        if isinstance(router, str):
            first = confident_stage(base, router)
        else:
            first = routed_stage(base, router)
        self.abstains = expert is None
        later = [] if expert is None else [last_stage(expert)]
        super().__init__([first, *later], (threshold,) * len(later), **options)
        if self.abstains:
            self.threshold = threshold

    @classmethod
    def of(
        cls, network: HybridNetwork, variables: Mapping[str, Any], **options: Any
    ) -> HybridModel:
        """Returns the model of a trained `HybridNetwork`."""
        parts = {name: (getattr(network, name), part(variables, name)) for name in PARTS}
        return cls(parts["base"], parts["expert"], parts["router"], **options)

    @property
    def threshold(self) -> float:
        """The score above which an input is deferred to the expert."""
        return self._own_threshold if self.abstains else self.thresholds[0]

    @threshold.setter
    def threshold(self, value: float) -> None:
        # With an expert it is the cascade's threshold, which `plan` also sets.
        if self.abstains:
            (self._own_threshold,) = checked_thresholds((value,))
        else:
            self.thresholds = (value,)

    def predict(self, inputs: Any, mask: Any = None) -> Answers:
        """See `StagedModel.predict`; label and answerer are `ABSTAINED` for rejected inputs."""
        answers = super().predict(inputs, mask)
        if not self.abstains:
            return answers
        kept = answers.scores <= self.threshold
        return answers._replace(
            labels=np.where(kept, answers.labels, ABSTAINED),
            answered_by=np.where(kept, 0, ABSTAINED),
        )

    def curve(
        self, inputs: Any, labels: np.ndarray, mask: Any = None
    ) -> curves.AccuracyCoverageCurve:
        """Returns accuracy against coverage; abstained inputs count as errors.

        Raises:
          DataError: labels that do not fit the inputs or the classes, or a score that is NaN.
        """
        outputs, scores = self.collect(inputs, mask)
        right = outputs.argmax(-1) == checked_labels(labels, outputs.shape[1], outputs.shape[2])
        expert = np.zeros_like(right[0]) if self.abstains else right[1]
        return curves.accuracy_coverage(scores[0], right[0], expert)

    def calibrate(
        self,
        inputs: Any,
        labels: np.ndarray,
        *,
        mask: Any = None,
        coverage: float | None = None,
        accuracy: float | None = None,
        budget_ms: float | None = None,
    ) -> tuple[float, float]:
        """Chooses and sets the threshold on calibration data.

        Args:
          inputs: examples that base, expert and router were not trained on.
          labels: their classes.
          mask: see `predict`.
          coverage: smallest fraction that the base keeps; or
          accuracy: accuracy to reach at the lowest cost; or
          budget_ms: largest mean time per input, for the highest accuracy.

        Returns:
          coverage and accuracy on the calibration data.

        Raises:
          ConfigError: not exactly one target, an impossible one, or one that needs the missing cost
            of the model.
          DataError: a target that no threshold reaches, labels that do not fit the inputs or the
            classes, or a score that is NaN.
        """
        if sum(target is not None for target in (coverage, accuracy, budget_ms)) != 1:
            raise ConfigError("calibrate needs one of coverage, accuracy and budget_ms")
        if coverage is not None:
            require("coverage", coverage, "[0, 1]")
        elif self.cost is None:
            raise ConfigError("the model has no cost; call measure, or set cost to an EdgeCloud")
        elif accuracy is not None:
            require("accuracy", accuracy, "[0, 1]")
        else:
            require("budget_ms", budget_ms, "(0, inf]")
        curve = self.curve(inputs, labels, mask)
        if coverage is not None:
            point = int(np.argmax(curve.coverage >= coverage))
        elif accuracy is not None:
            assert self.cost is not None
            point = cost.cheapest(curve, self.cost, accuracy)
        else:
            assert self.cost is not None
            assert budget_ms is not None
            point = cost.within(curve, self.cost, float(budget_ms))
        everything = point + 1 == len(curve.threshold)
        self.threshold = np.inf if everything else float(curve.threshold[point])
        return float(curve.coverage[point]), float(curve.accuracy[point])
