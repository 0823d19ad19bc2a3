"""Two processes on one machine train as one; connected over the loopback."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from ports import free_port

from jaxeff.errors import CheckpointError
from jaxeff.eval import read_report
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.processes import LOST_STATUS, LostProcessError, lost_process_errors

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5
OPTIONS = (
    "--config.model.dropout=0.0",  # masks are drawn per device
    "--config.devices.cpu=1",
    "--config.train.log_every=5",
)


@pytest.fixture
def start_pair(start_training):
    def start_pair(workdir, *options):
        port = free_port()
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
@pytest.mark.parametrize("how", ["shard_map", "pmap"])
def test_two_processes_train_as_one(start_pair, start_training, tiny_config, tmp_path, how):
    """Also where they go on from a checkpoint, and where one process continues what two began."""
    from jaxeff import train

    options = ("--config.train.eval_every=10", "--config.optim.schedule_name=constant")
    first = (*options, "--config.train.num_steps=20", f"--config.parallel={how}")
    pair = start_pair(tmp_path / "two", *first)
    for program in pair:
        assert program.wait(90) == 0, program.output
    assert f"2 x cpu, 2 process(es), mapped by {how}" in pair[0].output
    assert "step 20/20" in pair[0].output
    assert "step 20/20" not in pair[1].output  # one of them speaks

    whole = (*options, "--config.train.num_steps=40", f"--config.parallel={how}")
    pair = start_pair(tmp_path / "two", *whole)
    for program in pair:
        assert program.wait(90) == 0, program.output
    assert "resuming at step 20 " in pair[0].output

    one = start_training(tmp_path / "one", *OPTIONS, *whole)
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
    assert steps == (40, 40)
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
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_termination_of_one_process_saves_and_ends_both(start_pair, tmp_path, number):
    options = ("--config.train.num_steps=100000", "--config.train.eval_every=100000")
    workdir = tmp_path / "run"
    pair = start_pair(workdir, *options, "--config.checkpoint.every=100000")
    assert pair[0].wait_until(lambda: "\nstep " in pair[0].output), pair[0].output
    pair[1].signal(number)
    for program, status in zip(pair, (signal.SIGTERM, number), strict=True):
        assert program.wait(60) == 128 + status, program.output
    (step,) = steps_in(workdir)
    assert f"stopped at step {step};" in pair[0].output

    again = start_pair(workdir, *options, "--config.checkpoint.every=100000")
    assert again[0].wait_until(lambda: "\nstep " in again[0].output), again[0].output
    assert f"resuming at step {step} " in again[0].output
    again[0].signal(number)
    for program, status in zip(again, (number, signal.SIGTERM), strict=True):
        assert program.wait(60) == 128 + status, program.output
    assert max(steps_in(workdir)) > step
    assert read_report(workdir)["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_death_of_one_process_ends_the_other_in_a_sentence(start_pair, tmp_path, killed):
    options = ("--config.train.num_steps=100000", "--config.train.eval_every=100000")
    pair = start_pair(tmp_path / "run", *options)
    assert pair[0].wait_until(lambda: "\nstep " in pair[0].output), pair[0].output
    pair[killed].signal(signal.SIGKILL)
    other = pair[1 - killed]
    assert other.wait(60) == LOST_STATUS, other.output
    lines = other.output.strip().splitlines()
    assert lines[-1].startswith("error: another process of this run has ended")
    assert "Traceback" not in other.output
    assert len([line for line in lines if not line.startswith("step ")]) < 30


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_processes_that_never_meet_end_in_a_sentence(index):
    options = [f"--config.devices.{field}" for field in ("num_processes=2", f"process_id={index}")]
    options += [f"--config.devices.coordinator=127.0.0.1:{free_port()}"]
    program = (
        "import sys; from jaxeff import main; from jaxeff.train import processes; "
        "processes.CONNECT_SECONDS = 3; sys.argv[0] = 'jaxeff'; main.cli()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "--config=configs/irnn.py:quick", *options],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == LOST_STATUS
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the 2 processes of this run have not met at 127.0.0.1:")


def start_task(workdir, **variables):
    """Starts a task of a job; its variables are those of a cluster."""
    options = ("--config.train.num_steps=5", "--config.devices.cpu=1", f"--workdir={workdir}")
    cluster = ("SLURM", "OMPI", "PMI", "TPU", "CLOUD_TPU", "JOB_", "KUBERNETES")
    clean = {name: v for name, v in os.environ.items() if not name.startswith(cluster)}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "jaxeff.main", "--config=configs/irnn.py:quick", *options),
            "--config.devices.coordinator=auto",
        ],
        cwd=ROOT,
        env={**clean, "JAX_PLATFORMS": "cpu", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_cluster_says_where_its_processes_meet(tmp_path):
    job = {
        "SLURM_JOB_ID": str(free_port()),  # the port that they meet at follows from it
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    tasks = [
        start_task(tmp_path / "run", **job, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
        for i in range(2)
    ]
    texts = [task.communicate(timeout=120)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], texts
    assert "2 x cpu, 2 process(es)" in texts[0]
    alone = start_task(tmp_path / "alone")
    text, _ = alone.communicate(timeout=60)
    assert alone.returncode == 2
    assert "nothing of a cluster" in text.strip().splitlines()[-1]


@pytest.mark.slow
def test_pair_is_refused_together_where_another_run_works(start_pair, start_training, tmp_path):
    options = ("--config.train.num_steps=100000", "--config.train.eval_every=100000")
    first = start_training(tmp_path / "run", *OPTIONS, *options)
    assert first.wait_until(lambda: "\nstep " in first.output), first.output
    for program in start_pair(tmp_path / "run", *options):
        assert program.wait(60) == 2, program.output
        last = program.output.strip().splitlines()[-1]
        assert f"is in use by process {first.process.pid} on " in last


LATE = """
import sys
from pathlib import Path
from time import sleep
from jaxeff import main
plain, file = main.sentence, Path(sys.argv.pop(1))
def sentence(error):
    while not file.exists():
        sleep(0.01)
    return plain(error)
