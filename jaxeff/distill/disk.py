"""Selective distillation (DiSK): a gate helps the student on examples it cannot learn.

Kag, Acar, Gangrade, Saligrama, "Scaffolding a Student to Instill Knowledge", ICLR 2023 (DiSK). A
gate ``g(x) >= 0``, used in training only, is added to the student's probabilities of selected
classes, so that inputs beyond the student's capacity do not dominate the loss; a budget limits the
help. The variants follow the equation of the authors' poster and their released code; "normalised"
is an addition of this package, with renormalised probabilities.

Everything is a function of logits ``[batch, classes]``, integer labels ``[batch]`` and gates
``[batch]``; values are per example; the caller averages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxeff.errors import ConfigError
from jaxeff.registry import closest
from jaxeff.typing import Array


@dataclasses.dataclass(frozen=True)
class Cosine:
    """A schedule over rounds: half a cosine from ``start`` to ``end``, restarted every period.

    Attributes:
      start: value at the beginning of the first period.
      end: value at the end of each period.
      period: rounds.
      decay: factor of ``start`` from one period to the next.
    """

    start: float
    end: float
    period: int = 1
    decay: float = 1.0

    def __call__(self, number: Array | float) -> Array:
        """Returns the value in a round, counted from 0."""
        periods, within = jnp.divmod(jnp.asarray(number, jnp.result_type(float)), self.period)
        start = self.start * self.decay**periods
        return start + (self.end - start) * (1 - jnp.cos(jnp.pi * within / self.period)) / 2


def top_classes(logits: Array, labels: Array, count: int) -> Array:
    """Returns a mask ``[batch, classes]`` of the ``count`` largest logits and of the label.

    A count of 0, or of all classes, selects all.
    """
    classes = logits.shape[-1]
    if not 0 < count < classes:
        return jnp.ones(logits.shape, bool)
    _, top = jax.lax.top_k(logits, count)
    chosen = jnp.concatenate([top, labels.astype(top.dtype)[:, None]], axis=1)
    return jax.nn.one_hot(chosen, classes, dtype=logits.dtype).sum(1) > 0


def target_within(logits: Array, mask: Array, temperature: float) -> Array:
    """Returns softened probabilities ``[batch, classes]`` of the masked classes alone."""
    return jax.nn.softmax(logits / temperature, where=mask, axis=-1)


def target_above_rest(logits: Array, mask: Array, temperature: float) -> Array:
    """Released form: other classes get the smallest logit, unsoftened, and are then masked."""
    lowest = logits.min(-1, keepdims=True)
    return jax.nn.softmax(jnp.where(mask, logits / temperature, lowest), axis=-1) * mask


def target_above_zero(logits: Array, mask: Array, temperature: float) -> Array:
    """Older released form: other classes get the logit 0, and are then masked."""
    return jax.nn.softmax(jnp.where(mask, logits / temperature, 0), axis=-1) * mask


def log_lifted(
    logits: Array, gate: Array, mask: Array, temperature: float, *, normalised: bool = False
) -> Array:
    """Returns ``log(s + g H)`` ``[batch, classes]``, or ``log((s + g H) / (1 + g |H|))``.

    s is the softmax of the student's logits at the temperature and H the mask. Only selected
    entries are raised. Computed with logarithms, so that vanishing probabilities and a gate of
    exactly 0 have finite values and gradients.
    """
    log_probabilities = jax.nn.log_softmax(logits / temperature, axis=-1)
    help_ = jnp.log(gate + jnp.finfo(log_probabilities.dtype).tiny)[:, None]
    lifted = jnp.where(
        mask,
        jnp.logaddexp(log_probabilities, jnp.broadcast_to(help_, log_probabilities.shape)),
        log_probabilities,
    )
    if normalised:
        lifted -= jnp.log1p(gate * mask.sum(-1).astype(gate.dtype))[:, None]
    return lifted


def hinge(excess: Array, strength: Array, multiplier: Array) -> tuple[Array, Array]:
    """Returns the penalty ``strength * max(0, excess)`` and the unchanged multiplier."""
    return jnp.where(excess > 0, strength, 0), multiplier


def augmented_lagrangian(excess: Array, strength: Array, multiplier: Array) -> tuple[Array, Array]:
    """Returns the penalty of the constraint ``excess <= 0``, and the next multiplier.

    The term is ``(max(0, m + r e)^2 - m^2) / (2 r)`` for multiplier m, strength r and excess e
    (Rockafellar, 1973); its slope in e is the next multiplier.
    """
    price = jnp.maximum(multiplier + strength * excess, 0)
    return price, price


@dataclasses.dataclass(frozen=True)
class Disk:
    """Settings of a variant.

    Attributes:
      target: ``(logits, mask, temperature)`` to the teacher's probabilities.
      normalised: whether the raised probabilities are divided by their sum.
      divergence: whether the target's entropy is subtracted, which makes the loss a divergence.
      gate_cost: weight of ``log(1 + K g)``, the released code's substitute for the normaliser.
      imitates: whether help is measured by the cross entropy with the teacher instead of the label.
      per_mistake: whether the help is averaged over the student's mistakes, not over all examples.
      pays: whether the penalty on help also trains the student.
      price: `hinge` or `augmented_lagrangian`.
      strength: of the penalty, by rounds.
      budget: help allowed on average, by rounds.
      top_k: number of the teacher's classes that are selected in addition to the label; 0 for all.
      student_temperature: of the student's probabilities.
      teacher_temperature: of the teacher's.
      max_cross_entropy: clipping value of an example's cross entropy.
    """

    target: Callable[[Array, Array, float], Array] = target_within
    normalised: bool = True
    divergence: bool = False
    gate_cost: float = 0.0
    imitates: bool = False
    per_mistake: bool = False
    pays: bool = False
    price: Callable[[Array, Array, Array], tuple[Array, Array]] = augmented_lagrangian
    strength: Cosine = Cosine(1.0, 1.0)
    budget: Cosine = Cosine(0.6, 0.4, 20)
    top_k: int = 10
    student_temperature: float = 3.5
    teacher_temperature: float = 4.0
    max_cross_entropy: float = 5.0

    def loss(self, student: Array, teacher: Array, labels: Array, gate: Array) -> Array:
        """Returns the scaffolded loss ``[batch]``, a cross entropy times both temperatures.

        Args:
          student: logits ``[batch, classes]``.
          teacher: logits ``[batch, classes]``.
          labels: ``[batch]``.
          gate: ``[batch]``, not negative.
        """
        mask = top_classes(teacher, labels, self.top_k)
        target = self.target(teacher, mask, self.teacher_temperature)
        lifted = log_lifted(
            student, gate, mask, self.student_temperature, normalised=self.normalised
        )
        values = -jnp.sum(jnp.where(mask, target * lifted, 0), axis=-1)
        if self.divergence:
            values += jnp.sum(jax.scipy.special.xlogy(target, target), axis=-1)
        return self.student_temperature * self.teacher_temperature * values

    def cost(self, student: Array, gate: Array) -> Array:
        """Returns the cost of a gate apart from the budget, ``[batch]``."""
        kept = self.top_k or student.shape[-1]
        return self.gate_cost * jnp.log1p(kept * gate)

    def help(self, student: Array, teacher: Array, labels: Array, gate: Array) -> Array:
        """Returns the help that counts against the budget: gate times cross entropy ``[batch]``."""
        towards = jnp.argmax(teacher, axis=-1) if self.imitates else labels
        needed = optax.softmax_cross_entropy_with_integer_labels(student, towards)
        return gate * jnp.minimum(needed, self.max_cross_entropy)

    def check_closed_form(self) -> None:
        """Raises `ConfigError` if the variant's optimal gate has no closed form."""
        if self.target is not target_within or self.gate_cost:
            raise ConfigError(
                "a closed-form gate needs a variant whose target is a distribution: normalised or "
                "poster"
            )

    def closed_form_terms(
        self, student: Array, teacher: Array, labels: Array
    ) -> tuple[Array, Array, Array]:
        """Returns cross entropy, need and lifted classes ``[batch]`` of `closed_form_gate`."""
        mask = top_classes(teacher, labels, self.top_k)
        target = self.target(teacher, mask, self.teacher_temperature)
        log_probabilities = jax.nn.log_softmax(student / self.student_temperature, axis=-1)
        cross_entropy = -jnp.sum(jnp.where(mask, target * log_probabilities, 0), axis=-1)
        need = self.help(student, teacher, labels, jnp.ones(labels.shape, student.dtype))
        kept = mask.sum(-1).astype(student.dtype) if self.normalised else jnp.zeros_like(need)
        return cross_entropy, need, kept

    def counted(self, student: Array, labels: Array) -> Array:
        """Returns 1 for the examples ``[batch]`` over which help is averaged, 0 for the others."""
        if not self.per_mistake:
            return jnp.ones(labels.shape, student.dtype)
        return (jnp.argmax(student, axis=-1) != labels).astype(student.dtype)

    def spent(self, student: Array, teacher: Array, labels: Array, gate: Array) -> Array:
        """Returns the average help of a batch; the number of mistakes is at least 1."""
        total = jnp.maximum(self.counted(student, labels).sum(), 1)
        return self.help(student, teacher, labels, gate).sum() / total


