"""Cost models, and thresholds chosen by them."""

import numpy as np
import pytest

from jaxeff.errors import DataError
from jaxeff.hybrid import cost
from jaxeff.hybrid.cost import AffineCost, EdgeCloud, MeasuredCost
from jaxeff.hybrid.curves import accuracy_coverage
from jaxeff.hybrid.route import Cascade, Stage, bucket, bucket_sizes


def test_multiply_adds_at_the_ends_and_as_published():
    assert cost.hybrid_macs(1.0, 48, 215) == 48
    assert cost.hybrid_macs(0.0, 48, 215) == 48 + 215
    # Points of the authors' figure, in millions.
    shown = [cost.hybrid_macs(c, 48, 215) for c in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)]
    np.testing.assert_allclose(shown, [69, 91, 112, 134, 155, 177], atol=0.6)
    assert cost.hybrid_macs(0.5, 10, 20, router=3) == 23


def test_edge_cloud_gives_the_points_of_the_figure():
    link = EdgeCloud()
    found = [link.milliseconds(c) for c in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)]
    np.testing.assert_allclose(found, [400, 600, 800, 1000, 1200, 1400, 1600])
    assert link.millijoules(0.9) == pytest.approx(40)
    assert link.batch_ms((10, 1)) / 10 == pytest.approx(link.milliseconds(0.9))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3, 5, 7, 9], (1, 2)),
        ([1, 3, 5, 7], (0, 1.8)),  # a line through the origin, for a negative start
        ([8, 7, 6, 5], (6.5, 0)),  # a constant, for a falling line
    ],
)
def test_lines_have_no_negative_numbers(values, expected):
    line = AffineCost.fit([1, 2, 3, 4], values)
    if expected[0] == 0:
        x, y = np.arange(1, 5), np.asarray(values)
        expected = (0, x @ y / (x @ x))
    assert (line.fixed, line.per_row) == pytest.approx(expected)


def test_nothing_costs_nothing():
    np.testing.assert_array_equal(AffineCost(5.0, 1.0)(np.array([0, 1, 10])), [0, 6, 15])


def test_expected_time_is_the_mean_over_random_batches():
    batch, share = 64, 0.3
    model = MeasuredCost(batch, 2.0, (AffineCost(1.0, 0.5),), query_ms=0.25)
    rng = np.random.default_rng(0)
    queries = rng.binomial(batch, share, 20_000)
    times = [model.batch_ms((batch, n)) / batch for n in queries]
    error = np.std(times) / np.sqrt(len(times))
    assert abs(np.mean(times) - model.milliseconds(1 - share)) < 4 * error
    sizes = bucket_sizes(batch)
    assert model.batch_ms((batch, 17)) == 2 + 1 + 0.5 * bucket(17, sizes) + 0.25 * 17
    # Most batches with a quarter of queries on average do not fit a bucket of a quarter.
    assert model.milliseconds(0.75) > (2 + 1 + 0.5 * 16) / batch + 0.25 / 4
    assert model.milliseconds(1.0) == 2 / batch
    assert model.milliseconds(0.0) == pytest.approx((2 + 1 + 32) / batch + 0.25)


def test_expected_time_of_three_stages_adds_up():
    model = MeasuredCost(8, 1.0, (AffineCost(0.0, 1.0), AffineCost(0.0, 10.0)))
    assert model.expected_ms((0.5, 0.1)) == pytest.approx(1 / 8 + 0.5 + 1.0)


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.2, 0.999, 1.0])
@pytest.mark.parametrize("trials", [1, 512])
def test_binomial_probabilities(share, trials):
    found = cost.binomial(trials, share)
    assert found.sum() == pytest.approx(1, abs=1e-9)
    assert found @ np.arange(trials + 1) == pytest.approx(trials * share, rel=1e-6, abs=1e-6)


def case(seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.choice(40, 300).astype(float)
    return accuracy_coverage(scores, rng.random(300) < 0.7, rng.random(300) < 0.9)


@pytest.mark.parametrize("seed", range(3))
def test_cheapest_threshold_is_that_of_a_search(seed):
    curve = case(seed)
    model = MeasuredCost(32, 1.0, (AffineCost(0.3, 0.1),))
    costs = np.array([model.milliseconds(c) for c in curve.coverage])
    for accuracy in (0.7, 0.8, 0.85):
        point = cost.cheapest(curve, model, accuracy)
        assert curve.accuracy[point] >= accuracy
        assert costs[point] == costs[curve.accuracy >= accuracy].min()
    for budget in (costs.min(), np.median(costs), costs.max()):
        point = cost.within(curve, model, budget)
        assert costs[point] <= budget
        assert curve.accuracy[point] == curve.accuracy[costs <= budget].max()


def test_targets_out_of_reach_are_one_sentence():
    with pytest.raises(DataError, match=r"reaches accuracy 0\.9900"):
        cost.cheapest(case(), EdgeCloud(), 0.99)
    with pytest.raises(DataError, match="the base alone costs 200 ms"):
        cost.within(case(), EdgeCloud(), 100)


def test_measuring_runs_every_stage_with_every_bucket(monkeypatch):
    """Times come from a clock that counts the rows of every stage."""
    rates = (1.0, 10.0, 100.0)

    def call(kernel, x):
        return x, x[:, 0], x

    cascade = Cascade([Stage(call, ())] * 3, [0.0, 0.0])
    elapsed = []

    def run_and_count(variants, rounds, calls, *, warmup):
        times = {}
        for name, run in variants.items():
            elapsed.clear()
            run()
            (reached,) = elapsed
            milliseconds = 5.0 + float(np.dot(rates, reached))
            times[name] = cost.bench.Latency(milliseconds, milliseconds, milliseconds, rounds)
        return times

    finish = Cascade.finish

    def counted(self, started):
        found = finish(self, started)
        elapsed.append(found.reached)
        return found

    monkeypatch.setattr(Cascade, "finish", counted)
    monkeypatch.setattr(cost.bench, "interleaved", run_and_count)
    found = cost.measure(cascade, np.zeros((4, 2), np.float32), query_ms=0.5)
    assert (found.batch, found.query_ms) == (4, 0.5)
    assert found.base_ms == pytest.approx(5 + 4)
    for line, rate in zip(found.later, rates[1:], strict=True):
        assert line.per_row == pytest.approx(rate)
        assert line.fixed == pytest.approx(0, abs=1e-9)
