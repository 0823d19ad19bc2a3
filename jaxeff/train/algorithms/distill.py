"""Distillation: a student learns from labels and from a frozen teacher, with an optional gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from jaxeff.distill import LOSSES, Seen
from jaxeff.errors import ConfigError
from jaxeff.models.trained import Trained
from jaxeff.train import optim
from jaxeff.train.algorithms.base import ALGORITHMS, Algorithm
from jaxeff.train.algorithms.device_share import divisor, step_key
from jaxeff.train.algorithms.disk_gate import disk_loss
from jaxeff.train.algorithms.teacher import Teacher, see
from jaxeff.train.exchange import mean_over_devices
from jaxeff.train.objectives import weighted_means
from jaxeff.train.state import TrainState
from jaxeff.typing import Array, Batch, PRNGKey


@ALGORITHMS.register("distill")
class Distillation(Algorithm):
    """A weighted sum of the objective, of distillation losses, and of a selective one (DiSK).

    The teacher is the prerequisite "teacher"; an optional prerequisite "student", of the same
    model, initialises the student. Only the student is evaluated and kept: the teacher, the gate
    and the feature adapters are training state. SimKD's projector is part of its student, the model
    "projected".

    By default student and gate learn from every batch. With ``gate_epochs`` they take turns, each
    frozen while the other learns, as DiSK's authors do: ``gate_init_epochs`` of the gate, then
    rounds of ``student_epochs`` and ``gate_epochs``. The learning rate is that of the run's step
    for both.

    Args:
      *shared: model, objective, optimizer and task, see `Algorithm`. The objective
        is that on the labels; the optimiser is that of the student and, with a state of its own,
        of the gate.
      trained: the prerequisites, by name.
      label_weight: weight of the objective.
      losses: fields of distillation losses by their names in `jaxeff.distill.LOSSES`, each with its
        ``weight`` (default 1).
      disk: fields of `jaxeff.distill.Disk` to change, the name ``variant`` in
        `jaxeff.distill.VARIANTS`, and ``weight`` (default 1); None distils without a gate.
      gate: a name in `jaxeff.layers.gates.GATES` with its fields, or "closed_form", which
        computes the best gate of each batch.
      student_epochs: epochs of the student in a round, the unit of DiSK's schedules.
      gate_epochs: epochs of the gate in a round; 0 lets both learn at once.
      gate_init_epochs: epochs of the gate alone before the first round.
      inherit: whether the student starts with the teacher's parameters of the same names, for a
        student that is a part of its teacher.
      keep_classifier: whether the student uses the teacher's last linear layer, frozen (SimKD).
      cache: whether the teacher's logits are cached, see `Teacher`.
      **options: of `Algorithm`.

    Raises:
      ConfigError: fields that do not fit together, or no teacher.
    """

    def __init__(
        self,
        *shared: Any,
        trained: Mapping[str, Trained] | None = None,
        label_weight: float = 1.0,
        losses: Mapping[str, Mapping[str, Any]] | None = None,
        disk: Mapping[str, Any] | None = None,
        gate: Mapping[str, Any] | None = None,
        student_epochs: int = 1,
        gate_epochs: int = 0,
        gate_init_epochs: int = 0,
        inherit: bool = False,
        keep_classifier: bool = False,
        cache: bool = False,
        **options: Any,
    ):
        super().__init__(*shared, **options)
        if self.task.kind != "classification":
            raise ConfigError(f"distillation is for classifiers, not for {self.task.kind} data")
        self.label_weight = label_weight
        self.losses, self.loss_weights = _losses(losses or {})
        self.disk_loss = disk_loss(disk, gate, self.task.num_classes)
        self.learns_gate = self.disk_loss is not None and self.disk_loss.gate is not None
        self.student_epochs, self.gate_epochs = student_epochs, gate_epochs
        self.gate_init_epochs = gate_init_epochs
        if student_epochs < 1 or min(gate_epochs, gate_init_epochs) < 0:
            raise ConfigError("student_epochs must be positive, and no number of epochs negative")
        if (gate_epochs or gate_init_epochs) and not self.learns_gate:
            raise ConfigError("gate_epochs and gate_init_epochs need disk and a gate that learns")
        trained = trained or {}
        if "teacher" not in trained:
            raise ConfigError(
                "distillation needs a teacher; give the config of its training as "
                "config.prerequisites.teacher"
            )
        self.start = trained["student"].variables if "student" in trained else None
        self.teacher = Teacher(trained["teacher"], self.task, cache)
        if inherit and self.start is not None:
            raise ConfigError(
                "inherit=True and config.prerequisites.student both initialise the student; use one"
            )
        self.inherit, self.keep_classifier, self.needs_index = inherit, keep_classifier, cache

    def init_state(self, key: PRNGKey, example: Array) -> TrainState:
        """See `Algorithm.init_state`; the optimiser's state is that of student and adapters."""
        state = super().init_state(key, example)
        params, model_state = state.params, state.model_state
        if self.start is not None:
            model_state = dict(self.start)
            _check_same({"params": params, **state.model_state}, model_state)
            params = model_state.pop("params")
        if self.inherit:
            params = _inherited(params, self.teacher.variables["params"])
        if self.keep_classifier:
            params = self.teacher.give_classifier(params, example)
        teacher = self.teacher.seen(example)
        student = see(self.model, {"params": params, **model_state}, {"inputs": example})[1]
        keys = jax.random.split(jax.random.fold_in(key, 1), len(self.losses) + 1)
        labels = jnp.zeros(len(example), jnp.int32)
        adapters = {}
        for own_key, (name, loss) in zip(keys[1:], self.losses.items(), strict=True):
            variables: Any = loss.init(own_key, student, teacher, labels)
            adapters[name] = variables.get("params", {})
        algo_state = {"adapters": adapters, "teacher": self.teacher.init()}
        if self.disk_loss is not None:
            algo_state["helper"] = self.disk_loss.init(keys[0], teacher)
            gate_params = algo_state["helper"]["gate"]["params"]
            algo_state["gate_opt_state"] = self.optimizer.init(gate_params)
        return state.replace(
            params=params,
            model_state=model_state,
            opt_state=self.optimizer.init((params, adapters)),
            algo_state={**self.init(params), **self._init_average(model_state), **algo_state},
        )

    def update(
        self, state: TrainState, batch: Batch, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """Makes one step of the student, of the gate, or of both; see `Algorithm.update`."""
        teacher, kept = self.teacher(state.algo_state["teacher"], batch, axis_name)
        algo_state = {**state.algo_state, "teacher": kept}
        state = state.replace(algo_state=algo_state)

        def learn(
            student: bool, gate: bool
        ) -> Callable[[TrainState], tuple[TrainState, dict[str, Array]]]:
            return lambda state: self._step(state, batch, teacher, axis_name, student, gate)

        students_turn = learn(True, self.learns_gate and not self.gate_epochs)
        if not (self.gate_epochs or self.gate_init_epochs):
            return students_turn(state)
        gates_turn = learn(False, True)
        turn = self._is_gates_turn(state.step)
        new, metrics = jax.lax.cond(turn, gates_turn, students_turn, state)
        return new, metrics

    def _rounds(self, step: Array) -> tuple[Array, Array]:
        """Returns the number of the round, negative before the first, and the epoch in it."""
        epoch = step // max(self.task.steps_per_epoch, 1) - self.gate_init_epochs
        return jnp.divmod(epoch, self.student_epochs + self.gate_epochs)

    def _is_gates_turn(self, step: Array) -> Array:
        number, epoch = self._rounds(step)
        return (number < 0) | (epoch >= self.student_epochs)

    def _step(
        self,
        state: TrainState,
        batch: Batch,
        teacher: Seen,
        axis_name: str | None,
        trains_student: bool,
        trains_gate: bool,
    ) -> tuple[TrainState, dict[str, Array]]:
        """Makes a step of the student, the gate, or both; a frozen one runs in evaluation mode.

        Both use the learning rate of the run's step, because alternating parts make fewer updates
        than the run has steps.
        """
        algo_state, weight, labels = dict(state.algo_state), batch["weight"], batch["labels"]
        total, key = divisor(weight, axis_name), step_key(state, axis_name)
        disk_state = algo_state.get("helper", {"gate": {"params": {}}})

        def loss_fn(student_params: Any, gate_params: Any) -> tuple[Array, Any]:
            params, adapters = student_params
            variables = {"params": params, **state.model_state}
            outputs, student, collected = see(
                self.model, variables, batch, train=trains_student, key=key
            )
            values: dict[str, Any] = dict(self.objective(outputs, batch))
            loss = self.label_weight * jnp.sum(values["loss"] * weight) / total
            for name, distil in self.losses.items():
                values[name] = distil.apply({"params": adapters[name]}, student, teacher, labels)
                loss += self.loss_weights[name] * jnp.sum(values[name] * weight) / total
            new_disk_state: Any = {}
            if self.disk_loss is not None:
                number = jnp.maximum(self._rounds(state.step)[0], 0)
                seen = student, teacher, labels, weight
                term, more, new_disk_state = self.disk_loss(
                    gate_params, disk_state, *seen, number, axis_name, trains_gate
                )
                loss, values = loss + term, values | more
            return loss, (values, collected, new_disk_state)

        learners = (state.params, algo_state["adapters"]), disk_state["gate"]["params"]
        who = tuple(n for n, trained in enumerate((trains_student, trains_gate)) if trained)
        grad_fn = jax.value_and_grad(loss_fn, argnums=who, has_aux=True)
        (_, (values, *changed)), grads = grad_fn(*learners)
        grads, changed = mean_over_devices((grads, changed), axis_name)
        collected, new_disk_state = changed
        new: dict[str, Any] = {}
        if trains_student:
            opt_state = optim.at_step(state.opt_state, state.step)
            (params, adapters), opt_state = self.descend(grads[0], opt_state, learners[0])
            if self.keep_classifier:
                params = self.teacher.keep_classifier(params, state.params)
            new = {"params": params, "opt_state": opt_state, "model_state": collected}
            algo_state = self.averaged({**algo_state, "adapters": adapters}, params, collected)
        if trains_gate:
            opt_state = optim.at_step(algo_state["gate_opt_state"], state.step)
            params, algo_state["gate_opt_state"] = self.descend(grads[-1], opt_state, learners[1])
            algo_state["helper"] = {
                **new_disk_state,
                "gate": {**new_disk_state["gate"], "params": params},
            }
        new |= {"step": state.step + 1, "algo_state": algo_state}
        return state.replace(**new), weighted_means(values, weight, axis_name)


def _losses(
    specs: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """Returns the losses and their weights, by name."""
    losses, weights = {}, {}
    for name, spec in specs.items():
        fields = {"name": name, **spec}
        weights[name] = fields.pop("weight", 1.0)
        losses[name] = LOSSES.build(fields, "algorithm.losses")
    return losses, weights


def _inherited(params: Any, teacher: Any) -> Any:
    """Returns a student's parameters, overwritten by the teacher's of the same names.

    Raises:
      ConfigError: a shape differs, or no name matches.
    """
    student, source = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (params, teacher))
    shared = {name: source[name] for name in student if name in source}
    misfits = [name for name, value in shared.items() if value.shape != student[name].shape]
    if misfits or not shared:
        what = f"{misfits[0]} has another shape" if misfits else "none of its names are the same"
        raise ConfigError(
            f"inherit: the student's parameters are not a subset of the teacher's ({what})"
        )
    return flax.traverse_util.unflatten_dict({**student, **shared}, sep="/")


def _check_same(expected: Any, trained: Any) -> None:
    """Raises `ConfigError` if trained variables are not those of the student."""
    expected, trained = (jax.tree.map(jnp.shape, dict(tree)) for tree in (expected, trained))
    if expected != trained:
        raise ConfigError(
            "config.prerequisites.student has other parameters than config.model; give both the "
            "same model"
        )
