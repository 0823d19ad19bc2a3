"""Forward propagation through time (FPTT), and truncated back-propagation as its baseline.

References:
  Kag, Saligrama, "Training Recurrent Neural Networks via Forward Propagation Through Time",
  ICML 2021; in detail the authors' code, and Zhang's reproduction of it for terminal losses.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxeff.errors import ConfigError
from jaxeff.registry import closest
from jaxeff.train import optim
from jaxeff.train.algorithms.base import ALGORITHMS, Optimizer, Task
from jaxeff.train.algorithms.partwise import PartwiseAlgorithm
from jaxeff.train.fptt_optimizer import DynamicState, dynamic_regularizer, restart
from jaxeff.train.objectives import Objective
from jaxeff.train.state import TrainState
from jaxeff.typing import Array, Batch, Params

AUXILIARIES = ("oracle", "uniform", "none")
REDUCTIONS = ("mean_all", "sum_classes")
RESETS = ("epoch", "epoch_weights", "sequence", "none")


@ALGORITHMS.register("tbptt")
class TruncatedBPTT(PartwiseAlgorithm):
    """Truncated back-propagation through time: one update per part.

    With one label per sequence, the loss at the end of every part uses that label with equal
    weights. It makes as many updates as `FPTT` with the same ``parts`` and is the baseline for the
    effect of the regulariser and the auxiliary loss.
    """


@ALGORITHMS.register("fptt")
class FPTT(PartwiseAlgorithm):
    """Forward propagation through time with local objectives.

    Each part's local loss is the task's loss plus the dynamic regulariser, see
    `jaxeff.train.fptt_optimizer`. With a label at every step the task's loss is that of the part's
    steps. With one label per sequence it is, at the end of part p of P (from 1), with w = p / P,

        w * loss(label) + (1 - w) * cross_entropy(Q, prediction),

    where the auxiliary target Q is a distribution over the classes, and the label itself from part
    ``parts`` on. Where examples differ in length, P counts the parts of the example.

    Args:
      model: see `Algorithm`.
      objective: the task's objective.
      optimizer: the optimiser of the local objectives; its state runs through all updates.
      task: facts of the data.
      parts: updates per sequence, see `PartwiseAlgorithm`; the paper recommends about sqrt(T).
      alpha: strength of the regulariser; 0 is online training without it.
      beta: rate of the running weights.
      quadratic: factor of the regulariser's quadratic.
      form: "feddyn" (the authors' code) or "printed" (the paper's square).
      multiplier: "running" or "gradient", see `dynamic_regularizer`.
      reset: what happens to the running weights and the multipliers. "epoch": at the end of an
        epoch the parameters become the running weights and the multipliers vanish;
        "epoch_weights": the same, but the multipliers stay (the authors' language models);
        "sequence": both are reset with every batch; "none": no reset.
      auxiliary: Q of labels that come once per sequence: "oracle" is the average prediction in the
        epoch before for examples of that class at that part, "uniform" is 1 / classes, "none"
        leaves the second term out.
      auxiliary_reduction: "mean_all" divides the auxiliary term by the number of classes, as the
        authors' code does; "sum_classes" is the cross entropy as printed.
      uniform_epochs: epochs before the oracle's estimate replaces the uniform distribution.
      **options: of `Algorithm`; there are the weights "running" too.

    Raises:
      ConfigError: a field has an impossible value or does not fit the task.
    """

    weights = ("running", "live", "average")

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        task: Task | None = None,
        *,
        parts: int = 10,
        alpha: float = 0.1,
        beta: float = 0.5,
        quadratic: float = 1.0,
        form: str = "feddyn",
        multiplier: str = "running",
        reset: str = "epoch",
        auxiliary: str = "none",
        auxiliary_reduction: str = "mean_all",
        uniform_epochs: int = 1,
        **options: Any,
    ):
        super().__init__(model, objective, optimizer, task, parts=parts, **options)
        for name, value, known in (
            ("reset", reset, RESETS),
            ("auxiliary", auxiliary, AUXILIARIES),
            ("auxiliary_reduction", auxiliary_reduction, REDUCTIONS),
        ):
            if value not in known:
                raise ConfigError(f"{name}: unknown choice {value!r}{closest(value, list(known))}")
        if auxiliary != "none" and self.task.kind != "classification":
            raise ConfigError(
                f"auxiliary='{auxiliary}' needs one class label per sequence, but the task is "
                f"{self.task.kind}; set config.algorithm.auxiliary='none'"
            )
        by_epoch = reset.startswith("epoch") or auxiliary == "oracle"
        if task is not None and by_epoch and not task.steps_per_epoch:
            raise ConfigError("reset='epoch' and auxiliary='oracle' need task.steps_per_epoch")
        if uniform_epochs < 1:
            raise ConfigError(f"uniform_epochs must be at least 1, not {uniform_epochs}")
        self.options: dict[str, Any] = {
            "alpha": alpha,
            "beta": beta,
            "quadratic": quadratic,
            "form": form,
            "multiplier": multiplier,
        }
        dynamic_regularizer(optax.identity(), **self.options)  # checks the options early
        self.reset, self.auxiliary, self.reduction = reset, auxiliary, auxiliary_reduction
        self.uniform_epochs = uniform_epochs

    @property
    def regularized(self) -> optax.GradientTransformationExtraArgs:
        """The optimiser with the dynamic regulariser around it."""
        return dynamic_regularizer(self.optimizer, **self.options)

    def init_optimizer(self, params: Params) -> DynamicState:
        """Returns the optimiser's state with running weights and multipliers."""
        state: DynamicState = self.regularized.init(params)
        return state

    def init(self, params: Params) -> dict[str, Any]:
        """Returns the state of the oracle: its targets, and the sums for the next targets."""
        state = super().init(params)
        if self.auxiliary == "oracle":
            classes, count = self.task.num_classes, self.updates_per_batch
            state["targets"] = jnp.full((count, classes, classes), 1 / classes)
            state["sums"] = jnp.zeros((count, classes, classes))
        return state

    def all_weights(self, state: TrainState) -> dict[str, Params]:
        """Returns the running and the live weights, and the average ones if there are any."""
        return {"running": state.opt_state.running, **super().all_weights(state)}

    def descend(self, grads: Any, opt_state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        """Returns parameters and optimiser state after an update with the regulariser."""
        return optim.descend(self.regularized, grads, opt_state, params, **extra)

    def local_objective(
        self, outputs: Array, batch: Batch, algo_state: Any, number: Array | int, count: int
    ) -> tuple[dict[str, Array], Array]:
        """Returns the metrics and the local loss; see the class."""
        values = self.objective(outputs, batch)
        if self.per_step:
            return values, values["loss"]
        parts = batch.get("parts", count)
        share = jnp.minimum((number + 1) / parts, 1.0)
        loss = share * values["loss"]
        if self.auxiliary == "none":
            return values, loss
        logits = outputs.astype(jnp.float32) if outputs.dtype == jnp.bfloat16 else outputs
        target = self._target(batch["labels"], algo_state, number, logits.dtype)
        terms = -target * jax.nn.log_softmax(logits)
        reduce = jnp.mean if self.reduction == "mean_all" else jnp.sum
        return values, loss + (1 - share) * reduce(terms, axis=-1)

    def _target(self, labels: Array, algo_state: Any, number: Array | int, dtype: Any) -> Array:
        """Returns the auxiliary target ``[batch, classes]`` of a part."""
        classes = self.task.num_classes
        if self.auxiliary == "oracle":
            estimate = algo_state["targets"][number][labels].astype(dtype)
        else:
            estimate = jnp.full((*labels.shape, classes), 1 / classes, dtype)
        late = jnp.asarray(number) >= self.parts - 1
        return jnp.where(late, jax.nn.one_hot(labels, classes, dtype=dtype), estimate)

    def observe(
        self, outputs: Array, batch: Batch, number: Array | int, axis_name: str | None
    ) -> Any:
        """Returns the sum of the predictions of each class ``[classes, classes]``."""
        if self.auxiliary != "oracle":
            return ()
        of_class = jax.nn.one_hot(batch["labels"], self.task.num_classes) * batch["weight"][:, None]
        return of_class.T @ jax.nn.softmax(outputs.astype(jnp.float32))

    def absorb(self, algo_state: Any, observed: Any, axis_name: str | None) -> Any:
        """Adds the predictions of a batch to the sums for the next targets."""
        if self.auxiliary != "oracle":
            return algo_state
        if axis_name is not None:
            observed = jax.lax.psum(observed, axis_name)
        return {**algo_state, "sums": algo_state["sums"] + observed}

    def end_batch(self, state: TrainState) -> TrainState:
        """Restarts the running weights and the multipliers, and renews the oracle, when due."""
        if self.reset == "sequence":
            new = restart(state.opt_state, state.params)
            return state.replace(opt_state=new)
        period = self.task.steps_per_epoch
        if not period:
            return state
        done = state.step % period == 0
        new_state: TrainState = jax.lax.cond(done, self._end_epoch, lambda s: s, state)
        return new_state

    def _end_epoch(self, state: TrainState) -> TrainState:
        changes: dict[str, Any] = {}
        if self.reset in ("epoch", "epoch_weights"):
            running = state.opt_state.running
            changes["params"] = running
            if self.reset == "epoch":
                changes["opt_state"] = restart(state.opt_state, running)
        if self.auxiliary == "oracle":
            changes["algo_state"] = self._renewed(state)
        return state.replace(**changes)

    def _renewed(self, state: TrainState) -> dict[str, Any]:
        """Returns the oracle with the epoch's average predictions as targets."""
        sums = state.algo_state["sums"]
        # Every prediction sums to one, so the total over predicted classes counts the examples.
        counts = sums.sum(-1, keepdims=True)
        estimate = jnp.where(counts > 0, sums / jnp.maximum(counts, 1), 1 / sums.shape[-1])
        warm = state.step >= self.uniform_epochs * self.task.steps_per_epoch
        targets = jnp.where(warm, estimate, state.algo_state["targets"])
        return {**state.algo_state, "targets": targets, "sums": jnp.zeros_like(sums)}
