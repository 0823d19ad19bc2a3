"""The driver that kills trainings: what it compares, and a trial of it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.fixture(scope="module")
def kills():
    sys.path.insert(0, str(SCRIPT.parent))  # its parts stand beside it
    spec = importlib.util.spec_from_file_location("kills", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["kills"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))
    del sys.modules["kills"]


def test_any_difference_counts(kills):
    one = {"a": ("float32", (2,), bytes(8)), "history": "step\n1\n", "step": 3}
    assert kills.difference(one, dict(one)) == []
    assert kills.difference(one, {**one, "a": ("float32", (2,), bytes(7) + b"\1")}) == ["a"]
    assert kills.difference(one, {**one, "more": 1}) == ["more"]
    assert kills.difference({**one, "more": 1}, one) == ["more"]


def test_saves_are_told_apart(kills, tmp_path):
    assert kills.last_step(tmp_path) == -1
    for name in ("5", "10", "15.orbax-checkpoint-tmp", ".lock"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert kills.last_step(tmp_path) == 10
    assert kills.unfinished(tmp_path) == {"15.orbax-checkpoint-tmp"}


def test_moments_are_in_the_order_of_a_run(kills, tmp_path):
    known = kills.Reference({}, 1.0, 0.5, 0.1, 80)
    for name, case in kills.CASES.items():
        plans = [
            kills.Trial(case, known, tmp_path / "run", tmp_path, f"{name}-{n}").plan()
            for n in range(20)
        ]
        for plan in plans:
            assert (plan[0], plan[-1]) == ("start", "report")
            assert {"save", "step"} < set(plan)
            assert ("prerequisite" in plan) == bool(case.prerequisites)
        assert len(set(map(tuple, plans))) > 3
        again = kills.Trial(case, known, tmp_path / "run", tmp_path, f"{name}-0").plan()
        assert again == plans[0]


@pytest.mark.slow
def test_killed_runs_end_as_those_left_alone(start, tmp_path):
    out = tmp_path / "kills.json"
    options = ["--kills=4", "--seed=3", "--configs", "disk", f"--out={out}"]
    program = start(sys.executable, SCRIPT, *options, f"--folder={tmp_path / 'runs'}")
    assert program.wait(500) == 0, program.output
    record = json.loads(out.read_text())
    assert record["bit_equal"] == record["kills"] >= 4
    line = record["lines"]["disk"]
    assert line["differences"] == []
    assert line["moments"]["start"] >= 1
    assert line["resumed"] >= 1
    assert line["environment"]["jax"]
    assert "configs/disk.py" in line["command"]