# Penalty 24 of the released code. Its penalty 25 is imitates=False, gate_cost=0.
_CIFAR = Disk(
    target=target_above_rest,
    normalised=False,
    gate_cost=1.0,
    imitates=True,
    per_mistake=True,
    price=hinge,
    strength=Cosine(1.0, 5.0, 50),
    budget=Cosine(0.6, 0.4, 20, 0.9),
)
VARIANTS: dict[str, Disk] = {
    "normalised": Disk(),
    "poster": dataclasses.replace(
        _CIFAR,
        target=target_within,
        divergence=True,
        gate_cost=0.0,
        imitates=False,
        per_mistake=False,
        pays=True,
        top_k=0,
        max_cross_entropy=float("inf"),
    ),
    "cifar50": _CIFAR,
    "cifar42": dataclasses.replace(_CIFAR, target=target_above_zero),
    "imagenet": dataclasses.replace(
        _CIFAR,
        gate_cost=0.0,
        pays=True,
        strength=Cosine(0.1, 0.5, 30),
        budget=Cosine(0.2, 0.2),
        top_k=20,
        student_temperature=1.0,
        teacher_temperature=1.0,
        max_cross_entropy=2.0,
    ),
}


def _schedule(field: str, value: Any) -> Cosine:
    try:
        return Cosine(value, value) if isinstance(value, int | float) else Cosine(**value)
    except TypeError:
        raise ConfigError(
            f"{field} must be a number or start, end, period and decay, not {value!r}"
        ) from None


def variant(name: str = "normalised", **changes: Any) -> Disk:
    """Returns a variant with some settings changed.

    Args:
      name: in `VARIANTS`.
      **changes: fields of `Disk`; ``strength`` and ``budget`` may be numbers or fields of `Cosine`.

    Raises:
      ConfigError: an unknown name or field, or an impossible number.
    """
    if name not in VARIANTS:
        raise ConfigError(f"unknown variant of DiSK '{name}'{closest(name, VARIANTS)}")
    known = [field.name for field in dataclasses.fields(Disk)]
    for field, value in changes.items():
        if field not in known:
            raise ConfigError(f"DiSK has no setting '{field}'{closest(field, known)}")
        if field in ("strength", "budget"):
            changes = {**changes, field: _schedule(field, value)}
    disk = dataclasses.replace(VARIANTS[name], **changes)
    for field in ("student_temperature", "teacher_temperature", "max_cross_entropy"):
        if not getattr(disk, field) > 0:
            raise ConfigError(f"{field} must be positive, not {getattr(disk, field)}")
    if disk.top_k < 0:
        raise ConfigError(f"top_k must not be negative, not {disk.top_k}")
    return disk
