"""Statistics against closed forms, brute force and finite differences; all in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linprog

from jaxeff.constraints import CONSTRAINTS, Forward, Mean, statistics
from jaxeff.errors import ConfigError

pytestmark = pytest.mark.usefixtures("x64")

CLASSES, BATCH, INPUTS = 3, 7, 4
WEIGHT = np.array([1.0, 2.0, 0.5, 0.0, 1.5, 1.0, 0.7])
LABELS = np.array([0, 2, 1, 1, 2, 0, 2])


def build(name, **fields):
    return CONSTRAINTS.build({"name": name, **fields}, num_classes=CLASSES)


@pytest.fixture
def seen():
    """Maps parameters to what a small network shows of itself at them."""
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(BATCH, INPUTS)))

    def show(params):
        def outputs_at(params, inputs):
            return jnp.tanh(inputs @ params["a"]) @ params["b"]

        def losses_at(params=params, inputs=inputs):
            logits = outputs_at(params, inputs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)

        return Forward(
            params=params,
            batch={"inputs": inputs, "labels": jnp.asarray(LABELS), "weight": jnp.asarray(WEIGHT)},
            outputs=outputs_at(params, inputs),
            losses=losses_at(),
            risk_weight=jnp.asarray(WEIGHT),
            losses_at=losses_at,
            per_example=lambda values: values,
            sown={"gate": {"macs": (jnp.sum(params["a"] ** 2), inputs @ params["a"][:, 0])}},
        )

    return show


@pytest.fixture
def params():
    rng = np.random.default_rng(1)
    shapes = {"a": (INPUTS, 5), "b": (5, CLASSES)}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def value_of(constraint, seen, params):
    return jnp.atleast_1d(constraint.surrogate(seen(params)).value)


def check_gradient(function, params, tolerance=1e-6):
    """Compares directional derivatives with central differences."""
    rng, step = np.random.default_rng(2), 1e-5
    for _ in range(3):
        way = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
        moved = [jax.tree.map(lambda p, w, s=s: p + s * step * w, params, way) for s in (1, -1)]
        numeric = (function(moved[0]) - function(moved[1])) / (2 * step)
        _, exact = jax.jvp(function, (params,), (way,))
        np.testing.assert_allclose(exact, numeric, rtol=tolerance, atol=tolerance)
        assert np.abs(exact).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("entropy", {}),
        ("input_lipschitz", {"start": 1.0}),
        ("margin", {"start": (0.1, 0.2), "gamma": (0.5, 1.5), "temperature": 0.4}),
        ("class_loss", {}),
        ("cost", {"start": 1.0}),
    ],
)
def test_surrogates_have_the_gradient_of_finite_differences(name, fields, seen, params):
    constraint = build(name, **fields)
    assert value_of(constraint, seen, params).shape == (constraint.size,)
    check_gradient(jax.jit(lambda p: value_of(constraint, seen, p)), params)


@pytest.mark.parametrize(("classes", "expected"), [(10, 2.302585), (100, 4.605170)])
def test_entropy_of_equal_logits_is_the_logarithm_of_the_classes(classes, expected):
    logits = jnp.full((2, classes), 7.5)
    np.testing.assert_allclose(statistics.predictive_entropy(logits), expected, atol=1e-6)
    sure = statistics.predictive_entropy(1e4 * jnp.eye(classes))
    np.testing.assert_allclose(sure, 0, atol=1e-12)


def test_entropy_of_two_classes():
    p = np.array([0.9, 0.5, 0.01])
    logits = jnp.stack([jnp.log(p), jnp.log(1 - p)], axis=-1)
    expected = -p * np.log(p) - (1 - p) * np.log(1 - p)
    np.testing.assert_allclose(statistics.predictive_entropy(logits), expected, rtol=1e-12)
    assert expected[0] == pytest.approx(0.325083, abs=1e-6)


def test_entropy_is_a_share_of_the_largest_and_is_to_be_large(seen, params):
    constraint = build("entropy", start=0.3, end=0.0, period=2.0)
    shown = seen({**params, "b": 0 * params["b"]})
    assert constraint.surrogate(shown).value == pytest.approx(1)
    assert constraint.excess(1.0, jnp.zeros(())) == pytest.approx(-0.7)
    assert constraint.excess(0.1, jnp.zeros(())) == pytest.approx(0.2)
    shares = constraint.per_example(seen(params).outputs, {})
    assert constraint.surrogate(seen(params)).value == pytest.approx(
        float(WEIGHT @ shares / WEIGHT.sum())
    )


def test_discount_of_ten_losses():
    losses, weight = jnp.arange(10.0), jnp.ones(10)
    g, border = statistics.hardest(losses, weight, 0.2)
    np.testing.assert_array_equal(g, [0] * 8 + [1] * 2)
    discounted = float(jnp.mean((1 - g) * losses))
    assert discounted == pytest.approx(2.8, abs=1e-12)
    assert 7 <= border <= 8
    cvar = float(jnp.mean(g * losses)) / 0.2
    assert cvar == pytest.approx(8.5, abs=1e-12)
    assert discounted == pytest.approx(4.5 - 0.2 * cvar, abs=1e-12)
    g, _ = statistics.hardest(losses, weight, 0.0)
    assert float(jnp.mean((1 - g) * losses)) == 4.5
    g, _ = statistics.hardest(losses, weight, 1.0)
    np.testing.assert_array_equal(g, 1)


@pytest.mark.parametrize("share", [0.05, 0.33, 0.5, 0.91])
def test_discount_is_the_optimum_of_its_linear_program(share):
    rng = np.random.default_rng(3)
    losses, weight = rng.exponential(size=12), rng.uniform(0.2, 2, size=12)
    weight[4] = 0
    g, border = statistics.hardest(jnp.asarray(losses), jnp.asarray(weight), share)
    shares = weight / weight.sum()
    best = linprog(-shares * losses, A_ub=[shares], b_ub=[share], bounds=(0, 1))
    assert float((shares * losses) @ g) == pytest.approx(-best.fun, abs=1e-10)
    assert float(shares @ g) == pytest.approx(share, abs=1e-12)
    # The border is an optimal multiplier: nothing is gained by any other g at that price.
    dual = shares @ np.maximum(losses - float(border), 0) + float(border) * share
    assert dual == pytest.approx(-best.fun, abs=1e-10)


def test_reweightings_change_the_mean_loss_in_closed_form():
    losses, weight, time = jnp.arange(10.0), jnp.ones(10), jnp.zeros(())
    for name, start, expected in (("discount", 0.2, 2.8), ("cvar", 0.2, 8.5), ("cvar", 0.25, 8.2)):
        factors, metrics = build(name, start=start)(losses, weight, time)
        assert float(jnp.mean(factors * losses)) == pytest.approx(expected, abs=1e-12)
        assert metrics[f"{name}_share"] == start
    later = build("discount", start=0.2, end=0.0, period=3.0)
    factors, _ = later(losses, weight, jnp.asarray(3.0))
    np.testing.assert_array_equal(factors, 1)


def test_gradient_of_a_discounted_loss_is_that_of_its_minimum_over_the_weights():
    """By the envelope theorem the weights are constants of the gradient."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 9))
    reweighting = build("discount", start=0.3)

    def losses(w):
        return (a * w[0] - b * w[1]) ** 2

    def discounted(w):
        factors, _ = reweighting(losses(w), jnp.ones(9), jnp.zeros(()))
        return jnp.mean(factors * losses(w))

    check_gradient(jax.jit(discounted), jnp.asarray([0.3, -0.8]), 1e-5)


