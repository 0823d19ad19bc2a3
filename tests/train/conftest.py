import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxeff
from jaxeff import train
from jaxeff.train.checkpoint import Checkpoints

REPOSITORY = Path(__file__).parents[2]
# Makes a hang of collectives between CPU devices an abort, and with it a failed test.
NO_HANGS = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=3"
    " --xla_cpu_collective_call_terminate_timeout_seconds=20"
)
OWN_TO_A_RUN = ("seconds", "waiting", "resumed", "cost")  # of a checkpoint's values


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory):
    """A folder that all workers and programs of one test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def data_folder(shared_dir):
    """The digits are prepared once for all tests, and never in the user's cache."""
    return shared_dir / "jaxeff_data"


@pytest.fixture(autouse=True)
def data_dir(monkeypatch, data_folder):
    monkeypatch.setenv("JAXEFF_DATA_DIR", str(data_folder))


@pytest.fixture(scope="session")
def environment(data_folder):
    """The environment of a program: CPUs only, no hang of collectives."""
    return {
        **os.environ,
        "PYTHONPATH": str(Path(jaxeff.__file__).parents[1]),
        "JAX_PLATFORMS": "cpu",
        "JAXEFF_DATA_DIR": str(data_folder),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {NO_HANGS}",
    }


class Program:
    """A program in a process group of its own, whose output goes to a file."""

    def __init__(self, command, environment, log):
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                start_new_session=True,
            )

    @property
    def output(self):
        return self.log.read_text(errors="replace")

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def wait_until(self, condition, seconds=90.0):
        """Polls until the condition holds; False if the program ended before it did."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            if condition():
                return True
            if ended:
                return False
            assert time.monotonic() < deadline, f"nothing happened in {seconds} s:\n{self.output}"
            time.sleep(0.001)

    def wait(self, seconds=120.0):
        """Waits for the end, killing a program that takes too long; returns the exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"killed after {seconds} s:\n{self.output}") from None


@pytest.fixture
def start(environment, tmp_path):
    """Starts programs; whatever still runs at the end of the test is killed."""
    started = []

    def start(*command, **extra_environment):
        log = tmp_path / f"output-{len(started)}.txt"
        program = Program(command, {**environment, **extra_environment}, log)
        started.append(program)
        return program

    yield start
    for program in started:
        if program.process.poll() is None:
            program.signal(signal.SIGKILL)
            program.process.wait()


@pytest.fixture
def start_training(start):
    """Starts the command line on the smallest run of the irnn config."""

    def start_training(workdir, *options):
        return start(
            sys.executable,
            *("-m", "jaxeff.main"),
            f"--config={REPOSITORY / 'configs' / 'irnn.py'}:quick",
            f"--workdir={workdir}",
            "--config.model.cell.features=8",
            *options,
        )

    return start_training


@pytest.fixture
def tiny_config():
    """A run of seconds: 60 steps of a recurrent network with dropout, saved every five."""
    config = train.base_config()
    config.name = "tiny"
    config.data.update({"name": "digits", "view": "rows"})
    config.model = {
        "name": "sequence",
        "cell": {"name": "irnn", "features": 8, "num_inner_steps": 1, "step_size": 0.1},
        "dropout": 0.2,
    }
    config.optim.learning_rate = 1e-2
    config.train.update({"batch_size": 64, "num_steps": 60, "log_every": 7, "eval_every": 15})
    config.checkpoint.every = 5
    return config


def _describe(tree):
    """Arrays by path, as plain numbers; random keys as their data."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        named[jax.tree_util.keystr(path)] = np.asarray(leaf)
    return named


@pytest.fixture
def named_arrays():
    return _describe


@pytest.fixture
def outcome():
    """What a run has to show: its last checkpoint, its history, and its report's metrics."""

    def outcome(workdir):
        config = train.base_config()
        written = json.loads((workdir / "config.json").read_text())
        for section, fields in written.items():
            config[section] = fields
        experiment = train.build(config)
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        state = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place),
            jax.eval_shape(experiment.algorithm.init_state, jax.random.key(0), experiment.example),
        )
        best = {"params": state.params, "model_state": state.model_state}
        complaints = []
        checkpoints = Checkpoints(workdir / "checkpoints", warn=complaints.append)
        step, tree, values = checkpoints.restore({"train": state, "best": best})
        checkpoints.close()
        assert not complaints
        report = workdir / "report.json"
        return {
            "step": step,
            "arrays": {name: array.tobytes() for name, array in _describe(tree).items()},
            "values": {k: repr(v) for k, v in values.items() if k not in OWN_TO_A_RUN},
            "history": list(csv.reader((workdir / "metrics.csv").open())),
            "metrics": json.loads(report.read_text())["metrics"] if report.exists() else None,
            "best_step": values["best_step"],
        }

    return outcome


def _measured_on_eight_devices(environment, folder, *options):
    """The measurements of ``eight_devices.py``, made by the first worker that needs them."""
    measurements, failed = folder / "measurements.json", folder / "failed"
    try:
        folder.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + 300
        while not measurements.exists():
            assert not failed.exists(), (folder / "output.txt").read_text()
            assert time.monotonic() < deadline, "another worker never finished its measurements"
            time.sleep(0.1)
        return json.loads(measurements.read_text())
    flags = f"{environment['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    program = Program(
        [sys.executable, Path(__file__).with_name("eight_devices.py"), "new.json", *options],
        {**environment, "XLA_FLAGS": flags},
        folder / "output.txt",
    )
    try:
        assert program.wait(280) == 0, program.output
        (folder / "new.json").rename(measurements)
    except BaseException:
        failed.touch()
        raise
    return json.loads(measurements.read_text())


@pytest.fixture(scope="session")
def eight_devices(environment, shared_dir):
    """What training on eight devices gives, beside training on one."""
    return _measured_on_eight_devices(environment, shared_dir / "eight_devices")


@pytest.fixture(scope="session")
def eight_devices_in_full(environment, shared_dir):
    """The same with pmap for every algorithm, and with algorithms that are wrong on purpose."""
    folder = shared_dir / "eight_devices_in_full"
    return _measured_on_eight_devices(environment, folder, "--in-full")
