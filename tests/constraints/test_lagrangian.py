"""Lagrangians and their multipliers against closed forms and optimality conditions."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff.constraints as package
from jaxeff.constraints import (
    Constraint,
    DualStep,
    Mean,
    Settings,
    constrained,
    effective_multiplier,
    init_duals,
    level_schedule,
)
from jaxeff.constraints.statistics import predictive_entropy
from jaxeff.errors import ConfigError

pytestmark = pytest.mark.usefixtures("x64")


def descend(loss, constraints, settings, params, steps, rate):
    """Gradient descent and dual steps; returns the last of all and every step's metrics."""
    gradient, dual_update = constrained(loss, constraints, settings)

    def step(carried, _):
        params, duals = carried
        evaluation, slope = gradient(params, duals)
        duals, metrics = dual_update(duals, evaluation.statistics)
        params = jax.tree.map(lambda p, g: p - rate * g, params, slope)
        return (params, duals), (metrics, params)

    start = params, init_duals(constraints, settings)
    (params, duals), seen = jax.jit(lambda s: jax.lax.scan(step, s, length=steps))(start)
    return params, duals, seen


def test_example_of_the_documentation_finds_the_bound_and_its_multiplier():
    text = constrained.__doc__.partition("::\n")[2].partition("On several devices")[0]
    names = {name: getattr(package, name) for name in package.__all__} | {"jax": jax}
    exec(textwrap.dedent(text), names)
    assert names["w"] == pytest.approx(1, abs=1e-4)
    assert names["duals"].multiplier["bound"] == pytest.approx(1, abs=1e-4)
    assert set(names["metrics"]) == {"bound", "bound_violation", "bound_multiplier"}


@pytest.mark.parametrize("multiplier", [0.0, 0.4])
@pytest.mark.parametrize("violation", [-0.5, -0.05, 0.3])
def test_acting_multiplier_is_the_slope_of_the_augmented_lagrangian(violation, multiplier):
    rho, slacks = 2.0, np.linspace(0, 2, 200_001)

    def best(c):  # over a slack s >= 0, with which the bound is an equality
        return np.min(multiplier * (c + slacks) + rho / 2 * (c + slacks) ** 2)

    found = effective_multiplier(jnp.asarray(multiplier), jnp.asarray(violation), rho)
    slope = (best(violation + 1e-4) - best(violation - 1e-4)) / 2e-4
    assert found == pytest.approx(slope, abs=1e-6)
    assert effective_multiplier(multiplier, violation, 0.0) == multiplier


def test_noise_of_batches_does_not_act_where_their_mean_is_allowed():
    noisy = lambda w, noise: ((w - 2) ** 2 / 2, w + noise)  # noqa: E731
    settings = Settings(DualStep(0.1), rho=5.0, decay=0.9, normalize=False)
    gradient, dual_update = constrained(noisy, [bound(2.5)], settings)

    @jax.jit
    def step(duals, noise):
        evaluation, slope = gradient(jnp.asarray(2.0), duals, noise)
        return dual_update(duals, evaluation.statistics)[0], slope

    duals, slopes = init_duals([bound(2.5)], settings), []
    for noise in (-2.0, 2.0, -2.0, 2.0):  # every second batch by itself is above the bound
        duals, slope = step(duals, noise)
        slopes.append(slope)
    assert not np.any(slopes)
    assert not duals.multiplier["bound"].any()


def bound(level, **fields):
    return Constraint("bound", lambda w: w, level=level, **fields)


def quadratic(w):
    return (w - 2) ** 2 / 2, w


@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_descent_and_ascent_meet_in_the_constrained_minimum(rho):
    settings = Settings(DualStep(0.1), rho=rho, every=1)
    w, duals, _ = descend(quadratic, [bound(1.0)], settings, jnp.zeros(()), 1000, 0.2)
    assert w == pytest.approx(1, abs=1e-8)
    # The multiplier is that of the violation over its first value, max(|0|, |1|) here.
    assert duals.multiplier["bound"][0] == pytest.approx(1, abs=1e-8)


def test_at_least_is_the_mirror_image():
    settings = Settings(DualStep(0.1), every=1)
    mirrored = descend(
        lambda w: ((w + 2) ** 2 / 2, w),
        [bound(-1.0, at_least=True)],
        settings,
        jnp.zeros(()),
        300,
        0.2,
    )
    plain = descend(quadratic, [bound(1.0)], settings, jnp.zeros(()), 300, 0.2)
    assert mirrored[0] == -plain[0]
    assert mirrored[1].multiplier["bound"] == plain[1].multiplier["bound"]


