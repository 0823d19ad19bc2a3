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


hardest = jax.jit(statistics.hardest)


def build(name, **fields):
    return CONSTRAINTS.build({"name": name, **fields}, num_classes=CLASSES)


def seen_inputs():
    return np.random.default_rng(0).normal(size=(BATCH, INPUTS))


@pytest.fixture
def seen():
    """Maps parameters to what a small network shows of itself at them."""
    own_inputs = seen_inputs()

    def show(params):
        def outputs_at(params, inputs):
            return jnp.tanh(inputs @ params["a"]) @ params["b"]

        def losses_at(params=params, inputs=own_inputs):
            logits = outputs_at(params, inputs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)

        return Forward(
            params=params,
            batch={"inputs": own_inputs, "labels": LABELS, "weight": WEIGHT},
            outputs=outputs_at(params, own_inputs),
            losses=losses_at(),
            risk_weight=WEIGHT,
            losses_at=losses_at,
            per_example=lambda values: values,
            sown={"gate": {"macs": (jnp.sum(params["a"] ** 2), own_inputs @ params["a"][:, 0])}},
        )

    return show


@pytest.fixture
def params():
    rng = np.random.default_rng(1)
    shapes = {"a": (INPUTS, 5), "b": (5, CLASSES)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def value_of(constraint, seen, params):
    return jnp.atleast_1d(constraint.surrogate(seen(params)).value)


def check_gradient(function, params, tolerance=1e-6):
    """Compares directional derivatives with central differences."""
    rng, step = np.random.default_rng(2), 1e-5
    along = jax.jit(lambda at, way: jax.jvp(function, (at,), (way,)))
    for _ in range(3):
        way = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
        moved = [jax.tree.map(lambda p, w, s=s: p + s * step * w, params, way) for s in (1, -1)]
        above, below = (np.asarray(along(at, way)[0]) for at in moved)
        numeric = (above - below) / (2 * step)
        _, exact = along(params, way)
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

    def value(params):
        return value_of(constraint, seen, params)

    assert jax.eval_shape(value, params).shape == (constraint.size,)
    check_gradient(value, params)


@pytest.mark.parametrize(("classes", "expected"), [(10, 2.302585), (100, 4.605170)])
def test_entropy_of_equal_logits_is_the_logarithm_of_the_classes(classes, expected):
    entropy = jax.jit(statistics.predictive_entropy)
    np.testing.assert_allclose(entropy(np.full((classes, classes), 7.5)), expected, atol=1e-6)
    np.testing.assert_allclose(entropy(1e4 * np.eye(classes)), 0, atol=1e-12)


def test_entropy_of_two_classes():
    p = np.array([0.9, 0.5, 0.01])
    logits = np.stack([np.log(p), np.log(1 - p)], axis=-1)
    expected = -p * np.log(p) - (1 - p) * np.log(1 - p)
    found = jax.jit(statistics.predictive_entropy)(logits)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert expected[0] == pytest.approx(0.325083, abs=1e-6)


def test_entropy_is_a_share_of_the_largest_and_is_to_be_large(seen, params):
    constraint = build("entropy", start=0.3, end=0.0, period=2.0)

    @jax.jit
    def found(params):
        shown = seen(params)
        return constraint.surrogate(shown).value, constraint.per_example(shown.outputs, {})

    assert found({**params, "b": 0 * params["b"]})[0] == pytest.approx(1)
    excess = jax.jit(constraint.excess)
    assert excess(1.0, 0.0) == pytest.approx(-0.7)
    assert excess(0.1, 0.0) == pytest.approx(0.2)
    value, shares = found(params)
    assert value == pytest.approx(float(WEIGHT @ shares / WEIGHT.sum()))


def test_discount_of_ten_losses():
    losses, weight = np.arange(10.0), np.ones(10)
    g, border = map(np.asarray, hardest(losses, weight, 0.2))
    np.testing.assert_allclose(g, [0] * 8 + [1] * 2, atol=1e-15)
    discounted = float(np.mean((1 - g) * losses))
    assert discounted == pytest.approx(2.8, abs=1e-12)
    assert 7 <= border <= 8
    cvar = float(np.mean(g * losses)) / 0.2
    assert cvar == pytest.approx(8.5, abs=1e-12)
    assert discounted == pytest.approx(4.5 - 0.2 * cvar, abs=1e-12)
    g, _ = hardest(losses, weight, 0.0)
    assert float(np.mean((1 - np.asarray(g)) * losses)) == 4.5
    g, _ = hardest(losses, weight, 1.0)
    np.testing.assert_array_equal(g, 1)


@pytest.mark.parametrize("share", [0.05, 0.33, 0.5, 0.91])
def test_discount_is_the_optimum_of_its_linear_program(share):
    rng = np.random.default_rng(3)
    losses, weight = rng.exponential(size=12), rng.uniform(0.2, 2, size=12)
    weight[4] = 0
    g, border = map(np.asarray, hardest(losses, weight, share))
    shares = weight / weight.sum()
    best = linprog(-shares * losses, A_ub=[shares], b_ub=[share], bounds=(0, 1))
    assert float((shares * losses) @ g) == pytest.approx(-best.fun, abs=1e-10)
    assert float(shares @ g) == pytest.approx(share, abs=1e-12)
    # The border is an optimal multiplier: nothing is gained by any other g at that price.
    dual = shares @ np.maximum(losses - float(border), 0) + float(border) * share
    assert dual == pytest.approx(-best.fun, abs=1e-10)


def test_reweightings_change_the_mean_loss_in_closed_form():
    losses, weight = np.arange(10.0), np.ones(10)
    for name, start, expected in (("discount", 0.2, 2.8), ("cvar", 0.2, 8.5), ("cvar", 0.25, 8.2)):
        factors, metrics = jax.jit(build(name, start=start).__call__)(losses, weight, 0.0)
        assert float(np.mean(factors * losses)) == pytest.approx(expected, abs=1e-12)
        assert metrics[f"{name}_share"] == start
    later = build("discount", start=0.2, end=0.0, period=3.0)
    factors, _ = jax.jit(later.__call__)(losses, weight, 3.0)
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

    check_gradient(discounted, np.asarray([0.3, -0.8]), 1e-5)


def test_margins_are_distances_to_the_best_other_class():
    logits = np.array([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0], [3.0, 3.0, 0.0]])
    found = jax.jit(statistics.margins)(logits, np.array([1, 2, 0]))
    np.testing.assert_array_equal(found, [2, -2, 0])


