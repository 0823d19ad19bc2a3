"""What ``config.search`` may name: strategies with their requirement and budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxeff import data
from jaxeff.arguments import require, require_whole
from jaxeff.errors import ConfigError
from jaxeff.models.encoder_space import EncoderSpace
from jaxeff.models.trained import Trained
from jaxeff.registry import Registry
from jaxeff.search import relaxed, retention, strategies
from jaxeff.search.choice import Requirement
from jaxeff.search.deployed import Deployed
from jaxeff.search.latency import LatencyTable
from jaxeff.search.measure import Programs
from jaxeff.search.strategies import Evaluations
from jaxeff.typing import Array, PRNGKey

SEARCHES = Registry("search")


@dataclasses.dataclass(frozen=True)
class SearchContext:
    """What a search may use beside scores and costs.

    Attributes:
      supernet: the trained supernet.
      table: predicts latencies.
      split: training examples.
      full_ms: latency of the full network.
    """

    supernet: Trained
    table: LatencyTable
    split: data.Split
    full_ms: float


@dataclasses.dataclass(frozen=True)
class SearchStrategy:
    """What every search has.

    Attributes:
      budget: plans evaluated.
      examples: of the validation split, on which to evaluate; 0 takes all.
      batch: sequences in a call, for the latency.
      max_latency_ms: requirement on a call, the median of many; 0 asks for nothing.
      min_accuracy: requirement on the accuracy on those examples; 0 asks for nothing.
      max_latency_share: of the full network's latency, where neither of them is asked for.
      rounds: turns of the measurement of latencies.
      length: tokens of a sequence, for the latency; 0 takes the data's.
      runtime: an export format, in whose files latencies are measured; "" is JAX.
      precision: of these files.
      threads: of the format's runtime.
    """

    budget: int = 60
    examples: int = 1000
    batch: int = 1
    max_latency_ms: float = 0.0
    min_accuracy: float = 0.0
    max_latency_share: float = 0.6
    rounds: int = 12
    length: int = 0
    runtime: str = ""
    precision: str = "float32"
    threads: int = 1

    def __post_init__(self) -> None:
        for field in ("budget", "batch", "rounds", "threads"):
            require_whole(field, getattr(self, field), 1)
        require_whole("length", self.length, 0)
        require_whole("examples", self.examples, 0)
        require("max_latency_ms", self.max_latency_ms, "[0, inf)")
        require("min_accuracy", self.min_accuracy, "[0, 1]")
        require("max_latency_share", self.max_latency_share, "(0, 1]")
        self.requirement(1.0)

    def requirement(self, full_ms: float) -> Requirement:
        """Returns what is asked for, given the full network's time of a call."""
        if self.max_latency_ms or self.min_accuracy:
            return Requirement(self.max_latency_ms, self.min_accuracy)
        return Requirement(self.max_latency_share * full_ms)

    def programs(self) -> Programs:
        """Returns what latencies are measured of.

        Raises:
          UserError: the runtime is unknown or not installed, or lacks the precision.
        """
        if not self.runtime:
            return Programs()
        return Deployed(self.runtime, self.precision, self.threads)

    def explore(
        self, evaluations: Evaluations, rng: np.random.Generator, known: SearchContext
    ) -> None:
        """Spends the budget."""
        raise NotImplementedError


@SEARCHES.register("evolution")
@dataclasses.dataclass(frozen=True)
class Evolution(SearchStrategy):
    """See `jaxeff.search.strategies.evolution`, as for the attributes.

    Attributes:
      population: plans evaluated at first.
      mutation: probability of a change.
    """

    population: int = 20
    mutation: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("population", self.population, 1)
        require("mutation", self.mutation, "[0, 1]")

    def explore(
        self, evaluations: Evaluations, rng: np.random.Generator, known: SearchContext
    ) -> None:
        """See `SearchStrategy.explore`."""
        strategies.evolution(evaluations, rng, self.population, self.mutation)


