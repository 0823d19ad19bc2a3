"""Variational autoencoders of images and voxels, with separate content and pose.

An `Autoencoder` without poses is a plain VAE. With poses, it transforms the image into a canonical
pose, encodes it, and transforms the reconstruction back; the code of an image is its latent vector
and its pose. The pose comes from a search (`jaxeff.train.algorithms.affine`) or from a proposal
head of the model, whose first proposal is used if no pose is given.

References:
  R. Bidart, A. Wong. Affine Variational Autoencoders: An Efficient Approach for Improving
  Generalization and Robustness to Distribution Shift. 2019. arXiv:1905.05300. The 2-D convolutions
  are those of its code, after L. Schott et al. 2018; the 3-D ones those of its follow-up. T. Bepler
  et al. Explicitly disentangling image content from translation and rotation with spatial-VAE.
  NeurIPS 2019. arXiv:1909.11663 (the decoder of coordinates). M. Jaderberg et al. Spatial
  Transformer Networks. NeurIPS 2015. arXiv:1506.02025 (one proposal, trained through the loss).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxeff.affine import poses, resampling
from jaxeff.errors import ConfigError
from jaxeff.layers.conv import uniform_fan_in
from jaxeff.layers.strided import StridedConv, TransposedConv, uniform
from jaxeff.models.base import MODELS
from jaxeff.models.coordinates import CoordinateDecoder
from jaxeff.ops.activations import elu
from jaxeff.typing import Array

#: Features, kernel side, strides and padding of the encoder's convolutions.
ENCODERS = {
    2: ((32, 5, 1, 2), (32, 4, 2, 1), (64, 3, 2, 1), (16, 5, 1, 2)),
    3: ((16, 3, 1, 1), (16, 5, 2, 2), (32, 5, 2, 2), (8, 3, 2, 1)),
}
#: The same for the decoder's transposed convolutions, and their output padding.
DECODERS = {
    2: ((32, 4, 1, 2, 0), (16, 5, 2, 1, 1), (16, 5, 2, 2, 1)),
    3: ((32, 3, 2, 1, 1), (16, 5, 2, 2, 1), (16, 5, 2, 2, 1)),
}
#: Factor by which the encoder reduces each side.
SHRINKS = {2: 4, 3: 8}


class Outputs(NamedTuple):
    """Outputs of an autoencoder.

    Attributes:
      reconstruction: in [0, 1], in the frame of the input.
      mean: ``[batch, latents]``.
      log_variance: ``[batch, latents]``.
    """

    reconstruction: Array
    mean: Array
    log_variance: Array


class TorchDense(nn.Module):
    """A linear layer initialised as in PyTorch.

    Attributes:
      features: outputs.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``[..., inputs]`` to ``[..., features]``."""
        return nn.Dense(
            self.features,
            kernel_init=uniform_fan_in,
            bias_init=uniform(x.shape[-1] ** -0.5),
            name="linear",
        )(x)


def _norm(train: bool, name: str, axis_name: str | None) -> nn.Module:
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        axis_name=axis_name,
        name=name,
    )


class ConvEncoder(nn.Module):
    """Convolutions and linear heads for mean and log-variance of the code.

    Attributes:
      latents: length of the code.
      with_variance: whether there is a head for the variance; otherwise it is 1.
      axis_name: see `Autoencoder`.
    """

    latents: int
    with_variance: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[Array, Array]:
        """Maps ``[batch, *shape, channels]`` to two ``[batch, latents]``."""
        *stages, last = ENCODERS[x.ndim - 2]
        for i, stage in enumerate(stages):
            x = StridedConv(*stage, name=f"conv{i}")(x)
            x = elu(_norm(train, f"norm{i}", self.axis_name)(x))
        x = StridedConv(*last, use_bias=True, name=f"conv{len(stages)}")(x)
        x = x.reshape(x.shape[0], -1)
        self.sow("intermediates", "penultimate", x)
        mean = TorchDense(self.latents, name="mean")(x)
        if not self.with_variance:
            return mean, jnp.zeros_like(mean)
        return mean, TorchDense(self.latents, name="log_variance")(x)


class Decoder(nn.Module):
    """A linear layer and transposed convolutions to pixels in [0, 1].

    Attributes:
      shape: of the image, without channels.
      channels: of the image.
      axis_name: see `Autoencoder`.
    """

    shape: tuple[int, ...]
    channels: int = 1
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z: Array, *, train: bool = False) -> Array:
        """Maps ``[batch, latents]`` to ``[batch, *shape, channels]``."""
        count = len(self.shape)
        small = [n // SHRINKS[count] for n in self.shape]
        features = ENCODERS[count][-1][0]
        x = TorchDense(features * math.prod(small), name="linear")(z)
        x = x.reshape(x.shape[0], *small, features)
        for i, stage in enumerate(DECODERS[count]):
            x = TransposedConv(*stage, name=f"conv{i}")(x)
            x = elu(_norm(train, f"norm{i}", self.axis_name)(x))
        x = StridedConv(self.channels, 3, 1, 1, use_bias=True, name="pixels")(x)
        return jax.nn.sigmoid(x)


class PoseHead(nn.Module):
    """Proposes poses for an image, most likely first.

    Its layers are normalised over the batch. While the drawing of a young model looks the same in
    every pose, all images have about the same best pose; learning it moves what all images have in
    common in the layers, which would drive every unit to where ELU is flat before the images
    differ in their poses.

    Attributes:
      family: the poses.
      proposals: number of proposals.
      features: channels of its three convolutions.
      hidden: width of the layer after them.
      axis_name: see `Autoencoder`.
    """

    family: poses.Poses
    proposals: int
    features: tuple[int, ...] = (16, 32, 32)
    hidden: int = 64
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[Array, Array]:
        """Returns poses ``[batch, proposals, size]`` and their scores ``[batch, proposals]``."""
        x = images
        for i, features in enumerate(self.features):
            x = StridedConv(features, 3, 2, 1, name=f"conv{i}")(x)
            x = elu(_norm(train, f"norm{i}", self.axis_name)(x))
        x = TorchDense(self.hidden, name="hidden")(x.reshape(x.shape[0], -1))
        x = elu(_norm(train, f"norm{len(self.features)}", self.axis_name)(x))
        spread = self.family.to_raw(self.family.spread(self.proposals))
        raw = nn.Dense(
            spread.size,
            kernel_init=nn.initializers.variance_scaling(0.01, "fan_in", "normal"),
            bias_init=lambda key, shape, dtype: spread.reshape(shape).astype(dtype),
            name="pose",
        )(x)
        raw = raw.reshape(-1, *spread.shape)
        scores = nn.Dense(self.proposals, kernel_init=nn.initializers.zeros, name="scores")(x)
        order = jnp.argsort(-scores, axis=1)
        ordered = jnp.take_along_axis(raw, order[..., None], 1)
        return self.family.from_raw(ordered), jnp.take_along_axis(scores, order, 1)


class Autoencoder(nn.Module):
    """A variational autoencoder, with a pose in addition to the code if ``family`` is given.

    Attributes:
      shape: of the images, without channels.
      latents: length of the code, without the pose.
      channels: of the images.
      family: the `Poses`, or None.
      proposals: number of poses from the proposal head; 0 for no head.
      decoder: "convolutional", whose image is resampled to the pose, or "coordinates", a
        function of transformed coordinates.
      sampled: whether training samples the code instead of using its mean.
      with_variance: whether the variance of the code is predicted, or 1.
      axis_name: mapped axis over which batch statistics are averaged; None: not averaged.
    """

    shape: tuple[int, ...]
    latents: int
    channels: int = 1
    family: Any = None
    proposals: int = 0
    decoder: str = "convolutional"
    sampled: bool = True
    with_variance: bool = True
    axis_name: str | None = None

    def setup(self) -> None:
        """Builds the submodules."""
        self.encoder = ConvEncoder(self.latents, self.with_variance, self.axis_name)
        if self.decoder == "coordinates":
            self.painter = CoordinateDecoder(self.channels)
        else:
            self.canonical = Decoder(self.shape, self.channels, self.axis_name)
        if self.proposals:
            self.head = PoseHead(self.family, self.proposals, axis_name=self.axis_name)

    @property
    def code_length(self) -> int:
        """Size of the code of an image: latents plus pose."""
        return self.latents + (self.family.freedom if self.family else 0)

    @nn.nowrap
    def outputs(self, reconstruction: Array, mean: Array, log_variance: Array) -> Outputs:
        """Packs the outputs of `__call__`."""
        return Outputs(reconstruction, mean, log_variance)

    def propose(self, images: Array, *, train: bool = False) -> tuple[Array, Array]:
        """Returns the head's poses ``[batch, proposals, size]``, best first, and their scores."""
        return self.head(images, train=train)

    def encode(
        self, images: Array, pose: Array | None, *, train: bool = False
    ) -> tuple[Array, Array]:
        """Returns mean and log-variance of the code of images transformed to the canonical pose."""
        self._check(images)
        if pose is not None:
            images = resampling.resample(images, self.family.transform(pose))
        return self.encoder(images, train=train)

    def draw(self, z: Array, *, train: bool = False) -> Array:
        """Returns the input of `place`: the canonical image, or the code for "coordinates"."""
        return z if self.decoder == "coordinates" else self.canonical(z, train=train)

    def place(self, drawn: Array, pose: Array | None) -> Array:
        """Returns the reconstruction in the frame of the input ``[batch, *shape, channels]``."""
        if self.decoder != "coordinates":
            if pose is None:
                return drawn
            return resampling.resample(drawn, resampling.inverse(self.family.transform(pose)))
        points = jnp.asarray(resampling.grid(self.shape).reshape(1, -1, len(self.shape)))
        if pose is not None:
            points = resampling.apply(resampling.inverse(self.family.transform(pose)), points)
        return self.painter(points, drawn).reshape(drawn.shape[0], *self.shape, self.channels)

    def __call__(self, images: Array, pose: Array | None = None, *, train: bool = False) -> Outputs:
        """Encodes and reconstructs images.

        Args:
          images: ``[batch, *shape, channels]``, in [0, 1].
          pose: ``[batch, size]``; None uses the head's first proposal, or no pose without a head.
          train: whether to use batch statistics, and to sample the code if ``sampled``.

        Raises:
          ConfigError: images of another size than the model's.
        """
        self._check(images)
        if self.proposals and pose is None:
            pose = self.propose(images, train=train)[0][:, 0]
        elif self.proposals and self.is_initializing():
            self.propose(images)
        mean, log_variance = self.encode(images, pose, train=train)
        z = mean
        if train and self.sampled:
            noise = jax.random.normal(self.make_rng("dropout"), mean.shape, mean.dtype)
            z = mean + jnp.exp(log_variance / 2) * noise
        return self.outputs(self.place(self.draw(z, train=train), pose), mean, log_variance)

    def _check(self, images: Array) -> None:
        if images.shape[1:] != (*self.shape, self.channels):
            raise ConfigError(
                f"the model takes images {(*self.shape, self.channels)}, not "
                f"{images.shape[1:]}; set config.model.size or config.data.size"
            )


