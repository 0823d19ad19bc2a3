"""Two processes on one machine train as one; connected over the loopback."""

import csv
import json
import signal
import socket

import jax
import numpy as np
import pytest

from jaxeff.eval import read_report
from jaxeff.train.checkpoint import Checkpoints

TOLERANCE = 1e-5
OPTIONS = (
    "--config.model.dropout=0.0",  # masks are drawn per device
    "--config.devices.cpu=1",
    "--config.train.log_every=5",
)


@pytest.fixture
def start_pair(start_training):
    def start_pair(workdir, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [
            start_training(
                workdir,
                *OPTIONS,
                *options,
                f"--config.devices.coordinator=127.0.0.1:{port}",
                "--config.devices.num_processes=2",
                f"--config.devices.process_id={process}",
            )
            for process in range(2)
        ]

    return start_pair


def steps_in(workdir):
    folder = workdir / "checkpoints"
    return [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []


def last_arrays(workdir, like):
    checkpoints = Checkpoints(workdir / "checkpoints")
    step, tree, _ = checkpoints.restore(like)
    checkpoints.close()
    return step, jax.device_get(tree["best"]["params"])


@pytest.mark.slow
def test_two_processes_train_as_one(start_pair, start_training, tiny_config, tmp_path):
    from jaxeff import train

    options = ("--config.train.num_steps=20", "--config.train.eval_every=10")
    pair = start_pair(tmp_path / "two", *options)
    for program in pair:
        assert program.wait(90) == 0, program.output
    assert "2 x cpu, 2 process(es)" in pair[0].output
    assert "step 20/20" in pair[0].output
    assert "step 20/20" not in pair[1].output  # one of them speaks

    one = start_training(tmp_path / "one", *OPTIONS, *options)
    assert one.wait(90) == 0, one.output
    assert "1 x cpu, 1 process(es)" in one.output

    config = tiny_config.copy_and_resolve_references()
    for section, fields in json.loads((tmp_path / "one" / "config.json").read_text()).items():
        config[section] = fields
    state = train.build(config).init_state()
    like = {
        "train": state,
        "best": {"params": state.params, "model_state": state.model_state},
    }
    steps, arrays = zip(*(last_arrays(tmp_path / run, like) for run in ("one", "two")), strict=True)
    assert steps == (20, 20)
    for a, b in zip(*map(jax.tree.leaves, arrays), strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=0)
    moved = max(
        np.abs(a - b).max()
        for a, b in zip(
            jax.tree.leaves(arrays[0]), jax.tree.leaves(jax.device_get(state.params)), strict=True
        )
    )
    assert moved > 0.01

    reports = [read_report(tmp_path / run)["metrics"] for run in ("one", "two")]
    for split in ("validation", "test"):
        np.testing.assert_allclose(reports[1][split]["loss"], reports[0][split]["loss"], rtol=1e-5)
    histories = [
        list(csv.reader((tmp_path / run / "metrics.csv").open())) for run in ("one", "two")
    ]
    assert [row[0] for row in histories[0]] == [row[0] for row in histories[1]]


@pytest.mark.slow
def test_termination_of_one_process_saves_and_ends_both(start_pair, tmp_path):
    options = ("--config.train.num_steps=100000", "--config.train.eval_every=100000")
    workdir = tmp_path / "run"
    pair = start_pair(workdir, *options, "--config.checkpoint.every=100000")
    assert pair[0].wait_until(lambda: "\nstep " in pair[0].output), pair[0].output
    pair[1].signal(signal.SIGTERM)
    for program in pair:
        assert program.wait(60) == 0, program.output
    (step,) = steps_in(workdir)
    assert f"stopped at step {step};" in pair[0].output

    again = start_pair(workdir, *options, "--config.checkpoint.every=100000")
    assert again[0].wait_until(lambda: "\nstep " in again[0].output), again[0].output
    assert f"resuming at step {step} " in again[0].output
    again[0].signal(signal.SIGTERM)
    for program in again:
        assert program.wait(60) == 0, program.output
    assert max(steps_in(workdir)) > step
