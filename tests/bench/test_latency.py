"""What is called, when and how often; never how long it takes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.bench import Latency, compile_time, interleaved, latency, measure


class Clock:
    """A clock that only moves when told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_statistics_are_of_the_timed_calls_only(clock):
    durations = iter([100.0, 100.0, *(i / 1000 for i in range(1, 102))])

    def fn():
        clock.now += next(durations)

    result = measure(fn, warmup=2, repeats=101)
    expected = {"median_ms": 51.0, "p95_ms": 96.0, "min_ms": 1.0, "repeats": 101}
    assert dataclasses.asdict(result) == pytest.approx(expected)


def test_min_seconds_adds_calls(clock):
    def fn():
        clock.now += 0.25

    assert measure(fn, warmup=1, repeats=3, min_seconds=2.0).repeats == 8
    assert measure(fn, warmup=1, repeats=30, min_seconds=2.0).repeats == 30


def test_compilation_is_over_before_timing_starts(monkeypatch):
    traced_while_timed = []
    timing = False
    timed = latency._timed

    def spy(*args):
        nonlocal timing
        timing = True
        return timed(*args)

    @jax.jit
    def fn(x):
        traced_while_timed.append(timing)
        return x + 1

    monkeypatch.setattr(latency, "_timed", spy)
    measure(fn, jnp.ones(3), warmup=1, repeats=2)
    assert traced_while_timed == [False]
    timing = False
    interleaved({"a": jax.jit(lambda: fn(jnp.ones(4)))}, rounds=1, calls_per_round=1, warmup=1)
    assert True not in traced_while_timed


def test_every_call_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(latency.jax, "block_until_ready", waited.append)
    measure(lambda x: ("out", x), 7, warmup=2, repeats=3)
    assert waited == [(7,)] + [("out", 7)] * 5


def test_interleaved_rotates_the_order(clock):
    calls = []

    def variant(name, seconds):
        def fn():
            calls.append(name)
            clock.now += seconds

        return fn

    variants = {name: variant(name, i) for i, name in enumerate("abc", start=1)}
    result = interleaved(variants, rounds=4, calls_per_round=2, warmup=1)
    assert "".join(calls) == "abc" + "aabbcc" + "bbccaa" + "ccaabb" + "aabbcc"
    assert result["b"] == Latency(median_ms=2000, p95_ms=2000, min_ms=2000, repeats=8)


@pytest.mark.parametrize("field", ["warmup", "repeats"])
def test_numbers_below_one_are_refused(field):
    with pytest.raises(ValueError, match=field):
        measure(lambda: None, **{field: 0})
    with pytest.raises(ValueError, match="variants"):
        interleaved({}, rounds=1, calls_per_round=1)


def test_compile_time_returns_the_compiled_function():
    compiled, seconds = compile_time(lambda x: x * 2, jnp.ones(3))
    assert compiled(jnp.ones(3)).tolist() == [2, 2, 2]
    assert seconds > 0


@pytest.mark.parametrize("value", [-1, 0, 2.5, math.nan, math.inf, True, "3"])
@pytest.mark.parametrize("field", ["rounds", "calls_per_round", "warmup"])
def test_counts_are_whole_numbers(field, value):
    """Nothing is called for a NaN of rounds, which would be below nothing and above nothing."""
    calls = []
    fields = {"rounds": 1, "calls_per_round": 1, "warmup": 1, field: value}
    with pytest.raises(ValueError, match=f"{field} must be a whole number"):
        interleaved({"a": lambda: calls.append(1)}, **fields)
    if field == "warmup":
        with pytest.raises(ValueError, match="repeats must be a whole number"):
            measure(lambda: calls.append(1), repeats=value)
    assert not calls


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_no_measurement_goes_on_for_ever(seconds):
    with pytest.raises(ValueError, match="min_seconds must be at least 0 and finite"):
        measure(lambda: None, warmup=1, repeats=1, min_seconds=seconds)


def test_counts_may_be_numpys():
    assert measure(lambda: None, warmup=np.int64(1), repeats=np.int32(2)).repeats == 2