DECODER_NAMES = ("convolutional", "coordinates")


def _build(
    dimensions: int,
    size: int,
    latents: int,
    pose: Mapping[str, Any] | None,
    proposals: int,
    decoder: str,
    axis_name: str | None,
    **fields: Any,
) -> Autoencoder:
    step = SHRINKS[dimensions]
    if size < 2 * step or size % step:
        raise ConfigError(f"size must be a multiple of {step} and at least {2 * step}, not {size}")
    if latents < 1 or proposals < 0:
        raise ConfigError(
            f"latents must be at least 1 and proposals at least 0, not {latents} and {proposals}"
        )
    if decoder not in DECODER_NAMES:
        raise ConfigError(f"decoder must be one of {', '.join(DECODER_NAMES)}, not '{decoder}'")
    family = poses.build(pose) if pose else None
    if family is not None and family.dimensions != dimensions:
        raise ConfigError(
            f"pose '{pose['name'] if pose else ''}' is for {family.dimensions} dimensions, but the "
            f"model's images have {dimensions}"
        )
    if proposals and (family is None or family.elements):
        raise ConfigError("proposals needs a continuous pose, such as {'name': 'rotation'}")
    shape, axis_name = (size,) * dimensions, axis_name or None
    return Autoencoder(shape, latents, 1, family, proposals, decoder, axis_name=axis_name, **fields)


