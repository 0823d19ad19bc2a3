"""Hybrid models, cascades and early exits as users run them, against running everything."""

import itertools

import jax
import numpy as np
import pytest
from sweeps import swept

from jaxeff import ode
from jaxeff.errors import ConfigError, DataError
from jaxeff.hybrid import EdgeCloud
from jaxeff.models import MODELS, HybridModel, SequenceModel
from jaxeff.models.early_exit import early_exits
from jaxeff.models.mlp import MLP
from jaxeff.models.staged import ABSTAINED, cascade

SPEC = {
    "name": "hybrid",
    "base": {"name": "mlp", "hidden": (3,)},
    "expert": {"name": "mlp", "hidden": (8, 8)},
}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 6)).astype(np.float32), rng.integers(0, 4, 40)


@pytest.fixture(scope="module")
def classifiers(data):
    """Three networks with weights of ordinary size."""
    found = []
    for seed, hidden in enumerate([(3,), (5,), (8, 8)]):
        model = MLP(hidden, 4)
        found.append((model, jax.jit(model.init)(jax.random.key(seed), data[0][:1])))
    return found


def logits(classifier, x):
    return np.asarray(jax.jit(classifier[0].apply)(classifier[1], x))


def softmax(logits):
    shares = np.exp(logits)
    return shares / shares.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def network(data):
    model = MODELS.build(SPEC, "model", num_outputs=4)
    return model, jax.jit(model.init)(jax.random.key(0), data[0][:1])


@pytest.mark.parametrize("coverage", swept([0.0, 0.3, 0.75, 1.0], 0.0, 0.3, 1.0))
def test_network_sends_its_share_of_a_batch_to_the_expert(network, data, coverage):
    (model, variables), x = network, data[0]
    assert set(variables["params"]) == {"base", "expert", "router"}
    model = model.clone(coverage=coverage)
    outputs = jax.jit(model.apply)(variables, x)
    dense = HybridModel.of(model, variables)
    (base, expert), scores = dense.collect(x)
    queries = int(np.ceil((1 - coverage) * 40 - 1e-9))
    asked = np.argsort(-scores[0], kind="stable")[:queries]
    expected = base.copy()
    expected[asked] = expert[asked]
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


def test_network_is_trained_by_its_algorithm_only(network, data):
    with pytest.raises(ValueError, match=r"trained by .*='hybrid'"):
        network[0].apply(network[1], data[0], train=True)
    with pytest.raises(ConfigError, match="coverage must be in"):
        MODELS.build({**SPEC, "coverage": 1.5}, "model", num_outputs=4)


@pytest.mark.parametrize(
    ("router", "batch_size"),
    swept(
        itertools.product(["softmax response", "negative entropy", "trained"], [None, 16]),
        ("softmax response", None),
        ("trained", 16),
    ),
)
def test_predictions_are_those_of_both_models(classifiers, network, data, router, batch_size):
    small, _, large = classifiers
    x, labels = data
    if router == "trained":
        hybrid = HybridModel.of(*network, batch_size=batch_size)
    else:
        hybrid = HybridModel(small, large, router, batch_size=batch_size)
    reached = hybrid.calibrate(x, labels, coverage=0.6)
    assert reached[0] >= 0.6
    both, scores = hybrid.collect(x)
    if router != "trained":
        np.testing.assert_allclose(both[0], logits(small, x), atol=1e-6)
        np.testing.assert_allclose(both[1], logits(large, x), atol=1e-6)
    found = hybrid.predict(x)
    asked = scores[0] > hybrid.threshold
    np.testing.assert_array_equal(found.answered_by, asked)
    np.testing.assert_array_equal(found.labels, np.where(asked, *both.argmax(-1)[::-1]))
    assert (found.coverage, np.mean(found.labels == labels)) == pytest.approx(reached)
    prices = hybrid.macs({"inputs": x})
    assert found.macs == pytest.approx(prices[0] + (1 - found.coverage) * prices[1])
    assert found.milliseconds is None
    assert found.overflow == 0