main.sentence, sys.argv[0] = sentence, "jaxeff"
main.cli()
"""


@pytest.mark.slow
@pytest.mark.parametrize("early", [0, 1])
def test_each_process_says_what_all_refuse_however_late(start, tmp_path, early):
    """The first to end must not look to the other as if it were lost."""
    go_on, port = tmp_path / "go_on", free_port()
    pair = [
        start(
            *(sys.executable, "-c", LATE, tmp_path if process == early else go_on),
            *(f"--config={ROOT}/configs/irnn.py:quick", f"--workdir={tmp_path / 'run'}"),
            *("--config.devices.cpu=1", f"--config.devices.coordinator=127.0.0.1:{port}"),
            *("--config.devices.num_processes=2", f"--config.devices.process_id={process}"),
            *("--config.data.name=arrays", f"--config.data.dir={tmp_path / 'missing.npz'}"),
        )
        for process in range(2)
    ]
    assert pair[early].wait_until(lambda: "error: " in pair[early].output), pair[early].output
    with contextlib.suppress(subprocess.TimeoutExpired):
        pair[early].process.wait(2)
    go_on.touch()
    for program in pair:
        assert program.wait(60) == 2, program.output
        assert "missing.npz" in program.output.strip().splitlines()[-1]


SAVING = "Gloo all-reduce failed: Read error [127.0.0.1]:64202: Connection reset by peer"


@pytest.mark.parametrize("connected", [True, False])
def test_a_process_lost_within_a_save_is_no_fault_of_the_checkpoint(
    monkeypatch, tmp_path, connected
):
    def saving(*_, **__):
        raise RuntimeError(SAVING)

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: connected)
    monkeypatch.setattr(ocp, "save_checkpointables_async", saving)
    error = LostProcessError if connected else CheckpointError
    with pytest.raises(error), lost_process_errors():
        Checkpoints(tmp_path / "checkpoints").save(3, {"a": np.ones(2)}, {})


def test_other_errors_of_connected_processes_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(CheckpointError, match="disk"), lost_process_errors():
        raise CheckpointError("the disk is full") from OSError("No space left on device")
