"""Planned cascades and pairs of models against trying everything."""

import itertools

import numpy as np
import pytest

from jaxeff.errors import ConfigError, DataError
from jaxeff.hybrid.cascade import ThresholdTable, best_pairs, follow
from jaxeff.hybrid.curves import accuracy_coverage


def case(seed, stages, examples=60, values=5):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, values, (stages - 1, examples)).astype(float)
    correct = rng.random((stages, examples)) < np.linspace(0.6, 0.9, stages)[:, None]
    return scores, correct, tuple(np.cumsum(rng.integers(1, 5, stages)).astype(float))


def by_hand(scores, correct, prices, thresholds):
    """One input after the other, from the definition."""
    hits, price = 0, 0.0
    for i in range(correct.shape[1]):
        for stage in range(len(correct)):
            price += prices[stage]
            if stage == len(correct) - 1 or not scores[stage, i] > thresholds[stage]:
                hits += correct[stage, i]
                break
    return hits / correct.shape[1], price / correct.shape[1]


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_every_entry_of_the_table_is_what_its_thresholds_give(stages):
    scores, correct, prices = case(stages, stages)
    table = ThresholdTable(scores, correct, prices)
    assert table.hits.shape == (6,) * (stages - 1)
    for chosen in itertools.product(*(range(n) for n in table.hits.shape)):
        thresholds = [t[i] for t, i in zip(table.thresholds, chosen, strict=True)]
        accuracy, price = by_hand(scores, correct, prices, thresholds)
        assert table.hits[chosen] / 60 == pytest.approx(accuracy, abs=1e-12)
        assert table.price[chosen] == pytest.approx(price, abs=1e-12)
        plan = follow(scores, correct, prices, thresholds)
        assert (plan.accuracy, plan.price) == pytest.approx((accuracy, price), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_best_plan_is_that_of_a_search(seed):
    scores, correct, prices = case(seed, 3)
    table = ThresholdTable(scores, correct, prices)
    options = [(-np.inf, 0, 1, 2, 3, np.inf)] * 2
    found = {t: by_hand(scores, correct, prices, t) for t in itertools.product(*options)}
    for price in (0.0, 0.01, 0.05, 1.0):
        best = max(accuracy - price * spent for accuracy, spent in found.values())
        plan = table.best(price=price)
        assert plan.accuracy - price * plan.price == pytest.approx(best, abs=1e-12)
    for budget in (prices[0], prices[0] + 2, sum(prices)):
        best = max(accuracy for accuracy, spent in found.values() if spent <= budget + 1e-9)
        plan = table.best(budget=budget + 1e-9)
        assert plan.price <= budget + 1e-9
        assert plan.accuracy == pytest.approx(best, abs=1e-12)
    assert table.best(price=1e9).price == prices[0]
    assert table.best(price=1e9).reached == (1.0, 0.0, 0.0)


def test_two_stages_are_the_accuracy_coverage_curve():
    scores, correct, _ = case(0, 2, examples=300, values=40)
    table = ThresholdTable(scores, correct, (0.0, 1.0))
    curve = accuracy_coverage(scores[0], *correct)
    np.testing.assert_array_equal(table.hits, curve.hits)
    np.testing.assert_allclose(table.price, 1 - curve.coverage, atol=1e-12)


def test_few_candidates_are_quantiles():
    scores, correct, prices = case(0, 3, examples=2000, values=1000)
    table = ThresholdTable(scores, correct, prices, candidates=16)
    assert all(len(t) <= 17 for t in table.thresholds)
    reached = [np.mean(scores[0] > t) for t in table.thresholds[0]]
    assert np.abs(np.diff(reached)).max() < 0.1
    coarse, fine = table.best(), ThresholdTable(scores, correct, prices, candidates=128).best()
    assert coarse.accuracy <= fine.accuracy < coarse.accuracy + 0.02


def test_impossible_plans_are_one_sentence():
    scores, correct, prices = case(0, 3)
    with pytest.raises(ConfigError, match="do not fit"):
        ThresholdTable(scores[:1], correct, prices)
    with pytest.raises(DataError, match="below the first stage's price"):
        ThresholdTable(scores, correct, prices).best(budget=0.5)
    many = np.random.default_rng(0).random((4, 300))
    with pytest.raises(ConfigError, match="too many"):
        ThresholdTable(many, np.ones((5, 300), bool), (1.0,) * 5, candidates=300)


def pool(seed=0):
    rng = np.random.default_rng(seed)
    correct = rng.random((4, 500)) < np.array([0.6, 0.7, 0.8, 0.9])[:, None]
    return correct, (1.0, 2.0, 4.0, 8.0), rng.random((4, 500))


@pytest.mark.parametrize("budget", [1.0, 3.0, 5.0, 20.0])
def test_pairs_by_the_label_oracle_are_the_best_choice_of_queries(budget):
    correct, prices, _ = pool()
    best = {}
    for base, expert in itertools.product(range(4), repeat=2):
        if prices[base] > budget:
            continue
        if base == expert:
            best[base, base] = correct[base].mean()
            continue
        gain = np.sort(correct[expert].astype(int) - correct[base].astype(int))[::-1]
        allowed = min(500, int((budget - prices[base]) / prices[expert] * 500 + 1e-9))
        sums = np.concatenate([[0], np.cumsum(gain[:allowed])])
        best[base, expert] = (correct[base].sum() + sums.max()) / 500
    found = best_pairs(correct, prices, budget)
    assert {(p.base, p.expert) for p in found} == set(best)
    for pair in found:
        # Between whole numbers of queries the oracle's curve is straight.
        assert -1e-12 <= pair.accuracy - best[pair.base, pair.expert] < 1 / 500
        spent = prices[pair.base]
        if pair.base != pair.expert:
            spent += (1 - pair.coverage) * prices[pair.expert]
        assert spent <= budget + 1e-9
    values = [pair.accuracy for pair in found]
    assert values == sorted(values, reverse=True)


def test_pairs_by_scores_are_points_of_their_curves():
    correct, prices, scores = pool()
    budget = 5.0
    for pair in best_pairs(correct, prices, budget, scores):
        if pair.base == pair.expert:
            continue
        curve = accuracy_coverage(scores[pair.base], correct[pair.base], correct[pair.expert])
        spent = prices[pair.base] + (1 - curve.coverage) * prices[pair.expert]
        assert pair.accuracy == curve.accuracy[spent <= budget + 1e-9].max()
        assert prices[pair.base] + (1 - pair.coverage) * prices[pair.expert] <= budget + 1e-9
    with pytest.raises(DataError, match="no model of the pool"):
        best_pairs(correct, prices, 0.5)
