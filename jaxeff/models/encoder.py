"""Pretrained text encoders (BERT, RoBERTa, MiniLM, DistilBERT) with bottlenecks between layers.

Devlin et al., "BERT", 2019; Liu et al., "RoBERTa", 2019. `jaxeff.models.pretrained` loads weights.
Without cuts and with full depth the network is the pretrained one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxeff.arguments import require
from jaxeff.errors import ConfigError
from jaxeff.layers.bottleneck import Bottleneck
from jaxeff.models.encoder_plan import EncoderPlan
from jaxeff.typing import Array, Dtype

#: Units that the backward pass may recompute (rematerialise).
REMAT = ("none", "layer")
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    # Looked up when called: the converter to ONNX has another function in its place.
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x),
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class EncoderShape:
    """Sizes of a pretrained encoder.

    Attributes:
      vocabulary: number of tokens.
      width: features of a token.
      layers: number of layers.
      heads: attention heads.
      hidden: inner width of the feed-forward part.
      positions: rows of the position table.
      first_position: row of the first token; RoBERTa's tables start with rows for padding.
      types: number of token types; 0 for none.
      epsilon: of the layer normalisation.
      activation: a name in `ACTIVATIONS`.
      dropout: rate in training.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    hidden: int
    positions: int = 512
    first_position: int = 0
    types: int = 2
    epsilon: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for field in ("vocabulary", "width", "layers", "heads", "hidden", "positions"):
            value = getattr(self, field)
            if not isinstance(value, numbers.Integral) or value < 1:
                raise ConfigError(
                    f"{field} of an encoder must be a positive integer, not {value!r}"
                )
        if not isinstance(self.types, numbers.Integral):
            raise ConfigError(f"types of an encoder must be an integer, not {self.types!r}")
        if not 0 <= self.first_position < self.positions or self.types < 0:
            raise ConfigError(
                f"first_position {self.first_position} must be in [0, positions={self.positions}) "
                f"and types not negative, not {self.types}"
            )
        require("dropout", self.dropout, "[0, 1)")
        if not isinstance(self.epsilon, numbers.Real) or not 0 < self.epsilon < math.inf:
            raise ConfigError(
                f"epsilon of an encoder must be positive and finite, not {self.epsilon!r}"
            )
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} must be a multiple of the {self.heads} heads")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}"
            )

    @property
    def max_length(self) -> int:
        """Largest number of tokens of a text."""
        return self.positions - self.first_position


class TransformerLayer(nn.Module):
    """Attention and feed-forward part, each with a skip and a layer normalisation (post-norm).

    Attributes:
      shape: sizes.
      dtype: of the computation; softmax and normalisation are in float32.
    """

    shape: EncoderShape
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        weight: Array,
        *,
        memory: tuple[Array, Array] | None = None,
        train: bool = False,
    ) -> tuple[Array, Array]:
        """Returns the next ``[batch, length, width]``, and the attention weights, see `attention`.

        Args:
          tokens: ``[batch, length, width]``, the queries.
          weight: ``[batch, length]``: multiplicity of each token in the attention.
          memory: tokens and weights for keys and values, if not those of the queries.
          train: whether to apply dropout.
        """
        shape = self.shape
        drop = nn.Dropout(shape.dropout, deterministic=not train)
        product = _product_of_rows if train else None
        dense = functools.partial(nn.Dense, dtype=self.dtype, dot_general=product)
        norm = functools.partial(nn.LayerNorm, epsilon=shape.epsilon, dtype=self.dtype)
        project = dense(3 * shape.width, name="query_key_value")
        query, key, value = jnp.split(project(tokens), 3, axis=-1)
        if memory is not None:
            longer, weight = memory
            _, key, value = jnp.split(project(longer), 3, axis=-1)
        mixed, shares = attention(query, key, value, weight, shape.heads)
        tokens = norm(name="norm_attention")(tokens + drop(dense(shape.width, name="out")(mixed)))
        inner = ACTIVATIONS[shape.activation](dense(shape.hidden, name="inner")(tokens))
        tokens = tokens + drop(dense(shape.width, name="outer")(inner))
        return norm(name="norm_output")(tokens), shares


def _product_of_rows(x: Array, kernel: Array, *_: Any, **options: Any) -> Array:
    """`jax.lax.dot_general` of ``[..., inputs]`` and a kernel, by a matrix of all rows.

    XLA's gradient of a kernel takes a CPU longer with several axes of rows.
    """
    rows = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel, **options)
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])


def attention(
    query: Array, key: Array, value: Array, weight: Array, heads: int
) -> tuple[Array, Array]:
    """Scaled dot-product attention in which key j counts ``weight[j]`` times; padding has 0.

    Args:
      query: ``[batch, queries, width]``.
      key: ``[batch, keys, width]``.
      value: as ``key``.
      weight: ``[batch, keys]``.
      heads: number of heads.

    Returns:
      ``[batch, queries, width]``, and the attention weights ``[batch, heads, queries, keys]``.
    """
    # Heads as a batch axis of matrices: a third faster on a CPU.
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for x in (query, key, value))
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k).astype(jnp.float32) / math.sqrt(q.shape[-1])
    w = weight.astype(jnp.float32)
    bias = jnp.where(w > 0, jnp.log(jnp.maximum(w, 1e-30)), jnp.finfo(jnp.float32).min)
    shares = jax.nn.softmax(scores + bias[:, None, None, :], axis=-1).astype(v.dtype)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", shares, v)
    return mixed.swapaxes(1, 2).reshape(query.shape), shares


