"""Parameterisations of poses: vectors for a search, and their transforms.

A pose is a vector ``[size]``; `Poses.transform` maps ``[..., size]`` to transforms. `start`
draws one at random. Discrete groups are `Poses` too: their vector holds the element's index.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.affine.resampling import Transform, determinant
from jaxeff.errors import ConfigError
from jaxeff.registry import Registry
from jaxeff.typing import Array, PRNGKey

POSES = Registry("pose")

#: Bounds of the constrained affine map: logarithm of a scale, and shear.
LARGEST_SCALE, LARGEST_SHEAR = math.log(1.5), math.tan(math.radians(55))


@dataclasses.dataclass(frozen=True)
class Poses:
    """A family of poses.

    Attributes:
      translation: shifts are drawn from U(-translation, translation) per axis, in half image sides;
        0 for none.
    """

    translation: float = 0.0

    dimensions = 2
    #: Numbers of the linear part.
    linear_size = 1
    #: Numbers that count for the linear part in the size of a code.
    linear_freedom = 1
    #: How many numbers, the first of a pose, are angles.
    angles = 0
    #: Number of elements of a discrete group; 0 for a continuous family.
    elements = 0

    def __post_init__(self) -> None:
        if not 0 <= self.translation < 1:
            raise ConfigError(f"translation must be in [0, 1), not {self.translation}")

    @property
    def size(self) -> int:
        """Length of a pose's vector."""
        return self.linear_size + (self.dimensions if self.translation else 0)

    @property
    def freedom(self) -> int:
        """Size that the pose adds to the code of the content."""
        return self.linear_freedom + (self.dimensions if self.translation else 0)

    def matrix(self, linear: Array) -> Array:
        """Maps linear parts ``[..., linear_size]`` to matrices ``[..., d, d]``."""
        raise NotImplementedError

    def start_linear(self, key: PRNGKey) -> Array:
        """Draws a linear part ``[linear_size]``."""
        raise NotImplementedError

    def identity(self) -> Array:
        """Returns the identity pose ``[size]``."""
        return jnp.zeros(self.size)

    def transform(self, pose: Array) -> Transform:
        """Maps poses ``[..., size]`` to transforms."""
        pose = jnp.asarray(pose)
        linear, shift = pose[..., : self.linear_size], pose[..., self.linear_size :]
        if not self.translation:
            shift = jnp.zeros((*pose.shape[:-1], self.dimensions), pose.dtype)
        return Transform(self.matrix(linear), shift)

    def start(self, key: PRNGKey) -> Array:
        """Draws a pose ``[size]``."""
        linear = self.start_linear(key)
        if not self.translation:
            return linear
        shift_key = jax.random.fold_in(key, 1)
        bound = self.translation
        return jnp.concatenate(
            [linear, jax.random.uniform(shift_key, (self.dimensions,), minval=-bound, maxval=bound)]
        )

    def starts(self, key: PRNGKey, count: int) -> Array:
        """Draws poses ``[count, size]``; the first are the same for every ``count``."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
        return jax.vmap(self.start)(keys)

    def spread(self, count: int) -> Array:
        """Returns poses ``[count, size]`` that cover the family, the identity first."""
        return self.starts(jax.random.key(0), count).at[0].set(self.identity())

    def valid(self, pose: Array) -> Array:
        """Returns which poses ``[..., size]`` are admissible, booleans ``[...]``."""
        return jnp.ones(pose.shape[:-1], bool)

    @property
    def raw_size(self) -> int:
        """Length of what a network returns for a pose: two numbers for each angle."""
        return self.size + self.angles

    def from_raw(self, raw: Array) -> Array:
        """Maps ``[..., raw_size]`` to poses: angles are the directions of pairs of numbers."""
        pairs, rest = raw[..., : 2 * self.angles], raw[..., 2 * self.angles :]
        return jnp.concatenate([jnp.arctan2(pairs[..., 1::2], pairs[..., ::2]), rest], -1)

    def to_raw(self, pose: Array) -> Array:
        """Returns ``[..., raw_size]`` that `from_raw` maps to the pose."""
        angles, rest = pose[..., : self.angles], pose[..., self.angles :]
        pairs = jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)
        return jnp.concatenate([pairs.reshape(*pose.shape[:-1], -1), rest], -1)


def _stack(rows: list[list[Any]], xp: Any = jnp) -> Any:
    return xp.stack([xp.stack(row, -1) for row in rows], -2)


def rotation_matrix(angle: Any, xp: Any = jnp) -> Any:
    """Returns ``[[cos, -sin], [sin, cos]]`` for angles ``[...]``, by ``jax.numpy`` or ``numpy``."""
    c, s = xp.cos(angle), xp.sin(angle)
    return _stack([[c, -s], [s, c]], xp)


def euler_matrix(angles: Any, xp: Any = jnp) -> Any:
    """Returns ``Rx(r0) Ry(r1) Rz(r2)``, each right-handed, for angles ``[..., 3]``."""
    (cx, cy, cz), (sx, sy, sz) = ([f(angles[..., i]) for i in range(3)] for f in (xp.cos, xp.sin))
    zero, one = xp.zeros_like(cx), xp.ones_like(cx)
    about_x = _stack([[one, zero, zero], [zero, cx, -sx], [zero, sx, cx]], xp)
    about_y = _stack([[cy, zero, sy], [zero, one, zero], [-sy, zero, cy]], xp)
    about_z = _stack([[cz, -sz, zero], [sz, cz, zero], [zero, zero, one]], xp)
    return about_x @ about_y @ about_z


def quaternion_matrix(quaternion: Any, xp: Any = jnp) -> Any:
    """Returns the rotations of quaternions ``[..., 4]`` (real part first) of any length."""
    q = quaternion / xp.sqrt((quaternion**2).sum(-1, keepdims=True))
    w, x, y, z = (q[..., i] for i in range(4))
    return _stack(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        xp,
    )


def angle_of(matrix: Array) -> Array:
    """Returns the signed angle of rotations ``[..., 2, 2]``, in (-pi, pi]."""
    return jnp.arctan2(matrix[..., 1, 0], matrix[..., 0, 0])


@POSES.register("rotation")
@dataclasses.dataclass(frozen=True)
class Rotation(Poses):
    """Rotations in the plane by one angle, with optional translation."""

    angles = 1

    def matrix(self, linear: Array) -> Array:
        """See `Poses.matrix`."""
        matrices: Array = rotation_matrix(linear[..., 0])
        return matrices

    def start_linear(self, key: PRNGKey) -> Array:
        """Draws an angle from U(0, 2 pi)."""
        return jax.random.uniform(key, (1,), maxval=2 * jnp.pi)

    def spread(self, count: int) -> Array:
        """Returns evenly spaced angles, translations at random."""
        angles = 2 * jnp.pi * jnp.arange(count) / count
        return super().spread(count).at[:, 0].set(angles)


def _bounded(value: Array, bound: float) -> Array:
    """Maps numbers to (-bound, bound) by a scaled tanh with slope 1 at 0."""
    return bound * jnp.tanh(value / bound)


@POSES.register("affine")
@dataclasses.dataclass(frozen=True)
class Affine(Poses):
    """``M = R(theta) diag(e^s1, e^s2) [[1, h], [0, 1]]`` with bounded scales and shear.

    ``|s| < log 1.5`` and ``|h| < tan 55 degrees``, so no reflection or nearly singular map can
    be reached; the vector holds theta and the unbounded values that a tanh maps to s1, s2 and h.
    """

    linear_size = 4
    linear_freedom = 4
    angles = 1

    def matrix(self, linear: Array) -> Array:
        """See `Poses.matrix`."""
        theta, *scales, shear = (linear[..., i] for i in range(4))
        first, second = (jnp.exp(_bounded(s, LARGEST_SCALE)) for s in scales)
        shear = _bounded(shear, LARGEST_SHEAR)
        zero = jnp.zeros_like(theta)
        matrices: Array = rotation_matrix(theta) @ _stack([[first, first * shear], [zero, second]])
        return matrices

    def start_linear(self, key: PRNGKey) -> Array:
        """Draws the angle from U(0, 2 pi), scales and shear uniformly within their bounds."""
        low = jnp.asarray([0.0, -LARGEST_SCALE, -LARGEST_SCALE, -LARGEST_SHEAR])
        high = jnp.asarray([2 * jnp.pi, LARGEST_SCALE, LARGEST_SCALE, LARGEST_SHEAR])
        return jax.random.uniform(key, (4,), minval=low, maxval=high)


@POSES.register("free_affine")
@dataclasses.dataclass(frozen=True)
class FreeAffine(Poses):
    """Four unconstrained matrix entries, as published; nearly singular matrices are invalid.

    Attributes:
      smallest: lower bound of the determinant's absolute value.
    """

    smallest: float = 0.2

    linear_size = 4
    linear_freedom = 4

    def matrix(self, linear: Array) -> Array:
        """See `Poses.matrix`."""
        return linear.reshape(*linear.shape[:-1], 2, 2)

    def start_linear(self, key: PRNGKey) -> Array:
        """Draws the numbers from U(-1.5, 1.5)."""
        return jax.random.uniform(key, (4,), minval=-1.5, maxval=1.5)

    def identity(self) -> Array:
        """See `Poses.identity`."""
        return jnp.zeros(self.size).at[jnp.array([0, 3])].set(1.0)

    def valid(self, pose: Array) -> Array:
        """See `Poses.valid`."""
        return jnp.abs(determinant(self.matrix(pose[..., :4]))) >= self.smallest


@POSES.register("euler")
@dataclasses.dataclass(frozen=True)
class Euler(Poses):
    """Rotations in space, ``M = Rx(r0) Ry(r1) Rz(r2)``, each right-handed."""

    dimensions = 3
    linear_size = 3
    linear_freedom = 3
    angles = 3

    def matrix(self, linear: Array) -> Array:
        """See `Poses.matrix`."""
        matrices: Array = euler_matrix(linear)
        return matrices

    def start_linear(self, key: PRNGKey) -> Array:
        """Draws each angle from U(0, 2 pi), as published; that favours the poles."""
        return jax.random.uniform(key, (3,), maxval=2 * jnp.pi)


@POSES.register("quaternion")
@dataclasses.dataclass(frozen=True)
class Quaternion(Poses):
    """Rotations in space by a quaternion of any length, drawn uniformly from SO(3)."""

    dimensions = 3
    linear_size = 4
    linear_freedom = 3

    def matrix(self, linear: Array) -> Array:
        """See `Poses.matrix`."""
        matrices: Array = quaternion_matrix(linear)
        return matrices

    def start_linear(self, key: PRNGKey) -> Array:
        """Draws a direction in four dimensions."""
        drawn = jax.random.normal(key, (4,))
        direction: Array = drawn / jnp.linalg.norm(drawn)
        return direction

    def identity(self) -> Array:
        """See `Poses.identity`."""
        return jnp.zeros(self.size).at[0].set(1.0)


def _signed_permutations() -> np.ndarray:
    """Returns the 24 rotations of a cube ``[24, 3, 3]``, the identity first."""
    rotations = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3), np.float32)
            matrix[np.arange(3), order] = signs
            if np.linalg.det(matrix) > 0:
                rotations.append(matrix)
    return np.stack(rotations)


@dataclasses.dataclass(frozen=True)
class Discrete(Poses):
    """A finite group; the vector holds an element's number, the identity's is 0."""

    linear_size = 1
    linear_freedom = 1
    table = np.zeros((0, 0, 0), np.float32)

    def __post_init__(self) -> None:
        if self.translation:
            raise ConfigError("a discrete group of poses has no translation; set it to 0")

    def matrix(self, linear: Array) -> Array:
        """See `Poses.matrix`."""
        return jnp.asarray(self.table)[jnp.round(linear[..., 0]).astype(jnp.int32)]

    def start_linear(self, key: PRNGKey) -> Array:
        """Draws an element."""
        return jax.random.randint(key, (1,), 0, self.elements).astype(jnp.float32)

    def starts(self, key: PRNGKey, count: int) -> Array:
        """Returns every element once, whatever ``count`` is: the search is exhaustive."""
        return jnp.arange(self.elements, dtype=jnp.float32)[:, None]


@POSES.register("cube_rotations")
@dataclasses.dataclass(frozen=True)
class CubeRotations(Discrete):
    """The 24 rotations that map a cube to itself."""

    dimensions = 3
    elements = 24
    table = _signed_permutations()


@POSES.register("quarter_turns")
@dataclasses.dataclass(frozen=True)
class QuarterTurns(Discrete):
    """The four rotations that map a square to itself."""

    elements = 4
    table = np.asarray(
        [[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]], np.float32
    )


def build(spec: Mapping[str, Any], where: str = "model.pose") -> Poses:
    """Builds the poses of a config section."""
    poses: Poses = POSES.build(spec, where)
    return poses
