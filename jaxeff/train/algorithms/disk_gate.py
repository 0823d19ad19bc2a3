"""The loss of selective distillation (DiSK), with its gate and the gate's budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.distill import Disk, Seen, gate_at, variant, water_price
from jaxeff.errors import ConfigError
from jaxeff.layers.gates import GATES
from jaxeff.train.algorithms.device_share import divisor
from jaxeff.typing import Array, PRNGKey

CLOSED_FORM = "closed_form"


class DiskLoss:
    """A variant of DiSK with its gate.

    Args:
      fields: of `jaxeff.distill.variant`, its name being ``variant``, and the loss's ``weight``.
      gate: a name in `jaxeff.layers.gates.GATES` with its fields, or "closed_form".
      num_classes: number of classes.

    Raises:
      ConfigError: unknown or impossible fields.
    """

    def __init__(self, fields: Mapping[str, Any], gate: Mapping[str, Any], num_classes: int):
        fields = dict(fields)
        self.weight = fields.pop("weight", 1.0)
        self.disk: Disk = variant(fields.pop("variant", "normalised"), **fields)
        self.gate: Any = None
        if gate["name"] != CLOSED_FORM:
            self.gate = GATES.build(gate, "algorithm.gate", num_classes=num_classes)
        else:
            self.disk.check_closed_form()

    def init(self, key: PRNGKey, teacher: Seen) -> dict[str, Any]:
        """Returns the gate's variables and the budget's multiplier."""
        variables = {"params": {}} if self.gate is None else self.gate.init(key, teacher)
        return {"gate": variables, "multiplier": jnp.zeros(())}

    def __call__(
        self,
        params: Any,
        state: Mapping[str, Any],
        student: Seen,
        teacher: Seen,
        labels: Array,
        weight: Array,
        number: Array,
        axis_name: str | None,
        train: bool,
    ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
        """Returns DiSK's term of a device's loss.

        The budget's term is its price, a constant of the whole batch, times this device's help, so
        its gradient is this device's contribution to that of the penalty.

        Args:
          params: the gate's parameters, to differentiate by.
          state: as `init` returns it.
          student: logits and features of the student.
          teacher: logits and features of the teacher.
          labels: ``[batch]``.
          weight: ``[batch]``.
          number: of the round.
          axis_name: of the devices.
          train: whether the gate is in training.

        Returns:
          the scalar, values ``[batch]`` for the metrics, and the next state (with the old gate
          parameters), which is to be kept if the gate is in training.
        """
        disk, statistics = self.disk, {k: v for k, v in state["gate"].items() if k != "params"}
        counted = jnp.sum(weight * disk.counted(student.logits, labels))
        counted = jax.lax.psum(counted, axis_name) if axis_name else counted
        allowed = disk.budget(number) * jnp.maximum(counted, 1)
        if self.gate is None:
            gate = self._closed_form(student, teacher, labels, weight, allowed, axis_name)
        elif train:
            variables = {"params": params, **statistics}
            gate, statistics = self.gate.apply(
                variables, teacher, train=True, mutable=list(statistics)
            )
        else:
            gate = self.gate.apply({"params": params, **statistics}, teacher)
        values = disk.loss(student.logits, teacher.logits, labels, gate)
        values += disk.cost(student.logits, gate)
        loss = self.weight * jnp.sum(values * weight) / divisor(weight, axis_name)

        payer = student.logits if disk.pays else jax.lax.stop_gradient(student.logits)
        help_ = disk.help(payer, teacher.logits, labels, gate)
        devices = jax.lax.psum(1, axis_name) if axis_name else 1
        spent = jnp.sum(weight * help_) * devices / jnp.maximum(counted, 1)
        whole = jax.lax.stop_gradient(spent)
        whole = jax.lax.pmean(whole, axis_name) if axis_name else whole
        price, multiplier = disk.price(
            whole - disk.budget(number), disk.strength(number), state["multiplier"]
        )
        if self.gate is not None:  # the closed form is within the budget
            loss += price * spent
        state = {
            "gate": {"params": state["gate"]["params"], **statistics},
            "multiplier": multiplier,
        }
        return loss, {"disk": values, "gate": gate, "help": help_}, state

    def _closed_form(
        self,
        student: Seen,
        teacher: Seen,
        labels: Array,
        weight: Array,
        allowed: Array,
        axis_name: str | None,
    ) -> Array:
        """Returns the optimal gate ``[batch]`` within the budget of the batch over all devices."""
        logits = jax.lax.stop_gradient(student.logits)
        terms = self.disk.closed_form_terms(logits, teacher.logits, labels)
        whole, all_weight = terms, weight
        if axis_name is not None:
            whole, all_weight = jax.lax.all_gather((terms, weight), axis_name, tiled=True)
        return gate_at(water_price(*whole, allowed, all_weight), *terms)


def disk_loss(
    fields: Mapping[str, Any] | None, gate: Mapping[str, Any] | None, num_classes: int
) -> DiskLoss | None:
    """Returns the loss of a config's fields ``disk`` and ``gate``, or None without ``disk``."""
    if fields is None:
        if gate is not None:
            raise ConfigError("a gate helps only the loss of DiSK; give the fields of disk too")
        return None
    return DiskLoss(fields, gate or {"name": "auto"}, num_classes)
