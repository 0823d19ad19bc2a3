"""A training does not depend on how many processes hold its devices: compared bit by bit."""

import signal

import pytest
from ports import free_port

from jaxeff.train.processes import LOST_STATUS

DEVICES, STEPS = 4, 60
OPTIONS = (
    "--config.optim.schedule_name=constant",  # a run can be made longer
    "--config.train.log_every=5",
    "--config.train.eval_every=20",
    "--config.checkpoint.every=5",
)


@pytest.fixture
def start_processes(start_training):
    """Starts a run on four devices, divided among some processes."""

    def start_processes(workdir, number, steps=STEPS):
        options = [*OPTIONS, f"--config.train.num_steps={steps}"]
        options += [f"--config.devices.cpu={DEVICES // number}"]
        if number > 1:
            options += [f"--config.devices.coordinator=127.0.0.1:{free_port()}"]
            options += [f"--config.devices.num_processes={number}"]
        each = [[f"--config.devices.process_id={i}"] * (number > 1) for i in range(number)]
        return [start_training(workdir, *options, *own) for own in each]

    return start_processes


def finish(programs, text=""):
    for program in programs:
        assert program.wait(240) == 0, program.output
    assert f"4 x cpu, {len(programs)} process(es)" in programs[0].output
    assert text in programs[0].output


@pytest.fixture
def whole(start_processes, outcome, tmp_path):
    """What one process with four devices comes to, left alone."""
    finish(start_processes(tmp_path / "one", 1))
    return outcome(tmp_path / "one")


@pytest.mark.slow
def test_a_run_moves_from_two_processes_to_one_and_to_four(
    start_processes, whole, outcome, tmp_path
):
    finish(start_processes(tmp_path / "moved", 2, steps=20))
    finish(start_processes(tmp_path / "moved", 1, steps=40), "resuming at step 20 ")
    finish(start_processes(tmp_path / "moved", 4), "resuming at step 40 ")
    assert whole["step"] == STEPS
    assert outcome(tmp_path / "moved") == whole


@pytest.mark.slow
def test_a_run_goes_on_exactly_after_one_of_its_processes_was_killed(
    start_processes, whole, outcome, tmp_path
):
    pair = start_processes(tmp_path / "killed", 2)
    assert pair[0].wait_until(lambda: "step 15/" in pair[0].output, 240), pair[0].output
    pair[1].signal(signal.SIGKILL)
    assert pair[0].wait(60) == LOST_STATUS, pair[0].output
    finish(start_processes(tmp_path / "killed", 2), "resuming at step ")
    assert outcome(tmp_path / "killed") == whole