def test_feasible_constraint_leaves_every_step_as_it_is():
    settings = Settings(DualStep(0.1), rho=3.0)
    w, duals, (metrics, path) = descend(quadratic, [bound(3.0)], settings, jnp.zeros(()), 50, 0.2)
    _, _, (_, free) = descend(quadratic, [], settings, jnp.zeros(()), 50, 0.2)
    np.testing.assert_array_equal(path, free)
    assert w == pytest.approx(2, abs=1e-4)
    assert not duals.multiplier["bound"].any()
    assert (metrics["bound_violation"] < 0).all()


def test_infeasible_constraint_ends_at_the_maximum():
    bounds = [Constraint("bound", lambda w: w**2, level=-1.0)]
    settings = Settings(DualStep(1.0), maximum=4.0)
    _, duals, (metrics, _) = descend(quadratic, bounds, settings, jnp.zeros(()), 200, 0.05)
    assert duals.multiplier["bound"] == 4
    assert (np.diff(metrics["bound_multiplier"]) >= 0).all()


def linear_dynamics(rate, gain, primal):
    """Of (w - 1, multiplier - 1, last w - 1) for min -w with w <= 1, a loss without curvature."""
    return np.array([[1, -primal, 0], [rate + gain, 1, -gain], [1, 0, 0]])


def test_proportional_gain_makes_an_unstable_ascent_converge():
    primal, rate, gain = 0.2, 0.2, 1.0
    steps, start = 150, np.array([0.1, 0.0, 0.1])
    radii = {}
    for kappa in (0.0, gain):
        matrix = linear_dynamics(rate, kappa, primal)
        radii[kappa] = np.abs(np.linalg.eigvals(matrix)).max()
        expected = np.linalg.matrix_power(matrix, steps) @ start
        settings = Settings(
            DualStep(rate, kappa), rho=0.0, every=1, initial=1.0, maximum=1e9, normalize=False
        )
        if kappa:  # the other one would reach multipliers below 0
            w, duals, _ = descend(
                lambda w: (-w, w), [bound(1.0)], settings, jnp.asarray(1.1), steps, primal
            )
            found = w - 1, duals.multiplier["bound"][0] - 1
            np.testing.assert_allclose(found, expected[:2], atol=1e-12)
            assert np.abs(expected).max() < 1e-6
    assert radii[0.0] > 1.01
    assert radii[gain] < 0.95


def test_optimality_conditions_hold_at_the_end_on_a_logistic_problem():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 3))
    labels = (rng.uniform(size=60) < 0.5 + 0.4 * np.sign(inputs[:, 0])).astype(float)

    def loss(w):
        z = inputs @ w
        logits = jnp.stack([jnp.zeros_like(z), z], axis=-1)
        losses = jnp.logaddexp(0, z) - labels * z
        return losses.mean(), (logits, losses, w)

    weight = jnp.ones(60)
    constraints = [
        Constraint(
            "entropy", lambda s: Mean.of(predictive_entropy(s[0]), weight), 0.55, at_least=True
        ),
        Constraint("square", lambda s: jnp.sum(s[2] ** 2), 100.0),
    ]
    settings = Settings(DualStep(0.5), rho=5.0, every=1, normalize=False)
    w, duals, _ = descend(loss, constraints, settings, jnp.zeros(3), 4000, 0.2)
    gradient, _ = constrained(loss, constraints, settings)

    @jax.jit
    def at_the_end(w, duals):
        evaluation, slope = gradient(w, duals)
        return {name: one.value[0] for name, one in evaluation.statistics.items()}, slope

    values, slope = jax.tree.map(np.asarray, at_the_end(w, duals))
    assert np.linalg.norm(slope) < 1e-4
    excess = {"entropy": 0.55 - values["entropy"], "square": values["square"] - 100}
    for name, c in excess.items():
        assert c < 1e-4
        assert abs(duals.multiplier[name][0] * c) < 1e-4
    assert duals.multiplier["entropy"][0] > 0.01
    assert duals.multiplier["square"][0] == 0