@SEARCHES.register("enumeration")
@dataclasses.dataclass(frozen=True)
class Enumeration(SearchStrategy):
    """See `jaxeff.search.strategies.enumeration`."""

    def explore(
        self, evaluations: Evaluations, rng: np.random.Generator, known: SearchContext
    ) -> None:
        """See `SearchStrategy.explore`."""
        strategies.enumeration(evaluations, rng)


@SEARCHES.register("random")
@dataclasses.dataclass(frozen=True)
class Random(SearchStrategy):
    """See `jaxeff.search.strategies.random_search`."""

    def explore(
        self, evaluations: Evaluations, rng: np.random.Generator, known: SearchContext
    ) -> None:
        """See `SearchStrategy.explore`."""
        strategies.random_search(evaluations, rng)


def _check_each(field: str, values: Any, interval: str) -> None:
    """Refuses what is no list of such numbers, see `jaxeff.arguments.require`."""
    if not isinstance(values, (list, tuple)) or not values:
        raise ConfigError(f"{field} must be a list of at least one number, not {values!r}")
    for value in values:
        require(f"{field}: each", value, interval)


@dataclasses.dataclass(frozen=True)
class ByGradients(SearchStrategy):
    """What searches by gradients have in common; the supernet's weights stay as they are.

    Attributes:
      steps: of each descent.
      batch_size: examples of a step.
      learning_rate: of Adam.
    """

    steps: int = 150
    batch_size: int = 32
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("steps", "batch_size"):
            require_whole(field, getattr(self, field), 1)
        if self.length:
            raise ConfigError("config.search: a gradient needs the length of the data; leave it 0")
        require("learning_rate", self.learning_rate, "(0, inf)")

    def _refuse(self, space: EncoderSpace) -> None:
        if space.pooled_queries:
            raise ConfigError("config.search: a gradient needs pooled_queries=False")

    def _descend(
        self,
        values: Any,
        outputs: Callable[[Any, Any, Any, Any], Any],
        penalty: Callable[[Any], Any],
        rng: np.random.Generator,
        known: SearchContext,
        project: Callable[[Any], Any] = lambda values: values,
    ) -> Any:
        """Returns what minimises cross entropy and penalty over batches of training examples.

        Args:
          values: to start from.
          outputs: maps values, the supernet's parameters, a batch and a key to logits.
          penalty: of values.
          rng: draws batches.
          known: what is known.
          project: moves the values of a step to where they are allowed.
        """
        params = jax.device_put(known.supernet.variables["params"], jax.local_devices()[0])
        optimizer = optax.adam(self.learning_rate)

        def loss(values: Any, params: Any, batch: Any, key: PRNGKey) -> Array:
            logits: Array = outputs(values, params, batch, key)
            errors = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
            total: Array = errors.mean() + penalty(values)
            return total

        @jax.jit
        def step(values: Any, state: Any, params: Any, batch: Any, key: PRNGKey) -> tuple[Any, Any]:
            grads = jax.grad(loss)(values, params, batch, key)
            updates, state = optimizer.update(grads, state)
            return project(optax.apply_updates(values, updates)), state

        state, key = optimizer.init(values), jax.random.key(int(rng.integers(2**31)))
        for number in range(self.steps):
            rows = rng.integers(0, len(known.split), self.batch_size)
            batch = known.split.take(rows)
            values, state = step(values, state, params, batch, jax.random.fold_in(key, number))
        return values