class Encoder(nn.Module):
    """Embeddings and transformer layers, with bottlenecks between them.

    Attributes:
      shape: sizes.
      plan: depth and cuts.
      dtype: of the computation.
      inactive_cuts: further pairs (l, k), like a plan's cuts, with parameters that are not used.
      between: function applied after every layer instead of the cuts: maps the layer's number, its
        output tokens, their weights and its attention weights to the tokens and weights of the next
        layer's input.
      remat: "layer" recomputes layers in the backward pass instead of storing their intermediates;
        "none" stores all. Parameters and gradients do not depend on it; see
        `jaxeff.models.convnet.ConvNet`.
    """

    shape: EncoderShape
    plan: EncoderPlan
    dtype: Dtype = jnp.float32
    inactive_cuts: tuple[tuple[int, int], ...] = ()
    between: Callable[[int, Array, Array, Array], tuple[Array, Array]] | None = None
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        *,
        mask: Array | None = None,
        types: Array | None = None,
        train: bool = False,
    ) -> tuple[Array, Array]:
        """Encodes a batch of texts.

        Args:
          tokens: integers ``[batch, length]``, or tokens and their types ``[batch, length, 2]``.
          mask: ``[batch, length]``, non-zero where a token is real; None means everywhere.
          types: integers ``[batch, length]``; None is type 0 everywhere. Ignored by an
            encoder with at most one type.
          train: whether to apply dropout.

        Returns:
          ``[batch, length', width]`` and the tokens' weights ``[batch, length']``.

        Raises:
          ValueError: inputs of another shape, or longer than the table of positions.
        """
        shape, plan = self.shape, self.plan
        if tokens.ndim == 3 and tokens.shape[-1] == 2 and types is None:
            tokens, types = tokens[..., 0], tokens[..., 1]
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                "an encoder takes integers [batch, length] or, with types, [batch, length, 2], not "
                f"{tokens.shape} of {tokens.dtype}"
            )
        length = tokens.shape[1]
        if length > shape.max_length:
            raise ValueError(f"{length} tokens are more than the encoder's {shape.max_length}")
        if self.remat not in REMAT:
            raise ConfigError(f"remat must be one of {', '.join(REMAT)}, not {self.remat!r}")
        if not 0 < plan.depth <= shape.layers:
            raise ValueError(f"a depth of {plan.depth} does not fit the {shape.layers} layers")
        weight = jnp.ones(tokens.shape) if mask is None else (mask > 0).astype(jnp.float32)
        x = self._embedded(tokens, types)
        x = nn.LayerNorm(epsilon=shape.epsilon, dtype=self.dtype, name="norm_embeddings")(x)
        x = nn.Dropout(shape.dropout, deterministic=not train)(x)
        factors = dict(plan.cuts)

        def run_layer(layer: TransformerLayer, x: Array, weight: Array, memory: Any) -> Any:
            return layer(x, weight, memory=memory, train=train)

        run_layer = nn.remat(run_layer) if self.remat == "layer" else run_layer
        shares = jnp.zeros(())  # there is no layer before the first
        for number in range(plan.depth):
            memory = None
            if self.is_initializing():
                for place, factor in self.inactive_cuts:
                    if place == number:
                        self._cut(place, factor)(x, weight)
            if number and self.between is not None:
                x, weight = self.between(number, x, weight, shares)
            elif number in factors:
                memory = (x, weight) if plan.pooled_queries else None
                x, weight = self._cut(number, factors[number])(x, weight)
            layer = TransformerLayer(shape, self.dtype, name=f"layer_{number}")
            x, shares = run_layer(layer, x, weight, memory)
        return x, weight

    def _cut(self, place: int, factor: int) -> Bottleneck:
        plan = self.plan
        name = f"cut_{place}_{factor}"  # cuts of other factors have separate parameters
        return Bottleneck(factor, plan.kind, plan.keep_first, self.dtype, name=name)

    def _embedded(self, tokens: Array, types: Array | None) -> Array:
        shape, length = self.shape, tokens.shape[1]

        def table(rows: int, name: str) -> Array:
            init = nn.initializers.normal(0.02)
            values: Array = self.param(name, init, (rows, shape.width))
            return values.astype(self.dtype)

        positions = table(shape.positions, "positions")
        x = jnp.take(table(shape.vocabulary, "tokens"), tokens, axis=0)
        x = x + positions[None, shape.first_position : shape.first_position + length]
        if shape.types:
            kinds = table(shape.types, "types")
            if types is None or shape.types == 1:
                x = x + kinds[:1][None]
            else:
                x = x + jnp.take(kinds, types, axis=0)
        return x


@jax.jit  # one program where a network is run in parts
def masked_mean(tokens: Array, weight: Array) -> Array:
    """Returns the weighted mean ``[batch, width]`` of tokens ``[batch, length, width]``."""
    w = weight.astype(tokens.dtype)
    tokens = jnp.where(w[..., None] > 0, tokens, jnp.zeros_like(tokens))  # padding may be NaN
    total = jnp.maximum(jnp.sum(w, axis=1), 1)[:, None]
    return jnp.einsum("bld,bl->bd", tokens, w) / total
