"""What schedules of successive halving would find, told from the course of every candidate."""

import importlib.util
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.affine import Problem, Search
from jaxeff.affine import search as run_search
from jaxeff.ops.sums import per_example

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pose_schedules.py"
SETTINGS = Search(starts=12, steps=8, learning_rate=0.1)
PROBLEM = Problem(
    lambda data, pose: jnp.sin(3 * pose) + pose / 3 - data["inputs"][:, None],
    lambda code, pose: code,
    lambda outputs, data: per_example(outputs**2),
)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("pose_schedules", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_schedule_finds_what_the_search_with_it_finds(script):
    rng = np.random.default_rng(0)
    images, tried = rng.normal(size=9).astype(np.float32), rng.normal(0, 3, (12, 1))

    def starts(variables, images, settings, key):
        return jnp.broadcast_to(jnp.asarray(tried, jnp.float32), (len(images), *tried.shape))

    algorithm = types.SimpleNamespace(problem=lambda variables: PROBLEM, starts=starts)
    built = types.SimpleNamespace(algorithm=algorithm)
    angles, losses = script.courses(built, {}, images, SETTINGS, at_once=5)
    assert losses.shape == (9, 12, 9)
    for halving in ((), ((1, 6), (4, 2)), ((3, 1),)):
        settings = Search(starts=12, steps=8, learning_rate=0.1, halving=halving)
        found = jax.jit(lambda *given, s=settings: run_search(PROBLEM, *given, s))(
            {"inputs": images}, starts({}, images, settings, None)
        )
        angle, loss = script.outcome(angles, losses, halving)
        np.testing.assert_allclose(angle, found.pose[:, 0], atol=1e-5)
        np.testing.assert_allclose(loss, found.loss, atol=1e-6)
        assert script.share(found, found, 9) == 1


def test_passes_are_counted_by_the_candidates_that_are_left(script):
    assert script.passes(SETTINGS, ()) == 12 * 8 * 2 + 12
    assert script.passes(SETTINGS, ((1, 6), (4, 2))) == 2 * (12 * 1 + 6 * 3 + 2 * 4) + 2


def test_poses_are_the_same_across_the_end_of_a_turn(script):
    turn = 2 * np.pi
    one = (np.array([0.001, 1.0, 1.0]), np.array([1.0, 1.0, 1.0]))
    other = (np.array([turn - 0.001, 1.02, 1.0]), np.array([1.0, 1.0, 1.002]))
    assert script.same(one, other).tolist() == [True, False, False]
