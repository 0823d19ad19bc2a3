"""Tables of speed from small records, variants that are made on request, and parts that fail."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("record_files", "records", "recurrent", "summary", "texts", "hardness", "workers")


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """The scripts' modules, which read records in a temporary folder."""
    for folder in ("benchmarks", "docs"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    for name in NAMES:  # those of another test may read another folder
        sys.modules.pop(name, None)
    yielded = {name: importlib.import_module(name) for name in NAMES}
    monkeypatch.setattr(yielded["records"], "RESULTS", tmp_path)
    yield yielded
    for name in NAMES:
        sys.modules.pop(name, None)


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_the_heat_table_names_the_least_ratio_and_counts_those_below_one(modules, tmp_path):
    settings = [
        {"batch": batch, "length": 28, "width": 32, "ratio": ratio}
        for batch, ratio in ((1, 4.0), (16, 0.5), (128, 2.0))
    ]
    record = {"lines": {"LSTM, step": {"settings": settings}}}
    (tmp_path / "rnn_heat.json").write_text(json.dumps(record))
    _, _, row, *_ = cells(modules["recurrent"].heat())
    place = "batch 16, 28 steps, width 32"
    # The geometric mean of 4, 1/2 and 2 is the third root of 4.
    assert row == ["LSTM", "step", "0.50", place, "1.59", "4.0", "1 of 3"]


def test_searched_networks_in_integers_are_compared_at_their_best(modules, tmp_path):
    ms = {
        "MiniLM in ONNX Runtime, float32": 60.0,
        "MiniLM in ONNX Runtime, int8": 24.0,
        "depth 3, ONNX int8": 12.0,
        "depth 3, LiteRT int8": 9.0,
        "searched, seed 0, ONNX int8": 9.0,
        "searched, seed 1, ONNX int8": 7.0,
        "searched, seed 0, LiteRT int8": 5.0,
        "searched, seed 1, LiteRT int8": 7.0,
        "searched, seed 0, ONNX float32": 1.0,
        "searched for single texts, seed 0, ONNX int8": 4.0,
        "searched for single texts, seed 1, ONNX int8": 3.2,
    }
    line = {"ms": {name: {"median": value} for name, value in ms.items()}}
    older = {"ms": {name: each for name, each in line["ms"].items() if "single" not in name}}
    lines = {"batch 1, length 8, 1 thread(s)": line, "batch 1, length 16, 1 thread(s)": older}
    (tmp_path / "encoder_integers.json").write_text(json.dumps({"lines": lines}))
    *_, row, without = cells(modules["texts"].integer_ratios())
    # LiteRT's mean over the seeds is 6, ONNX's 8; for single texts it is 3.6.
    assert row[1:] == ["LiteRT int8", "4.00", "10.00", "1.50", "2.50"]
    assert without[1:] == ["LiteRT int8", "4.00", "10.00", "1.50", "–"]


def test_only_the_last_variant_that_was_asked_for_is_kept(modules):
    calls = []
    variants = modules["workers"].MadeOnRequest(lambda name: lambda: calls.append(name), warmup=2)
    for name in ("a", "a", "b", "a"):
        variants[name]()
    assert "".join(calls) == "aaa" + "a" + "bbb" + "aaa"
    assert list(variants) == ["a"]


def test_what_is_made_on_request_is_not_timed(modules, monkeypatch, capsys):
    """A compilation of seconds in the first time made every later turn one call long."""
    clock = iter(range(1000))
    monkeypatch.setattr(modules["workers"].time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(sys, "stdin", ["a 2\n"])

    def make(name):
        for _ in range(100):
            next(clock)
        return lambda: None

    modules["workers"].serve(modules["workers"].MadeOnRequest(make))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == [1e3, 1e3]


@pytest.mark.parametrize("status", [0, 3])
def test_a_part_that_fails_is_said_and_leaves_the_others(modules, monkeypatch, capsys, status):
    summary = modules["summary"]

    def run(command, **_):
        *_, path, part = command
        if part == "memory" and status:
            return subprocess.CompletedProcess(command, status, "first\nlast words\n")
        Path(path).write_text(json.dumps({"ratios": {f"a to {part}": 2.5}}))
        return subprocess.CompletedProcess(command, 0, "")

    monkeypatch.setattr(summary.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["summary.py", "memory", "routing"])
    assert summary.main() == (1 if status else 0)
    told = capsys.readouterr().out
    assert ("last words" in told) == bool(status)
    assert "2.50  a to routing" in told