def test_the_ends_are_the_models_themselves(classifiers, data):
    small, _, large = classifiers
    x = data[0]
    hybrid = HybridModel(small, large, batch_size=16)
    assert hybrid.macs({"inputs": x}) == [6 * 3 + 3 * 4, 6 * 8 + 8 * 8 + 8 * 4]
    for threshold, model, macs in ((np.inf, small, 30), (-np.inf, large, 30 + 144)):
        hybrid.threshold = threshold
        found = hybrid.predict(x)
        np.testing.assert_array_equal(found.labels, logits(model, x).argmax(-1))
        assert found.macs == macs


def test_abstaining_answers_only_where_the_base_is_sure(classifiers, data):
    x, labels = data
    model = HybridModel(classifiers[0], None)
    coverage, accuracy = model.calibrate(x, labels, coverage=0.5)
    found = model.predict(x)
    kept = found.answered_by == 0
    assert kept.mean() == found.coverage == coverage == 0.5
    assert set(found.answered_by[~kept]) == set(found.labels[~kept]) == {ABSTAINED}
    np.testing.assert_array_equal(found.labels[kept], logits(classifiers[0], x).argmax(-1)[kept])
    assert np.mean(found.labels == labels) == pytest.approx(accuracy)
    confidence = softmax(logits(classifiers[0], x)).max(-1)
    assert confidence[kept].min() >= confidence[~kept].max()


def test_calibration_for_an_accuracy_or_a_budget_needs_and_uses_a_cost(classifiers, data):
    x, labels = data
    hybrid = HybridModel(classifiers[0], classifiers[2], batch_size=40)
    with pytest.raises(ConfigError, match="has no cost"):
        hybrid.calibrate(x, labels, accuracy=0.1)
    with pytest.raises(ConfigError, match="needs one of"):
        hybrid.calibrate(x, labels)
    hybrid.cost = EdgeCloud()
    coverage, accuracy = hybrid.calibrate(x, labels, budget_ms=1200)
    curve = hybrid.curve(x, labels)
    assert coverage >= 0.5
    assert accuracy == curve.accuracy[curve.coverage >= 0.5].max()
    assert hybrid.predict(x).milliseconds == pytest.approx(200 + (1 - coverage) * 2000)
    wanted = float(np.median(curve.accuracy))
    coverage, accuracy = hybrid.calibrate(x, labels, accuracy=wanted)
    assert accuracy >= wanted
    assert coverage == curve.coverage[curve.accuracy >= wanted].max()
    with pytest.raises(DataError, match="no threshold reaches"):
        hybrid.calibrate(x, labels, accuracy=1.0)


def test_measured_cost_is_kept_and_reported(classifiers, data):
    hybrid = HybridModel(classifiers[0], classifiers[2], batch_size=4, threshold=-np.inf)
    found = hybrid.measure(data[0], rounds=1)
    assert hybrid.cost is found
    assert (found.batch, len(found.later)) == (4, 1)
    answers = hybrid.predict(data[0])
    assert answers.milliseconds == pytest.approx(found.batch_ms((4, 4)) / 4)


@pytest.mark.slow
def test_masks_reach_both_models():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 5, 2)).astype(np.float32)
    mask = (np.arange(5) < rng.integers(1, 6, (6, 1))).astype(np.float32)
    pair = []
    for features in (3, 4):
        model = SequenceModel(ode.IRNN(features, step_size=0.5), 3)
        pair.append((model, jax.jit(model.init)(jax.random.key(features), x)))
    hybrid = HybridModel(*pair, threshold=-np.inf)
    garbage = np.where(mask[..., None] > 0, x, 99.0)
    answers = hybrid.predict(x, mask)
    np.testing.assert_allclose(answers.outputs, hybrid.predict(garbage, mask).outputs, atol=1e-6)
    assert np.abs(answers.outputs - hybrid.predict(x).outputs).max() > 1e-3


