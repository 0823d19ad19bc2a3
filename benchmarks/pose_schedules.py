"""Which schedule of successive halving finds the poses of the search that drops no start.

A candidate of `jaxeff.affine.search` does not depend on the others, so the course of all of them,
recorded once, tells what any schedule would have returned.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.affine import Found, Search
from jaxeff.affine.pose_search import _chunked
from jaxeff.affine.refine import adam_start, adam_step

#: Poses are the same if angles differ by less, in degrees, and losses by less, relatively.
DEGREES, RELATIVE = 1.0, 1e-3
#: A step of Adam takes the passes of a loss and of its derivative by the angle.
PASSES_OF_A_STEP = 2

Schedule = tuple[tuple[int, int], ...]


def courses(
    built: Any, variables: Any, images: Any, settings: Search, at_once: int = 50
) -> tuple[np.ndarray, np.ndarray]:
    """Returns angles and losses ``[images, starts, steps + 1]`` of all candidates by Adam."""
    problem = built.algorithm.problem(variables)

    def run(data: Any, pose: Any) -> Any:
        start = adam_start(pose)

        def step(state: Any, number: Any) -> Any:
            forgetful = state._replace(best=start.best)  # what is best then is this step's
            new = adam_step(problem, data, forgetful, number, settings.learning_rate)
            return new, (state.pose[:, 0], new.best.loss)

        last, seen = jax.lax.scan(step, start, jnp.arange(settings.steps))
        end = (last.pose[:, 0], problem.loss(data, last.pose))
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]).T, seen, end)

    parts = []
    at_once = min(at_once, len(images))
    starts = built.algorithm.starts(variables, images[:at_once], settings, None)
    program = jax.jit(lambda images: _chunked(run, {"inputs": images}, starts, settings.chunk))
    for first in range(0, len(images), at_once):
        part = images[first : first + at_once]
        more = jnp.pad(part, ((0, at_once - len(part)), *((0, 0),) * (part.ndim - 1)))
        parts.append([np.asarray(a)[: len(part)] for a in program(more)])
    angles, losses = (np.concatenate(a) for a in zip(*parts, strict=True))
    return angles, losses


def outcome(
    angles: np.ndarray, losses: np.ndarray, schedule: Schedule
) -> tuple[np.ndarray, np.ndarray]:
    """Returns angle and loss ``[images]`` that a search with the schedule would have found."""
    left = np.tile(np.arange(losses.shape[1]), (len(losses), 1))
    for step, keep in schedule:
        best = np.take_along_axis(losses[:, :, :step].min(2), left, 1)
        order = np.argsort(best, axis=1, kind="stable")[:, :keep]
        left = np.take_along_axis(left, order, 1)
    rows = np.arange(len(left))
    own = losses[rows[:, None], left]
    best = own.min(2).argmin(1)
    at = (rows, left[rows, best], own[rows, best].argmin(1))
    return angles[at], losses[at]


def same(one: tuple[Any, Any], other: tuple[Any, Any]) -> np.ndarray:
    """Returns which of two results ``(angles, losses)`` are the same, booleans ``[images]``."""
    turned = np.asarray(one[0]) - np.asarray(other[0])
    apart = np.abs(np.angle(np.exp(1j * turned)))
    near = np.isclose(one[1], other[1], rtol=RELATIVE, atol=0)
    return (apart <= np.deg2rad(DEGREES)) & near


def share(one: Found, other: Found, count: int) -> float:
    """Returns the share of the first ``count`` images for which two searches found the same."""
    results = [(found.pose[:count, 0], found.loss[:count]) for found in (one, other)]
    return float(same(*results).mean())


def passes(settings: Search, schedule: Schedule) -> int:
    """Returns the passes of one image."""
    counts, steps = [settings.starts, *(keep for _, keep in schedule)], [s for s, _ in schedule]
    lengths = np.diff([0, *steps, settings.steps])
    return int(PASSES_OF_A_STEP * np.dot(counts, lengths) + counts[-1])


def schedules(settings: Search) -> list[Schedule]:
    """Returns schedules with one and two cuts, the search without any first."""
    cuts = list(itertools.product((1, 2, 3, 4, 6, 8, 10), (20, 16, 12, 10, 8, 6, 4, 3, 2, 1)))
    pairs = [p for p in itertools.product(cuts, cuts) if p[0][0] < p[1][0] and p[0][1] > p[1][1]]
    return [(), *((cut,) for cut in cuts), *pairs]


def curve(angles: np.ndarray, losses: np.ndarray, settings: Search) -> list[dict[str, Any]]:
    """Returns the schedules that no cheaper one equals, with passes and share of same poses."""
    literal, best, kept = outcome(angles, losses, ()), -1.0, []
    for schedule in sorted(schedules(settings), key=lambda s: passes(settings, s)):
        share = float(same(outcome(angles, losses, schedule), literal).mean())
        if share > best:
            best = share
            line = {"halving": schedule, "passes": passes(settings, schedule), "same": share}
            kept.append(line)
    return kept
