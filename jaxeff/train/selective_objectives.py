"""Objectives of classifiers that may abstain.

``confidences(outputs)`` returns the confidences specific to an objective; those for any classifier
are in `jaxeff.selective.confidence`. Batch entries that an algorithm adds (``multipliers``,
``targets``, ``pretraining``) change the loss in training; without them it is that of evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxeff.errors import ConfigError
from jaxeff.registry import closest
from jaxeff.selective import confidence, one_sided
from jaxeff.train.objectives import OBJECTIVES
from jaxeff.typing import Array, Batch

RISKS = ("divided", "released")


class SelectiveObjective:
    """Base of these objectives."""

    #: Whether the loss uses ``batch["pretraining"]``.
    pretrains: bool = False

    def _checked(self, outputs: Array, batch: Batch) -> tuple[Array, Array]:
        if outputs.ndim != 2 or "mixed_labels" in batch:
            what = "mixed examples" if outputs.ndim == 2 else f"outputs {outputs.shape}"
            raise ConfigError(
                f"config.objective: {type(self).__name__} takes one class per example, not {what}; "
                "choose 'cross_entropy', or disable mixing of examples"
            )
        return outputs.astype(jnp.float32), batch["labels"]

    def _after_pretraining(self, losses: Array, logits: Array, batch: Batch) -> Array:
        """Returns the cross entropy of the classes while ``batch`` says so, else ``losses``."""
        if "pretraining" not in batch:
            return losses
        return jnp.where(batch["pretraining"], cross_entropy(logits, batch["labels"]), losses)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns the cross entropy of each example."""
    losses: Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses


def accuracy(logits: Array, labels: Array) -> Array:
    """Returns 1 for each example whose largest logit is its label's."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def _require_classes(num_classes: int) -> int:
    if num_classes < 2:
        raise ConfigError(
            "config.objective: selective classification needs data with at least two classes"
        )
    return num_classes


@OBJECTIVES.register("one_sided")
@dataclasses.dataclass(frozen=True)
class OneSided(SelectiveObjective):
    """One-sided prediction in the closed form, alpha (sum L + mu C) + (1 - alpha) cross entropy.

    Outputs are a one-sided head and, if alpha is below 1, an auxiliary head that helps to learn
    the features; accuracy and confidence are those of the first. With an algorithm that adds
    multipliers lambda the loss is alpha (sum L + lambda C) + ..., see `jaxeff.selective.one_sided`.

    Attributes:
      mu: positive weight of errors; larger values trade coverage for fewer errors.
      alpha: weight of the one-sided losses, in (0, 1].
      class_frequencies: shares of the classes in the training data; () is even ones.
    """

    mu: float = 1.0
    alpha: float = 0.9
    class_frequencies: Sequence[float] = ()

    def __post_init__(self) -> None:
        if not self.mu > 0:
            raise ConfigError(f"config.objective.mu must be positive, not {self.mu}")
        if not 0 < self.alpha <= 1:
            raise ConfigError(f"config.objective.alpha must be in (0, 1], not {self.alpha}")

    def num_outputs(self, num_classes: int) -> int:
        """Returns the width of one or two heads.

        Raises:
          ConfigError: no classes, or frequencies of another number of classes.
        """
        if len(self.class_frequencies) not in (0, _require_classes(num_classes)):
            raise ConfigError(
                f"config.objective.class_frequencies has {len(self.class_frequencies)} entries for "
                f"{num_classes} classes; give one each, or leave it out for even ones"
            )
        return num_classes * self._heads

    @property
    def _heads(self) -> int:
        return 1 if self.alpha == 1 else 2

    def class_logits(self, outputs: Any) -> Any:
        """Returns the one-sided head."""
        return outputs[..., : outputs.shape[-1] // self._heads]

    def confidences(self, outputs: Any) -> dict[str, Any]:
        """Returns the largest one-sided score."""
        return {"one-sided score": confidence.softmax_response(self.class_logits(outputs))}

    def __call__(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Returns the values of each example; see `jaxeff.train.objectives`."""
        outputs, labels = self._checked(outputs, batch)
        logits = self.class_logits(outputs)
        num_classes = logits.shape[-1]
        shares = jnp.asarray(self.class_frequencies or (1 / num_classes,) * num_classes)
        multipliers = batch.get("multipliers", jnp.full(num_classes, self.mu))
        losses, outside = one_sided.example_losses(logits, labels, multipliers, shares)
        if self.alpha < 1:
            auxiliary = cross_entropy(outputs[:, num_classes:], labels)
            losses = self.alpha * losses + (1 - self.alpha) * auxiliary
        values = {"loss": losses, "accuracy": accuracy(logits, labels)}
        return values | ({"outside": outside} if "multipliers" in batch else {})


