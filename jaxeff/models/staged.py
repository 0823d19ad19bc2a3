"""Cascades of trained models for inference: predictions, answering stages, and cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxeff import bench
from jaxeff.arguments import checked_labels, require_whole
from jaxeff.errors import ConfigError
from jaxeff.hybrid import cost
from jaxeff.hybrid.cascade import OperatingPoint, ThresholdTable
from jaxeff.hybrid.route import Cascade, Stage, checked_thresholds, require_same_outputs
from jaxeff.layers.checks import require_linen
from jaxeff.models.base import call_options
from jaxeff.selective import confidence
from jaxeff.typing import Array

#: A Flax module and its variables.
Classifier = tuple[nn.Module, Mapping[str, Any]]
#: Value of a label, and of the answering stage, where all stages abstained.
ABSTAINED = -1


class Answers(NamedTuple):
    """Answers to a batch.

    Attributes:
      labels: predicted classes ``[batch]``.
      outputs: logits of the stage that answered, ``[batch, classes]``.
      answered_by: number of that stage, ``[batch]``.
      scores: query scores of the first stage, ``[batch]``.
      overflow: number of deferred inputs beyond the limit of a later stage.
      macs: multiply-adds per input, of all stages that ran for it.
      milliseconds: per input, by the model's cost; None without a cost.
    """

    labels: np.ndarray
    outputs: np.ndarray
    answered_by: np.ndarray
    scores: np.ndarray
    overflow: int
    macs: float
    milliseconds: float | None

    @property
    def coverage(self) -> float:
        """Fraction of the inputs that the first stage answered."""
        return float(np.mean(self.answered_by == 0))


def apply(model: nn.Module, variables: Any, payload: Mapping[str, Any]) -> Array:
    """Applies a classifier to ``inputs`` and, if present, ``mask``."""
    options = {name: value for name, value in payload.items() if name != "inputs"}
    called = call_options(model, train=False, **options)
    logits: Any = model.apply(variables, payload["inputs"], **called)
    return logits


def require_confidence(score: str) -> Callable[[Array], Array]:
    """Returns the named confidence of logits; raises `ConfigError` for an unknown name."""
    if score not in confidence.OF_LOGITS:
        known = ", ".join(confidence.OF_LOGITS)
        raise ConfigError(f"the score must be one of {known} or a trained router, not {score!r}")
    return confidence.OF_LOGITS[score]


def checked_classifier(classifier: Classifier) -> Classifier:
    """Returns a classifier; raises `ConfigError` unless it is a pair (Flax module, variables)."""
    if isinstance(classifier, nn.Module) or not isinstance(classifier, Sequence):
        require_linen(classifier, "a classifier")
    if isinstance(classifier, nn.Module) or len(classifier) != 2:
        raise ConfigError("a classifier is a pair (module, variables)")
    require_linen(classifier[0], "the module of a classifier")
    return classifier


def last_stage(classifier: Classifier) -> Stage:
    """Returns the final stage; it never defers."""
    model, variables = checked_classifier(classifier)

    def call(variables: Any, payload: Any) -> tuple[Array, Array, Any]:
        outputs = apply(model, variables, payload)
        return outputs, jnp.zeros(len(outputs)), ()

    return Stage(call, variables)


def confident_stage(classifier: Classifier, score: str = "softmax response") -> Stage:
    """Returns a stage that defers inputs of low confidence.

    Args:
      classifier: the stage's model.
      score: a name in `jaxeff.selective.confidence.OF_LOGITS`.

    Raises:
      ConfigError: an unknown confidence.
    """
    confident, (model, variables) = require_confidence(score), checked_classifier(classifier)

    def call(variables: Any, payload: Any) -> tuple[Array, Array, Any]:
        outputs = apply(model, variables, payload)
        return outputs, -confident(outputs.astype(jnp.float32)), payload

    return Stage(call, variables)


class StagedModel:
    """A cascade of models; a later one runs only on the inputs that those before it defer.

    Args:
      stages: see `jaxeff.hybrid.route`.
      thresholds: inputs with a score above are deferred; see `plan`.
      limits: largest number of inputs of a batch for each later stage.
      batch_size: inputs are processed in batches of this size, the last one padded, so
        that each stage is compiled for few sizes; None processes all inputs of a call as one batch,
        padded to a power of two.

    Raises:
      ConfigError: an impossible batch size, or thresholds that do not fit.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        thresholds: Sequence[float],
        *,
        limits: Sequence[int | None] | None = None,
        batch_size: int | None = None,
    ):
        require_whole("batch_size", 1 if batch_size is None else batch_size)
        self.stages, self.batch_size = list(stages), batch_size
        self.cascade = Cascade(stages, thresholds, limits)
        self.cost: cost.CostModel | None = None
        self._macs: dict[tuple[int, ...], list[int]] = {}
        self._all = jax.jit(self._every_stage)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Scores above which a stage defers an input, one fewer than the stages."""
        return self.cascade.thresholds

    @thresholds.setter
    def thresholds(self, values: Sequence[float]) -> None:
        values = checked_thresholds(values)
        if len(values) != len(self.stages) - 1:
            raise ConfigError(f"{len(self.stages)} stages need {len(self.stages) - 1} thresholds")
        self.cascade.thresholds = values

    def predict(self, inputs: Any, mask: Any = None) -> Answers:
        """Answers inputs ``[batch, ...]``, with a mask ``[batch, time]`` of their real steps."""
        payload = _payload(inputs, mask)
        total = len(payload["inputs"])
        routed = list(self.cascade.stream(self._batches(payload)))

        def joined(name: str) -> np.ndarray:
            return np.concatenate([np.asarray(getattr(part, name)) for part in routed])[:total]

        outputs, reached = joined("outputs"), np.array([part.reached for part in routed])
        time = None
        if self.cost is not None:
            time = sum(self.cost.batch_ms(part.reached) for part in routed) / total
        return Answers(
            labels=outputs.argmax(-1),
            outputs=outputs,
            answered_by=joined("answered_by"),
            scores=joined("scores"),
            overflow=sum(part.overflow for part in routed),
            macs=float(reached.sum(0) @ self.macs(payload)) / total,
            milliseconds=time,
        )

    def _batches(self, payload: dict[str, Any]) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        total = len(payload["inputs"])
        size = self.batch_size or 1 << (total - 1).bit_length()
        for start in range(0, total, size):
            rows = np.arange(start, start + size)
            if rows[-1] < total:
                yield jax.tree.map(lambda a, r=rows: a[r[0] : r[-1] + 1], payload), rows < total
            else:
                kept = np.minimum(rows, total - 1)
                yield jax.tree.map(lambda a, k=kept: a[k], payload), rows < total

    def macs(self, payload: Mapping[str, Any]) -> list[int]:
        """Returns each stage's multiply-adds per input, routers included."""
        shape = tuple(payload["inputs"].shape[1:])
        if shape not in self._macs:
            part: Any = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), payload
            )
            counts = []
            for stage in self.stages:
                counts.append(bench.count(stage.call, stage.variables, part).macs)
                part = jax.eval_shape(stage.call, stage.variables, part)[2]
            self._macs[shape] = counts
        return self._macs[shape]

    def collect(self, inputs: Any, mask: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Runs every stage on every input, for calibration.

        Returns:
          outputs ``[stages, examples, classes]`` and scores ``[stages, examples]``.
        """
        payload = _payload(inputs, mask)
        variables = [stage.variables for stage in self.stages]
        collected = [self._all(variables, batch) for batch, _ in self._batches(payload)]
        total = len(payload["inputs"])
        outputs, scores = (np.concatenate(part, axis=1) for part in zip(*collected, strict=True))
        return outputs[:, :total], scores[:, :total]

    def _every_stage(self, variables: list[Any], payload: Any) -> tuple[Array, Array]:
        outputs: list[Array] = []
        scores: list[Array] = []
        for stage, stage_variables in zip(self.stages, variables, strict=True):
            output, score, payload = stage.call(stage_variables, payload)
            if outputs:
                require_same_outputs(outputs[0], output)
            outputs.append(output)
            scores.append(score)
        return jnp.stack(outputs), jnp.stack(scores)

    def plan(
        self,
        inputs: Any,
        labels: np.ndarray,
        *,
        mask: Any = None,
        prices: Sequence[float] | None = None,
        price: float = 0.0,
        budget: float = np.inf,
        candidates: int = 64,
    ) -> OperatingPoint:
        """Chooses and sets the thresholds on calibration data; see `hybrid.ThresholdTable`.

        Args:
          inputs: examples that no stage was trained on.
          labels: their classes.
          mask: see `predict`.
          prices: cost of each stage; multiply-adds if None.
          price: accuracy worth one unit of cost.
          budget: largest mean cost of an input.
          candidates: number of thresholds to try per stage.

        Raises:
          ConfigError: an impossible price or budget, or one stage alone.
          DataError: labels that do not fit the inputs or the classes, a score that is NaN, or a
            budget below the first stage's price.
        """
        if len(self.stages) < 2:
            raise ConfigError(
                "one stage alone has no thresholds to plan; see HybridModel.calibrate"
            )
        outputs, scores = self.collect(inputs, mask)
        labels = checked_labels(labels, outputs.shape[1], outputs.shape[2])
        prices = self.macs(_payload(inputs, mask)) if prices is None else prices
        right = outputs.argmax(-1) == labels
        table = ThresholdTable(scores[:-1], right, prices, candidates)
        best = table.best(price=price, budget=budget)
        self.thresholds = best.thresholds
        return best

    def measure(
        self, inputs: Any, mask: Any = None, *, rounds: int = 5, query_ms: float = 0.0
    ) -> cost.MeasuredCost:
        """Fits and stores this device's cost of one batch of `batch_size` inputs.

        Args:
          inputs: at least one batch.
          mask: see `predict`.
          rounds: timed calls of every size.
          query_ms: additional time per input that is sent to a later stage.
        """
        payload = _payload(inputs, mask)
        self.batch_size = self.batch_size or len(inputs)  # the cost holds for this size only
        batch, _ = next(self._batches(payload))
        measured = cost.measure(self.cascade, batch, query_ms=query_ms, rounds=rounds)
        self.cost = measured
        return measured


def _payload(inputs: Any, mask: Any) -> dict[str, Any]:
    arrays = {"inputs": inputs} if mask is None else {"inputs": inputs, "mask": mask}
    payload = {
        name: each if hasattr(each, "shape") else np.asarray(each) for name, each in arrays.items()
    }
    shape = payload["inputs"].shape
    if len(shape) < 2 or not shape[0]:
        raise ConfigError(f"there are no inputs: expected [batch, ...], not {shape}")
    if mask is not None and len(payload["mask"]) != shape[0]:
        raise ConfigError(f"a mask {payload['mask'].shape} does not fit inputs {shape}")
    return payload


def cascade(
    classifiers: Sequence[Classifier],
    thresholds: Sequence[float] | None = None,
    *,
    score: str = "softmax response",
    **options: Any,
) -> StagedModel:
    """Returns a cascade of classifiers, cheapest first; each defers to the next.

    Args:
      classifiers: modules and variables.
      thresholds: minus the confidence below which inputs are deferred; by default none is, until
        `StagedModel.plan` is called.
      score: name of the confidence, see `confident_stage`.
      **options: of `StagedModel`.
    """
    if not len(classifiers):
        raise ConfigError("a cascade needs at least one classifier")
    *early, final = classifiers
    stages = [*(confident_stage(each, score) for each in early), last_stage(final)]
    kept = (np.inf,) * len(early) if thresholds is None else thresholds
    return StagedModel(stages, kept, **options)
