"""Text classifiers on encoders, and supernets with the parameters of all shortened encoders."""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.hub.model_folder import locate
from jaxeff.models import pretrained
from jaxeff.models.base import MODELS
from jaxeff.models.encoder import Encoder, EncoderShape, masked_mean
from jaxeff.models.encoder_plan import EncoderPlan
from jaxeff.models.encoder_space import EncoderSpace
from jaxeff.typing import Array, Dtype


class TextClassifier(nn.Module):
    """An encoder, a linear layer on the mean token, or on the first token if ``keep_first`` > 0.

    Attributes:
      encoder: the encoder.
      num_outputs: width of the output.
      dtype: of the computation.
      pretrained: model whose weights the encoder starts with, see
        `jaxeff.hub.model_folder.locate`; None for random weights.
    """

    encoder: Encoder
    num_outputs: int
    dtype: Dtype = jnp.float32
    pretrained: str | None = None

    @property
    def num_symbols(self) -> int:
        """Size of the vocabulary; see `jaxeff.models.base.check_symbols`."""
        return self.encoder.shape.vocabulary

    @property
    def reads_types(self) -> bool:
        """Whether inputs may include token types; see `jaxeff.models.base.check_symbols`."""
        return True

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """Maps integers ``[batch, length(, 2)]`` to ``[batch, num_outputs]``; see `Encoder`."""
        pooled = self.pooled(*self.encoder(inputs, mask=mask, train=train))
        pooled = nn.Dropout(self.encoder.shape.dropout, deterministic=not train)(pooled)
        self.sow("intermediates", "penultimate", pooled)
        start = nn.initializers.normal(0.02)
        return nn.Dense(self.num_outputs, dtype=self.dtype, kernel_init=start, name="classifier")(
            pooled
        )

    @nn.nowrap
    def pooled(self, tokens: Array, weight: Array) -> Array:
        """Returns the input of the linear layer ``[batch, width]``."""
        return tokens[:, 0] if self.encoder.plan.keep_first else masked_mean(tokens, weight)

    @nn.nowrap
    def initial_variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the variables with the pretrained encoder's weights."""
        if not self.pretrained:
            return dict(variables)
        loaded = {"encoder": pretrained.load(self.pretrained).params}
        return {**variables, "params": pretrained.overlaid(variables["params"], loaded)}


@functools.lru_cache(maxsize=32)  # whoever calls it often keeps it; many models may come and go
def inference_program(network: TextClassifier) -> Callable[[Any, Any, Any], Array]:
    """Returns a network as a compiled function of variables, inputs and mask.

    It is the same one for equal networks, so that what trains, measures, writes and reads a network
    compiles it once for every size of its inputs.
    """
    jitted: Callable[[Any, Any, Any], Array] = jax.jit(
        lambda variables, inputs, mask: network.apply(variables, inputs, mask=mask)
    )
    return jitted


class TextSupernet(TextClassifier):
    """The full network, with additional parameters for every cut of a space.

    Attributes:
      space: the plans that it has parameters for.
    """

    space: EncoderSpace | None = None

    @nn.nowrap
    def subnetwork(self, plan: EncoderPlan) -> TextClassifier:
        """Returns the network of a plan; its parameters are a subset of this one's."""
        encoder = self.encoder
        return TextClassifier(
            Encoder(encoder.shape, plan, encoder.dtype, remat=encoder.remat),
            self.num_outputs,
            self.dtype,
        )

    @nn.nowrap
    def encoded(
        self, params: Any, between: Callable[..., Any], inputs: Array, mask: Array | None = None
    ) -> tuple[Array, Array]:
        """Returns tokens and weights of the full encoder, modified after every layer.

        Args:
          params: the network's parameters.
          between: see `Encoder`.
          inputs: as in the network's call.
          mask: as in the network's call.
        """
        inner = self.encoder.clone(between=between, parent=None)
        encoded: Any = inner.apply({"params": params["encoder"]}, inputs, mask=mask)
        return encoded

    @nn.nowrap
    def classified(self, params: Any, pooled: Array) -> Array:
        """Applies the linear layer to `pooled`; returns ``[batch, num_outputs]``."""
        layer = params["classifier"]
        return pooled @ layer["kernel"] + layer["bias"]


def _shape(shape: Mapping[str, Any] | None, name: str | None) -> EncoderShape:
    """Returns the sizes of a config, or those of the pretrained encoder."""
    if bool(shape) == bool(name):
        raise ConfigError(
            "an encoder needs config.model.shape or config.model.pretrained, not both"
        )
    if name:
        return pretrained.read_shape(locate(name))[0]
    try:
        return EncoderShape(**(shape or {}))
    except TypeError as error:
        raise ConfigError(f"config.model.shape: {error}") from error