def test_margins_are_distances_to_the_best_other_class():
    logits = jnp.array([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0], [3.0, 3.0, 0.0]])
    np.testing.assert_array_equal(statistics.margins(logits, jnp.array([1, 2, 0])), [2, -2, 0])


def test_margin_quantiles_count_for_the_multipliers_and_are_smooth_for_the_gradient(seen, params):
    gammas = (0.0, 0.8, 50.0)
    shown = seen(params)
    found = np.asarray(statistics.margins(shown.outputs, shown.batch["labels"]))
    constraint = build("margin", start=(0.1, 0.2, 0.3), gamma=gammas, temperature=0.5)
    counts = [WEIGHT @ (found < g) / WEIGHT.sum() for g in gammas]
    np.testing.assert_allclose(constraint.statistic(shown).value, counts)
    smooth = [WEIGHT @ (1 / (1 + np.exp((found - g) / 0.5))) / WEIGHT.sum() for g in gammas]
    np.testing.assert_allclose(constraint.surrogate(shown).value, smooth)
    np.testing.assert_array_equal(constraint.level_at(jnp.zeros(())), [0.1, 0.2, 0.3])
    one = build("margin", start=0.1, gamma=0.8)
    shares = one.per_example(shown.outputs, shown.batch)
    assert float(WEIGHT @ shares / WEIGHT.sum()) == pytest.approx(float(counts[1]))
    assert one.statistic(shown).value == pytest.approx(float(counts[1]))