@MODELS.register("autoencoder")
def autoencoder(
    num_outputs: int,
    *,
    size: int = 40,
    latents: int = 8,
    pose: Mapping[str, Any] | None = None,
    proposals: int = 0,
    decoder: str = "convolutional",
    sampled: bool = True,
    axis_name: str | None = None,
) -> Autoencoder:
    """A VAE of grey images: plain, with poses (AVAE), or with proposals (also as an STN).

    Args:
      num_outputs: of the data; not used.
      size: side of the square images, a multiple of 4.
      latents: see `Autoencoder`, also for the last four arguments.
      pose: name and fields of a family in `jaxeff.affine.POSES`; None for no pose.
      proposals: number of proposed poses.
      decoder: kind of decoder.
      sampled: whether codes are sampled in training.
      axis_name: mapped axis.
    """
    return _build(2, size, latents, pose, proposals, decoder, axis_name, sampled=sampled)


@MODELS.register("voxel_autoencoder")
def voxel_autoencoder(
    num_outputs: int,
    *,
    size: int = 48,
    latents: int = 16,
    pose: Mapping[str, Any] | None = None,
    proposals: int = 0,
    decoder: str = "convolutional",
    sampled: bool = False,
    with_variance: bool = False,
    axis_name: str | None = None,
) -> Autoencoder:
    """A VAE of voxels; as published, the code's variance is 1 and training uses its mean.

    Args:
      num_outputs: of the data; not used.
      size: side of the cube, a multiple of 8.
      latents: see `Autoencoder`, also for the last five arguments.
      pose: see `autoencoder`.
      proposals: number of proposed poses.
      decoder: kind of decoder.
      sampled: whether codes are sampled in training.
      with_variance: whether the variance is predicted.
      axis_name: mapped axis.
    """
    fields = {"sampled": sampled, "with_variance": with_variance}
    return _build(3, size, latents, pose, proposals, decoder, axis_name, **fields)
