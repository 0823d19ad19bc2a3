"""Search for the pose of every image that minimises its own loss, the weights fixed.

All starts of all images are candidates of one computation: screened, the best of each image kept
and refined, the best of everything ever evaluated returned. Nothing is shared between candidates,
so an image's pose does not depend on the rest of its batch.

Poses have few numbers, so derivatives are taken in forward mode: one pass per number, without
keeping activations. That gives the residuals' Jacobian too, and with it Gauss-Newton steps: the
loss is a sum of convex functions of the outputs, whose curvature is weighed into ``J^T H J``.

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
      code: maps data and poses ``[batch, size]`` to a tree, what the pose is found together with.
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
        """Returns the outputs of the pose's own code."""
        return self.place(self.code(data, pose), pose)

    def loss(self, data: Any, pose: Array) -> Array:
        """Returns losses ``[batch]``, infinite for poses that may not be used."""
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
            return a.reshape(a.shape[0], -1)

        gradient, matrix = jnp.zeros(()), jnp.zeros(())
        leaves = (jax.tree.leaves(tree) for tree in (jacobian, slopes, curvatures))
        for j, g, h in zip(*leaves, strict=True):
            gradient = gradient + jnp.einsum("sbo,bo->bs", rows(j), flat(g))
            matrix = matrix + jnp.einsum("sbo,bo,tbo->bst", rows(j), flat(h), rows(j))
        loss = self._checked(self.criterion(outputs, data), pose)
        return loss, gradient, matrix


class Found(NamedTuple):
    """The best of what a search evaluated.

    Attributes:
      pose: ``[batch, size]``.
      loss: ``[batch]``.
    """

    pose: Array
    loss: Array


def _arrays(data: Any, pose: Any) -> tuple[Any, Array]:
    """Returns data and poses as arrays of JAX, which traced numbers can index."""
    return jax.tree.map(jnp.asarray, data), jnp.asarray(pose)


def _better(best: Found, pose: Array, loss: Array) -> Found:
    wins = loss < best.loss
    return Found(jnp.where(wins[:, None], pose, best.pose), jnp.where(wins, loss, best.loss))


def adam(problem: Problem, data: Any, pose: Array, steps: int, learning_rate: float) -> Found:
    """Refines poses ``[batch, size]`` by Adam; the best of all steps is kept."""
    data, pose = _arrays(data, pose)
    optimizer = optax.adam(learning_rate)

    def step(loop: Any, _: None) -> tuple[Any, None]:
        pose, state, best = loop
        loss, gradient = problem.derivatives(data, pose)[:2]
        best = _better(best, pose, loss)
        update, state = optimizer.update(gradient, state)
        return (pose + update, state, best), None

    start = pose, optimizer.init(pose), Found(pose, jnp.full(pose.shape[0], jnp.inf, pose.dtype))
    last, _ = jax.lax.scan(step, start, length=steps)
    return _better(last[2], last[0], problem.loss(data, last[0]))


def _solved(matrix: Array, right: Array) -> Array:
    """Solves small positive definite systems ``[batch, size, size]`` by elimination."""
    size = right.shape[-1]
    rows = [jnp.concatenate([matrix[:, i], right[:, i, None]], -1) for i in range(size)]
    for i in range(size):
        rows[i] = rows[i] / rows[i][:, i, None]
        rows = [row if j == i else row - row[:, i, None] * rows[i] for j, row in enumerate(rows)]
    return jnp.stack([row[:, -1] for row in rows], -1)