def test_input_gradient_is_that_of_every_example(seen, params):
    shown = seen(params)
    norms = statistics.input_gradient_norms(
        lambda x: shown.losses_at(inputs=x), shown.batch["inputs"]
    )
    for i in range(BATCH):
        rows = jnp.eye(INPUTS) * 1e-6
        up, down = (
            [shown.losses_at(inputs=shown.batch["inputs"].at[i].add(s * r))[i] for r in rows]
            for s in (1, -1)
        )
        slope = (np.array(up) - np.array(down)) / 2e-6
        assert norms[i] == pytest.approx(np.linalg.norm(slope), rel=1e-6)


def test_finite_differences_along_the_gradient_tend_to_its_norm_and_its_gradient(seen, params):
    exact, errors = build("input_lipschitz", start=1.0), []
    wanted = jax.jit(jax.value_and_grad(lambda p: value_of(exact, seen, p)[0]))(params)
    for step in (1e-2, 1e-3):
        near = build("input_lipschitz", start=1.0, step=step)
        found = jax.jit(jax.value_and_grad(lambda p, near=near: value_of(near, seen, p)[0]))(params)
        gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found, wanted)
        errors.append(max(jax.tree.leaves(gaps)))
    assert errors[0] < 0.05
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)  # of first order


def test_finite_differences_hold_their_direction_constant(seen, params):
    shown, step = seen(params), 0.1
    slopes = jax.grad(lambda x: jnp.sum(shown.losses_at(inputs=x)))(shown.batch["inputs"])
    ways = slopes / jnp.linalg.norm(slopes, axis=1, keepdims=True)

    def rise(p):
        at = seen(p).losses_at
        moved = shown.batch["inputs"] + step * ways
        return jnp.asarray(WEIGHT) @ (at(inputs=moved) - at()) / WEIGHT.sum() / step

    near = build("input_lipschitz", start=1.0, step=step)
    found = jax.jit(jax.value_and_grad(lambda p: value_of(near, seen, p)[0]))(params)
    wanted = jax.jit(jax.value_and_grad(rise))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), found, wanted)


def test_input_gradient_of_a_flat_loss_is_zero_with_gradient_zero():
    for step in (0.0, 0.1):
        slope = jax.grad(
            lambda w, h=step: statistics.input_gradient_norms(
                lambda x: w * jnp.sum(x**2, axis=1), jnp.zeros((2, 3)), h
            ).sum()
        )(jnp.ones(()))
        assert slope == 0


