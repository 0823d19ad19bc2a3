"""Losses of one-sided prediction: recorded numbers, closed forms and the saddle point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxeff.errors import ConfigError
from jaxeff.selective import one_sided
from jaxeff.selective.one_sided import Players, Sides

objective = jax.jit(one_sided.objective, static_argnames="form")
class_losses = jax.jit(one_sided.class_losses)
example_losses = jax.jit(one_sided.example_losses)
INSIDE = [4.446387, 2.888349, 0.569232, 0.663435, 2.205268, 0.922501]
OUTSIDE = [0.148690, 0.122871, 0.090987, 0.231206, 0.281210, 0.202233]


def test_class_losses_are_those_recorded(recorded):
    logits, labels, _ = recorded
    found = class_losses(logits, labels)
    np.testing.assert_allclose(found.inside, INSIDE, atol=2e-6)
    np.testing.assert_allclose(found.outside, OUTSIDE, atol=2e-6)


@pytest.mark.parametrize(("mu", "value"), [(0.8, 13.4383316362), (1.67, 14.2884928479)])
def test_objective_of_the_first_script_is_that_recorded(recorded, mu, value):
    found = objective(*recorded[:2], mu=mu, form="tensorflow")
    assert float(found) == pytest.approx(value, abs=1e-8)


def test_weighted_objective_is_that_recorded(recorded):
    logits, labels, weight = recorded
    found = objective(logits, labels, mu=1.0, form="weighted", weight=weight)
    assert float(found) == pytest.approx(1.9278308310, abs=1e-8)
    found = objective(logits, labels, mu=1.0, form="weighted")
    assert float(found) == pytest.approx(1.9771210081, abs=1e-8)


def gradient(recorded, form, mu):
    logits, labels, _ = recorded
    slope = jax.grad(lambda z, mu: objective(z, labels, mu=mu, form=form))
    return np.asarray(jax.jit(slope)(logits, mu))


def test_only_the_port_forgets_the_trade_off(recorded):
    for form in ("closed", "tensorflow"):
        change = gradient(recorded, form, 0.49) - gradient(recorded, form, 1.67)
        assert np.linalg.norm(change) > 0.1
    port = [gradient(recorded, "port", mu) for mu in (0.49, 1.67)]
    np.testing.assert_array_equal(*port)
    assert np.linalg.norm(port[0]) > 0.1


def test_forms_differ_by_counts_and_constants_alone(recorded):
    logits, labels, _ = recorded
    inside, outside = map(np.asarray, class_losses(logits, labels))
    lam, phi = np.arange(6.0) / 3, np.ones(6) / 4
    first = objective(logits, labels, mu=0.8, form="tensorflow", multipliers=lam, slacks=phi)
    by_hand = (inside + lam * (outside - phi) + 0.8 * phi).sum() - 0.08
    assert float(first) == pytest.approx(float(by_hand), abs=1e-5)
    assert float(one_sided.lagrangian(Sides(inside, outside), lam, phi, 0.8)) == pytest.approx(
        float(by_hand) + 0.08, abs=1e-12
    )
    # The port adds 0.1 to every count, and its negative multipliers and slacks count as none.
    n = np.bincount(labels, minlength=6)
    sums = inside * n / (n + 0.1) + outside * (8 - n) / (8 - n + 0.1)
    lam, phi = lam - 0.7, np.where(np.arange(6) == 0, -1.0, phi)
    port = objective(logits, labels, mu=0.8, form="port", multipliers=lam, slacks=phi)
    lam, phi = np.maximum(lam, 0), np.maximum(phi, 0)
    assert float(port) == pytest.approx(float((sums + (0.8 - lam) * phi).sum()), abs=1e-5)
    closed = objective(logits, labels, mu=0.8)
    assert float(closed) == pytest.approx(float((inside + 0.8 * outside).sum()), abs=1e-12)


@pytest.mark.parametrize("form", ["closed", "port", "weighted"])
def test_an_absent_class_gives_finite_losses_and_gradients(recorded, form):
    logits, labels, weight = recorded
    labels = np.where(labels == 1, 0, labels)  # nobody is of class 1

    @jax.jit
    def both(z):
        return jax.value_and_grad(lambda z: objective(z, labels, mu=0.8, form=form, weight=weight))(
            z
        )

    value, slope = both(logits)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    lonely = class_losses(logits, np.zeros(8, int))
    assert np.isfinite(lonely.inside).all()
    assert float(lonely.outside[0]) == 0 == float(lonely.inside[1])


def test_first_script_is_nan_without_a_class(recorded):
    logits, labels, _ = recorded
    labels = np.where(labels == 1, 0, labels)
    assert np.isnan(objective(logits, labels, mu=0.8, form="tensorflow"))


def test_complement_is_that_of_double_precision_where_single_saturates(x64):
    rows = [[40.0, 0.0, -3.0], [0.1, 0.1, 0.1], [0.0, 0.0, -90.0], [-60.0, 30.0, 29.0]]
    z = np.array(rows)
    others = np.stack([np.delete(z, k, 1) for k in range(3)], 1)
    exact = np.log(np.exp(others).sum(-1)) - np.log(np.exp(z).sum(-1))[:, None]
    single = z.astype(np.float32)
    found = jax.jit(one_sided.log_complement)(single)
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=1e-15)
    slope = jax.jit(jax.grad(lambda z: one_sided.log_complement(z).sum()))
    assert np.isfinite(slope(single)).all()
    check_grads(jax.jit(one_sided.log_complement), (jnp.asarray(z[[3]] / 10 + 0.3),), 1, rtol=1e-6)


def test_example_losses_have_the_class_losses_for_their_mean(recorded):
    logits, labels, weight = recorded
    shares = np.bincount(labels, minlength=6) / 8
    lam = np.linspace(0.2, 2, 6)
    losses, outside = map(np.asarray, example_losses(logits, labels, lam, shares))
    expected = Sides(*map(np.asarray, class_losses(logits, labels)))
    np.testing.assert_allclose(losses.mean(), (expected.inside + lam * expected.outside).sum())
    np.testing.assert_allclose(outside.mean(0), expected.outside)
    # With shares of the whole data a batch's losses are means over the batch, not its own counts.
    even = np.ones(6) / 6
    found = class_losses(logits, labels, weight=weight, frequencies=even)
    found = Sides(*map(np.asarray, found))
    losses = np.asarray(example_losses(logits, labels, lam, even)[0])
    np.testing.assert_allclose(
        (losses * weight).sum() / weight.sum(), (found.inside + lam * found.outside).sum()
    )


def test_unknown_form_is_one_sentence(recorded):
    with pytest.raises(ConfigError, match="form must be one of closed, tensorflow"):
        objective(*recorded[:2], mu=1.0, form="torch")


def problem():
    """A logistic problem of three overlapping classes with a ridge."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    centres = np.array([[0.0, 1.5], [1.3, -0.8], [-1.3, -0.8]])
    inputs = jnp.asarray(centres[labels] + rng.normal(0, 1, (60, 2)))

    def losses(params):
        logits = inputs @ params["kernel"] + params["bias"]
        ridge = 1e-3 * sum(jnp.sum(p**2) for p in params.values())
        return one_sided.class_losses(logits, labels), ridge

    return losses, {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}


