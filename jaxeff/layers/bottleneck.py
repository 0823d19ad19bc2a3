r"""Layers that shorten sequences: k neighbouring tokens become one.

Tokens carry weights ``[batch, length]``: 1 for a real token, 0 for padding, and after merging the
number of tokens merged into one. A group's weight is 0 exactly if it has no real token.

Only the abstract of the source (learned shortening of a pretrained encoder for one task, Bidart,
2023) is public; the layers are a reconstruction. `merge_tokens` follows Bolya et al., "Token
Merging", 2023, applied to hidden states.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.typing import Array, Dtype, PRNGKey

KINDS = ("mean", "linear", "conv", "attention", "merge")


def shortened(length: int, factor: int, keep_first: int = 0) -> int:
    """Returns the shortened length: ``keep_first`` plus the rest divided by k, rounded up."""
    kept = min(keep_first, length)
    return kept + math.ceil((length - kept) / factor)


def grouped(tokens: Array, weight: Array, factor: int) -> tuple[Array, Array]:
    """Groups neighbouring tokens; the last group is padded.

    Args:
      tokens: ``[batch, length, features]``.
      weight: ``[batch, length]``.
      factor: tokens per group, k.

    Returns:
      ``[batch, groups, k, features]`` and ``[batch, groups, k]``.
    """
    batch, length, features = tokens.shape
    more = -length % factor
    tokens = jnp.pad(tokens, ((0, 0), (0, more), (0, 0)))
    weight = jnp.pad(weight, ((0, 0), (0, more)))
    return tokens.reshape(batch, -1, factor, features), weight.reshape(batch, -1, factor)


def real(tokens: Array, weight: Array, keep_first: int = 0) -> Array:
    """Returns tokens with padding after the first ``keep_first`` set to zero (it may be NaN)."""
    inside = (jnp.asarray(weight) > 0).at[:, :keep_first].set(True)
    return jnp.where(inside[..., None], tokens, jnp.zeros_like(tokens))


class Bottleneck(nn.Module):
    r"""Shortens a sequence by a factor k; initially by the mean of each group.

    With :math:`m_i` = 1 for the real tokens of a group and 0 for padding:

    .. math::
       \text{mean} &: \sum_i m_i h_i / \sum_i m_i \\
       \text{linear} &: \frac{k}{\sum_i m_i} \sum_i W_i m_i h_i + b \\
       \text{conv} &: \text{the same with diagonal } W_i \\
       \text{attention} &: \sum_i a_i h_i, \quad a_i \propto m_i e^{q \cdot h_i / \sqrt d}

    Initial values: :math:`W_i = I/k`, :math:`b = 0` and :math:`q = 0`.

    "merge" has no parameters, see `merge_tokens`.

    Attributes:
      factor: k.
      kind: one of `KINDS`.
      keep_first: tokens at the start that pass unchanged, such as the class token.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ConfigError: an unknown kind, or an impossible factor.
    """

    factor: int
    kind: str = "linear"
    keep_first: int = 0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, weight: Array) -> tuple[Array, Array]:
        """Shortens a batch of sequences.

        Args:
          tokens: ``[batch, length, features]``.
          weight: ``[batch, length]``, see the module docstring.

        Returns:
          ``[batch, shortened(length, k), features]`` and the weights of these tokens.
        """
        check(self.kind, self.factor)
        if self.kind == "merge":
            return merge_tokens(tokens, weight, self.factor, self.keep_first)
        tokens = real(tokens, weight, self.keep_first)
        kept, rest = tokens[:, : self.keep_first], tokens[:, self.keep_first :]
        if not rest.shape[1]:
            return tokens, weight
        groups, inside = grouped(rest, weight[:, self.keep_first :], self.factor)
        pooled = self._pooled(groups, inside.astype(groups.dtype))
        full = jnp.max(inside, axis=-1)
        pooled = pooled * (full > 0)[..., None].astype(pooled.dtype)
        return (
            jnp.concatenate([kept, pooled], axis=1),
            jnp.concatenate([weight[:, : self.keep_first], full], axis=1),
        )

    def _pooled(self, groups: Array, inside: Array) -> Array:
        """Returns ``[batch, groups, features]``."""
        features, k = groups.shape[-1], self.factor
        count = jnp.maximum(jnp.sum(inside, axis=-1, keepdims=True), 1)
        masked = groups * inside[..., None]
        if self.kind == "mean":
            return jnp.sum(masked, axis=-2) / count
        if self.kind == "attention":
            query = self.param("query", nn.initializers.zeros, (features,), self.param_dtype)
            scores = jnp.einsum("bgkd,d->bgk", groups, query.astype(groups.dtype))
            scores = jnp.where(inside > 0, scores / math.sqrt(features), -jnp.inf)
            # A group of padding only has no maximum; the caller sets it to zero.
            scores = jnp.where(jnp.isfinite(scores).any(-1, keepdims=True), scores, 0)
            return jnp.einsum("bgk,bgkd->bgd", jax.nn.softmax(scores, axis=-1), groups)
        bias = self.param("bias", nn.initializers.zeros, (features,), self.param_dtype)
        if self.kind == "conv":

            def start(_: PRNGKey, shape: tuple[int, ...], dtype: Dtype) -> Array:
                return jnp.full(shape, 1 / k, dtype)

            kernel = self.param("kernel", start, (k, features), self.param_dtype)
            mixed = jnp.einsum("bgkd,kd->bgd", masked, kernel.astype(groups.dtype))
        else:

            def start(_: PRNGKey, shape: tuple[int, ...], dtype: Dtype) -> Array:
                return jnp.tile(jnp.eye(features, dtype=dtype) / k, (k, 1)).reshape(shape)

            kernel = self.param("kernel", start, (k * features, features), self.param_dtype)
            flat = masked.reshape(*masked.shape[:2], k * features)
            mixed = flat @ kernel.astype(groups.dtype)
        return mixed * (k / count) + bias.astype(groups.dtype)


def merge_tokens(
    tokens: Array, weight: Array, factor: int, keep_first: int = 0
) -> tuple[Array, Array]:
    """Merges the most similar tokens until 1/k of them is left; no parameters.

    Each token at an even position is paired with its most similar (cosine) token at an odd
    position; the most similar pairs are replaced by their weighted means. Padding is merged first,
    with weight 0, so the number of merged real tokens depends on the amount of padding.

    Args:
      tokens: ``[batch, length, features]``.
      weight: ``[batch, length]``: number of original tokens in each.
      factor: k, 1 or 2.
      keep_first: tokens at the start that pass unchanged.

    Returns:
      ``[batch, shortened(length, k), features]`` and their weights; tokens from odd positions come
      last.

    Raises:
      ConfigError: ``factor`` is not 1 or 2.
    """
    check("merge", factor)
    if factor == 1:
        return tokens, weight
    tokens = real(tokens, weight, keep_first)
    kept, rest = tokens[:, :keep_first], tokens[:, keep_first:]
    if rest.shape[1] < 2:
        return tokens, weight
    inside = weight[:, keep_first:].astype(tokens.dtype)
    even, odd = rest[:, ::2], rest[:, 1::2]
    even_weight, odd_weight = inside[:, ::2], inside[:, 1::2]
    left = even.shape[1] - odd.shape[1]  # one token more if the length is odd

    def direction(x: Array) -> Array:
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)

    alike = jnp.einsum("bid,bjd->bij", direction(even), direction(odd))
    alike = jnp.where(odd_weight[:, None] > 0, alike, -2.0)
    alike = jnp.where(even_weight[..., None] > 0, alike, 2.0)
    order = jnp.argsort(jnp.max(alike, axis=-1), axis=-1)
    stay, go = order[:, :left], order[:, left:]
    target = jnp.take_along_axis(jnp.argmax(alike, axis=-1), go, axis=1)

    def picked(values: Array, places: Array) -> Array:
        return jnp.take_along_axis(values, places[..., None], axis=1)

    goes = jnp.take_along_axis(even_weight, go, axis=1)
    moved = jax.nn.one_hot(target, odd.shape[1], dtype=tokens.dtype) * goes[..., None]
    total = odd_weight + jnp.sum(moved, axis=1)
    summed = odd * odd_weight[..., None] + jnp.einsum("bij,bid->bjd", moved, picked(even, go))
    merged = summed / jnp.maximum(total, 1)[..., None]
    stays = jnp.take_along_axis(even_weight, stay, axis=1)
    return (
        jnp.concatenate([kept, picked(even, stay), merged], axis=1),
        jnp.concatenate(
            [weight[:, :keep_first], *(w.astype(weight.dtype) for w in (stays, total))], 1
        ),
    )


def check(kind: str, factor: int) -> None:
    """Raises `ConfigError` for an unknown kind or an impossible factor of a bottleneck."""
    if kind not in KINDS:
        raise ConfigError(f"a bottleneck's kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if factor < 1 or (kind == "merge" and factor > 2):
        most = " and at most 2 for merging" if kind == "merge" else ""
        raise ConfigError(f"a bottleneck's factor must be at least 1{most}, not {factor}")