@pytest.mark.parametrize("h", [0.325083, 0.1])
def test_least_entropy_of_separable_classes_gives_the_probability_with_that_entropy(h):
    def loss(z):
        return jnp.log1p(jnp.exp(-z)), jnp.stack([z, jnp.zeros_like(z)])

    entropy = Constraint("entropy", predictive_entropy, h, at_least=True)
    settings = Settings(DualStep(0.5), rho=5.0, every=1)
    z, _, _ = descend(loss, [entropy], settings, jnp.ones(()), 6000, 0.3)
    p = float(jax.nn.sigmoid(z))
    assert -p * np.log(p) - (1 - p) * np.log(1 - p) == pytest.approx(h, abs=1e-6)
    if h == 0.325083:
        assert p == pytest.approx(0.9, abs=1e-6)


def statistics_of(values, weights=None):
    weights = np.ones_like(values) if weights is None else weights
    pairs = zip(np.asarray(values), np.asarray(weights), strict=True)
    return [{"x": Mean(jnp.atleast_1d(v * w), jnp.atleast_1d(w))} for v, w in pairs]


def run_duals(constraint, settings, statistics):
    _, dual_update = constrained(lambda w: (w, w), [constraint], settings)
    state, seen = init_duals([constraint], settings), []
    for each in statistics:
        state, metrics = dual_update(state, each)
        seen.append({**metrics, "state": state})
    return seen


def test_running_means_weigh_batches_by_their_weight_and_age():
    values, weights = np.array([1.0, 5.0, 2.0, -3.0]), np.array([2.0, 1.0, 4.0, 0.5])
    constraint = Constraint("x", lambda w: w, level=1.5)
    settings = Settings(DualStep(0.1), decay=0.9, normalize=False)
    seen = run_duals(constraint, settings, statistics_of(values, weights))
    for t, found in enumerate(seen):
        ages = 0.9 ** np.arange(t, -1, -1) * weights[: t + 1]
        expected = ages @ values[: t + 1] / ages.sum() - 1.5
        assert found["x_violation"] == pytest.approx(expected)
        assert found["x"] == values[t]


def test_running_means_are_of_signed_violations():
    """Means of what is above the level alone are above it even where the level is kept."""
    noise = np.random.default_rng(0).normal(size=400)
    constraint = Constraint("x", lambda w: w, level=0.5)
    settings = Settings(DualStep(0.05), normalize=False, decay=0.99)
    seen = run_duals(constraint, settings, statistics_of(noise))
    assert np.maximum(noise - 0.5, 0).mean() > 0.15
    assert float(seen[-1]["x_violation"]) < -0.3
    assert float(seen[-1]["x_multiplier"]) == 0


def test_multipliers_move_once_an_epoch_along_the_mean_of_that_epoch_alone():
    values = np.array([1.0, 2.0, 6.0, 0.0, 4.0, 5.0, 9.0])
    constraint = Constraint("x", lambda w: w, level=1.0)
    settings = Settings(DualStep(0.5), every=3, normalize=False, maximum=100.0)
    seen = run_duals(constraint, settings, statistics_of(values))
    found = [float(s["x_multiplier"]) for s in seen]
    assert found == [0, 0, 1, 1, 1, 2, 2]
    assert [float(s["x_violation"]) for s in seen] == [0, 0.5, 2, -1, 1, 2, 8]


def test_levels_follow_the_time_in_epochs():
    constraint = Constraint("x", lambda w: w, level=level_schedule(4.0, 0.0, 2.0))
    settings = Settings(DualStep(0.1), every=1, steps_per_epoch=2, normalize=False)
    seen = run_duals(constraint, settings, statistics_of(np.zeros(6)))
    np.testing.assert_allclose(
        [float(s["x_violation"]) for s in seen],
        [-4, -2 - np.sqrt(2), -2, np.sqrt(2) - 2, 0, 0],
        atol=1e-12,
    )


def test_violations_are_divided_by_the_size_of_the_first_statistic():
    constraint = Constraint("x", lambda w: w, level=2.0)
    settings = Settings(DualStep(0.1), every=1, rho=1.0)
    seen = run_duals(constraint, settings, statistics_of([8.0, 4.0]))
    assert [float(s["x_violation"]) for s in seen] == [0.75, 0.25]
    # Where the first value is about 0, the level sets the scale.
    seen = run_duals(constraint, settings, statistics_of([1e-9, 4.0]))
    assert float(seen[1]["x_violation"]) == pytest.approx(1.0)