def test_margin_quantiles_count_for_the_multipliers_and_are_smooth_for_the_gradient(seen, params):
    gammas = (0.0, 0.8, 50.0)
    constraint = build("margin", start=(0.1, 0.2, 0.3), gamma=gammas, temperature=0.5)
    one = build("margin", start=0.1, gamma=0.8)

    @jax.jit
    def shows(params):
        shown = seen(params)
        return (
            statistics.margins(shown.outputs, shown.batch["labels"]),
            constraint.statistic(shown).value,
            constraint.surrogate(shown).value,
            constraint.level_at(jnp.zeros(())),
            one.per_example(shown.outputs, shown.batch),
            one.statistic(shown).value,
        )

    found, statistic, surrogate, level, shares, of_one = map(np.asarray, shows(params))
    counts = [WEIGHT @ (found < g) / WEIGHT.sum() for g in gammas]
    np.testing.assert_allclose(statistic, counts)
    smooth = [WEIGHT @ (1 / (1 + np.exp((found - g) / 0.5))) / WEIGHT.sum() for g in gammas]
    np.testing.assert_allclose(surrogate, smooth)
    np.testing.assert_array_equal(level, [0.1, 0.2, 0.3])
    assert float(WEIGHT @ shares / WEIGHT.sum()) == pytest.approx(float(counts[1]))
    assert of_one == pytest.approx(float(counts[1]))


def test_input_gradient_is_that_of_every_example(seen, params):
    @jax.jit
    def found(inputs):
        def losses(inputs):
            return seen(params).losses_at(inputs=inputs)

        return losses(inputs), statistics.input_gradient_norms(losses, inputs)

    inputs = seen_inputs()
    _, norms = found(inputs)
    rows = np.eye(INPUTS) * 1e-6
    for i in range(BATCH):
        at = (np.arange(BATCH) == i)[:, None]
        up, down = ([found(inputs + s * at * r)[0][i] for r in rows] for s in (1, -1))
        slope = (np.array(up) - np.array(down)) / 2e-6
        assert norms[i] == pytest.approx(np.linalg.norm(slope), rel=1e-6)


def test_finite_differences_along_the_gradient_tend_to_its_norm_and_its_gradient(seen, params):
    exact, errors = build("input_lipschitz", start=1.0), []
    near = [build("input_lipschitz", start=1.0, step=step) for step in (1e-2, 1e-3)]
    wanted, *every = jax.jit(
        lambda params: [
            jax.value_and_grad(lambda p, c=constraint: value_of(c, seen, p)[0])(params)
            for constraint in (exact, *near)
        ]
    )(params)
    for found in every:
        gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), found, wanted)
        errors.append(max(jax.tree.leaves(gaps)))
    assert errors[0] < 0.05
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)  # of first order


