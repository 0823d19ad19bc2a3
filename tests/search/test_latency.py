"""Tables of latencies: sums of parts, the constant, repair, and files."""

import dataclasses
import json
import math

import numpy as np
import pytest

from jaxeff.errors import ConfigError, DataError
from jaxeff.models.encoder_plan import EncoderPlan
from jaxeff.models.encoder_space import EncoderSpace
from jaxeff.search import measure
from jaxeff.search.latency import LatencyTable, monotone, needed, parts

SPACE = EncoderSpace((2, 3, 4), (2, 3), 2)


def table(space=SPACE, length=24):
    layers, cuts = needed(space.plans, length)
    return LatencyTable(
        2, length, 0.5, {s: 0.1 * s[0] + 0.01 * s[1] for s in layers}, dict.fromkeys(cuts, 0.03)
    )


def test_parts_by_hand():
    layers, cuts = parts(EncoderPlan(4, ((1, 2), (3, 3))), 10)
    assert layers == [(10, 10), (5, 5), (5, 5), (2, 2)]
    assert cuts == [(10, 2), (5, 3)]
    layers, _ = parts(EncoderPlan(3, ((1, 2),), 1, pooled_queries=True), 10)
    assert layers == [(10, 10), (6, 10), (6, 6)]


def test_a_network_is_the_sum_of_its_parts():
    plan = EncoderPlan(3, ((1, 2),))
    assert table()(plan) == pytest.approx(0.5 + 0.11 * (24 + 12 + 12) + 0.03)
    assert max(table()(p) for p in SPACE.plans) == table()(SPACE.full)
    with pytest.raises(DataError, match=r"no part of shape \(5, 5\)"):
        table()(EncoderPlan(3, ((1, 5),)))


def test_every_plan_has_its_parts():
    for space in (SPACE, EncoderSpace((3,), (2, 3), 2, 1, "mean", True)):
        found = table(space, 23)
        assert all(found(plan) > 0 for plan in space.plans)


def test_the_constant_fits_whole_networks():
    exact = table()
    measured = {p: exact(p) + 1.25 for p in SPACE.plans[::5]}
    measured[SPACE.plans[0]] += 100.0  # one was disturbed
    assert exact.fitted(measured).constant == pytest.approx(1.75)
    assert exact.fitted(measured).uncached == 0.0
    assert exact.fitted({SPACE.full: 0.0}).constant == 0.0


def test_layers_beyond_those_timed_together_take_longer():
    exact = dataclasses.replace(table(), stack=2)
    measured = {p: exact(p) + 0.4 * (p.depth - 2) for p in SPACE.plans[::3]}
    measured[SPACE.full] += 100.0  # one was disturbed
    found = exact.fitted(measured)
    assert found.uncached == pytest.approx(0.4)
    assert found.constant == pytest.approx(0.5)
    others = [p for p in SPACE.plans if p not in measured]
    assert {p.depth for p in others} == {2, 3, 4}
    for plan in others:
        assert found(plan) == pytest.approx(exact(plan) + 0.4 * (plan.depth - 2))
    faster = exact.fitted({p: exact(p) - 0.1 * p.depth for p in SPACE.plans})
    assert faster.uncached == 0.0


def test_repair_is_the_nearest_that_grows():
    times = {(1, 1): 1.0, (2, 2): 4.0, (3, 3): 2.0, (4, 4): 3.0, (8, 8): 9.0}
    found = monotone({**times, (2, 4): 0.5, (4, 8): 0.7})
    assert found == {
        (1, 1): 1.0,
        (2, 2): 3.0,
        (3, 3): 3.0,
        (4, 4): 3.0,
        (8, 8): 9.0,
        (2, 4): 0.5,
        (4, 8): 0.7,
    }
    rng = np.random.default_rng(0)
    noisy = {(n, n): n + 3 * rng.normal() for n in range(1, 40)}
    repaired = list(monotone(noisy).values())
    assert (np.diff(repaired) >= 0).all()
    assert np.mean(repaired) == pytest.approx(np.mean(list(noisy.values())))


