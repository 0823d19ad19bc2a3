"""Measures the parts of encoders, and whole ones, on this machine: in JAX or another runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxeff import bench
from jaxeff.arguments import require_whole
from jaxeff.errors import ConfigError
from jaxeff.layers.bottleneck import Bottleneck
from jaxeff.models.encoder import EncoderShape, TransformerLayer
from jaxeff.models.encoder_plan import EncoderPlan
from jaxeff.models.text import TextClassifier, inference_program
from jaxeff.search.latency import LatencyTable, Shape, monotone, needed
from jaxeff.typing import Array, Dtype

#: Layers of one timed program: a call costs little beside them.
STACK = 3

#: Which time of repeated calls counts. The median adds up better than the fastest call, which is
#: an extreme of its own for every part.
STATISTIC = "median_ms"

#: What has been timed: ("layer" or "cut", shape), ("call", (0, 0)), or a plan.
Times = Mapping[Any, bench.Latency]


class _Stack(nn.Module):
    """Layers in a row, as in a network; the first reads longer keys if there are any."""

    shape: EncoderShape
    dtype: Dtype

    @nn.compact
    def __call__(self, tokens: Array, weight: Array, longer: Array | None = None) -> Array:
        memory = None
        if longer is not None:
            memory = (longer, jnp.ones(longer.shape[:2]))
        for _ in range(STACK):
            tokens, _ = TransformerLayer(self.shape, self.dtype)(tokens, weight, memory=memory)
        return tokens


def random_variables(module: nn.Module, *inputs: Any, seed: int = 0) -> Any:
    """Returns small random numbers in the place of a module's variables; compiles nothing."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    variables = jax.tree.map(lambda s: 0.02 * rng.standard_normal(s.shape, np.float32), shapes)
    return jax.device_put(variables, jax.local_devices()[0])


def network_call(network: TextClassifier, batch: int, length: int) -> Callable[[], Any]:
    """Returns a call of a whole network in JAX on sequences without padding."""
    inputs = jax.device_put((jnp.zeros((batch, length), jnp.int32), jnp.ones((batch, length))))
    variables, program = random_variables(network, inputs[0]), inference_program(network)
    return lambda: program(variables, *inputs)


class Programs:
    """What is timed, as programs of JAX on its default device or, by subclasses, of others."""

    @property
    def description(self) -> str:
        """What computes them."""
        return "jax"

    def function(self, function: Callable[..., Any], *inputs: Any) -> Callable[[], Any]:
        """Returns a call of a function on arrays ``[batch, ...]``, without arguments."""
        arrays, jitted = jax.device_put(inputs), jax.jit(function)
        return lambda: jitted(*arrays)

    def module(self, module: nn.Module, *inputs: Any) -> Callable[[], Any]:
        """Returns a call of a module with random weights on arrays ``[batch, ...]``."""
        variables, arrays = random_variables(module, *inputs), jax.device_put(inputs)
        jitted: Any = jax.jit(module.apply)
        return lambda: jitted(variables, *arrays)

    def network(self, network: TextClassifier, batch: int, length: int) -> Callable[[], Any]:
        """Returns a call of a whole network on sequences without padding."""
        return network_call(network, batch, length)


def time_parts(
    network_of: Callable[[EncoderPlan], TextClassifier],
    plans: Sequence[EncoderPlan],
    whole: Sequence[EncoderPlan],
    batch: int,
    length: int,
    rounds: int = 10,
    programs: Programs | None = None,
) -> dict[Any, bench.Latency]:
    """Times all parts that plans are made of, and some whole networks, in turns.

    Args:
      network_of: the network of a plan.
      plans: what the table is for.
      whole: plans whose networks are timed as they are.
      batch: sequences in a call.
      length: tokens of a sequence.
      rounds: turns of every part; each has three calls.
      programs: what computes; None is JAX.

    Raises:
      ConfigError: there are no plans, or a number is below 1.
    """
    if not plans:
        raise ConfigError("there are no plans to measure; a space has at least one")
    for name, number in (("batch", batch), ("length", length), ("rounds", rounds)):
        require_whole(name, number, 1)
    encoder: Any = network_of(plans[0]).encoder
    shape, dtype, width = encoder.shape, encoder.dtype, encoder.shape.width
    layers, cuts = needed(plans, length)
    rng = np.random.default_rng(0)

    def tokens(number: int) -> Any:
        return jnp.asarray(rng.standard_normal((batch, number, width)), dtype)

    programs = programs or Programs()
    calls: dict[Any, Callable[[], Any]] = {}
    calls["call", (0, 0)] = programs.function(lambda x: x + 1, np.zeros(1, np.float32))
    for queries, keys in layers:
        longer = () if keys == queries else (tokens(keys),)
        inputs = (tokens(queries), jnp.ones((batch, queries)), *longer)
        calls["layer", (queries, keys)] = programs.module(_Stack(shape, dtype), *inputs)
    for number, factor in cuts:
        cut = Bottleneck(factor, encoder.plan.kind, encoder.plan.keep_first, dtype)
        inputs = (tokens(number), jnp.ones((batch, number)))
        calls["cut", (number, factor)] = programs.module(cut, *inputs)
    for plan in whole:
        calls[plan] = programs.network(network_of(plan), batch, length)
    named = {str(i): call for i, call in enumerate(calls.values())}
    times = bench.interleaved(named, rounds, 3, warmup=2)
    return dict(zip(calls, times.values(), strict=True))


def table(
    times: Times, batch: int, length: int, statistic: str = STATISTIC, runtime: str = "jax"
) -> LatencyTable:
    """Makes a table of what `time_parts` found, fitted to the whole networks.

    Args:
      times: the times.
      batch: sequences in a call.
      length: tokens of a sequence.
      statistic: a field of `jaxeff.bench.Latency`.
      runtime: what computed, for the table's environment.
    """
    call = getattr(times["call", (0, 0)], statistic)

    def part(name: str, share: int) -> dict[Shape, float]:
        return {
            key[1]: max(getattr(time, statistic) - call, 0.0) / share
            for key, time in times.items()
            if isinstance(key, tuple) and key[0] == name
        }

    environment = {**bench.environment(), "runtime": runtime}
    fresh = LatencyTable(
        batch, length, 0.0, monotone(part("layer", STACK)), part("cut", 1), environment, STACK
    )
    whole = {k: getattr(t, statistic) for k, t in times.items() if isinstance(k, EncoderPlan)}
    return fresh.fitted(whole) if whole else fresh
