"""The pose search: derivatives, independence of images, coverage, and what it finds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import swept

from jaxeff.affine import POSES, Problem, Search, adam, align, gauss_newton, inverse, resample
from jaxeff.affine import search as run_search
from jaxeff.affine.poses import build
from jaxeff.ops.sums import per_example

ROTATION = build({"name": "rotation"})


def template():
    """A soft letter L, which looks like itself in one pose only."""
    y, x = np.mgrid[:14, :14] - 6.5
    stroke = np.exp(-((x + 2) ** 2) / 3 - (y / 4.5) ** 6)
    foot = np.exp(-((y - 3) ** 2) / 3 - ((x - 0.5) / 3) ** 6)
    return np.maximum(stroke, 0.7 * foot).astype(np.float32)[None, ..., None]


TEMPLATE = template()


def autoencoding(family=ROTATION):
    """A stand-in for an autoencoder: its code is how much of the template an image has."""

    def code(data, pose):
        images = resample(data, family.transform(pose))
        amount = jnp.einsum("bijc,ijc->b", images, TEMPLATE[0]) / np.square(TEMPLATE).sum()
        return amount[:, None], jnp.sin(3 * amount)[:, None]

    def place(code, pose):
        drawn = code[0][..., None, None] * TEMPLATE
        return resample(drawn, inverse(family.transform(pose))), code[1]

    def criterion(outputs, data):
        return per_example((outputs[0] - data) ** 2) + per_example(jnp.exp(outputs[1])) - 1

    return Problem(code, place, criterion, family.valid)


PROBLEM = autoencoding()


def images_of(angles, family=ROTATION):
    pose = jnp.asarray(angles, jnp.float32)[:, None]
    return resample(jnp.tile(TEMPLATE, (len(angles), 1, 1, 1)), family.transform(pose))


ANGLES = np.random.default_rng(0).uniform(0, 2 * np.pi, 7)
IMAGES = jax.jit(images_of)(ANGLES)


loss_of = jax.jit(PROBLEM.loss)
at_every = jax.jit(jax.vmap(PROBLEM.loss, (None, 1)))


@functools.cache
def starts(count, batch=7, family=ROTATION):
    drawn = np.asarray(jax.jit(lambda: family.starts(jax.random.key(1), count))())
    return np.broadcast_to(drawn, (batch, *drawn.shape))


@functools.partial(jax.jit, static_argnames="settings")
def find(images, starts, settings):
    return run_search(PROBLEM, images, starts, settings)


def searched(problem, images, starts, settings):
    return jax.jit(lambda *given: run_search(problem, *given, settings))(images, starts)


def test_derivatives_are_those_of_reverse_mode(x64):
    family = build({"name": "rotation", "translation": 0.2})
    problem, count = autoencoding(family), 3
    rng = np.random.default_rng(0)
    pose = rng.uniform(-0.2, 0.2, (count, 3)) + rng.uniform(0, 2 * np.pi, (count, 1)) * [1, 0, 0]
    images = np.asarray(IMAGES[:count], np.float64)

    @jax.jit
    def both(images, pose):
        def twice(p):
            outputs = problem.outputs(images, p)
            return outputs, outputs

        return (
            problem.derivatives(images, pose),
            jax.value_and_grad(lambda p: problem.loss(images, p).sum())(pose),
            jax.jacfwd(twice, has_aux=True)(pose),
        )

    (loss, gradient, matrix), (one, expected), (jacobian, outputs) = both(images, pose)
    np.testing.assert_allclose(np.sum(loss), one, rtol=1e-12)
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-9)
    # J^T H J with H the curvature of every output: 2 of the squares, e^x of the rest.
    every, wanted = np.arange(count), 0.0
    for j, h in zip(jacobian, (2.0, np.exp(outputs[1])), strict=True):
        own = np.asarray(j)[every, ..., every, :].reshape(count, -1, 3)
        weight = np.broadcast_to(h, (count, own.shape[1]))
        wanted += np.einsum("bos,bo,bot->bst", own, weight, own)
    np.testing.assert_allclose(matrix, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_gradient_of_the_loss_against_a_difference():
    pose, step = ANGLES.astype(np.float32)[:, None] + np.float32(0.4), np.float32(1e-3)
    _, gradient, _ = jax.jit(PROBLEM.derivatives)(IMAGES, pose)
    above, below = (np.asarray(loss_of(IMAGES, pose + sign * step)) for sign in (1, -1))
    difference = (above - below) / (2 * step)
    np.testing.assert_allclose(gradient[:, 0], difference, rtol=0.02)


METHODS = {
    "adam": Search(method="adam", steps=8, learning_rate=0.05),
    "kept": Search(method="adam", steps=8, learning_rate=0.05, keep=3),
    "gauss_newton": Search(method="gauss_newton", steps=3, keep=3),
    "align": Search(method="align", steps=3, keep=3),
    "screen": Search(method="screen"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_an_image_does_not_depend_on_its_batch(name):
    settings = METHODS[name]
    found = find(IMAGES, starts(6), settings)
    other = jnp.where(jnp.arange(7)[:, None, None, None] == 3, IMAGES, IMAGES[::-1] * 0.5)
    again = find(other, starts(6), settings)
    np.testing.assert_allclose(found.loss[3], again.loss[3], rtol=1e-5)
    np.testing.assert_allclose(found.pose[3], again.pose[3], atol=1e-5)
    order = np.array([3, 1, 0, 2, 6, 5, 4])
    shuffled = find(IMAGES[order], starts(6), settings)
    np.testing.assert_allclose(shuffled.loss, found.loss[order], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["screen", "gauss_newton"])
def test_the_parts_in_which_candidates_are_computed_do_not_matter(name):
    settings = METHODS[name]
    whole = find(IMAGES, starts(6), dataclasses.replace(settings, chunk=1000))
    parts = find(IMAGES, starts(6), dataclasses.replace(settings, chunk=5))
    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-4)


@pytest.mark.parametrize("name", swept(METHODS, "align"))
def test_the_best_is_no_worse_than_any_start_and_than_fewer_starts(name):
    settings = METHODS[name]
    at_starts = np.asarray(at_every(IMAGES, starts(8))).T
    found = jax.tree.map(np.asarray, find(IMAGES, starts(8), settings))
    assert (found.loss <= at_starts.min(1) * (1 + 1e-6)).all()
    if name != "align":  # whose loss is that of the code before the last step
        np.testing.assert_allclose(loss_of(IMAGES, found.pose), found.loss, rtol=1e-4)
    if name == "adam":  # nested starts, every one refined
        fewer = np.asarray(find(IMAGES, starts(8)[:, np.arange(8) % 3], settings).loss)
        assert (found.loss <= fewer * (1 + 1e-6)).all()
    if name == "screen":
        np.testing.assert_allclose(found.loss, at_starts.min(1), rtol=1e-6)


@pytest.mark.slow
def test_more_steps_are_never_worse():
    pose = starts(1)[:, 0]
    for method in (functools.partial(adam, learning_rate=0.3), gauss_newton):
        run = jax.jit(
            lambda steps, m=method: m(PROBLEM, IMAGES, pose, steps).loss, static_argnums=0
        )
        losses = [run(n) for n in (1, 4)]
        start = loss_of(IMAGES, pose)
        for before, after in zip([start, *losses], losses, strict=False):
            assert (after <= before * (1 + 1e-6)).all()
        assert (losses[-1] < 0.9 * start).any()


def test_steps_that_overshoot_are_taken_back():
    # On the flat part of a sigmoid a full step goes far beyond the minimum at 0.
    flat = Problem(
        lambda data, pose: (),
        lambda code, pose: jnp.tanh(pose),
        lambda outputs, data: jnp.sum((outputs - data) ** 2, axis=-1),
    )
    data, pose = np.zeros((2, 1), np.float32), np.array([[2.0], [0.1]], np.float32)

    @jax.jit
    def losses(pose):
        some = [gauss_newton(flat, data, pose, n, damping=1e-8).loss for n in (1, 60)]
        return flat.loss(data, pose), *some

    start, one, many = map(np.asarray, losses(pose))
    assert one[0] == pytest.approx(start[0], rel=1e-6)  # of another part of the program
    assert one[1] < 1e-4
    assert (many < 1e-6).all()


@pytest.mark.parametrize("steps", [1, 3])
def test_a_search_makes_as_many_steps_as_it_is_told(steps):
    # On |p|^2 a step leaves d / (1 + d) of the pose, by a damping d that falls to a fifth.
    pose = np.asarray([[3.0, -1.0]], np.float32)
    problem = Problem(lambda data, pose: (), lambda code, pose: pose, lambda p, _: (p**2).sum(-1))
    found = jax.jit(lambda p: gauss_newton(problem, (), p, steps, damping=0.5))(pose)
    left = np.prod([d / (1 + d) for d in (0.5, 0.1, 0.02)[:steps]])
    np.testing.assert_allclose(found.pose, left * pose, rtol=1e-5)
    np.testing.assert_allclose(found.loss, 10 * left**2, rtol=1e-5)


def test_gauss_newton_finds_the_pose_in_few_steps():
    exact_pose = -ANGLES.astype(np.float32)[:, None]

    @jax.jit
    def both(pose):
        return gauss_newton(PROBLEM, IMAGES, pose, 4), adam(PROBLEM, IMAGES, pose, 4, 0.03).loss

    found, slow = jax.tree.map(np.asarray, both(exact_pose + np.float32(0.15)))
    assert (found.loss <= np.asarray(loss_of(IMAGES, exact_pose)) * 1.001).all()
    assert (slow > found.loss * 1.002).all()
    np.testing.assert_allclose(found.pose, exact_pose, atol=0.05)


@pytest.mark.slow
def test_search_comes_within_a_percent_of_a_grid_of_degrees():
    grid = jnp.deg2rad(jnp.arange(360.0))[None, :, None]
    best = find(IMAGES, jnp.broadcast_to(grid, (7, 360, 1)), METHODS["screen"])
    for settings in (
        Search(starts=40, steps=20, learning_rate=0.01),
        Search(starts=40, keep=2, steps=3, method="gauss_newton"),
    ):
        found = find(IMAGES, starts(40), settings)
        assert (found.loss <= 1.01 * best.loss).sum() >= 6  # of seven


def halved(targets, poses, settings):
    """Successive halving of Adam for the losses ``(sin 3p + p / 3 - target)^2``."""
    results = []
    for target, left in zip(targets, poses[..., 0], strict=True):
        best = np.full(len(left), np.inf)
        at, mean, square = left.copy(), np.zeros(len(left)), np.zeros(len(left))
        ends = dict(settings.halving)
        for step in range(1, settings.steps + 1):
            error = np.sin(3 * left) + left / 3 - target
            at = np.where(error**2 < best, left, at)
            best = np.minimum(error**2, best)
            gradient = 2 * error * (3 * np.cos(3 * left) + 1 / 3)
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            root = np.sqrt(square / (1 - 0.999**step)) + 1e-8
            left = left - settings.learning_rate * mean / (1 - 0.9**step) / root
            if step in ends:
                kept = np.argsort(best)[: ends[step]]
                left, mean, square, best, at = (a[kept] for a in (left, mean, square, best, at))
        last = (np.sin(3 * left) + left / 3 - target) ** 2
        at, best = np.where(last < best, left, at), np.minimum(last, best)
        results.append((at[best.argmin()], best.min()))
    return np.array(results).T


@pytest.mark.parametrize("chunk", swept([0, 7], 7))
def test_candidates_are_dropped_by_their_best_loss_so_far(chunk):
    problem = Problem(
        lambda data, pose: jnp.sin(3 * pose) + pose / 3 - data[:, None],
        lambda code, pose: code,
        lambda outputs, data: per_example(outputs**2),
    )
    rng = np.random.default_rng(0)
    targets, tried = rng.normal(size=9), rng.normal(0, 3, (9, 12, 1))
    settings = Search(steps=8, learning_rate=0.1, halving=((1, 6), (4, 2)), chunk=chunk)
    run = jax.jit(lambda targets, tried: run_search(problem, targets, tried, settings))
    found = run(targets.astype(np.float32), tried.astype(np.float32))
    pose, loss = halved(targets, tried, settings)
    np.testing.assert_allclose(found.pose[:, 0], pose, atol=2e-4)
    np.testing.assert_allclose(found.loss, loss, atol=2e-4)


@pytest.mark.slow
def test_a_quarter_turn_of_the_image_does_not_change_the_loss():
    quarter = np.pi / 2 * np.arange(4)
    closed = (quarter[:, None] + np.asarray([0.1, 0.7])).astype(np.float32).reshape(1, -1, 1)
    closed = np.broadcast_to(closed, (7, 8, 1))
    found = find(IMAGES, closed, METHODS["adam"])
    turned = find(np.rot90(IMAGES, axes=(1, 2)), closed, METHODS["adam"])
    np.testing.assert_allclose(turned.loss, found.loss, rtol=1e-3)


@pytest.mark.parametrize("batch", swept([1, 8, 14, 32], 1, 14))
def test_every_image_meets_all_24_rotations(batch):
    family = POSES.build({"name": "cube_rotations"})
    tried = starts(3, batch, family)
    # The only pose without a loss is another one for every image and every round.
    problem = Problem(
        lambda data, pose: pose - data, lambda code, pose: code, lambda o, d: per_example(o**2)
    )
    settings = Search.build({"like": "exhaustive", "chunk": 5}, "search")
    run = jax.jit(lambda target: run_search(problem, target, tried, settings))
    for shift in range(24):
        target = ((np.arange(batch) + shift) % 24).astype(np.float32)[:, None]
        found = run(target)
        np.testing.assert_array_equal(found.pose, target)
        np.testing.assert_array_equal(found.loss, 0.0)


@pytest.mark.slow
def test_poses_that_lose_the_image_do_not_win():
    family = POSES.build({"name": "free_affine"})
    problem = autoencoding(family)
    # With a white image of zeros, vanishing is perfect.
    black = np.zeros((1, 14, 14, 1), np.float32)
    candidates = np.asarray([[[0.0, 0, 0, 0], [1, 0, 0, 1]]], np.float32)
    settings = Search(method="gauss_newton", steps=2)

    @jax.jit
    def find(candidates):
        found = run_search(problem, black, candidates, settings)
        return found.loss, family.valid(found.pose)

    loss, valid = find(candidates)
    assert np.isfinite(loss).all()
    assert np.all(valid)


def test_an_alignment_keeps_the_code_of_its_start():
    problem = Problem(
        lambda data, pose: pose, lambda code, pose: code + pose, lambda p, _: (p**2).sum(-1)
    )
    for method, wanted in (("align", -2.0), ("gauss_newton", 0.0)):
        settings = Search(method=method, steps=4, damping=1e-3)
        start = np.full((1, 1, 1), 2.0, np.float32)
        found = searched(problem, np.zeros((1, 1), np.float32), start, settings)
        np.testing.assert_allclose(found.pose, [[wanted]], atol=1e-3)
        np.testing.assert_allclose(found.loss, 0, atol=1e-5)


@pytest.mark.parametrize("chunk", swept([0, 5], 5))
def test_the_best_starts_are_aligned_by_the_codes_that_they_were_screened_with(chunk):
    settings = Search(method="align", steps=2, keep=2, chunk=chunk)
    found = find(IMAGES, starts(6), settings)
    losses = np.asarray(at_every(IMAGES, starts(6))).T
    best = np.take_along_axis(starts(6), np.argsort(losses)[:, :2, None], 1)

    @jax.jit
    def one_by_one(pose):
        return [align(PROBLEM, IMAGES, pose[:, i], 2)[:2] for i in range(2)]

    poses, each = (np.stack(a, 1) for a in zip(*one_by_one(best), strict=True))
    np.testing.assert_allclose(found.loss, each.min(1), rtol=1e-5)
    chosen = poses[np.arange(len(poses)), each.argmin(1)]
    np.testing.assert_allclose(found.pose, chosen, atol=1e-4)


@pytest.mark.parametrize("method", ["screen", "adam", "gauss_newton"])
def test_poses_that_may_not_be_used_or_have_no_loss_do_not_win(method):
    problem = Problem(
        lambda data, pose: (),
        lambda code, pose: jnp.where(pose > 5, jnp.nan, pose),
        lambda outputs, data: (outputs**2).sum(-1),
        valid=lambda pose: pose[..., 0] >= 1,
    )
    tried = np.asarray([[[0.5], [2.0], [6.0]]], np.float32)
    settings = Search(method=method, steps=3, chunk=2)
    found = searched(problem, np.zeros((1, 1), np.float32), tried, settings)
    pose = np.asarray(found.pose)
    assert 1 <= pose[0, 0] <= 2
    np.testing.assert_allclose(found.loss, pose[0] ** 2, rtol=1e-6)
