"""Commands that a signal ends: their exit status, their last words, and what they leave."""

import signal

import pytest

pytestmark = pytest.mark.slow

LONG = ("--config.train.num_steps=1000000", "--config.train.eval_every=1000000")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_before_the_first_step_ends_at_once(start_training, tmp_path, number):
    program = start_training(tmp_path / "run", *LONG)
    assert program.wait_until(lambda: "multiply-adds per example" in program.output)
    program.signal(number)  # while it compiles
    assert program.wait(20) == 128 + number
    assert program.output.strip().splitlines()[-1] == (
        f"stopped by {number.name}; the same command goes on from the last checkpoint"
    )
    assert "Traceback" not in program.output


def test_second_signal_does_not_wait_for_the_step(start_training, tmp_path):
    program = start_training(tmp_path / "run", *LONG)
    assert program.wait_until(lambda: "\nstep " in program.output)
    program.signal(signal.SIGSTOP)  # both are there when it goes on
    program.signal(signal.SIGINT)
    program.signal(signal.SIGTERM)
    program.signal(signal.SIGCONT)
    status = program.wait(20)
    assert status in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert "the same command goes on from the last checkpoint" in program.output
    assert "Traceback" not in program.output


def test_two_equal_commands_do_not_harm_each_other(start_training, outcome, tmp_path):
    options = ("--config.train.num_steps=400", "--config.checkpoint.every=20")
    first = start_training(tmp_path / "run", *options)
    assert first.wait_until(lambda: "\nstep " in first.output), first.output
    first.signal(signal.SIGSTOP)  # it would be done before the other has started
    second = start_training(tmp_path / "run", *options)
    assert second.wait(60) == 2, second.output
    first.signal(signal.SIGCONT)
    assert f"is in use by process {first.process.pid} on " in second.output
    assert first.wait(60) == 0, first.output
    alone = start_training(tmp_path / "alone", *options)
    assert alone.wait(60) == 0, alone.output
    assert outcome(tmp_path / "run") == outcome(tmp_path / "alone")