def test_a_cascade_of_three_follows_its_plan(classifiers, data):
    x, labels = data
    staged = cascade(classifiers, batch_size=16)
    assert (staged.predict(x).answered_by == 0).all()
    plan = staged.plan(x, labels, price=1e-3)
    assert staged.thresholds == plan.thresholds
    found = staged.predict(x)
    assert np.mean(found.labels == labels) == pytest.approx(plan.accuracy)
    assert found.macs == pytest.approx(plan.price)
    reached = [np.mean(found.answered_by >= number) for number in range(3)]
    assert reached == pytest.approx(plan.reached)
    with pytest.raises(ConfigError, match="3 stages need 2 thresholds"):
        staged.thresholds = (0.0,)
    with pytest.raises(ConfigError, match="score must be one of"):
        cascade(classifiers, score="entropi")
    with pytest.raises(ConfigError, match="no inputs"):
        staged.predict(x[:0])


@pytest.fixture(scope="module")
def exits():
    spec = {
        "name": "early_exit",
        "backbone": {"name": "resnet", "blocks": (1, 1, 1), "widths": (4, 6, 8)},
        "exits": (0, 1),
    }
    model = MODELS.build(spec, "model", num_outputs=4)
    x = np.random.default_rng(0).normal(size=(10, 8, 8, 1)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    draws = {"params": lambda n: 0.5 * rng.normal(size=n), "batch_stats": lambda n: rng.random(n)}
    variables = {
        kind: jax.tree.map(lambda a, d=draw: d(a.shape).astype(np.float32), shapes[kind])
        for kind, draw in draws.items()
    }
    return model, variables, x


def test_exits_answer_as_the_whole_network_would(exits):
    model, variables, x = exits
    apply = jax.jit(lambda v, x: model.apply(v, x, method="every_exit"))
    every = np.asarray(apply(variables, x))
    assert every.shape == (3, 10, 4)
    np.testing.assert_allclose(every[-1], jax.jit(model.apply)(variables, x), atol=1e-5)
    staged = early_exits(model, variables)
    doubt = -softmax(every).max(-1)
    halves = tuple(float(np.median(doubt[number])) for number in range(2))
    for thresholds in ((np.inf, np.inf), (-np.inf, np.inf), (-np.inf, -np.inf), halves):
        staged.thresholds = thresholds
        found = staged.predict(x)
        first, second = doubt[0] > thresholds[0], doubt[1] > thresholds[1]
        number = np.where(first, np.where(second, 2, 1), 0)
        np.testing.assert_array_equal(found.answered_by, number)
        np.testing.assert_allclose(found.outputs, every[number, np.arange(10)], atol=1e-5)


def test_multiply_adds_of_the_exits_are_those_of_the_parts(exits):
    model, variables, x = exits
    first, second, third = early_exits(model, variables).macs({"inputs": x})
    backbone = 64 * 9 * 4 + 64 * 9 * 4 * 4 * 2  # stem and first block
    assert first == backbone + 4 * 4
    assert second == 16 * (9 * 4 * 6 + 9 * 6 * 6 + 4 * 6) + 6 * 4
    assert third == 4 * (9 * 6 * 8 + 9 * 8 * 8 + 6 * 8) + 8 * 4


def test_exits_that_the_backbone_does_not_have_are_refused():
    backbone = {"name": "resnet", "blocks": (1, 1), "widths": (4, 6)}
    for exits, message in (((1,), "before the last"), ((), "ascending"), ((0, 0), "ascending")):
        spec = {"name": "early_exit", "backbone": backbone, "exits": exits}
        with pytest.raises(ConfigError, match=message):
            MODELS.build(spec, "model", num_outputs=3)
    spec = {"name": "early_exit", "backbone": {"name": "mlp"}}
    with pytest.raises(ConfigError, match="not a convolutional"):
        MODELS.build(spec, "model", num_outputs=3)
