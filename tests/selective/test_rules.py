"""Rules of acceptance on finite problems, against brute force and the theory's bounds."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.errors import ConfigError, DataError
from jaxeff.selective import metrics, rules

THRESHOLDS = np.linspace(0, 1, 101)


def softmax_scores(n=400, classes=4, seed=0, sharpness=2.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    z = rng.normal(size=(n, classes)) + sharpness * np.eye(classes)[labels]
    p = np.exp(z)
    return p / p.sum(1, keepdims=True), labels


def test_rules_by_hand():
    scores = np.array([[0.9, 0.1, 0.0], [0.45, 0.5, 0.05], [0.3, 0.3, 0.4]])
    np.testing.assert_array_equal(rules.max_rule(scores, 0.42), [0, 1, -1])
    np.testing.assert_array_equal(rules.unique_rule(scores, 0.42), [0, -1, -1])
    np.testing.assert_array_equal(rules.max_rule(scores, [0.46, 0.6, 0.3]), [0, -1, 2])
    np.testing.assert_array_equal(rules.max_rule(scores, np.inf), [-1, -1, -1])
    assert rules.overlap(scores, 0.42) == pytest.approx(1 / 3)
    for rule in (rules.max_rule, rules.unique_rule):
        np.testing.assert_array_equal(rule(jnp.asarray(scores), 0.42), rule(scores, 0.42))
    found = rules.rates(np.array([0, -1, 1]), np.array([0, 1, 2]))
    assert found == metrics.Rates(2 / 3, 1 / 3, 1 / 2)


def test_coverage_and_error_fall_with_the_threshold_and_start_at_the_accuracy():
    scores, labels = softmax_scores()
    found = [rules.rates(rules.max_rule(scores, t), labels) for t in THRESHOLDS]
    assert found[0].coverage == 1
    assert found[0].joint_error == np.mean(scores.argmax(1) != labels)
    for before, after in itertools.pairwise(found):
        assert after.coverage <= before.coverage
        assert after.joint_error <= before.joint_error
    for one in found:
        assert one.joint_error == pytest.approx(one.coverage * one.selective_risk, abs=1e-15)


def test_above_one_half_nothing_overlaps_and_the_rules_agree():
    scores, _ = softmax_scores()
    for t in THRESHOLDS[THRESHOLDS > 0.5]:
        assert rules.overlap(scores, t) == 0
        np.testing.assert_array_equal(rules.max_rule(scores, t), rules.unique_rule(scores, t))
    assert rules.overlap(scores, 0.3) > 0.05
    assert (rules.max_rule(scores, 0.3) != rules.unique_rule(scores, 0.3)).any()


def filled(gains, costs, budget):
    """Most gain within a budget of costs, the last item taken in part, and the last ratio."""
    order = np.argsort(costs / gains)
    gains, costs = gains[order], costs[order]
    spent = np.cumsum(costs)
    whole = np.searchsorted(spent, budget, side="right")
    value = gains[:whole].sum()
    if whole < len(gains):
        before = spent[whole - 1] if whole else 0.0
        value += gains[whole] * (budget - before) / costs[whole]
    return value, whole, order


@pytest.mark.parametrize("concentration", [0.1, 0.3, 1.0])
def test_bounds_of_the_relaxation_hold_on_finite_problems(concentration):
    """Dropping disjointness loses nothing, and taking overlaps out costs at most twice the error.

    With exact posteriors both problems are fractional knapsacks: of atoms with their best class
    (Chow's rule), and of pairs of an atom and a class.
    """
    rng = np.random.default_rng(int(10 * concentration))
    seen = 0
    for _, error in itertools.product(range(67), (0.005, 0.01, 0.02, 0.05, 0.1)):
        eta = rng.dirichlet(np.full(3, concentration), 300).clip(1e-12)
        mass = rng.dirichlet(np.ones(300))
        best, _, _ = filled(mass, mass * (1 - eta.max(1) + 1e-15), error)
        gains = np.repeat(mass, 3)
        relaxed, whole, order = filled(gains, gains * (1 - eta.ravel() + 1e-15), error)
        assert relaxed >= best - 1e-12
        if not whole:
            continue
        threshold = eta.ravel()[order[whole - 1]]
        passing = eta >= threshold
        overlap = mass[passing.sum(1) > 1].sum()
        unique = mass[rules.unique_rule(eta, threshold) != rules.ABSTAIN].sum()
        largest = mass[rules.max_rule(eta, threshold) != rules.ABSTAIN].sum()
        assert overlap <= 2 * error + 1e-12
        assert unique >= best - 2 * error - mass.max() - 1e-12
        assert largest == pytest.approx(unique + overlap)
        seen += overlap > 0
    assert seen > 0 or concentration > 0.1


def brute_force(scores, labels, target):
    """The best thresholds of all classes, over all combinations of what makes a difference."""
    grids = [np.r_[np.unique(scores[..., k]), np.inf] for k in range(scores.shape[-1])]
    models = itertools.product(range(len(scores)), repeat=scores.shape[-1])
    best = 0.0
    for chosen, t in itertools.product(models, itertools.product(*grids)):
        picked = np.stack([scores[m, :, k] for k, m in enumerate(chosen)], -1)
        found = rules.rates(rules.max_rule(picked, np.array(t)), labels)
        if found.joint_error <= target:
            best = max(best, found.coverage)
    return best


@pytest.mark.parametrize("seed", [10, 22, 30])
@pytest.mark.parametrize(("models", "classes"), [(1, 3), (2, 2)])
def test_search_finds_the_best_thresholds_of_small_problems(seed, models, classes):
    rng = np.random.default_rng(seed)
    labels = np.arange(9) % classes
    scores = (rng.normal(size=(models, 9, classes)) + np.eye(classes)[labels]).round()  # with ties
    found = rules.search_per_class(scores, labels, 0.12, restarts=30)
    assert found.rates == rules.rates(found(scores), labels)
    assert found.rates.joint_error <= 0.12
    assert found.rates.coverage == pytest.approx(brute_force(scores, labels, 0.12))


def test_search_takes_each_class_from_the_model_that_knows_it():
    labels = np.arange(40) % 2
    scores = np.random.default_rng(0).uniform(size=(2, 40, 2))  # but for one class of each model
    for k in range(2):
        scores[k, :, k] = 0.6 * (labels == k)
    found = rules.search_per_class(scores, labels, 0.01)
    np.testing.assert_array_equal(found.models, [0, 1])
    assert found.rates == metrics.Rates(1.0, 0.0, 0.0)


def test_search_gains_where_the_classes_are_calibrated_differently():
    scores, labels = softmax_scores(2000, sharpness=3.0)
    scores = scores * np.array([1.0, 0.6, 0.8, 0.5])  # one threshold no longer suits all
    found = rules.search_per_class(scores[None], labels, 0.02)
    curve = metrics.risk_coverage(scores.max(1), scores.argmax(1) != labels)
    common = curve.at(curve.within(0.02, "joint"))
    assert found.rates.coverage > common.coverage + 0.05
    assert found.rates.joint_error <= 0.02
    assert found.rates == rules.rates(found(scores[None]), labels)


def test_what_cannot_be_searched_is_one_sentence():
    scores, labels = softmax_scores(20)
    with pytest.raises(ConfigError, match=r"scores \(20, 4\) must be \[models, examples, "):
        rules.search_per_class(scores, labels, 0.1)
    with pytest.raises(DataError, match="split of 20 examples has none of class 2, 3; set a"):
        rules.search_per_class(scores[None], labels % 2, 0.1)
