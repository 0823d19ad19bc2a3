"""Whole runs under constraints: resumed, reported, and with other objectives and models."""

import csv
import json

import jax
import numpy as np
import pytest

from jaxeff import train
from jaxeff.train import check, run_report
from jaxeff.train.loop import Training

DCL = (
    {"name": "discount", "start": 0.2, "end": 0.0, "period": 4.0},
    {"name": "entropy", "start": 0.95},
    {"name": "width", "start": 0.0},
)


def test_any_objective_and_sequences_can_be_constrained(tiny_config):
    tiny_config.objective.label_smoothing = 0.1
    tiny_config.objective.name = "cross_entropy"
    tiny_config.algorithm = {
        "name": "constrained",
        "constraints": (*DCL[:2], {"name": "class_loss"}),
    }
    built = train.build(tiny_config)
    take = built.dataset.splits["train"].take
    batch = {**take(np.arange(32)), "weight": np.ones(32, np.float32)}
    state = built.init_state()
    new, metrics = jax.jit(built.algorithm.update)(state, batch)
    assert all(np.isfinite(value) for value in metrics.values())
    assert new.algo_state["duals"].multiplier["class_loss"].shape == (10,)


@pytest.fixture
def image_config():
    config = train.base_config()
    config.name, config.data.name = "constrained", "digits"
    config.model = {"name": "resnet", "blocks": (1,), "widths": (4,), "axis_name": "data"}
    config.algorithm = {
        "name": "constrained",
        "constraints": DCL,
        "dual": {"name": "nupi", "rate": 0.05},
        "average_decay": 0.9,
    }
    config.train.update({"batch_size": 64, "num_steps": 12, "log_every": 3, "eval_every": 6})
    config.checkpoint.every = 6
    config.devices.cpu = 1
    return config


def finish(config, workdir):
    """Trains without the report, whose cost is measured; returns the state and the history."""
    experiment = train.build(config)
    check.claim_workdir(workdir, config)
    training = Training(experiment, workdir)
    try:
        done = training.run()
    finally:
        training.close()
    with (workdir / "metrics.csv").open() as file:
        return done, training, list(csv.DictReader(file))


@pytest.mark.slow
def test_stopped_run_ends_as_if_it_had_not_been(image_config, named_arrays, monkeypatch, tmp_path):
    done, whole, history = finish(image_config, tmp_path / "whole")
    assert done
    with monkeypatch.context() as patched:
        patched.setattr("jaxeff.train.interrupt.Interrupt.requested", lambda _, step: step == 8)
        assert not finish(image_config, tmp_path / "stopped")[0]
    done, resumed, again = finish(image_config, tmp_path / "stopped")
    assert done
    assert resumed.values["resumed"] == 1
    found, expected = named_arrays(resumed.state), named_arrays(whole.state)
    assert any("multiplier" in name and array.any() for name, array in found.items())
    assert {n: a.tobytes() for n, a in found.items()} == {
        n: a.tobytes() for n, a in expected.items()
    }
    assert again == history
    path = [float(row["train/width_multiplier"]) for row in history if row["train/loss"]]
    assert len(path) == 4
    assert path[-1] > path[0] > 0
    assert any(row.get("validation/entropy") for row in history)


def test_report_asks_the_algorithm_and_the_model(image_config):
    built = train.build(image_config)
    state = built.init_state()
    full = jax.tree.map(lambda a: a + 10, state.algo_state["duals"].multiplier)
    duals = state.algo_state["duals"]._replace(multiplier=full)
    state = state.replace(algo_state={**state.algo_state, "duals": duals})
    chosen = {"params": state.params, "model_state": state.model_state}
    assert len(run_report.warnings(built, chosen, state)) == 2


def test_config_is_plain_json(image_config):
    check.check(image_config)
    sections = json.loads(image_config.to_json_best_effort())["algorithm"]["constraints"]
    assert sections == [dict(section) for section in DCL]