@OBJECTIVES.register("selective_net")
@dataclasses.dataclass(frozen=True)
class SelectiveNet(SelectiveObjective):
    """SelectiveNet (Geifman, El-Yaniv, ICML 2019): a head that selects, trained for one coverage.

    alpha (risk + penalty max(0, coverage - mean g)^2) + (1 - alpha) auxiliary cross entropy, with
    the selection g in (0, 1). Outputs are classes, selection and auxiliary classes, all linear in
    one network's features; with the model "selecting" the selection has the authors' hidden layer.
    Means are those of the whole batch, over all devices.

    Attributes:
      coverage: the target, in (0, 1].
      penalty: of less coverage, lambda.
      alpha: weight of the selective part, in [0, 1].
      risk: "divided" is the paper's mean(g l) / mean(g); "released", as the authors' code has it,
        does not divide.
    """

    coverage: float = 0.8
    penalty: float = 32.0
    alpha: float = 0.5
    risk: str = "divided"

    joins_devices = True

    def __post_init__(self) -> None:
        if not 0 < self.coverage <= 1:
            raise ConfigError(f"config.objective.coverage must be in (0, 1], not {self.coverage}")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"config.objective.alpha must be in [0, 1], not {self.alpha}")
        if not self.penalty >= 0:
            raise ConfigError(f"config.objective.penalty must not be negative, not {self.penalty}")
        if self.risk not in RISKS:
            raise ConfigError(
                f"config.objective.risk: unknown '{self.risk}'{closest(self.risk, list(RISKS))}"
            )

    def num_outputs(self, num_classes: int) -> int:
        """Returns the width of the three heads."""
        return 2 * _require_classes(num_classes) + 1

    def class_logits(self, outputs: Any) -> Any:
        """Returns the head of the classes."""
        return outputs[..., : outputs.shape[-1] // 2]

    def confidences(self, outputs: Any) -> dict[str, Any]:
        """Returns the selection g."""
        selection = outputs[..., outputs.shape[-1] // 2]
        return {"selection head": confidence.selection_probability(selection)}

    def __call__(
        self, outputs: Array, batch: Batch, axis_name: str | None = None
    ) -> dict[str, Array]:
        """Returns the values of each example; see `jaxeff.train.objectives`."""
        outputs, labels = self._checked(outputs, batch)
        logits = self.class_logits(outputs)
        num_classes = logits.shape[-1]
        selected = jax.nn.sigmoid(outputs[:, num_classes])
        weight = batch["weight"]
        risk = selected * cross_entropy(logits, labels)
        sums = jnp.sum(selected * weight), jnp.sum(risk * weight), jnp.sum(weight)
        if axis_name is not None:
            sums = jax.lax.psum(jax.lax.stop_gradient(sums), axis_name)
        total = jnp.maximum(sums[2], 1)
        mean = sums[0] / total
        if axis_name is None:
            risk, short = risk / self._divisor(mean), self._short(mean)
        else:

            def of_mean(mean: Array) -> Array:
                return sums[1] / total / self._divisor(mean) + self._short(mean)

            # Per-example contributions of this device's mean selection to the loss of the whole
            # batch.
            through_mean = jax.grad(of_mean)(mean) * (selected - jax.lax.stop_gradient(selected))
            risk, short = risk / self._divisor(mean) + through_mean, self._short(mean)
        auxiliary = cross_entropy(outputs[:, num_classes + 1 :], labels)
        return {
            "loss": self.alpha * (risk + short) + (1 - self.alpha) * auxiliary,
            "accuracy": accuracy(logits, labels),
            "coverage": (selected >= 0.5).astype(jnp.float32),
        }

    def _divisor(self, mean: Array) -> Array | float:
        # Avoids division by zero if nothing is selected.
        return jnp.maximum(mean, 1e-6) if self.risk == "divided" else 1.0

    def _short(self, mean: Array) -> Array:
        return self.penalty * jnp.square(jax.nn.relu(self.coverage - mean))


class _Abstaining(SelectiveObjective):
    """Objectives with one more output, which stands for abstention."""

    pretrains = True

    def num_outputs(self, num_classes: int) -> int:
        """Returns the number of classes and one."""
        return _require_classes(num_classes) + 1

    def class_logits(self, outputs: Any) -> Any:
        """Returns all outputs but the last."""
        return outputs[..., :-1]

    def confidences(self, outputs: Any) -> dict[str, Any]:
        """Returns 1 minus the probability of abstention."""
        return {"not abstaining": confidence.not_abstaining(outputs)}


@OBJECTIVES.register("deep_gamblers")
@dataclasses.dataclass(frozen=True)
class DeepGamblers(_Abstaining):
    """Deep Gamblers (Liu et al., NeurIPS 2019): -log(payoff p_label + p_abstain).

    The algorithm "pretrained" trains the classes alone by cross entropy at first.

    Attributes:
      payoff: of a bet on the right class, o > 1; useful up to the number of classes.
    """

    payoff: float = 2.2

    def __post_init__(self) -> None:
        if not self.payoff > 1:
            raise ConfigError(f"config.objective.payoff must be above 1, not {self.payoff}")

    def __call__(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Returns the values of each example; see `jaxeff.train.objectives`."""
        outputs, labels = self._checked(outputs, batch)
        logits, logs = self.class_logits(outputs), jax.nn.log_softmax(outputs)
        bet = jnp.log(self.payoff) - cross_entropy(outputs, labels)
        losses = self._after_pretraining(-jnp.logaddexp(bet, logs[:, -1]), logits, batch)
        return {"loss": losses, "accuracy": accuracy(logits, labels)}


@OBJECTIVES.register("self_adaptive")
@dataclasses.dataclass(frozen=True)
class SelfAdaptive(_Abstaining):
    """Self-adaptive training (Huang, Zhang, Zhang, NeurIPS 2020): targets that follow the network.

    -t log p_label - (1 - t) log p_abstain, where the target t of each training example is an
    average of the probability of its label among the classes over the epochs, kept by the algorithm
    "self_adaptive". In evaluation t = 1.

    Attributes:
      momentum: of the average, in [0, 1).
      entropy_weight: of the classes' entropy, added to the loss (Feng et al., "Towards Better
        Selective Classification", ICLR 2023, use 0.001); not negative.
    """

    momentum: float = 0.9
    entropy_weight: float = 0.0

    #: Without it every target would stay at 1.
    algorithm = "self_adaptive"

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"config.objective.momentum must be in [0, 1), not {self.momentum}")
        if not self.entropy_weight >= 0:
            raise ConfigError(
                f"config.objective.entropy_weight must not be negative, not {self.entropy_weight}"
            )

    def __call__(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Returns the values of each example; see `jaxeff.train.objectives`."""
        outputs, labels = self._checked(outputs, batch)
        logits, logs = self.class_logits(outputs), jax.nn.log_softmax(outputs)
        values = {"accuracy": accuracy(logits, labels)}
        target = jnp.ones(labels.shape)
        if "targets" in batch:
            through_mean = jax.lax.stop_gradient(jnp.exp(-cross_entropy(logits, labels)))
            target = self.momentum * batch["targets"] + (1 - self.momentum) * through_mean
            values["target"] = target
        losses = target * cross_entropy(outputs, labels) - (1 - target) * logs[:, -1]
        losses += self.entropy_weight * confidence.entropy(logits)
        return {"loss": self._after_pretraining(losses, logits, batch), **values}