@jax.jit
def saddle_points(mus, steps, rate=0.05):
    losses, params = problem()

    def solve(mu):
        start = Players(params, jnp.full(3, 0.5), jnp.maximum(mu - jnp.full(3, 0.5), 0))
        step = lambda _, players: one_sided.extragradient(players, losses, mu, rate)  # noqa: E731
        return jax.lax.fori_loop(0, steps, step, start)

    return jax.vmap(solve)(mus)


@jax.jit
def penalised_minima(mus, steps):
    losses, params = problem()

    def value(params, mu):
        sides, ridge = losses(params)
        return jnp.sum(sides.inside + mu * sides.outside) + ridge

    def solve(mu):
        step = lambda _, p: jax.tree.map(  # noqa: E731
            lambda a, g: a - 0.05 * g, p, jax.grad(value)(p, mu)
        )
        return value(jax.lax.fori_loop(0, steps, step, params), mu)

    return jax.vmap(solve)(mus)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [15_000, pytest.param(60_000, marks=pytest.mark.slow)])
def test_saddle_point_is_the_minimum_of_the_closed_form(x64, steps):
    mus = jnp.array([0.49, 0.8, 1.67, 0.25, 0.5, 1.0, 2.0, 4.0])
    players = saddle_points(mus, steps)
    sides, ridge = jax.vmap(problem()[0])(players.params)
    value = sides.inside + players.multipliers * (sides.outside - players.slacks)
    value = (value + mus[:, None] * players.slacks).sum(1) + ridge
    np.testing.assert_allclose(value, penalised_minima(mus, steps), atol=1e-5)
    np.testing.assert_allclose(players.multipliers, np.tile(mus[:, None], 3), atol=1e-3)
    np.testing.assert_allclose(sides.outside, players.slacks, atol=1e-3)
    assert (sides.outside <= players.slacks + 1e-3).all()
    order = slice(3, None)  # rising mu
    assert (np.diff(players.slacks[order].sum(1)) <= 0).all()
    # Without the ridge this is the sum of L, which what else is minimised belongs to.
    assert (np.diff((sides.inside.sum(1) + ridge)[order]) >= 0).all()


def test_one_move_per_step_goes_round_the_saddle_point(x64):
    outside = np.array([0.3, 0.2])

    def play(moves):
        def step(_, state):
            at = state
            for _ in range(moves):
                at = one_sided.move_multipliers(state, at, outside, 0.8, 0.05)
            return at

        start = (jnp.full(2, 0.5), jnp.full(2, 0.3))
        return jax.jit(lambda: jax.lax.fori_loop(0, 20_000, step, start))()

    slacks, multipliers = play(2)
    np.testing.assert_allclose(slacks, outside, atol=1e-6)
    np.testing.assert_allclose(multipliers, 0.8, atol=1e-6)
    slacks, multipliers = play(1)
    distance = np.abs(np.asarray(multipliers) - 0.8) + np.abs(np.asarray(slacks) - outside)
    assert (distance > 0.1).all()
