"""Search for the pose of each image that minimises its loss, with fixed weights.

All starts of all images are candidates of one computation: they are evaluated, the best of each
image are refined, and the best pose evaluated at any time is returned. Candidates are independent,
so an image's pose does not depend on the rest of its batch.

Poses have few components, so derivatives use forward mode: one pass per component, without stored
activations. That also gives the Jacobian J of the outputs for Gauss-Newton steps: the loss is a sum
of convex functions of the outputs, with the diagonal Hessian H in ``J^T H J``.

References:
  N. N. Schraudolph. Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent. Neural
  Computation 14(7), 2002.
  D. W. Marquardt. An Algorithm for Least-Squares Estimation of Nonlinear Parameters. SIAM Journal
  11(2), 1963.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxeff.errors import ConfigError
from jaxeff.ops.platforms import forward_mode, has_cpu_form
from jaxeff.registry import closest
from jaxeff.typing import Array


class Problem(NamedTuple):
    """A loss of poses; all arrays have the batch as first axis.

    Attributes:
      code: maps data and poses ``[batch, size]`` to a tree, the code of the content.
      place: maps a code and poses to a tree of outputs.
      criterion: maps outputs and data to losses ``[batch]``: per example a sum of convex functions
        of one number of the outputs each.
      valid: maps poses ``[..., size]`` to whether they are admissible.
    """

    code: Callable[[Any, Array], Any]
    place: Callable[[Any, Array], Any]
    criterion: Callable[[Any, Any], Array]
    valid: Callable[[Array], Array] = lambda pose: jnp.ones(pose.shape[:-1], bool)

    def outputs(self, data: Any, pose: Array) -> Any:
        """Returns the outputs for a pose, with the code computed for this pose."""
        return self.place(self.code(data, pose), pose)

    def loss(self, data: Any, pose: Array) -> Array:
        """Returns losses ``[batch]``, infinite for invalid poses."""
        return self._checked(self.criterion(self.outputs(data, pose), data), pose)

    def _checked(self, loss: Array, pose: Array) -> Array:
        return jnp.where(self.valid(pose) & jnp.isfinite(loss), loss, jnp.inf)

    def derivatives(self, data: Any, pose: Array) -> tuple[Array, Array, Array]:
        """Returns losses ``[batch]``, gradients ``[batch, size]`` and Gauss-Newton matrices."""
        with forward_mode():
            outputs, push = jax.linearize(functools.partial(self.outputs, data), pose)
        slope = jax.grad(lambda outputs: self.criterion(outputs, data).sum())
        slopes, curvatures = jax.jvp(slope, (outputs,), (jax.tree.map(jnp.ones_like, outputs),))
        basis = jnp.eye(pose.shape[-1], dtype=pose.dtype)[:, None]
        jacobian = jax.vmap(lambda way: push(jnp.broadcast_to(way, pose.shape)))(basis)

        def rows(a: Array) -> Array:
            return a.reshape(*a.shape[:2], -1)  # [size, batch, outputs]

        def flat(a: Array) -> Array:
            return a.reshape(len(a), -1)

        gradient, matrix = jnp.zeros(()), jnp.zeros(())
        leaves = (jax.tree.leaves(tree) for tree in (jacobian, slopes, curvatures))
        for j, g, h in zip(*leaves, strict=True):
            gradient = gradient + jnp.einsum("sbo,bo->bs", rows(j), flat(g))
            matrix = matrix + jnp.einsum("sbo,bo,tbo->bst", rows(j), flat(h), rows(j))
        loss = self._checked(self.criterion(outputs, data), pose)
        return loss, gradient, matrix


class Found(NamedTuple):
    """The best pose of a search.

    Attributes:
      pose: ``[batch, size]``.
      loss: ``[batch]``.
    """

    pose: Array
    loss: Array


def _arrays(data: Any, pose: Any) -> tuple[Any, Array]:
    """Converts data and poses to JAX arrays, so that traced integers can index them."""
    return jax.tree.map(jnp.asarray, data), jnp.asarray(pose)


def _better(best: Found, pose: Array, loss: Array) -> Found:
    wins = loss < best.loss
    return Found(jnp.where(wins[:, None], pose, best.pose), jnp.where(wins, loss, best.loss))


def adam(problem: Problem, data: Any, pose: Array, steps: int, learning_rate: float) -> Found:
    """Refines poses ``[batch, size]`` by Adam; returns the best of all steps."""
    data, pose = _arrays(data, pose)
    optimizer = optax.adam(learning_rate)

    def step(loop: Any, _: None) -> tuple[Any, None]:
        pose, state, best = loop
        loss, gradient = problem.derivatives(data, pose)[:2]
        best = _better(best, pose, loss)
        update, state = optimizer.update(gradient, state)
        return (pose + update, state, best), None

    start = pose, optimizer.init(pose), Found(pose, jnp.full(len(pose), jnp.inf, pose.dtype))
    last, _ = jax.lax.scan(step, start, length=steps)
    return _better(last[2], last[0], problem.loss(data, last[0]))


def gauss_newton(
    problem: Problem, data: Any, pose: Array, steps: int, damping: float = 1e-2
) -> Found:
    """Refines poses by damped Gauss-Newton steps (Levenberg-Marquardt).

    A step that increases a candidate's loss is undone and its damping raised; otherwise the damping
    is lowered. Derivatives are evaluated once per step, only the loss after the last.
    """
    data, pose = _arrays(data, pose)
    eye = jnp.eye(pose.shape[-1], dtype=pose.dtype)

    def trial(at: Any) -> Array:
        pose, _, gradient, matrix, damping = at
        scale = jnp.einsum("bss->b", matrix) / pose.shape[-1] + 1e-12
        damped = matrix + (damping * scale)[:, None, None] * eye
        return pose - jnp.linalg.solve(damped, gradient[..., None])[..., 0]

    def step(at: Any, _: None) -> tuple[Any, None]:
        tried = trial(at)
        loss, gradient, matrix = problem.derivatives(data, tried)
        wins = loss < at[1]

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(wins.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        accepted = (tried, loss, gradient, matrix, at[4] * 0.2)
        kept = (*at[:4], jnp.minimum(at[4] * 10, 1e6))
        return jax.tree.map(choose, accepted, kept), None

    start = (pose, *problem.derivatives(data, pose), jnp.full(len(pose), damping, pose.dtype))
    at, _ = jax.lax.scan(step, start, length=steps - 1)
    last = trial(at)
    return _better(Found(at[0], at[1]), last, problem.loss(data, last))


def align(problem: Problem, data: Any, pose: Array, steps: int, damping: float = 1e-2) -> Found:
    """Aligns the reconstruction with the image, by Gauss-Newton steps with a fixed code.

    Encoding and decoding run once; the steps only resample the reconstruction. For an optimal
    encoder this is the gradient of the full loss, because the code is then stationary. The returned
    loss is that of the old code at the new pose.
    """
    data, pose = _arrays(data, pose)
    code = problem.code(data, pose)
    fixed = problem._replace(code=lambda both, pose: both[1])
    aligned = fixed._replace(criterion=lambda outputs, both: problem.criterion(outputs, both[0]))
    return gauss_newton(aligned, (data, code), pose, steps, damping)


@dataclasses.dataclass(frozen=True)
class Search:
    """Settings of a pose search.

    Attributes:
      starts: number of random initial poses; a discrete family uses all its elements instead.
      spread: whether initial poses are evenly spaced instead of random.
      proposals: number of additional poses from the model's proposal head, if it has one.
      keep: number of best poses per image that are refined; 0 refines all.
      method: "adam", "gauss_newton" (damped), "align" (Gauss-Newton with the code fixed) or
        "screen" (no refinement).
      steps: of the refinement.
      learning_rate: of Adam.
      damping: initial damping of Gauss-Newton, relative to the mean curvature.
      chunk: candidates to compute at once; 0: as many as fit the cache on a CPU, else all.
    """

    starts: int = 40
    spread: bool = False
    proposals: int = 0
    keep: int = 0
    method: str = "adam"
    steps: int = 20
    learning_rate: float = 0.01
    damping: float = 1e-2
    chunk: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"search.method: unknown choice '{self.method}'{closest(self.method, METHODS)}"
            )
        for field in ("starts", "proposals", "keep", "chunk", "steps"):
            value = getattr(self, field)
            if not isinstance(value, numbers.Integral) or isinstance(value, bool):
                raise ConfigError(f"search.{field} must be a whole number, not {value!r}")
        for field in ("learning_rate", "damping"):
            value = getattr(self, field)
            if not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
                raise ConfigError(f"search.{field} must be a finite number from 0, not {value!r}")
        for field in ("starts", "proposals", "keep", "chunk"):
            if getattr(self, field) < 0:
                raise ConfigError(
                    f"search.{field} must not be negative, not {getattr(self, field)}"
                )
        if self.method != "screen" and self.steps < 1:
            raise ConfigError(
                f"search.steps must be at least 1, not {self.steps}; method='screen' has none"
            )

    @classmethod
    def build(cls, spec: Mapping[str, Any], where: str) -> Search:
        """Builds a search from a config section: fields, and optionally a name in `PUBLISHED`.

        The section's ``like`` is that name; its other fields override the published settings.

        Raises:
          ConfigError: an unknown field or setting.
        """
        try:
            fields = dict(spec)
        except (TypeError, ValueError):
            raise ConfigError(f"config.{where} must be a section of fields, not {spec!r}") from None
        like = fields.pop("like", "")
        if like and like not in PUBLISHED:
            near = closest(str(like), PUBLISHED)
            raise ConfigError(f"config.{where}.like: unknown '{like}'{near}")
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise ConfigError(f"config.{where}.{name} is not a field{closest(name, known)}")
        return cls(**{**PUBLISHED.get(like, {}), **fields})


#: Settings of the authors' code, except that here the best candidates of each image are kept.
PUBLISHED: dict[str, dict[str, Any]] = {
    "2019_rotation": {"starts": 40, "steps": 20, "learning_rate": 0.01},
    "2019_affine": {"starts": 120, "steps": 30, "learning_rate": 0.03},
    "2019_training": {"starts": 20, "keep": 1, "steps": 10, "learning_rate": 0.01},
    "2020": {"starts": 32, "keep": 8, "steps": 15, "learning_rate": 0.03},
    "exhaustive": {"method": "screen"},
}


Refine = Callable[[Problem, Any, Array], Found]

METHODS: dict[str, Callable[[Search], Refine | None]] = {
    "adam": lambda s: functools.partial(adam, steps=s.steps, learning_rate=s.learning_rate),
    "gauss_newton": lambda s: functools.partial(gauss_newton, steps=s.steps, damping=s.damping),
    "align": lambda s: functools.partial(align, steps=s.steps, damping=s.damping),
    "screen": lambda s: None,
}


def _chunked(function: Callable[[Any, Array], Any], data: Any, pose: Array, chunk: int) -> Any:
    """Applies a function of candidates to ``pose`` ``[batch, candidates, size]``, in parts.

    Candidates of an image share its data, which is indexed for each part instead of copied.
    """
    batch, count, size = pose.shape
    image, flat = jnp.repeat(jnp.arange(batch), count), pose.reshape(-1, size)

    def apply(part: tuple[Array, Array]) -> Any:
        number, pose = part
        return function(jax.tree.map(lambda a: a[number], data), pose)

    total = len(flat)
    parts = -(-total // (chunk or candidates_at_once(total)))
    if parts == 1:
        results = apply((image, flat))
    else:
        each = -(-total // parts)  # parts of equal size, the last padded with copies
        more = ((0, parts * each - total),)
        image = jnp.pad(image, more, mode="edge").reshape(parts, each)
        flat = jnp.pad(flat, (*more, (0, 0)), mode="edge").reshape(parts, each, size)
        results = jax.lax.map(apply, (image, flat))
        results = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:total], results)
    return jax.tree.map(lambda a: a.reshape(batch, count, *a.shape[1:]), results)


@has_cpu_form("jaxeff.ops.cpu.candidates")
def candidates_at_once(total: int) -> int:
    """Returns how many of all candidates are computed together."""
    return total


def search(problem: Problem, data: Any, starts: Array, settings: Search) -> Found:
    """Finds the best pose of every image.

    Args:
      problem: the loss.
      data: a tree of arrays ``[batch, ...]``, of NumPy or JAX.
      starts: ``[batch, starts, size]``.
      settings: of the search.

    Returns:
      for every image the best pose evaluated, and its loss.

    Raises:
      ConfigError: starts of another shape, or of another number of images than the data.
    """
    data, starts = _arrays(data, starts)
    leaves = jax.tree.leaves(data)
    if starts.ndim != 3 or not starts.shape[1] or any(len(a) != len(starts) for a in leaves):
        shapes = [a.shape for a in leaves]
        raise ConfigError(
            f"a search needs starts [batch, starts, size] for data [batch, ...], not "
            f"{starts.shape} for {shapes}"
        )
    refine = METHODS[settings.method](settings)
    count = starts.shape[1]
    keep = min(settings.keep or count, count)
    if refine is None or keep < count:
        losses = _chunked(problem.loss, data, starts, settings.chunk)
        values, chosen = jax.lax.top_k(-losses, keep)
        kept = Found(jnp.take_along_axis(starts, chosen[..., None], 1), -values)
    else:  # the refinement evaluates every start anyway
        kept = Found(starts, jnp.full(starts.shape[:2], jnp.inf, starts.dtype))
    if refine is not None:
        # The best of its steps, the start among them.
        kept = _chunked(functools.partial(refine, problem), data, kept.pose, settings.chunk)
    best = jnp.argmin(kept.loss, 1)[:, None]
    pose = jnp.take_along_axis(kept.pose, best[..., None], 1)[:, 0]
    return Found(pose, jnp.take_along_axis(kept.loss, best, 1)[:, 0])