def test_finite_differences_hold_their_direction_constant(seen, params):
    step, inputs = 0.1, seen_inputs()

    def rise(p, ways):
        at = seen(p).losses_at
        moved = inputs + step * ways
        return jnp.asarray(WEIGHT) @ (at(inputs=moved) - at()) / WEIGHT.sum() / step

    near = build("input_lipschitz", start=1.0, step=step)

    @jax.jit
    def both(params):
        slopes = jax.grad(lambda x: jnp.sum(seen(params).losses_at(inputs=x)))(inputs)
        ways = slopes / jnp.linalg.norm(slopes, axis=1, keepdims=True)
        found = jax.value_and_grad(lambda p: value_of(near, seen, p)[0])(params)
        return found, jax.value_and_grad(rise)(params, ways)

    found, wanted = both(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), found, wanted)


def test_input_gradient_of_a_flat_loss_is_zero_with_gradient_zero():
    for step in (0.0, 0.1):
        slope = jax.grad(
            lambda w, h=step: statistics.input_gradient_norms(
                lambda x: w * jnp.sum(x**2, axis=1), jnp.zeros((2, 3)), h
            ).sum()
        )
        assert jax.jit(slope)(1.0) == 0


def test_width_is_the_rise_of_the_loss_at_a_distance_uphill(seen, params):
    constraint, radius = build("width", start=0.1, radius=0.3), 0.3

    def mean_loss(p):
        return jnp.asarray(WEIGHT) @ seen(p).losses / WEIGHT.sum()

    def rise(p, moves):
        return mean_loss(jax.tree.map(jnp.add, p, moves)) - mean_loss(p)

    @jax.jit
    def both(params):
        slope = jax.grad(mean_loss)(params)
        moves = jax.tree.map(lambda g: radius * g / optax.global_norm(slope), slope)
        found = jax.value_and_grad(lambda p: constraint.surrogate(seen(p)).value)(params)
        return moves, found, jax.value_and_grad(rise)(params, moves)  # along constant moves

    moves, (value, found), (wanted_value, wanted) = both(params)
    assert np.sqrt(sum(float(np.sum(m**2)) for m in jax.tree.leaves(moves))) == pytest.approx(0.3)
    assert value == pytest.approx(float(wanted_value))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, wanted)
    assert max(float(np.abs(g).max()) for g in jax.tree.leaves(wanted)) > 1e-2


def test_class_losses_are_compared_with_the_mean_loss_of_all(seen, params):
    constraint = build("class_loss", slack=0.25)
    losses, values = map(
        np.asarray, jax.jit(lambda p: (seen(p).losses, constraint.surrogate(seen(p)).value))(params)
    )
    mean = WEIGHT @ losses / WEIGHT.sum()
    for k, found in enumerate(values):
        own = WEIGHT * (k == LABELS)
        assert float(found) == pytest.approx(own @ losses / own.sum() - 1.25 * mean)


def test_class_losses_add_up_over_batches_and_leave_out_absent_classes(seen, params):
    constraint = build("class_loss", slack=0.0)
    labels = np.where(LABELS == 0, 1, LABELS)

    @jax.jit
    def both(params):
        shown = seen(params)
        found = constraint.surrogate(shown)
        assert isinstance(found, Mean)
        batch = {**shown.batch, "labels": labels}
        absent = constraint.surrogate(Forward(**{**vars(shown), "batch": batch}))
        return found.total, absent.weight, absent.value

    total, weight, value = both(params)
    assert float(np.sum(total)) == pytest.approx(0, abs=1e-12)  # all classes' excesses
    assert weight[0] == 0
    assert value[0] == 0


def test_cost_adds_up_what_modules_report(seen, params):
    each = np.sum(params["a"] ** 2) + seen_inputs() @ params["a"][:, 0]
    found = jax.jit(lambda p: build("cost", start=1.0).surrogate(seen(p)).value)(params)
    assert float(found) == pytest.approx(float(WEIGHT @ each / WEIGHT.sum()))
    with pytest.raises(ConfigError, match="the model sows no 'flops'"):
        jax.eval_shape(
            lambda p: build("cost", start=1.0, variable="flops").surrogate(seen(p)).value, params
        )


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
    def value(params):
        shown = seen(params)
        batch = {**shown.batch, "inputs": jnp.zeros((BATCH, 2), jnp.int32)}
        shown = Forward(**{**vars(shown), "batch": batch})
        return build("input_lipschitz", start=1.0).surrogate(shown).value

    with pytest.raises(ConfigError, match="not integers"):
        jax.eval_shape(value, params)
