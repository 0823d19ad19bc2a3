"""Search for the pose of each image that minimises its loss, with fixed weights.

All starts of all images are candidates of one computation: screened, the best of each image kept
and refined (`jaxeff.affine.refine`), the best of everything ever evaluated returned. Nothing is
shared between candidates, so an image's pose does not depend on the rest of its batch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.affine.refine import (
    AdamState,
    Found,
    Problem,
    adam,
    adam_start,
    adam_steps,
    align,
    as_arrays,
    better,
    gauss_newton,
)
from jaxeff.errors import ConfigError
from jaxeff.ops.platforms import has_cpu_form
from jaxeff.registry import closest
from jaxeff.typing import Array


@dataclasses.dataclass(frozen=True)
class Search:
    """Settings of a pose search.

    Attributes:
      starts: number of random initial poses; a discrete family uses all its elements instead.
      spread: whether initial poses are evenly spaced instead of random.
      proposals: number of additional poses from the model's proposal head, at most as many as it
        has.
      apart: least squared distance of the transforms of an image's proposals, which are at least
        two: of nearer ones the likeliest alone is taken, while there are others; 0 takes the
        likeliest.
      keep: number of best poses per image that are refined; 0 refines all.
      method: "adam", "gauss_newton" (damped), "align" (Gauss-Newton with the code fixed) or
        "screen" (no refinement).
      steps: of the refinement.
      learning_rate: of Adam.
      halving: of Adam: pairs of a step and how many of an image's candidates go on after it, the
        best ones so far (successive halving, Jamieson and Talwalkar, AISTATS 2016); () keeps all.
      damping: first one of Gauss-Newton, in parts of the mean curvature.
      reuse_code: of "align", for inference: whether outputs are made of the code that was aligned,
        instead of one of the image in the pose found, which costs another pass.
      chunk: candidates to compute at once; 0 takes what fits a processor's cache on a CPU, and all
        of them elsewhere.
    """

    starts: int = 40
    spread: bool = False
    proposals: int = 0
    apart: float = 0.0
    keep: int = 0
    method: str = "adam"
    steps: int = 20
    learning_rate: float = 0.01
    halving: tuple[tuple[int, int], ...] = ()
    damping: float = 1e-2
    reuse_code: bool = False
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
        for field in ("learning_rate", "damping", "apart"):
            value = getattr(self, field)
            if not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
                raise ConfigError(f"search.{field} must be a finite number from 0, not {value!r}")
        for field in ("starts", "proposals", "keep", "chunk"):
            if getattr(self, field) < 0:
                raise ConfigError(
                    f"search.{field} must not be negative, not {getattr(self, field)}"
                )
        if self.reuse_code and self.method != "align":
            raise ConfigError(
                f"search.reuse_code needs method 'align', not '{self.method}': others have "
                "no code yet"
            )
        if self.apart and self.proposals < 2:
            raise ConfigError(
                f"search.apart chooses among proposals; set search.proposals to 2 or more, not "
                f"{self.proposals}, or leave it out"
            )
        if self.method != "screen" and self.steps < 1:
            raise ConfigError(
                f"search.steps must be at least 1, not {self.steps}; method='screen' has none"
            )

        self._check_halving()

    def _check_halving(self) -> None:
        try:
            pairs = [(int(step), int(keep)) for step, keep in self.halving]
        except (TypeError, ValueError):
            pairs = [(0, 0)]
        steps, kept = [0, *(pair[0] for pair in pairs)], [pair[1] for pair in pairs]
        falling = sorted(set(kept), reverse=True) == kept and min(kept, default=1) > 0
        if pairs and (
            self.method != "adam"
            or sorted({*steps, self.steps}) != [*steps, self.steps]
            or not falling
        ):
            raise ConfigError(
                f"search.halving must be pairs of a step below {self.steps} and fewer and fewer "
                f"candidates, both whole and in order, of method 'adam', not {self.halving!r}"
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
#: With ``halving`` a quarter of the passes find the same poses (``benchmarks/pose_schedules.py``).
PUBLISHED: dict[str, dict[str, Any]] = {
    "2019_rotation": {"starts": 40, "steps": 20, "learning_rate": 0.01},
    "2019_affine": {"starts": 120, "steps": 30, "learning_rate": 0.03},
    "2019_training": {"starts": 20, "keep": 1, "steps": 10, "learning_rate": 0.01},
    "2019_rotation_halving": {
        "starts": 40,
        "steps": 20,
        "learning_rate": 0.01,
        "halving": ((1, 10), (6, 8)),
    },
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


def _chunked(function: Callable[[Any, Any], Any], data: Any, candidates: Any, chunk: int) -> Any:
    """Applies a function to candidates, a tree of arrays ``[batch, count, ...]``, in parts.

    Candidates of an image share its data, which is indexed for each part instead of copied.
    """
    batch, count = jax.tree.leaves(candidates)[0].shape[:2]
    image = jnp.repeat(jnp.arange(batch), count)
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), candidates)

    def apply(part: tuple[Array, Any]) -> Any:
        number, candidates = part
        return function(jax.tree.map(lambda a: a[number], data), candidates)

    total = len(image)
    at_once = chunk or candidates_at_once(total)
    if at_once >= total:
        results = apply((image, flat))
    else:
        parts = -(-total // at_once)
        each = -(-total // parts)  # parts of one size, the last filled up with copies

        def divided(a: Array) -> Array:
            more = ((0, parts * each - total), *((0, 0) for _ in a.shape[1:]))
            return jnp.pad(a, more, mode="edge").reshape(parts, each, *a.shape[1:])

        results = jax.lax.map(apply, jax.tree.map(divided, (image, flat)))
        results = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:total], results)
    return jax.tree.map(lambda a: a.reshape(batch, count, *a.shape[1:]), results)


def _halved(problem: Problem, data: Any, starts: Array, settings: Search) -> Found:
    """Refines by Adam, and drops the worse candidates of every image on the way."""
    state = jax.vmap(adam_start)(starts)
    ends = [*settings.halving, (settings.steps, 0)]
    first = 0
    for step, keep in ends:

        def run(data: Any, state: AdamState, first: int = first, step: int = step) -> AdamState:
            return adam_steps(problem, data, state, first, step - first, settings.learning_rate)

        state, first = _chunked(run, data, state, settings.chunk), step
        if keep and keep < state.pose.shape[1]:
            chosen = jax.lax.top_k(-state.best.loss, keep)[1]
            state = jax.tree.map(lambda a, c=chosen: _picked(a, c), state)
    last = _chunked(problem.loss, data, state.pose, settings.chunk)
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (state.best, state.pose, last))
    refined: Found = jax.tree.map(lambda a: a.reshape(*last.shape, *a.shape[1:]), better(*flat))
    return refined


def _picked(array: Array, chosen: Array) -> Array:
    """Returns the chosen candidates ``[batch, keep]`` of an array ``[batch, count, ...]``."""
    return jnp.take_along_axis(array, chosen.reshape(*chosen.shape, *(1,) * (array.ndim - 2)), 1)


def _screened(
    problem: Problem, data: Any, starts: Array, keep: int, settings: Search
) -> tuple[Found, Any]:
    """Returns the best starts of every image, and what an alignment needs: their codes, or None."""

    def evaluate(data: Any, pose: Array) -> tuple[Array, Any]:
        code = problem.code(data, pose)
        loss = problem.at_code(data, code, pose)
        return loss, code if settings.method == "align" else None

    losses, codes = _chunked(evaluate, data, starts, settings.chunk)
    values, chosen = jax.lax.top_k(-losses, keep)
    poses, codes = jax.tree.map(lambda a: _picked(a, chosen), (starts, codes))
    return Found(poses, -values), codes


def _aligned(problem: Problem, settings: Search, data: Any, known: tuple[Array, Any]) -> Found:
    pose, code = known
    return align(problem, data, pose, settings.steps, settings.damping, code)


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
      for every image the best pose evaluated, and its loss; of method "align" also the code that
      has this loss.

    Raises:
      ConfigError: starts of another shape, or of another number of images than the data.
    """
    data, starts = as_arrays(data, starts)
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
    if refine is None or keep < count or settings.method == "align":
        kept, codes = _screened(problem, data, starts, keep, settings)
    else:  # the refinement evaluates every start anyway
        kept, codes = Found(starts, jnp.full(starts.shape[:2], jnp.inf, starts.dtype)), None
    if settings.halving:
        kept = _halved(problem, data, kept.pose, settings)
    elif codes is not None:
        moved = functools.partial(_aligned, problem, settings)
        kept = _chunked(moved, data, (kept.pose, codes), settings.chunk)
    elif refine is not None:
        # The best of its steps, the start among them.
        kept = _chunked(functools.partial(refine, problem), data, kept.pose, settings.chunk)
    best = jnp.argmin(kept.loss, 1)[:, None]
    chosen = Found(kept.pose, kept.loss, codes)
    return Found(*jax.tree.map(lambda a: _picked(a, best)[:, 0], tuple(chosen)))
