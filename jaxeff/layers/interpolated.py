"""SI-CNN: the residual body runs on a subset of pixels (anchors), a cheap branch on all pixels.

The paper ("Spatially Interpolated Inverted Residual Block", Kag, Wadhwa, Saligrama, Jain, listed as
a preprint in 2023) is not public. This is a **reconstruction** from the author's research
statement, which describes an interpolation between features processed on a low-resolution sampling
of the input and cheaper features processed at the input's resolution, for up to 40 % less compute.
Sampling before the body is the only order that reduces the cost of an inverted residual's
expansion, which has most of its multiply-adds. Choices that the sources leave open are options.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxeff.arguments import require_whole
from jaxeff.errors import ConfigError
from jaxeff.layers.checks import called, require_linen
from jaxeff.layers.conv import Conv, are_apart, normalised
from jaxeff.layers.normalisation import BatchNorm
from jaxeff.ops import anchors, tiles
from jaxeff.ops.activations import ACTIVATIONS
from jaxeff.ops.normalisation import finished
from jaxeff.typing import Array, Dtype

CHOICES = {
    "cheap": ("depthwise", "none", "separable"),
    "mixing": ("anchors", "blend"),
    "interpolation": ("linear", "hold", "edge_aware"),
    "sampling": ("strided", "area"),
}


class Interpolated(nn.Module):
    r"""A residual body F on every s-th pixel, interpolated and mixed with a cheap branch G.

    .. math::
       a = F(x_{::s,::s}), \quad g = G(x), \quad
       y = \lambda\, U a + (1 - \lambda)\, g

    U interpolates from the anchors; lambda is 1 at the anchors, which keep F's value exactly, and
    ``sigmoid(share)``, one number per channel, elsewhere. The module replaces F in a residual
    block, which adds the skip. F has its parameters under ``body``.

    Attributes:
      body: F, a module called as ``body(x, train=train)``, or ``body(x)`` if it has no ``train``,
        that keeps shape and channels.
      stride: distance s of the anchors along both axes; 1 is F itself.
      cheap: G: "depthwise" (3x3 and normalisation), "separable" (then activation, 1x1 and
        normalisation) or "none" (zero).
      mixing: "anchors" as above, or "blend": ``sigmoid(share)`` at the anchors too.
      interpolation: "linear"; "hold", each anchor's value for the pixels after it; "edge_aware",
        weights that depend on g (`jaxeff.ops.anchors.edge_aware`, learned sharpness, initially 1).
      sampling: "strided", or "area": means over the pixels from each anchor to the next.
      dense_share: fraction of the map's tiles on which F also runs at full resolution: those with
        the largest mean square of g; 0 disables it. An addition of this package, with static shapes
        and a straight-through gradient.
      tile: side of a tile, which must divide rows and columns; F pads each tile with zeros.
      initial_share: initial ``sigmoid(share)``, in (0, 1).
      zero_init: whether the last normalisation of G starts at scale 0.
      epsilon: of the normalisation.
      momentum: of the running statistics.
      axis_name: mapped axis over which batch statistics are averaged.
      dtype: of the computation; None follows the input.
      param_dtype: of the parameters.

    Raises:
      ConfigError: a field has an impossible value, or the image is smaller than the stride.
      ValueError: the body changes the shape or the number of channels.
    """

    body: nn.Module
    stride: int = 2
    cheap: str = "depthwise"
    mixing: str = "anchors"
    interpolation: str = "linear"
    sampling: str = "strided"
    dense_share: float = 0.0
    tile: int = 4
    initial_share: float = 0.5
    zero_init: bool = False
    epsilon: float = 1e-5
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        train: bool = False,
        skip: Array | None = None,
        activation: str = "identity",
    ) -> Array:
        """Returns the mixed features, of the shape of ``x`` ``[..., rows, columns, channels]``.

        Args:
          x: the features.
          train: see `jaxeff.layers.normalisation.BatchNorm`.
          skip: added, like x.
          activation: of the sum, a name in `jaxeff.ops.activations.ACTIVATIONS`.
        """
        self._check(x)
        take = anchors.sample if self.sampling == "strided" else anchors.area_sample
        sampled = take(x, self.stride)
        a = called(self.body, sampled, train)
        if a.shape != sampled.shape:
            raise ValueError(
                f"an interpolated body must keep its input's shape {sampled.shape}, not return "
                f"{a.shape}; replace only blocks with a skip"
            )
        relu = activation == "relu"
        act = ACTIVATIONS["identity" if relu else activation]
        if self.stride == 1:
            return act(finished(a, skip, relu))
        if not train and self._is_one_pass(x) and a.dtype == x.dtype:
            return act(self._in_one_pass(x, a, skip, relu))
        return act(finished(self._mixed(x, a, train), skip, relu))

    def _is_one_pass(self, x: Array) -> bool:
        """Returns whether `jaxeff.ops.anchors.mixed` computes the layer, outside training."""
        is_plain = self.interpolation == "linear" and not (self.dense_share or are_apart())
        return (
            self.cheap == "depthwise" and is_plain and x.ndim == 4 and self.dtype in (None, x.dtype)
        )

    def _in_one_pass(self, x: Array, a: Array, skip: Array | None, relu: bool) -> Array:
        channels = x.shape[-1]
        kernel, _ = self._depthwise().weights(channels)
        norm = self._norm("cheap_norm", train=False, last=True).running(channels)
        blend, share = self.mixing == "blend", self._share(x)
        return anchors.mixed(a, x, kernel, None, share, self.stride, blend, skip, relu, norm)

    def _mixed(self, x: Array, a: Array, train: bool) -> Array:
        size = x.shape[-3], x.shape[-2]
        g = self._cheap(x, train).astype(a.dtype)
        if self.interpolation == "edge_aware":
            log_sharpness = self.param("log_sharpness", nn.initializers.zeros, (), self.param_dtype)
            k = jnp.exp(log_sharpness).astype(a.dtype)
            filled = anchors.edge_aware(a, g, self.stride, k)
        else:
            fill = anchors.interpolate if self.interpolation == "linear" else anchors.hold
            filled = fill(a, size, self.stride)
        blend = self.mixing == "blend"
        mixed = anchors.mix(filled, g, self._share(a), self.stride, blend)
        return self._refined(x, mixed, g, train) if self.dense_share else mixed

    def _share(self, like: Array) -> Array:
        start = math.log(self.initial_share / (1 - self.initial_share))
        initial = nn.initializers.constant(start)
        logit = self.param("share", initial, like.shape[-1:], self.param_dtype)
        return jax.nn.sigmoid(logit).astype(like.dtype)

    def _refined(self, x: Array, coarse: Array, g: Array, train: bool) -> Array:
        """Returns ``coarse`` with full-resolution values of the body on the tiles of largest g."""
        all_tiles = tiles.split(coarse, self.tile)
        count = max(1, round(self.dense_share * all_tiles.shape[1]))
        energy = jnp.square(tiles.split(g, self.tile)).mean((-3, -2, -1))
        numbers, gates = tiles.choose(energy, count)
        chosen = tiles.take(tiles.split(x, self.tile), numbers)
        fine = called(self.body, chosen.reshape(-1, *chosen.shape[2:]), train).reshape(chosen.shape)
        before = tiles.take(all_tiles, numbers)
        after = before + gates[:, :, None, None, None].astype(fine.dtype) * (fine - before)
        return tiles.join(
            tiles.put(all_tiles, numbers, after), (coarse.shape[-3], coarse.shape[-2])
        )

    def _cheap(self, x: Array, train: bool) -> Array:
        if self.cheap == "none":
            return jnp.zeros_like(x)
        has_pointwise = self.cheap != "depthwise"
        norm = self._norm("cheap_norm", train=train, last=not has_pointwise)
        act = "relu" if has_pointwise else "identity"
        g = normalised(self._depthwise(), norm, x, activation=act)
        if not has_pointwise:
            return g
        pointwise = Conv(x.shape[-1], 1, name="cheap_pointwise", **self._dtypes)
        return normalised(pointwise, self._norm("cheap_norm_out", train=train, last=True), g)

    @property
    def _dtypes(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def _depthwise(self) -> Conv:
        return Conv(0, name="cheap_depthwise", **self._dtypes)

    def _norm(self, name: str, *, train: bool, last: bool) -> BatchNorm:
        return BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            scale_init=nn.initializers.constant(0.0 if last and self.zero_init else 1.0),
            name=name,
            **self._dtypes,
        )

    def _check(self, x: Array) -> None:
        require_linen(self.body, "Interpolated.body")
        require_whole("Interpolated.tile", self.tile)
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ConfigError(
                    f"Interpolated.{field} must be one of {', '.join(choices)}, "
                    f"not {getattr(self, field)!r}"
                )
        if self.interpolation == "edge_aware" and self.cheap == "none":
            raise ConfigError("edge_aware interpolation needs the cheap branch; cheap is 'none'")
        if not 0 < self.initial_share < 1:
            raise ConfigError(
                f"Interpolated.initial_share must be in (0, 1), not {self.initial_share}"
            )
        if not 0 <= self.dense_share <= 1:
            raise ConfigError(f"Interpolated.dense_share must be in [0, 1], not {self.dense_share}")
        if self.dense_share and (self.cheap == "none" or x.ndim != 4):
            raise ConfigError("dense tiles are chosen by the cheap branch, of [batch, ...] maps")
        if self.dense_share and (x.shape[-3] % self.tile or x.shape[-2] % self.tile):
            raise ConfigError(
                f"Interpolated.tile {self.tile} does not divide an image of {x.shape[-3]} x "
                f"{x.shape[-2]} pixels"
            )
        if not isinstance(self.stride, int) or self.stride < 1:
            raise ConfigError(
                f"Interpolated.stride must be a whole number of at least 1, not {self.stride!r}"
            )
        if x.ndim < 3:
            raise ValueError(f"the input must be [..., rows, columns, channels], not {x.shape}")
        if min(x.shape[-3:-1]) < self.stride:
            raise ConfigError(
                f"an image of {x.shape[-3]} x {x.shape[-2]} pixels is smaller than the anchors' "
                f"stride {self.stride}; lower the stride or keep the block as it is"
            )