def test_scale_is_that_of_the_gradient_too_from_the_first_batch_on():
    constraint = Constraint("x", lambda w: 8 * w, level=2.0)
    settings = Settings(DualStep(0.1), every=1, rho=0.0, initial=3.0)
    gradient, dual_update = constrained(lambda w: (jnp.zeros(()), w), [constraint], settings)
    state = init_duals([constraint], settings)
    evaluation, slope = gradient(jnp.ones(()), state)
    assert slope == 3.0 * 8 / 8
    state, _ = dual_update(state, evaluation.statistics)
    _, slope = gradient(jnp.asarray(0.1), state)
    assert slope == pytest.approx((3.0 + 0.1 * 0.75) * 8 / 8)


def test_what_a_batch_has_no_example_of_keeps_its_multiplier_and_has_no_gradient():
    constraint = Constraint("x", lambda w: w, size=2)
    settings = Settings(DualStep(1.0), every=1, initial=1.0, maximum=50.0, normalize=False)
    seen = run_duals(
        constraint, settings, [{"x": Mean(jnp.array([3.0, 0.0]), jnp.array([1.0, 0.0]))}]
    )
    np.testing.assert_array_equal(seen[0]["state"].multiplier["x"], [4, 1])
    assert seen[0]["x"] == 3
    absent = Constraint("x", lambda w: Mean(jnp.stack([w, w]), jnp.array([1.0, 0.0])), size=2)
    gradient, _ = constrained(lambda w: (w, w), [absent], settings)
    evaluation, slope = gradient(jnp.asarray(2.0), init_duals([absent], settings))
    assert slope == 1 + (1 + 2)
    assert evaluation.loss == 2


def test_thousands_of_constraints_are_one_vector():
    size = 3000
    targets = jnp.linspace(0, 2, size)
    each = Constraint("each", lambda w: w, level_schedule(tuple(np.full(size, 1.0))), size=size)
    settings = Settings(DualStep(0.5), every=1, normalize=False)

    def loss(w):
        return jnp.sum((w - targets) ** 2) / 2, w

    w, duals, _ = descend(loss, [each], settings, jnp.zeros(size), 200, 0.3)
    np.testing.assert_allclose(w, jnp.minimum(targets, 1), atol=1e-6)
    np.testing.assert_allclose(duals.multiplier["each"], jnp.maximum(targets - 1, 0), atol=1e-5)


def test_multipliers_see_the_true_statistic_and_the_gradient_its_surrogate():
    proxy = Constraint(
        "count", lambda w: 2 * w, 1.0, statistic=lambda w: (w > 0.25).astype(w.dtype)
    )
    settings = Settings(DualStep(1.0), rho=0.0, every=1, initial=3.0, normalize=False)
    gradient, dual_update = constrained(lambda w: (0 * w, w), [proxy], settings)
    state = init_duals([proxy], settings)
    evaluation, slope = gradient(jnp.asarray(0.3), state)
    assert slope == 6
    state, metrics = dual_update(state, evaluation.statistics)
    assert metrics["count"] == 1
    assert state.multiplier["count"] == 3


def test_measured_constraints_of_no_weight_change_nothing():
    settings = Settings(DualStep(frozen=True), rho=5.0)
    assert settings.is_inactive
    # Nor is their gradient taken, which is infinite here.
    constraints = [bound(1.0), Constraint("steep", lambda w: jnp.sqrt(w - 1.5))]
    gradient, dual_update = constrained(quadratic, constraints, settings)
    state = init_duals(constraints, settings)
    evaluation, slope = gradient(jnp.asarray(1.5), state)
    assert slope == -0.5
    state, metrics = dual_update(state, evaluation.statistics)
    assert metrics["bound"] == 1.5
    assert state.multiplier["bound"] == 0


def test_fixed_multipliers_are_a_plain_penalty():
    settings = Settings(DualStep(frozen=True), rho=5.0, initial=0.7, normalize=False)
    gradient, _ = constrained(quadratic, [bound(1.0)], settings)
    _, slope = gradient(jnp.asarray(1.5), init_duals([bound(1.0)], settings))
    assert slope == pytest.approx(-0.5 + 0.7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rho": -1.0}, "rho"),
        ({"initial": 10.0}, "maximum"),
        ({"decay": 1.0}, "decay"),
        ({"every": -1}, "every"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Settings(**fields)


def test_two_constraints_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="two constraints have the name 'bound'"):
        init_duals([bound(1.0), bound(2.0)], Settings())