def test_shorter_or_shallower_is_never_slower():
    found = table()
    lengths = {plan: [q for q, _ in plan.lengths(24)] for plan in SPACE.plans}
    for one, short in lengths.items():
        for other, long in lengths.items():
            same = len(one.cuts) == len(other.cuts)
            if same and len(short) <= len(long) and all(map(int.__le__, short, long)):
                assert found(one) <= found(other) + 1e-12


def test_files(tmp_path):
    made = LatencyTable(2, 24, 0.5, {(3, 3): 0.1}, {(24, 2): 0.2}, {"cpu": "x"}, 4, 0.3)
    made.save(tmp_path / "latency.json")
    assert LatencyTable.load(tmp_path / "latency.json") == made
    (tmp_path / "other.json").write_text('{"batch": 1}')
    for name in ("other.json", "nothing.json"):
        with pytest.raises(DataError, match="no table of latencies"):
            LatencyTable.load(tmp_path / name)


FIELDS = {"batch": 2, "length": 24, "constant": 0.5, "layers": [[3, 3, 0.1]], "cuts": [[24, 2, 1]]}


@pytest.mark.parametrize(
    "change",
    [
        {"constant": math.nan},
        {"constant": -1.0},
        {"constant": None},
        {"layers": [[3, 3, math.nan]]},
        {"layers": [[3, 3, math.inf]]},
        {"layers": [[3, 3, -0.1]]},
        {"layers": [[3, 3, "fast"]]},
        {"layers": [[3, 3]]},
        {"layers": [[3, 3, 0.1], [3, 3, 0.2]]},
        {"layers": [[3.5, 3, 0.1]]},
        {"cuts": 7},
        {"cuts": [[24, 0, 1.0]]},
        {"uncached": -0.1},
        {"stack": 0},
        {"batch": 0},
        {"length": 2.5},
        {"environment": []},
        {"surprise": 1},
    ],
)
def test_damaged_files(tmp_path, change):
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(FIELDS))
    assert LatencyTable.load(path).layers == {(3, 3): 0.1}
    path.write_text(json.dumps({**FIELDS, **change}))
    with pytest.raises(DataError, match="no table of latencies") as caught:
        LatencyTable.load(path)
    assert str(path) in str(caught.value)


def test_cut_off_files(tmp_path):
    path = tmp_path / "latency.json"
    text = json.dumps(FIELDS)
    pieces = ["", text[:20], text[:-1], "[]", "null", "[" * 100_000]
    pieces += [json.dumps({k: v for k, v in FIELDS.items() if k != name}) for name in FIELDS]
    for piece in pieces:
        path.write_text(piece)
        with pytest.raises(DataError, match="no table of latencies"):
            LatencyTable.load(path)


def test_a_table_replaces_another_whole(tmp_path, monkeypatch):
    path = tmp_path / "latency.json"
    made = LatencyTable(2, 24, 0.5, {(3, 3): 0.1}, {(24, 2): 0.2})
    made.save(path)
    with pytest.raises(ValueError, match="JSON"):
        LatencyTable(2, 24, math.nan, {}, {}).save(path)

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        LatencyTable(2, 24, 9.0, {}, {}).save(path)
    assert LatencyTable.load(path) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plans": ()}, "no plans to measure"),
        ({"batch": 0}, "batch must be a whole number of at least 1"),
        ({"length": -1}, "length must be a whole number of at least 1"),
        ({"rounds": 0}, "rounds must be a whole number of at least 1"),
    ],
)
def test_measurements_of_nothing(change, message):
    fields = {"plans": SPACE.plans, "whole": (), "batch": 1, "length": 8, **change}
    with pytest.raises(ConfigError, match=message):
        measure.time_parts(lambda plan: None, **fields)