def without_pretrained(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's fields with sizes in place of the pretrained models that have them.

    A trained model needs no others: its weights have taken the place of theirs.
    """
    result: dict[str, Any] = {
        name: without_pretrained(value) if isinstance(value, Mapping) else value
        for name, value in fields.items()
    }
    if result.get("pretrained"):
        result["shape"] = dataclasses.asdict(_shape(None, result.pop("pretrained")))
    return result


def _cut(cut: Any) -> tuple[int, int]:
    """Returns the layer and the factor of a cut in a config."""
    numbered = isinstance(cut, Sequence) and all(isinstance(n, numbers.Integral) for n in cut)
    if not numbered or len(cut) != 2:
        raise ConfigError(f"cuts must be pairs of whole numbers, a layer and a factor, not {cut!r}")
    return int(cut[0]), int(cut[1])


def _floats(dtype: Dtype) -> Dtype:
    """Returns the type of a computation; raises `ConfigError` unless it is floating point."""
    kind = jnp.dtype(dtype)
    if not jnp.issubdtype(kind, jnp.floating):
        raise ConfigError(f"dtype must be a floating-point type, such as float32, not {kind}")
    return kind


@MODELS.register("encoder")
def encoder(
    *,
    num_outputs: int,
    shape: Mapping[str, Any] | None = None,
    pretrained: str | None = None,
    depth: int = 0,
    cuts: Sequence[Sequence[int]] = (),
    keep_first: int = 0,
    kind: str = "linear",
    pooled_queries: bool = False,
    dtype: Dtype = jnp.float32,
    remat: str = "none",
) -> TextClassifier:
    """Builds a `TextClassifier`.

    Args:
      num_outputs: classes.
      shape: fields of `EncoderShape`, for random weights.
      pretrained: model to start from, see `jaxeff.hub.model_folder.locate`.
      depth: number of layers used; 0 for all.
      cuts: see `EncoderPlan`, also for the next three.
      keep_first: tokens at the start that cuts leave unchanged.
      kind: of the bottlenecks.
      pooled_queries: see `EncoderPlan`.
      dtype: of the computation.
      remat: see `jaxeff.models.encoder.Encoder`.

    Raises:
      ConfigError: sizes that do not fit each other.
      DataError: there is no such pretrained model.
    """
    sizes, kinds = _shape(shape, pretrained), _floats(dtype)
    plan = EncoderPlan(
        depth or sizes.layers,
        tuple(map(_cut, cuts)),
        keep_first,
        kind,
        pooled_queries,
    )
    if plan.depth > sizes.layers:
        raise ConfigError(f"depth must be at most the {sizes.layers} layers, not {plan.depth}")
    inner = Encoder(sizes, plan, kinds, remat=remat)
    return TextClassifier(inner, num_outputs, kinds, pretrained or None)


@MODELS.register("encoder_supernet")
def encoder_supernet(
    *,
    num_outputs: int,
    shape: Mapping[str, Any] | None = None,
    pretrained: str | None = None,
    depths: Sequence[int] = (),
    factors: Sequence[int] = (2, 3, 4),
    max_cuts: int = 3,
    keep_first: int = 0,
    kind: str = "linear",
    pooled_queries: bool = False,
    dtype: Dtype = jnp.float32,
    remat: str = "none",
) -> TextSupernet:
    """Builds a `TextSupernet`.

    Args:
      num_outputs: classes.
      shape: see `encoder`.
      pretrained: see `encoder`.
      depths: see `EncoderSpace`, also for the next five; () is every depth from 2.
      factors: of cuts.
      max_cuts: of a plan.
      keep_first: tokens at the start that cuts leave unchanged.
      kind: of the bottlenecks.
      pooled_queries: see `EncoderPlan`.
      dtype: of the computation.
      remat: see `jaxeff.models.encoder.Encoder`.

    Raises:
      ConfigError: a space that the encoder does not have.
      DataError: there is no such pretrained model.
    """
    sizes, kinds = _shape(shape, pretrained), _floats(dtype)
    chosen = tuple(depths) or tuple(range(min(2, sizes.layers), sizes.layers + 1))
    space = EncoderSpace(chosen, tuple(factors), max_cuts, keep_first, kind, pooled_queries)
    if chosen[-1] != sizes.layers:
        raise ConfigError(f"depths must end with the encoder's {sizes.layers} layers, not {chosen}")
    inner = Encoder(sizes, space.full, kinds, space.cuts, remat=remat)
    return TextSupernet(inner, num_outputs, kinds, pretrained or None, space=space)
