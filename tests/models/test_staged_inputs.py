"""Staged models given NaN, impossible numbers, labels that no class has, and plain modules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxeff.errors import ConfigError, DataError
from jaxeff.hybrid import Cascade, EdgeCloud, Stage
from jaxeff.hybrid.route import by_priority
from jaxeff.models import MODELS, HybridModel
from jaxeff.models.early_exit import early_exits
from jaxeff.models.staged import ABSTAINED, cascade

NAN = float("nan")
BAD = 3
INPUTS = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 3, 8)


class Plain(nn.Module):
    """A module of Flax that does not know training from evaluation."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


@pytest.fixture(scope="module")
def classifiers():
    return [(Plain(), Plain().init(jax.random.key(seed), INPUTS)) for seed in range(3)]


@pytest.fixture(scope="module")
def hybrid(classifiers):
    return HybridModel(*classifiers[:2], batch_size=8)


@pytest.fixture
def broken():
    inputs = INPUTS.copy()
    inputs[BAD] = np.nan
    return inputs


@pytest.mark.parametrize("threshold", [np.inf, 0.0, -0.5])
def test_an_input_of_nan_is_the_experts(hybrid, broken, threshold):
    hybrid.threshold = threshold
    found = hybrid.predict(broken)
    assert found.answered_by[BAD] == 1
    others = np.arange(8) != BAD
    expected = hybrid.predict(INPUTS).answered_by
    np.testing.assert_array_equal(found.answered_by[others], expected[others])


def test_an_input_of_nan_is_abstained_on(classifiers, broken):
    alone = HybridModel(classifiers[0], None, batch_size=8)
    found = alone.predict(broken)
    assert (found.answered_by == ABSTAINED).nonzero()[0].tolist() == [BAD]
    assert found.labels[BAD] == ABSTAINED


def test_an_input_of_nan_reaches_the_last_stage(classifiers, broken):
    found = cascade(classifiers, batch_size=8).predict(broken)
    assert found.answered_by.tolist() == [2 if row == BAD else 0 for row in range(8)]


def test_an_input_of_nan_leaves_by_no_exit():
    stem = {"name": "resnet", "blocks": [1, 1], "widths": [2, 2], "stem": "small"}
    network = MODELS.build(
        {"name": "early_exit", "backbone": stem, "exits": (0,)}, "model", num_outputs=3
    )
    images = np.random.default_rng(2).normal(size=(4, 4, 4, 1)).astype(np.float32)
    variables = jax.jit(network.init)(jax.random.key(0), images)
    images[1] = np.nan
    found = early_exits(network, variables, batch_size=4).predict(images)
    assert found.answered_by.tolist() == [0, 1, 0, 0]


def test_what_has_no_score_comes_first_where_places_are_few():
    scores = jnp.asarray([0.2, jnp.nan, jnp.inf, 0.9])
    assert by_priority(scores, jnp.ones(4, bool)).tolist() == [1, 2, 3, 0]

    def answer(number):
        return lambda variables, payload: (jnp.full(4, number), payload["scores"], payload)

    stages = [Stage(answer(0.0), ()), Stage(lambda v, p: (jnp.ones(1), p["scores"], p), ())]
    model = Cascade(stages, [0.5], [1])
    found = model({"scores": jnp.asarray([0.2, 0.8, 0.9, jnp.nan])})
    assert found.answered_by.tolist() == [0, 0, 0, 1]
    assert found.overflow == 2


def test_thresholds_are_not_chosen_on_inputs_of_nan(hybrid, broken):
    with pytest.raises(DataError, match=f"query scores are NaN, the first that of example {BAD}"):
        hybrid.calibrate(broken, LABELS, coverage=0.5)
    with pytest.raises(DataError, match="query scores are NaN"):
        hybrid.plan(broken, LABELS)


@pytest.mark.parametrize("target", ["coverage", "accuracy", "budget_ms"])
@pytest.mark.parametrize("value", [-0.1, NAN, -np.inf])
def test_impossible_targets_leave_the_threshold_as_it_is(hybrid, target, value):
    hybrid.threshold, hybrid.cost = 0.25, EdgeCloud()
    with pytest.raises(ConfigError, match=rf"{target} must be in [\[(]0, "):
        hybrid.calibrate(INPUTS, LABELS, **{target: value})
    assert hybrid.threshold == 0.25


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"coverage": 90}, "coverage must be in .*; 90 per cent is 0.9"),
        ({"coverage": 1.5}, "coverage must be in"),
        ({"accuracy": 1.01}, "accuracy must be in"),
        ({"budget_ms": 0}, "budget_ms must be in"),
    ],
)
def test_targets_that_are_no_shares_are_refused(hybrid, options, sentence):
    hybrid.cost = EdgeCloud()
    with pytest.raises(ConfigError, match=sentence):
        hybrid.calibrate(INPUTS, LABELS, **options)