def gauss_newton(
    problem: Problem, data: Any, pose: Array, steps: int, damping: float = 1e-2
) -> Found:
    """Refines poses by Levenberg's and Marquardt's damped Gauss-Newton steps.

    A step that makes a candidate worse is taken back, and its damping raised; one that makes it
    better lowers it. One evaluation of the derivatives per step, of the loss alone at the last.
    """
    data, pose = _arrays(data, pose)
    eye = jnp.eye(pose.shape[-1], dtype=pose.dtype)

    def trial(at: Any) -> Array:
        pose, _, gradient, matrix, damping = at
        scale = jnp.einsum("bss->b", matrix) / pose.shape[-1] + 1e-12
        damped = matrix + (damping * scale)[:, None, None] * eye
        return pose - _solved(damped, gradient)

    def step(at: Any, _: None) -> tuple[Any, None]:
        tried = trial(at)
        loss, gradient, matrix = problem.derivatives(data, tried)
        wins = loss < at[1]

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(wins.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        accepted = (tried, loss, gradient, matrix, at[4] * 0.2)
        kept = (*at[:4], jnp.minimum(at[4] * 10, 1e6))
        return jax.tree.map(choose, accepted, kept), None

    start = (pose, *problem.derivatives(data, pose), jnp.full(pose.shape[0], damping, pose.dtype))
    at, _ = jax.lax.scan(step, start, length=steps - 1)
    last = trial(at)
    return _better(Found(at[0], at[1]), last, problem.loss(data, last))


def align(problem: Problem, data: Any, pose: Array, steps: int, damping: float = 1e-2) -> Found:
    """Moves what a pose's code draws onto the image, by Gauss-Newton steps with the code fixed.

    One encoding and decoding for all steps, which only place the drawing again. Where the encoder
    is good this is the gradient of the whole loss, since the code is then stationary. The loss
    found is that of the old code in the new pose, which is a code of the image like any other.
    """
    data, pose = _arrays(data, pose)
    code = problem.code(data, pose)
    fixed = problem._replace(code=lambda both, pose: both[1])
    aligned = fixed._replace(criterion=lambda outputs, both: problem.criterion(outputs, both[0]))
    return gauss_newton(aligned, (data, code), pose, steps, damping)


@dataclasses.dataclass(frozen=True)
class Search:
    """How poses are searched.

    Attributes:
      starts: random poses to begin with; a discrete family has all its elements instead.
      spread: whether they are spaced evenly instead of drawn.
      proposals: so many poses that a head of the model proposes join them, where it has one.
      keep: the best so many of an image are refined; 0 refines every one.
      method: "adam", "gauss_newton" (damped), "align" (Gauss-Newton with the code fixed) or
        "screen" (no refinement).
      steps: of the refinement.
      learning_rate: of Adam.
      damping: first one of Gauss-Newton, in parts of the mean curvature.
      chunk: candidates to compute at once; 0 takes what fits a processor's cache on a CPU, and all
        of them elsewhere.
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

        The section's ``like`` is that name; the fields beside it change the published settings.

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
                raise ConfigError(f"config.{where}.{name} is no field{closest(name, known)}")
        return cls(**{**PUBLISHED.get(like, {}), **fields})


#: Settings of the authors' code. What was kept differed: here it is always the best of each image.
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

    Candidates of an image share its data, which is looked up part by part instead of copied.
    """
    batch, count, size = pose.shape
    image, flat = jnp.repeat(jnp.arange(batch), count), pose.reshape(-1, size)

    def apply(part: tuple[Array, Array]) -> Any:
        number, pose = part
        return function(jax.tree.map(lambda a: a[number], data), pose)

    total = flat.shape[0]
    at_once = chunk or candidates_at_once(total)
    if at_once >= total:
        results = apply((image, flat))
    else:
        parts = -(-total // at_once)
        each = -(-total // parts)  # parts of one size, the last filled up with copies
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
      settings: what is kept of them and how it is refined.

    Returns:
      for every image the best pose evaluated, and its loss.

    Raises:
      ConfigError: starts of another shape, or of another number of images than the data.
    """
    data, starts = _arrays(data, starts)
    leaves = jax.tree.leaves(data)
    if (
        starts.ndim != 3
        or not starts.shape[1]
        or any(a.shape[0] != starts.shape[0] for a in leaves)
    ):
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
