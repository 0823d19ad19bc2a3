"""The dynamic regulariser on problems whose answer is known in closed form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxeff.errors import ConfigError
from jaxeff.train.fptt_optimizer import DynamicState, dynamic_penalty, dynamic_regularizer, restart

# Five losses a/2 (W - c)^2 of three weights, one after the other, again and again.
CYCLE, WEIGHTS, RATE = 5, 3, 0.05


@pytest.fixture
def quadratics(x64):
    rng = np.random.default_rng(0)
    return (
        jnp.asarray(rng.uniform(0.5, 2.0, (CYCLE, WEIGHTS))),
        jnp.asarray(rng.normal(0.0, 2.0, (CYCLE, WEIGHTS))),
        jnp.asarray(rng.normal(0.0, 1.0, WEIGHTS)),
    )


def stream(optimizer, quadratics, steps, *, argmin=False, true_gradient=False):
    """Updates once per loss; returns weights, states and gradients at the new weights, by step."""
    curvatures, centres, start = quadratics

    def step(loop, number):
        w, state = loop
        a, c = curvatures[number % CYCLE], centres[number % CYCLE]
        options = {"curvature": a} if argmin else {}
        if true_gradient:
            options["gradient"] = lambda new: a * (new - c)
        updates, state = optimizer.update(a * (w - c), state, w, **options)
        w = optax.apply_updates(w, updates)
        return (w, state), (w, state, a * (w - c))

    run = jax.jit(lambda: jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(steps))[1])
    return jax.tree.map(np.asarray, run())


def to_the_argmin(alpha):
    """The optimiser that goes to the minimum of a quadratic plus the quadratic of the tie."""

    def update(grads, state, params, *, curvature):
        return -grads / (curvature + alpha), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def test_distance_from_plain_descent_shrinks_in_proportion_to_alpha(quadratics):
    plain, _, _ = stream(dynamic_regularizer(optax.sgd(RATE), 0.0), quadratics, 50)
    alphas = (0.01, 1e-4, 1e-8)
    distances = []
    for alpha in alphas:
        tied, _, _ = stream(dynamic_regularizer(optax.sgd(RATE), alpha), quadratics, 50)
        distances.append(float(np.abs(tied - plain).max()))
    ratios = np.array(distances) / np.array(alphas)
    assert ratios[0] > 1e-4
    np.testing.assert_allclose(ratios, ratios[-1], rtol=0.05)


@pytest.mark.parametrize("inner", [optax.sgd(RATE), optax.adam(RATE)], ids=["sgd", "adam"])
def test_without_alpha_it_is_the_inner_optimiser_to_the_bit(quadratics, inner):
    """Operation by operation: two programs would be rounded differently by the compiler."""
    curvatures, centres, start = quadratics
    tied = dynamic_regularizer(inner, 0.0)
    w, state = start, tied.init(start)
    plain, plain_state = start, inner.init(start)
    for number in range(20):
        a, c = curvatures[number % CYCLE], centres[number % CYCLE]
        updates, state = tied.update(a * (w - c), state, w)
        w = optax.apply_updates(w, updates)
        updates, plain_state = inner.update(a * (plain - c), plain_state, plain)
        plain = optax.apply_updates(plain, updates)
        np.testing.assert_array_equal(w, plain)
        np.testing.assert_array_equal(state.running, w)
    chex.assert_trees_all_equal(state.inner, plain_state)
    assert not state.multiplier.any()


@pytest.mark.parametrize("form", ["feddyn", "printed"])
@pytest.mark.parametrize("alpha", [0.1, 5.0])
def test_first_update_is_the_plain_one(quadratics, alpha, form):
    first, _, _ = stream(dynamic_regularizer(optax.sgd(RATE), alpha, form=form), quadratics, 1)
    plain, _, _ = stream(dynamic_regularizer(optax.sgd(RATE), 0.0), quadratics, 1)
    np.testing.assert_array_equal(first, plain)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("form", ["feddyn", "printed"])
def test_multiplier_at_the_argmin_is_the_gradient_in_the_form_of_the_code(quadratics, alpha, form):
    optimizer = dynamic_regularizer(to_the_argmin(alpha), alpha, form=form)
    steps = 400 * CYCLE
    weights, states, gradients = stream(optimizer, quadratics, steps, argmin=True)
    error = float(jnp.abs(states.multiplier - gradients).max())
    if form == "feddyn":
        assert error < 1e-13
    else:
        late = slice(-CYCLE, None)
        assert float(jnp.abs(states.multiplier - gradients)[late].max()) > 1e-3
    means = gradients.reshape(-1, CYCLE, WEIGHTS).mean(1)
    assert float(jnp.abs(means[0]).max()) > 1e-3
    assert float(jnp.abs(means[-1]).max()) < 1e-9
    # The mean vanishes although the weights themselves keep on cycling.
    assert float(jnp.ptp(weights[-CYCLE:], axis=0).max()) > 1e-3


@pytest.mark.parametrize("alpha", [0.1, 2.0])
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.7])
def test_around_frozen_weights_the_state_decays_at_a_known_rate(x64, alpha, beta):
    optimizer = dynamic_regularizer(optax.set_to_zero(), alpha, beta=beta)
    rng = np.random.default_rng(1)

    def distances(w, steps):
        state = DynamicState((), w + rng.normal(size=WEIGHTS), jnp.asarray(rng.normal(size=3)))

        def step(state, _):
            _, state = optimizer.update(jnp.ones_like(w), state._replace(inner=inner), w)
            both = jnp.concatenate([state.running - w, state.multiplier / alpha])
            return state._replace(inner=()), jnp.linalg.norm(both)

        inner = optimizer.init(w).inner
        return np.asarray(jax.jit(lambda state: jax.lax.scan(step, state, None, steps)[1])(state))

    # At zero there is no rounding of the difference to end the decay.
    found = distances(jnp.zeros(WEIGHTS), 400)
    rate = (found[-1] / found[100]) ** (1 / 299)
    assert rate == pytest.approx(np.sqrt(1 - beta), rel=0.01)
    assert distances(jnp.asarray(rng.normal(size=WEIGHTS)), 600)[-1] < 1e-12


def test_with_one_step_of_descent_the_multiplier_is_not_the_gradient(quadratics):
    optimizer = dynamic_regularizer(optax.sgd(RATE), 0.1)
    _, states, gradients = stream(optimizer, quadratics, 50)
    error = jnp.abs(states.multiplier - gradients).max(1)
    assert float(jnp.median(error)) > 0.5 * float(jnp.median(jnp.abs(gradients).max(1)))


def test_true_gradients_as_multipliers_drive_the_running_weights_away(quadratics):
    def drift(multiplier, alpha):
        optimizer = dynamic_regularizer(optax.sgd(RATE), alpha, multiplier=multiplier)
        options = {"true_gradient": multiplier == "gradient"}
        weights, states, gradients = stream(optimizer, quadratics, 50, **options)
        if multiplier == "gradient":
            np.testing.assert_array_equal(states.multiplier, gradients)
        return float(jnp.abs(states.running - weights).max())

    assert drift("gradient", 0.1) > 5
    assert drift("gradient", 0.01) > 50
    assert drift("running", 0.1) < 1


@pytest.fixture
def nested(x64):
    """Parameters, a state that is at rest nowhere, and gradients, as nested trees."""
    rng = np.random.default_rng(2)

    def tree(scale=1.0):
        return {
            "cell": {"W": jnp.asarray(scale * rng.normal(size=(2, 3))), "b": (jnp.ones(3),)},
            "readout": [jnp.asarray(scale * rng.normal(size=4))],
        }

    return tree(), tree(), tree(0.1), tree(3.0)


@pytest.mark.parametrize("quadratic", [0.0, 1.0, 2.0])
def test_update_adds_the_gradient_of_the_penalty(nested, quadratic):
    params, running, multiplier, grads = nested
    optimizer = dynamic_regularizer(optax.identity(), 0.3, quadratic=quadratic)
    state = DynamicState(optimizer.init(params).inner, running, multiplier)

    @jax.jit
    def both(params):
        total, _ = optimizer.update(grads, state, params)
        return total, jax.grad(dynamic_penalty)(params, state, 0.3, quadratic=quadratic)

    total, slope = both(params)
    added = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), total, grads)
    chex.assert_trees_all_close(added, slope, atol=1e-14, rtol=1e-12)


def test_penalty_of_numbers_by_hand(x64):
    state = DynamicState((), {"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([0.5, -1.0])})
    value = dynamic_penalty({"a": jnp.array([3.0, 1.0])}, state, 0.2, quadratic=3.0)
    # -(3 * 0.5 - 1) + 3 * 0.2 / 2 * (4 + 1)
    np.testing.assert_allclose(value, -0.5 + 1.5, rtol=1e-14)


def test_printed_form_halves_the_multiplier_in_the_gradient_alone(nested):
    params, running, multiplier, grads = nested
    outcomes = []
    for form, lam in (
        ("printed", multiplier),
        ("feddyn", jax.tree.map(lambda x: x / 2, multiplier)),
    ):
        optimizer = dynamic_regularizer(optax.sgd(0.1), 0.3, form=form)
        state = DynamicState(optimizer.init(params).inner, running, lam)
        outcomes.append(jax.jit(optimizer.update)(grads, state, params))
    (printed, after), (halved, halved_after) = outcomes
    chex.assert_trees_all_close(printed, halved, rtol=1e-12, atol=1e-14)
    moved = jax.tree.map(jnp.subtract, after.multiplier, multiplier)
    half = jax.tree.map(lambda new, old: new - old / 2, halved_after.multiplier, multiplier)
    chex.assert_trees_all_close(moved, half, rtol=1e-12, atol=1e-14)


def test_state_after_an_update_by_hand(nested):
    params, running, multiplier, grads = nested
    alpha, beta = 0.3, 0.7
    optimizer = dynamic_regularizer(optax.sgd(0.1), alpha, beta=beta)
    state = DynamicState(optimizer.init(params).inner, running, multiplier)
    updates, state = jax.jit(optimizer.update)(grads, state, params)
    for w, mean, lam, g, change, new_mean, new_lam in zip(
        *map(
            jax.tree.leaves,
            (params, running, multiplier, grads, updates, state.running, state.multiplier),
        ),
        strict=True,
    ):
        new = w - 0.1 * (g + alpha * (w - mean) - lam)
        lam = lam - alpha * (new - mean)
        np.testing.assert_allclose(w + change, new, rtol=1e-12)
        np.testing.assert_allclose(new_lam, lam, rtol=1e-12, atol=1e-14)
        by_hand = (1 - beta) * mean + beta * new - beta / alpha * lam
        np.testing.assert_allclose(new_mean, by_hand, rtol=1e-12, atol=1e-14)


def test_clipping_inside_covers_the_regulariser(nested):
    params, running, multiplier, grads = nested
    inner = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2))
    optimizer = dynamic_regularizer(inner, 0.3)
    state = DynamicState(optimizer.init(params).inner, running, multiplier)
    total = jax.tree.map(
        lambda g, w, mean, lam: g + 0.3 * (w - mean) - lam, grads, params, running, multiplier
    )
    expected, expected_inner = jax.jit(lambda p: inner.update(total, inner.init(p), p))(params)

    def once(state, _):
        updates, new = optimizer.update(grads, state, params)
        return new, (updates, new.inner)

    _, (scanned, inners) = jax.jit(lambda s: jax.lax.scan(once, s, None, 3))(state)
    first = jax.tree.map(lambda a: a[0], (scanned, inners))
    chex.assert_trees_all_close(first, (expected, expected_inner), rtol=1e-12, atol=1e-15)
    assert int(optax.tree.get(jax.tree.map(lambda a: a[-1], inners), "count")) == 3


def test_restart_begins_anew_but_for_the_inner_state(nested):
    params, running, multiplier, grads = nested
    optimizer = dynamic_regularizer(optax.sgd(0.1, momentum=0.9), 0.3)
    _, state = jax.jit(lambda p: optimizer.update(grads, optimizer.init(p), p))(params)
    new = jax.jit(restart)(state._replace(running=running, multiplier=multiplier), params)
    chex.assert_trees_all_equal(new.running, params)
    chex.assert_trees_all_equal(new.multiplier, jax.tree.map(jnp.zeros_like, params))
    chex.assert_trees_all_equal(new.inner, state.inner)


def test_fresh_state_is_a_copy_that_may_be_donated(nested):
    params, _, _, grads = nested
    optimizer = dynamic_regularizer(optax.sgd(0.1), 0.3)
    state = optimizer.init(params)
    chex.assert_trees_all_equal(state.running, params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.multiplier))

    def step(params, state):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    new, state = jax.jit(step, donate_argnums=(0, 1))(params, state)
    chex.assert_tree_all_finite((new, state))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("multiplier", ["running", "gradient"])
def test_types_are_kept(dtype, alpha, multiplier):
    params = {"a": jnp.ones((2, 3), dtype), "b": [jnp.ones(4, dtype)]}
    optimizer = dynamic_regularizer(
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), alpha, multiplier=multiplier
    )
    state = jax.eval_shape(optimizer.init, params)
    updates, new = jax.eval_shape(
        lambda p, state: optimizer.update(p, state, p, gradient=lambda new: new), params, state
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"alpha": -0.1}, "alpha must not be negative, not -0.1"),
        ({"alpha": float("nan")}, "alpha must not be negative, not nan"),
        ({"beta": 0.0}, r"beta must be in \(0, 1\], not 0.0"),
        ({"beta": 1.5}, r"beta must be in \(0, 1\], not 1.5"),
        ({"quadratic": -1.0}, "quadratic must not be negative, not -1.0"),
        ({"form": "fedyn"}, "form: unknown choice 'fedyn'; did you mean 'feddyn'"),
        ({"multiplier": "runing"}, "multiplier: unknown choice 'runing'; did you mean 'running'"),
    ],
)
def test_impossible_fields_are_one_sentence(fields, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        dynamic_regularizer(optax.sgd(0.1), **{"alpha": 0.1, **fields})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_update_without_parameters_is_refused(alpha):
    optimizer = dynamic_regularizer(optax.sgd(0.1), alpha)
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


def test_true_multiplier_without_a_gradient_is_refused():
    optimizer = dynamic_regularizer(optax.sgd(0.1), 0.1, multiplier="gradient")
    with pytest.raises(ValueError, match=r"needs update\(\.\.\., gradient=function\)"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))