@SEARCHES.register("gradient")
@dataclasses.dataclass(frozen=True)
class Gradient(ByGradients):
    """Learns distributions of factors and depths by gradients, see `jaxeff.search.relaxed`.

    Each of a few latencies is aimed at in turn; the likeliest plan is evaluated, and what is left
    of the budget goes to draws.

    Attributes:
      aims: latencies to aim at, as shares of the limit, or of the full network's without one.
      temperature: of the draws.
      penalty: of an expected latency that is beyond the aim, as a share of that.
    """

    aims: Sequence[float] = (1.0, 0.8, 0.6, 0.4)
    temperature: float = 1.0
    penalty: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_each("aims", self.aims, "(0, 1]")
        require("temperature", self.temperature, "(0, inf)")
        require("penalty", self.penalty, "[0, inf)")

    def explore(
        self, evaluations: Evaluations, rng: np.random.Generator, known: SearchContext
    ) -> None:
        """See `SearchStrategy.explore`."""
        space = evaluations.space
        self._refuse(space)
        goal = evaluations.limit if math.isfinite(evaluations.limit) else known.full_ms
        learned = [self._learned(space, share * goal, rng, known) for share in self.aims]
        for probabilities in learned:
            evaluations.add(relaxed.likeliest(space, probabilities))
        for _ in range(20 * self.budget):
            if evaluations.done:
                break
            for probabilities in learned:
                evaluations.add(relaxed.drawn_plan(space, probabilities, rng))

    def _learned(
        self, space: EncoderSpace, aim: float, rng: np.random.Generator, known: SearchContext
    ) -> dict[str, Any]:
        network, table = known.supernet.model, known.table

        def outputs(logits: Any, params: Any, batch: Any, key: PRNGKey) -> Array:
            choices = relaxed.drawn(logits, key, self.temperature)
            return relaxed.logits_of(network, params, choices, batch["inputs"], batch.get("mask"))

        def penalty(logits: Any) -> Array:
            expected = relaxed.expected_latency(table, space, jax.tree.map(jax.nn.softmax, logits))
            return self.penalty * jax.nn.relu(expected / aim - 1)

        logits = self._descend(relaxed.initial_logits(space), outputs, penalty, rng, known)
        learned: dict[str, Any] = jax.tree.map(
            lambda a: np.asarray(jax.nn.softmax(a, axis=-1)), logits
        )
        return learned


@SEARCHES.register("retention")
@dataclasses.dataclass(frozen=True)
class Retention(ByGradients):
    """Learns how many tokens each layer needs, see `jaxeff.search.retention`.

    Vectors are learned for several prices of tokens. Their plans are evaluated at every depth, and
    what is left of the budget goes to changes of those.

    Attributes:
      prices: of keeping everything, in nats of the cross entropy.
      mutation: probability of a change.
    """

    prices: Sequence[float] = (0.1, 0.3, 1.0, 3.0)
    mutation: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_each("prices", self.prices, "[0, inf)")
        require("mutation", self.mutation, "[0, 1]")

    def explore(
        self, evaluations: Evaluations, rng: np.random.Generator, known: SearchContext
    ) -> None:
        """See `SearchStrategy.explore`."""
        space = evaluations.space
        self._refuse(space)
        vectors = [self._learned(space, price, rng, known) for price in self.prices]
        plans = [retention.plan_of(space, v, d) for d in space.depths[::-1] for v in vectors]
        for plan in plans:
            evaluations.add(plan)
        for number in range(20 * self.budget):
            if evaluations.done:
                break
            changed = space.mutated(plans[number % len(plans)], rng, self.mutation)
            evaluations.add(changed)

    def _learned(
        self, space: EncoderSpace, price: float, rng: np.random.Generator, known: SearchContext
    ) -> np.ndarray:
        network = known.supernet.model

        def outputs(vectors: Array, params: Any, batch: Any, key: PRNGKey) -> Array:
            del key  # nothing is drawn
            mask = batch.get("mask")
            return retention.logits_of(network, params, vectors, batch["inputs"], mask)

        vectors = self._descend(
            retention.full(space, known.table.length),
            outputs,
            lambda vectors: price * retention.mass(vectors),
            rng,
            known,
            lambda vectors: jnp.clip(vectors, 0, 1),
        )
        return np.asarray(vectors)
