"""Training of base, router and expert in turns.

Kag et al., "Efficient Edge Inference by Selective Query", ICLR 2023. The order and the numbers of
steps are not public; here they are fields. With the expert's at 0 it stays as it is, as in the
authors' code. Base and expert see the same changed images, so that the proxy labels compare their
answers to one question.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.errors import ConfigError
from jaxeff.hybrid import proxy
from jaxeff.hybrid.route import by_priority
from jaxeff.models.base import apply_with_features, call_options
from jaxeff.models.hybrid import PARTS, HybridNetwork, part
from jaxeff.registry import closest
from jaxeff.train import optim
from jaxeff.train.algorithms.base import ALGORITHMS, Algorithm
from jaxeff.train.algorithms.device_share import divisor, step_key
from jaxeff.train.algorithms.folds import held_out
from jaxeff.train.exchange import mean_over_devices
from jaxeff.train.objectives import weighted_means
from jaxeff.train.state import TrainState
from jaxeff.typing import Array, Batch, Carry, Params, PRNGKey

TARGETS = ("query", "difference")
#: In the order of a cycle.
PHASES = ("router", "base", "expert")


@ALGORITHMS.register("hybrid")
class Hybrid(Algorithm):
    """Trains the parts of a `HybridNetwork`, one at a time, each in steps of its own.

    The router learns proxy labels from what base and expert answer; base and expert learn with
    weights 2 - r and 1 + r, where r is the router's probability of a query, a constant for their
    gradients. Evaluation queries exactly the network's share of every batch, those of highest
    score, so that accuracies are compared at one coverage.

    Args:
      *shared: model, objective, optimizer and task, see `Algorithm`. The objective
        is that of base and expert; the optimiser has a state for every part.
      trained: ``base`` and ``expert`` to start from; what is missing starts at random.
      phases: steps of each part in a cycle, ``router``, ``base``, ``expert``; 0 freezes it.
      rates: factors of the learning rate by part.
      target: "query", the proxy label, or "difference", a regression of what a query gains.
      penalty_weight: of the coverage penalty.
      penalty: its form, see `jaxeff.hybrid.proxy.coverage_penalty`.
      router_folds: where above 0, the router learns from every so many-th example alone, and base
        and expert from the others: on examples that they have learned, the base is nearly always
        right. What they are trained from must leave the fold out too (`BPTTWithoutFold`).
      **options: of `Algorithm`.

    Raises:
      ConfigError: another model, or a field with an impossible value.
    """

    def __init__(
        self,
        *shared: Any,
        trained: Mapping[str, Any] | None = None,
        phases: Mapping[str, int] | None = None,
        rates: Mapping[str, float] | None = None,
        target: str = "query",
        penalty_weight: float = 0.0,
        penalty: str = "corrected",
        router_folds: int = 0,
        **options: Any,
    ):
        super().__init__(*shared, **options)
        if not isinstance(self.model, HybridNetwork):
            raise ConfigError("algorithm 'hybrid' needs config.model.name='hybrid'")
        if target not in TARGETS:
            raise ConfigError(f"target must be one of {', '.join(TARGETS)}, not {target!r}")
        if penalty not in proxy.PENALTIES:
            raise ConfigError(
                f"penalty must be one of {', '.join(proxy.PENALTIES)}, not {penalty!r}"
            )
        if router_folds < 0 or router_folds == 1 or penalty_weight < 0:
            raise ConfigError("router_folds must be 0 or above 1, and penalty_weight not negative")
        self.phases = {"router": 1, "base": 0, "expert": 0, **(phases or {})}
        self.rates = dict.fromkeys(PARTS, 1.0) | dict(rates or {})
        self.trained = dict(trained or {})
        named: dict[str, Mapping[str, Any]] = {
            "phases": self.phases,
            "rates": self.rates,
            "prerequisites": self.trained,
        }
        for field, names in named.items():
            known = [n for n in PARTS if field != "prerequisites" or n != "router"]
            for name in names:
                if name not in known:
                    raise ConfigError(f"{field} has no part '{name}'{closest(name, known)}")
        if min(self.phases.values()) < 0 or not sum(self.phases.values()):
            raise ConfigError(f"phases must be numbers of steps, not {self.phases}")
        self.target, self.penalty, self.penalty_weight = target, penalty, penalty_weight
        self.router_folds, self.needs_index = router_folds, bool(router_folds)

    def unseen_rows(self, count: int) -> np.ndarray:
        """Returns the router's fold; see `Algorithm.unseen_rows`."""
        numbers = np.arange(count)
        return numbers[held_out(numbers, self.router_folds)] if self.router_folds else numbers[:0]

    @property
    def active(self) -> list[str]:
        """The parts that are trained, in the order of a cycle."""
        return [name for name in PHASES if self.phases[name]]

    def init_optimizer(self, params: Params) -> Any:
        """Returns the optimiser's state of each trained part."""
        return {name: self.optimizer.init(params[name]) for name in self.active}

    def init_state(self, key: PRNGKey, example: Array) -> TrainState:
        """Returns the first state, which takes over what was trained before."""
        state = super().init_state(key, example)
        params, model_state = dict(state.params), {**state.model_state}
        for name, trained in self.trained.items():
            initial = part({"params": params, **model_state}, name)
            taken = {kind: tree for kind, tree in trained.variables.items() if tree}
            if jax.tree.map(jnp.shape, initial) != jax.tree.map(jnp.shape, taken):
                raise ConfigError(
                    f"config.prerequisites.{name} trains another network than config.model.{name}"
                )
            params[name] = jax.tree.map(jnp.asarray, taken.pop("params"))
            for kind, tree in taken.items():
                model_state[kind] = {**model_state[kind], name: jax.tree.map(jnp.asarray, tree)}
        return state.replace(
            params=params,
            model_state=model_state,
            opt_state=self.init_optimizer(params),
            algo_state={**self.init(params), **self._init_average(model_state)},
        )

    def seen(self, variables: Any, batch: Batch, **options: Any) -> tuple[Array, Any, Any]:
        """Returns the base's logits, what the router sees of them, and the changed collections."""
        network: Any = self.model
        logits, features, changed = apply_with_features(
            network.base, part(variables, "base"), batch["inputs"], **_mask(batch), **options
        )
        # Neither the router's loss nor the weights that it gives move the base.
        return logits, jax.lax.stop_gradient((logits, features["penultimate"])), changed

    def scored(self, variables: Any, batch: Batch, **options: Any) -> tuple[Array, Array, Any]:
        """Returns the base's logits, the router's scores, and the base's changed collections."""
        network: Any = self.model
        logits, seen, changed = self.seen(variables, batch, **options)
        return logits, network.router.apply(part(variables, "router"), *seen), changed

    def expert_logits(self, variables: Any, batch: Batch) -> Array:
        """Returns the expert's logits in evaluation."""
        variables, network = part(variables, "expert"), self.model
        options = call_options(network.expert, train=False, **_mask(batch))
        logits: Array = network.expert.apply(variables, batch["inputs"], **options)
        return logits

    def probability(self, scores: Array) -> Array:
        """Returns how much scores speak for a query, in [0, 1]."""
        return jax.nn.sigmoid(scores) if self.target == "query" else jnp.clip(scores, 0, 1)

    def loss_of_router(self, variables: Any, batch: Batch, key: PRNGKey) -> tuple[Any, Any, Array]:
        """Returns the losses and hits ``[batch]`` of the router, its collections, and r."""
        del key  # a router draws nothing
        network: Any = self.model
        logits, seen, _ = self.seen(variables, batch)
        router = part(variables, "router")
        mutable = [kind for kind in router if kind != "params"]
        scores, changed = network.router.apply(router, *seen, train=True, mutable=mutable)
        labels = batch["labels"]
        right = (
            proxy.correct(logits, labels),
            proxy.correct(self.expert_logits(variables, batch), labels),
        )
        queried = proxy.query_target(*right)
        if self.target == "query":
            losses = proxy.router_losses(scores, queried)
        else:
            losses = proxy.difference_losses(scores, proxy.difference_target(*right))
        if self.penalty_weight:
            coverage = network.coverage
            excess = proxy.coverage_penalty(scores, coverage, form=self.penalty)
            losses += self.penalty_weight * excess
        query_share = self.probability(scores)
        hits = ((query_share > 0.5) == queried).astype(jnp.float32)
        return {"loss": losses, "accuracy": hits}, changed, query_share

    def loss_of_base(self, variables: Any, batch: Batch, key: PRNGKey) -> tuple[Any, Any, Array]:
        """Returns the weighted losses and the hits of the base, its collections, and r."""
        mutable = [kind for kind in part(variables, "base") if kind != "params"]
        options: Any = {"train": True, "mutable": mutable, "rngs": {"dropout": key}}
        logits, scores, changed = self.scored(variables, batch, **options)
        query_share = self.probability(scores)
        values = dict(self.objective(logits, batch))
        return (
            {**values, "loss": proxy.base_weights(query_share) * values["loss"]},
            changed,
            query_share,
        )

    def loss_of_expert(self, variables: Any, batch: Batch, key: PRNGKey) -> tuple[Any, Any, Array]:
        """Returns the weighted losses and the hits of the expert, its collections, and r."""
        query_share = self.probability(self.scored(variables, batch)[1])
        expert, network = part(variables, "expert"), self.model
        mutable = [kind for kind in expert if kind != "params"]
        rngs: Any = {"dropout": key}
        options: Any = call_options(network.expert, train=True, **_mask(batch))
        logits, changed = network.expert.apply(
            expert, batch["inputs"], mutable=mutable, rngs=rngs, **options
        )
        values = dict(self.objective(logits, batch))
        return (
            {**values, "loss": proxy.expert_weights(query_share) * values["loss"]},
            changed,
            query_share,
        )

    def part_loss(
        self,
        part_params: Params,
        name: str,
        variables: Any,
        batch: Batch,
        key: PRNGKey,
        axis_name: str | None = None,
    ) -> tuple[Array, tuple[dict[str, Array], Any, Array]]:
        """Returns the loss of a part as a function of its own parameters.

        Beside it the metrics ``[batch]``, the part's changed collections, and the weights used.
        """
        whole = {**variables, "params": {**variables["params"], name: part_params}}
        values, changed, query_share = getattr(self, f"loss_of_{name}")(whole, batch, key)
        weight = batch["weight"]
        if self.router_folds:
            held = held_out(batch["index"], self.router_folds)
            weight = weight * (held if name == "router" else ~held)
        total = divisor(weight, axis_name)
        loss = jnp.sum(values["loss"] * weight) / total
        metrics = {name: values[name] for name in ("loss", "accuracy")} | {"queries": query_share}
        return loss, (metrics, changed, weight)

    def update(
        self, state: TrainState, batch: Batch, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """Makes one step of the part whose turn it is; see `Algorithm.update`."""
        variables = {"params": state.params, **state.model_state}
        key = step_key(state, axis_name)
        lengths = [self.phases[name] for name in self.active]
        position = state.step % sum(lengths)
        turn = jnp.sum(position >= jnp.asarray(np.cumsum(lengths)))

        def step_of(name: str) -> Any:
            def step(state: TrainState) -> tuple[TrainState, dict[str, Array]]:
                (_, (values, changed, weight)), grads = jax.value_and_grad(
                    self.part_loss, has_aux=True
                )(state.params[name], name, variables, batch, key, axis_name)
                grads, changed = mean_over_devices((grads, changed), axis_name)
                # The schedule counts the steps of the run, also those of the other parts.
                opt_state = optim.at_step(state.opt_state[name], state.step)
                optimizer = optim.scaled(self.optimizer, self.rates[name])
                params, opt_state = optim.descend(optimizer, grads, opt_state, state.params[name])
                model_state = {
                    kind: {**tree, name: changed[kind]} if kind in changed else tree
                    for kind, tree in state.model_state.items()
                }
                new = state.replace(
                    params={**state.params, name: params},
                    opt_state={**state.opt_state, name: opt_state},
                    model_state=model_state,
                )
                return new, weighted_means(values, weight, axis_name)

            return step

        branches = [step_of(name) for name in self.active]
        new, metrics = jax.lax.switch(turn, branches, state)
        averages = self.averaged(new.algo_state, new.params, new.model_state)
        return new.replace(step=state.step + 1, algo_state=averages), metrics

    def evaluate_window(
        self,
        params: Params,
        model_state: Any,
        carry: Carry,
        batch: Batch,
        axis_name: str | None = None,
    ) -> tuple[dict[str, Array], Carry]:
        """Evaluates a batch at the network's coverage; see `Algorithm.evaluate_window`."""
        variables = {"params": params, **model_state}
        logits, scores, _ = self.scored(variables, batch)
        expert = self.expert_logits(variables, batch)
        queried = self.queried(scores, batch["weight"], axis_name)
        outputs = jnp.where(queried[:, None], expert.astype(logits.dtype), logits)
        values = dict(self.objective(outputs, batch))
        labels = batch["labels"]
        for name, shown in (("base", logits), ("expert", expert)):
            values[f"{name}_accuracy"] = proxy.correct(shown, labels).astype(jnp.float32)
        values["coverage"] = 1 - queried.astype(jnp.float32)
        sums = {name: jnp.sum(value * batch["weight"]) for name, value in values.items()}
        sums["weight"] = jnp.sum(batch["weight"])
        return (jax.lax.psum(sums, axis_name) if axis_name else sums), carry

    def queried(self, scores: Array, weight: Array, axis_name: str | None = None) -> Array:
        """Returns which of this device's examples are among the batch's queries, ``[batch]``."""
        count, network = len(scores), self.model
        first: Any = 0
        if axis_name is not None:
            scores, weight = jax.lax.all_gather((scores, weight), axis_name, tiled=True)
            first = jax.lax.axis_index(axis_name) * count
        order = by_priority(scores, weight > 0)
        real = jnp.sum(weight > 0).astype(jnp.float32)
        kept = jnp.floor(network.coverage * real + 1e-3)
        chosen = jnp.zeros(len(scores), bool).at[order].set(jnp.arange(len(scores)) < real - kept)
        return jax.lax.dynamic_slice_in_dim(chosen, first, count)


def _mask(batch: Batch) -> dict[str, Any]:
    return {"mask": batch["mask"]} if "mask" in batch else {}