def test_width_is_the_rise_of_the_loss_at_a_distance_uphill(seen, params):
    constraint, radius = build("width", start=0.1, radius=0.3), 0.3

    def mean_loss(p):
        return jnp.asarray(WEIGHT) @ seen(p).losses / WEIGHT.sum()

    slope = jax.jit(jax.grad(mean_loss))(params)
    length = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(slope)))
    moves = jax.tree.map(lambda g: radius * g / length, slope)
    assert np.sqrt(sum(float(jnp.sum(m**2)) for m in jax.tree.leaves(moves))) == pytest.approx(0.3)

    def rise(p):
        return mean_loss(jax.tree.map(jnp.add, p, moves)) - mean_loss(p)

    assert constraint.surrogate(seen(params)).value == pytest.approx(float(rise(params)))
    found = jax.jit(jax.grad(lambda p: constraint.surrogate(seen(p)).value))(params)
    wanted = jax.jit(jax.grad(rise))(params)  # along constant moves
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, wanted)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted)) > 1e-2


def test_class_losses_are_compared_with_the_mean_loss_of_all(seen, params):
    constraint = build("class_loss", slack=0.25)
    losses = np.asarray(seen(params).losses)
    mean = WEIGHT @ losses / WEIGHT.sum()
    for k, found in enumerate(constraint.surrogate(seen(params)).value):
        own = WEIGHT * (k == LABELS)
        assert float(found) == pytest.approx(own @ losses / own.sum() - 1.25 * mean)


def test_class_losses_add_up_over_batches_and_leave_out_absent_classes(seen, params):
    constraint = build("class_loss", slack=0.0)
    found = constraint.surrogate(seen(params))
    assert isinstance(found, Mean)
    assert float(jnp.sum(found.total)) == pytest.approx(0, abs=1e-12)  # all classes' excesses
    shown = seen(params)
    batch = {**shown.batch, "labels": jnp.where(LABELS == 0, 1, LABELS)}
    absent = constraint.surrogate(Forward(**{**vars(shown), "batch": batch}))
    assert absent.weight[0] == 0
    assert absent.value[0] == 0


def test_cost_adds_up_what_modules_report(seen, params):
    shown = seen(params)
    each = jnp.sum(params["a"] ** 2) + shown.batch["inputs"] @ params["a"][:, 0]
    found = build("cost", start=1.0).surrogate(shown).value
    assert float(found) == pytest.approx(float(WEIGHT @ each / WEIGHT.sum()))
    with pytest.raises(ConfigError, match="the model reports no 'flops'"):
        build("cost", start=1.0, variable="flops").surrogate(shown)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("entropy", {"start": 1.5}, r"share must be in \[0, 1\)"),
        ("discount", {"start": -0.1}, r"share must be in \[0, 1\)"),
        ("cvar", {"start": 0.0}, r"share must be in \(0, 1\)"),
        ("width", {"start": 0.1, "radius": 0.0}, "radius must be positive"),
        ("margin", {"start": 0.1, "temperature": 0.0}, "temperature must be positive"),
        ("class_loss", {"slack": -0.5}, "slack must not be negative"),
        ("entropy", {"start": 0.2, "end": 0.1}, "period"),
        ("entropi", {}, "did you mean 'entropy'"),
    ],
)
def test_impossible_fields_are_one_sentence(name, fields, message):
    with pytest.raises(ConfigError, match=message):
        build(name, **fields)


@pytest.mark.parametrize("name", ["entropy", "margin", "class_loss"])
def test_constraints_on_classes_refuse_a_regression(name):
    fields = {"start": 0.1} if name == "margin" else {}
    with pytest.raises(ConfigError, match="needs a task with classes"):
        CONSTRAINTS.build({"name": name, **fields}, num_classes=0)


def test_symbols_have_no_input_gradient(seen, params):
    shown = seen(params)
    batch = {**shown.batch, "inputs": jnp.zeros((BATCH, 2), jnp.int32)}
    with pytest.raises(ConfigError, match="not integers"):
        build("input_lipschitz", start=1.0).surrogate(Forward(**{**vars(shown), "batch": batch}))