def test_thresholds_and_sizes_that_are_no_numbers_are_refused(classifiers, hybrid):
    for make in (
        lambda: HybridModel(*classifiers[:2], threshold=NAN),
        lambda: HybridModel(classifiers[0], None, threshold=NAN),
        lambda: setattr(hybrid, "threshold", NAN),
        lambda: setattr(hybrid, "thresholds", (NAN,)),
        lambda: HybridModel(*classifiers[:2], batch_size=0),
        lambda: hybrid.plan(INPUTS, LABELS, budget=NAN),
        lambda: MODELS.build({"name": "mlp"}, num_outputs=3) and hybrid.predict(INPUTS[:, 0]),
        lambda: hybrid.predict(INPUTS[:0]),
    ):
        with pytest.raises(ConfigError):
            make()


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (LABELS + 7, "0 to 2, but example 0 has"),
        (LABELS - 3, "0 to 2, but example 0 has -"),
        (LABELS[:7], "each of the 8 examples"),
        (LABELS.astype(float), "must be integers"),
        (np.eye(3)[LABELS], "one number of a class"),
    ],
)
def test_labels_that_no_class_has_are_refused(hybrid, labels, sentence):
    for call in (
        lambda: hybrid.calibrate(INPUTS, labels, coverage=0.5),
        lambda: hybrid.curve(INPUTS, labels),
        lambda: hybrid.plan(INPUTS, labels),
    ):
        with pytest.raises(DataError, match=sentence):
            call()


def test_a_plan_sets_the_threshold_that_the_model_shows(hybrid):
    hybrid.threshold = 0.125
    found = hybrid.plan(INPUTS, LABELS, prices=(1.0, 1.0), budget=1.5)
    assert found.thresholds != (0.125,)
    assert (hybrid.threshold,) == hybrid.thresholds == found.thresholds
    hybrid.threshold = 0.5
    assert hybrid.thresholds == (0.5,)


def test_a_model_that_abstains_has_nothing_to_plan(classifiers):
    with pytest.raises(ConfigError, match="one stage alone"):
        HybridModel(classifiers[0], None).plan(INPUTS, LABELS)


def test_calls_of_any_size_share_few_programs(classifiers):
    """Calls of 3 to 16 inputs are filled up to 4, 8 or 16, whatever their number."""
    free = HybridModel(*classifiers[:2], threshold=-np.inf)
    fixed = HybridModel(*classifiers[:2], threshold=-np.inf, batch_size=16)
    inputs = np.tile(INPUTS, (2, 1))
    expected = fixed.predict(inputs)
    for size in range(3, 17):
        found = free.predict(inputs[:size])
        np.testing.assert_allclose(found.outputs, expected.outputs[:size], rtol=1e-5, atol=1e-6)
        assert len(found.labels) == size
        free.collect(inputs[:size])
    assert free.cascade._first._cache_size() == 3
    assert free._all._cache_size() == 3
    # Of each batch its buckets: at most an eighth of it apart.
    assert free.cascade.programs[0] <= 3 * 8


def test_cost_is_that_of_the_inputs_it_was_measured_on(classifiers):
    model = HybridModel(*classifiers[:2])
    assert model.measure(INPUTS[:6], rounds=1).batch == model.batch_size == 6


def test_modules_without_train_are_answered_by(classifiers):
    model = HybridModel(*classifiers[:2], threshold=-np.inf)
    np.testing.assert_allclose(
        model.predict(INPUTS).outputs, Plain().apply(classifiers[1][1], INPUTS), rtol=1e-5
    )
    with pytest.raises(ConfigError, match="Plain takes no mask"):
        model.predict(INPUTS, mask=np.ones((8, 5)))
    with pytest.raises(ConfigError, match="Plain sows 0 penultimate features"):
        HybridModel(classifiers[0], classifiers[1], classifiers[2]).predict(INPUTS)


class Bridged(nnx.Module):
    """A module of the other kind."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(x)


def test_modules_of_nnx_are_told_how_they_fit(classifiers):
    sentence = (
        r"not Bridged, .* a flax.nnx module; wrap its class, as in flax.nnx.bridge.ToLinen\(Bridged"
    )
    bare = Bridged(nnx.Rngs(0))
    for part in ((bare, {}), bare, (Bridged, {})):
        with pytest.raises(ConfigError, match=sentence):
            HybridModel(part, classifiers[0])
    wrapped = nnx.bridge.ToLinen(Bridged)
    variables = wrapped.init(jax.random.key(0), INPUTS)
    model = HybridModel(classifiers[0], (wrapped, variables), threshold=-np.inf)
    expected = wrapped.apply(variables, INPUTS)
    np.testing.assert_allclose(model.predict(INPUTS).outputs, expected, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"pair \(module, variables\)"):
        HybridModel(Plain(), classifiers[0])
    with pytest.raises(ConfigError, match="build it first"):
        HybridModel((Plain, {}), classifiers[0])
