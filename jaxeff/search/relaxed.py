"""Search by gradients: plans drawn from distributions that are learned against a latency.

Every place has a distribution over factors and the network one over depths, all independent. A
drawn network is computed at full length: where a cut would leave one token for a group, each token
of the group becomes the group's mean and counts as a part of one. Attention and means over tokens
that count so are those of the short network, so a draw is exact, shapes are static, and gradients
pass straight through the draws (Jang et al., "Categorical Reparameterization with Gumbel-Softmax",
ICLR 2017). Latencies are expected exactly, by the distribution of the length at every layer.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.layers.bottleneck import shortened
from jaxeff.models.encoder_plan import EncoderPlan
from jaxeff.models.encoder_space import EncoderSpace
from jaxeff.search.latency import LatencyTable
from jaxeff.typing import Array, PRNGKey

#: ``factors`` ``[places, 1 + factors]``, where the first stands for no cut, and ``depth``
#: ``[depths]``: logits, probabilities, or a draw.
Choices = Mapping[str, Array]


def initial_logits(space: EncoderSpace) -> dict[str, Array]:
    """Returns logits of equal probabilities."""
    places = space.depths[-1] - 1
    return {
        "factors": jnp.zeros((places, 1 + len(space.factors))),
        "depth": jnp.zeros(len(space.depths)),
    }


def drawn(logits: Choices, key: PRNGKey, temperature: float) -> dict[str, Array]:
    """Draws one-hot choices whose gradients are those of the softened ones."""

    def draw(logits: Array, key: PRNGKey) -> Array:
        noise = jax.random.gumbel(key, logits.shape, logits.dtype)
        soft = jax.nn.softmax((logits + noise) / temperature, axis=-1)
        hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), logits.shape[-1], dtype=logits.dtype)
        return hard + soft - jax.lax.stop_gradient(soft)

    keys = jax.random.split(key, len(logits))
    return {n: draw(logits[n], k) for n, k in zip(sorted(logits), keys, strict=True)}


def one_hot(space: EncoderSpace, plan: EncoderPlan) -> dict[str, Array]:
    """Returns a plan as a draw."""
    places = dict(plan.cuts)
    rows = [places.get(place, 1) for place in range(1, space.depths[-1])]
    known = (1, *space.factors)
    return {
        "factors": jax.nn.one_hot(jnp.array([known.index(f) for f in rows], int), len(known)),
        "depth": jax.nn.one_hot(space.depths.index(plan.depth), len(space.depths)),
    }


def spread_mean(tokens: Array, share: Array, group: Array, keep_first: int) -> tuple[Array, Array]:
    """Gives each token the mean of its group, and a share so that the group counts as one token.

    Args:
      tokens: ``[batch, length, width]``.
      share: ``[batch, length]``: how much of a token each is; padding is nothing of one.
      group: tokens of the original sequence in a group, an integer that need not be static.
      keep_first: tokens at the start that are groups by themselves.
    """
    place = jnp.arange(tokens.shape[1])
    number = jnp.where(place < keep_first, place, keep_first + (place - keep_first) // group)
    together = (number[:, None] == number[None, :]).astype(tokens.dtype)
    total = share @ together
    # One matrix product, because the number of groups is not static.
    summed = jnp.einsum("ij,bjd->bid", together, tokens * share[..., None])
    safe = jnp.where(total > 0, total, 1)
    return summed / safe[..., None], share / safe


def logits_of(
    network: Any, params: Any, choices: Choices, inputs: Array, mask: Array | None = None
) -> Array:
    """Returns the outputs ``[batch, classes]`` of a drawn network, with means for its cuts.

    Args:
      network: a `jaxeff.models.text.TextSupernet`.
      params: its parameters.
      choices: a draw.
      inputs: tokens ``[batch, length]``.
      mask: as in the network's call.
    """
    space = network.space
    known = jnp.array((1, *space.factors))
    group = jnp.array(1)
    states = {}

    def between(number: int, tokens: Array, share: Array, _: Array) -> tuple[Array, Array]:
        nonlocal group
        states[number] = tokens, share
        chosen = choices["factors"][number - 1].astype(tokens.dtype)
        mixed = (chosen[0] * tokens, chosen[0] * share)
        for factor, weight in zip(space.factors, chosen[1:], strict=True):
            reduced = spread_mean(tokens, share, group * factor, space.keep_first)
            mixed = jax.tree.map(lambda a, b, weight=weight: a + weight * b, mixed, reduced)
        group = group * known[jnp.argmax(chosen)]
        return mixed

    states[space.depths[-1]] = network.encoded(params, between, inputs, mask)
    pooled = [network.pooled(*states[depth]) for depth in space.depths]
    mixed = jnp.einsum("e,ebd->bd", choices["depth"].astype(pooled[0].dtype), jnp.stack(pooled))
    logits: Array = network.classified(params, mixed)
    return logits


def expected_latency(table: LatencyTable, space: EncoderSpace, probabilities: Choices) -> Array:
    """Returns the mean of the table's latencies over independent draws, in milliseconds.

    Lengths that no plan of the space has, as too many cuts give them, are interpolated.
    """
    layer, cut = interpolated(table)
    depth, known = probabilities["depth"], (1, *space.factors)
    lengths: dict[int, Any] = {table.length: jnp.ones(())}
    reaches = dict(zip(space.depths, jnp.cumsum(depth[::-1])[::-1], strict=True))
    total = jnp.asarray(table.constant)
    for number in range(space.depths[-1]):
        # The probability that the network has this layer.
        there = reaches[next(d for d in space.depths if d > number)]
        total += there * (table.uncached if number >= table.stack else 0.0)
        if number:
            after: dict[int, Any] = {}
            for (length, chance_of_length), (k, factor) in itertools.product(
                lengths.items(), enumerate(known)
            ):
                chance = chance_of_length * probabilities["factors"][number - 1, k]
                short = shortened(length, factor, space.keep_first)
                after[short] = after.get(short, 0.0) + chance
                if factor > 1:
                    total += there * chance * cut(length, factor)
            lengths = after
        total += there * sum(
            chance_of_length * layer(length) for length, chance_of_length in lengths.items()
        )
    return total


def interpolated(
    table: LatencyTable,
) -> tuple[Callable[[int], float], Callable[[int, int], float]]:
    """Returns the times of a layer by length, and of a cut by length and factor."""

    def line(times: Mapping[int, float]) -> Callable[[int], float]:
        xs = sorted(times)
        return functools.partial(np.interp, xp=xs, fp=[times[x] for x in xs])

    layer = line({q: time for (q, k), time in table.layers.items() if q == k})
    factors = {factor for _, factor in table.cuts}
    cuts = {
        f: line({n: t for (n, of_cut), t in table.cuts.items() if of_cut == f}) for f in factors
    }
    return lambda n: float(layer(n)), lambda n, f: float(cuts[f](n))


def likeliest(space: EncoderSpace, probabilities: Choices) -> EncoderPlan:
    """Returns the likeliest plan; of too many cuts the likeliest stay."""
    factors = np.asarray(probabilities["factors"])
    depth = space.depths[int(np.argmax(probabilities["depth"]))]
    cuts = {
        place: (float(row.max()), space.factors[int(row.argmax()) - 1])
        for place, row in enumerate(factors[: depth - 1], start=1)
        if row.argmax() > 0
    }
    most = sorted(cuts, key=lambda place: -cuts[place][0])[: space.max_cuts]
    return space.plan(depth, [(place, cuts[place][1]) for place in sorted(most)])


def drawn_plan(
    space: EncoderSpace, probabilities: Choices, rng: np.random.Generator
) -> EncoderPlan:
    """Draws a plan; of too many cuts some stay."""
    known = (1, *space.factors)

    def draw(logits: Any) -> int:
        shares = np.asarray(logits, np.float64)
        return int(rng.choice(len(shares), p=shares / shares.sum()))

    depth = space.depths[draw(probabilities["depth"])]
    rows = enumerate(np.asarray(probabilities["factors"]), start=1)
    cuts = [(place, known[draw(row)]) for place, row in rows]
    return space.repaired(depth, [cut for cut in cuts if cut[1] > 1], rng)
