"""A run that was stopped, killed or damaged ends as one that was not, bit for bit."""

import contextlib
import random
import shutil
import signal
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import swept

from jaxeff import train
from jaxeff.errors import CheckpointError
from jaxeff.eval import read_history, read_report
from jaxeff.train import check, selection
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.loop import CHECKPOINTS, Training

# Epochs of digits are 21 steps of 64 and six examples, so that no checkpoint is at a border.
OPTIONS = (
    "--config.train.num_steps=80",
    "--config.train.log_every=7",
    "--config.train.eval_every=25",
    "--config.checkpoint.every=5",
)


@pytest.fixture(scope="module")
def kept():
    """What the tests of this module share, made by the first that needs it."""
    return {}


@pytest.fixture
def uninterrupted(start_training, outcome, kept, tmp_path_factory):
    if "command_line" not in kept:
        workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
        program = start_training(workdir, *OPTIONS)
        assert program.wait() == 0, program.output
        kept["command_line"] = outcome(workdir)
    return kept["command_line"]


def finished_steps(workdir):
    folder = workdir / CHECKPOINTS
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return {int(name) for name in names if name.isdigit()}


def saving(workdir):
    return any((workdir / CHECKPOINTS).glob("*.orbax-checkpoint-tmp"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [
        ("saving", "saved"),
        pytest.param(("saved", "later", "saving", "later"), marks=pytest.mark.slow),
    ],
    ids=["in_saves", "in_between"],
)
def test_killed_run_ends_as_if_it_had_not_been(
    start_training, outcome, uninterrupted, tmp_path, moments
):
    workdir = tmp_path / "run"
    draw = random.Random(0)
    killed = 0
    for moment in moments:
        before = finished_steps(workdir)
        program = start_training(workdir, *OPTIONS)
        # A save of this run, not what a killed one left behind.
        assert program.wait_until(lambda known=before: finished_steps(workdir) - known)
        if moment == "saving":
            program.wait_until(lambda: saving(workdir))
        elif moment == "later":
            lines = draw.randrange(1, 4) + program.output.count("\nstep ")
            program.wait_until(lambda p=program, n=lines: p.output.count("\nstep ") >= n)
        program.signal(signal.SIGKILL)
        killed += program.wait() == -signal.SIGKILL
    assert killed >= len(moments) - 1
    program = start_training(workdir, *OPTIONS)
    assert program.wait() == 0, program.output
    assert "resuming at step" in program.output
    assert outcome(workdir) == uninterrupted
    assert uninterrupted["step"] == 80
    assert uninterrupted["metrics"]["test"]["accuracy"] > 0


@pytest.mark.slow
def test_termination_saves_that_very_step_and_the_same_command_goes_on(
    start_training, outcome, uninterrupted, tmp_path
):
    workdir = tmp_path / "run"
    program = start_training(workdir, *OPTIONS)
    assert program.wait_until(lambda: "\nstep " in program.output)
    program.signal(signal.SIGTERM)
    assert program.wait() == 128 + signal.SIGTERM, program.output
    last = program.output.strip().splitlines()[-1]
    step = max(finished_steps(workdir))
    assert last == f"stopped at step {step}; the same command goes on from there"
    report = read_report(workdir)
    assert (report["status"], report["training"]["steps"]) == ("interrupted", step)

    program = start_training(workdir, *OPTIONS)
    assert program.wait() == 0, program.output
    assert f"resuming at step {step} " in program.output
    assert outcome(workdir) == uninterrupted


@pytest.mark.slow
def test_full_disk_is_a_sentence_and_the_same_command_goes_on(
    start, start_training, outcome, uninterrupted, tmp_path
):
    """A limit on the size of files stands for the disk; the second checkpoint meets it."""
    workdir = tmp_path / "run"
    killed = start_training(workdir, *OPTIONS)
    command = killed.process.args
    assert killed.wait_until(lambda: finished_steps(workdir))
    killed.signal(signal.SIGKILL)
    killed.wait()
    limited = start("bash", "-c", 'ulimit -f 2; exec "$@"', "bash", *command)
    assert limited.wait() == 2, limited.output
    assert "Traceback" not in limited.output
    assert limited.output.strip().splitlines()[-1].startswith("error: ")
    program = start(*command)
    assert program.wait() == 0, program.output
    assert outcome(workdir) == uninterrupted


def finish(config, workdir):
    """Trains to the end without the report, whose cost is measured; says whether it got there."""
    experiment = train.build(config)
    check.claim_workdir(workdir, config)
    training = Training(experiment, workdir)
    try:
        return training.run()
    finally:
        training.close()


@pytest.fixture
def finished(tiny_config, kept, outcome, tmp_path_factory, tmp_path):
    """A copy of the folder of a finished run, its config, and what the run shows."""
    if "in_process" not in kept:
        workdir = tmp_path_factory.mktemp("finished") / "run"
        finish(tiny_config, workdir)
        kept["in_process"] = workdir, outcome(workdir)
    original, expected = kept["in_process"]
    workdir = tmp_path / "copy"
    shutil.copytree(original, workdir)
    return workdir, tiny_config, expected


def truncate_data(checkpoint):
    biggest = max((checkpoint / "state").rglob("d/*"), key=lambda p: p.stat().st_size)
    biggest.write_bytes(biggest.read_bytes()[: biggest.stat().st_size // 2])


def flip_data(checkpoint):
    for path in (checkpoint / "state").rglob("d/*"):
        path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))


def delete_manifests(checkpoint):
    for path in (checkpoint / "state").rglob("manifest.ocdbt"):
        path.unlink()


def empty_values(checkpoint):
    for path in (checkpoint / "plain").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


DAMAGES = (truncate_data, flip_data, delete_manifests, empty_values)


def test_finished_run_stays_as_it_is(finished, outcome):
    workdir, config, expected = finished
    assert expected["step"] == 60
    assert finish(config, workdir)
    assert outcome(workdir) == expected


@pytest.mark.parametrize("damage", swept(DAMAGES, *list(DAMAGES)[:1]))
def test_damaged_newest_checkpoint_gives_way_to_the_one_before(finished, outcome, capsys, damage):
    workdir, config, expected = finished
    damage(workdir / CHECKPOINTS / "60")
    assert finish(config, workdir)
    printed = capsys.readouterr().out
    warned = [line for line in printed.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1
    assert warned[0].startswith("warning: checkpoint of step 60 in ")
    assert warned[0].endswith("; trying the one before")
    assert "resuming at step 55" in printed
    assert outcome(workdir) == expected


def test_no_checkpoint_left_to_read_is_one_sentence(finished, capsys):
    workdir, config, _ = finished
    for step in (55, 60):
        truncate_data(workdir / CHECKPOINTS / str(step))
    with pytest.raises(CheckpointError) as caught:
        finish(config, workdir)
    assert str(caught.value).startswith(f"no checkpoint in {workdir / CHECKPOINTS} can be read")
    assert "\n" not in str(caught.value)
    printed = capsys.readouterr().out
    assert "checkpoint of step 60" in printed
    assert "checkpoint of step 55" in printed


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def other_keys(config):
    return jax.default_prng_impl("rbg")


def other_optimizer(config):
    config.optim = {**config.optim.to_dict(), "name": "sgd"}
    return contextlib.nullcontext()


@pytest.mark.parametrize(
    ("change", "named"), [(other_keys, "train/key is "), (other_optimizer, "train/opt_state/")]
)
def test_evaluation_needs_no_more_than_it_uses(finished, named_arrays, change, named):
    """And a training that needs the rest says what is different, and starts nothing."""
    workdir, config, _ = finished
    training = Training(train.build(config), workdir)
    expected = training.selection()
    training.close()
    before = contents(workdir)
    with change(config):
        found = selection.read(train.build(config), workdir, print)
        with pytest.raises(CheckpointError, match=f"step 60 in .* does not fit.*{named}"):
            Training(train.build(config), workdir)
    assert contents(workdir) == before
    for field in ("step", "weights", "steps"):
        assert getattr(found, field) == getattr(expected, field)
    wanted = named_arrays(expected.chosen)
    for name, array in named_arrays(found.chosen).items():
        np.testing.assert_array_equal(array, wanted[name])


def test_resumed_run_initialises_nothing(finished, monkeypatch):
    workdir, config, _ = finished

    def refuse(_):
        raise AssertionError("made what the checkpoint holds")

    monkeypatch.setattr(train.Experiment, "init_state", refuse)
    training = Training(train.build(config), workdir)
    training.close()
    assert training.step == 60
    assert training.values["cost"]["step_memory_bytes"]["argument"] > 0  # of the first start


def test_longer_run_goes_on_from_the_finished_one(finished, outcome):
    workdir, config, _ = finished
    config.optim.schedule_name = "constant"
    config.train.num_steps = 70
    training = Training(train.build(config), workdir)
    try:
        assert training.run()
    finally:
        training.close()
    assert finished_steps(workdir) == {65, 70}
    history = [int(row["step"]) for row in read_history(workdir)]
    assert history[-3:] == [60, 63, 70]


@pytest.mark.slow
def test_stop_between_two_logs_continues_within_an_epoch(
    tiny_config, monkeypatch, outcome, kept, finished, tmp_path
):
    """The means that are logged next cover steps before and after the stop."""
    _, _, expected = finished
    workdir = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("jaxeff.train.interrupt.Interrupt.requested", lambda _, step: step == 33)
        assert not finish(tiny_config, workdir)
    assert finished_steps(workdir) == {30, 33}
    assert finish(tiny_config, workdir)
    assert outcome(workdir) == expected


@pytest.mark.slow
def test_request_to_stop_at_the_last_step_still_finishes(tiny_config, monkeypatch, tmp_path):
    tiny_config.train.num_steps = 5
    monkeypatch.setattr("jaxeff.train.interrupt.Interrupt.requested", lambda _, step: step == 5)
    assert finish(tiny_config, tmp_path)


def test_signal_handlers_are_put_back_after_training(tiny_config, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    tiny_config.train.num_steps = 5  # the program of the test above
    assert finish(tiny_config, tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.fixture
def open_checkpoints(tmp_path):
    opened = []

    def open_checkpoints(**options):
        opened.append(Checkpoints(tmp_path / "checkpoints", **options))
        return opened[-1]

    yield open_checkpoints
    for checkpoints in opened:
        checkpoints.close()


def tree_of_everything():
    return {
        "float": jnp.arange(6.0).reshape(2, 3) / 7,
        "half": jnp.ones(3, jnp.bfloat16) / 3,
        "step": jnp.int32(41),
        "flag": jnp.array([True, False]),
        "key": jax.random.key(5),
        "nothing": (),
    }


VALUES = {
    "position": {"next_index": 12},
    "pending": [{"loss": 0.1 + 0.2}, {"loss": 1 / 3}],
    "none_yet": [],
    "empty": {},
    "best_step": -1,
    "seconds": 1e-300,
}


def test_round_trip_keeps_arrays_keys_and_plain_values(open_checkpoints, named_arrays):
    tree = tree_of_everything()
    open_checkpoints().save(41, tree, VALUES, wait=True)
    like = jax.tree.map(jnp.zeros_like, {**tree, "key": 0}) | {"key": jax.random.key(0)}
    step, found, values = open_checkpoints().restore(like)
    assert step == 41
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    wanted, got = named_arrays(tree), named_arrays(found)
    assert {k: (v.dtype, v.tobytes()) for k, v in got.items()} == {
        k: (v.dtype, v.tobytes()) for k, v in wanted.items()
    }
    np.testing.assert_array_equal(
        jax.random.normal(found["key"], (3,)), jax.random.normal(tree["key"], (3,))
    )
    assert values == VALUES
    assert repr(values["pending"][0]["loss"]) == repr(0.1 + 0.2)


def test_only_the_newest_checkpoints_are_kept(open_checkpoints):
    checkpoints = open_checkpoints(keep=2)
    for step in (5, 10, 15):
        checkpoints.save(step, {"x": jnp.full(2, step)}, {"at": step})
    checkpoints.wait()
    assert checkpoints.steps == [10, 15]
    assert checkpoints.restore({"x": jnp.zeros(2, jnp.int32)})[2] == {"at": 15}


def test_step_can_be_saved_again(open_checkpoints):
    checkpoints = open_checkpoints()
    for value in (1.0, 2.0):
        checkpoints.save(5, {"x": jnp.array(value)}, {"at": 1}, wait=True)
    assert float(checkpoints.restore({"x": jnp.zeros(())})[1]["x"]) == 2


def test_nothing_saved_restores_nothing(open_checkpoints):
    assert open_checkpoints().restore({"x": jnp.zeros(2)}) is None


@pytest.mark.parametrize(
    ("like", "difference"),
    [
        ({"x": np.zeros(3, np.int32)}, "x is (3,) float32 there and (3,) int32 here"),
        ({"x": np.zeros(3, np.float16)}, "x is (3,) float32 there and (3,) float16 here"),
        ({"x": np.zeros(4, np.float32)}, "x is (3,) float32 there and (4,) float32 here"),
        (
            {"x": np.zeros(3, np.float32), "y": np.zeros(3, np.float32)},
            "y is absent there and (3,) float32 here",
        ),
        ({}, "x is (3,) float32 there and absent here"),
    ],
    ids=["integers", "half", "longer", "another_entry", "an_entry_less"],
)
def test_checkpoint_that_does_not_fit_is_not_cast_to_fit(open_checkpoints, like, difference):
    checkpoints = open_checkpoints()
    checkpoints.save(3, {"x": jnp.arange(3.0)}, {"at": 1}, wait=True)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore(jax.tree.map(jnp.asarray, like), set_aside=True)
    assert f"step 3 in {checkpoints.directory} does not fit" in str(caught.value)
    assert difference in str(caught.value)
    assert checkpoints.steps == [3]


def test_arrays_may_be_donated_as_soon_as_save_returns(open_checkpoints):
    """The save runs on while the next step overwrites the memory of what it saves."""
    size = 1 << 21
    scramble = jax.jit(lambda x: {"x": -jnp.sin(x["x"]) - 7}, donate_argnums=0)
    state = {"x": jnp.arange(size, dtype=jnp.float32)}
    expected = np.asarray(state["x"]).copy()
    scramble(jax.tree.map(jnp.copy, state))  # compiled before there is something to race with
    checkpoints = open_checkpoints()
    checkpoints.save(1, state, {"at": 1})
    old = state["x"]
    for _ in range(3):
        state = scramble(state)
    jax.block_until_ready(state)
    assert old.is_deleted()
    checkpoints.wait()
    _, found, _ = checkpoints.restore({"x": jnp.zeros(size)})
    np.testing.assert_array_equal(found["x"], expected)


def test_second_save_waits_for_the_first(open_checkpoints):
    checkpoints = open_checkpoints(keep=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for step in range(1, 6):
            checkpoints.save(step, {"x": jnp.full(1000, step)}, {"at": step})
        checkpoints.wait()
    assert checkpoints.steps == [1, 2, 3, 4, 5]


@pytest.fixture
def fptt_config(tiny_config):
    """The oracle is renewed after 21 steps; the run stops with sums for the next one."""
    tiny_config.model.cell = {"name": "lstm", "features": 8}
    tiny_config.algorithm = {
        "name": "fptt",
        "parts": 3,
        "alpha": 0.1,
        "auxiliary": "oracle",
        "average_decay": 0.9,
    }
    tiny_config.train.update({"num_steps": 28, "eval_every": 8})
    return tiny_config


@pytest.fixture
def text_config(tiny_config, tmp_path):
    """Fourteen windows a stream, so that the run stops within one."""
    path = tmp_path / "text.txt"
    path.write_text("".join(random.Random(0).choices("abcdef \n", k=1200)), "utf-8")
    config = train.base_config()
    config.name = "text"
    config.data.update({"name": "text", "file": str(path), "window": 8})
    config.model = {
        "name": "sequence",
        "cell": {"name": "tarnn", "features": 6, "activation": "tanh", "step_size": 0.3},
        "readout": "every_step",
        "embedding": 4,
        "dropout": 0.2,
    }
    config.algorithm = {"name": "fptt", "parts": 2, "alpha": 0.1, "reset": "epoch_weights"}
    config.optim.learning_rate = 1e-2
    config.train.update({"batch_size": 8, "num_steps": 28, "log_every": 7, "eval_every": 8})
    config.eval.batch_size = 8
    config.checkpoint.every = 10
    return config


TIMES = ("seconds", "waiting", "resumed", "cost")  # of one run, not of the training


def last_state(config, workdir, named_arrays):
    """The last checkpoint's arrays, bit by bit, with its plain values and the history."""
    training = Training(train.build(config), workdir)
    training.close()
    arrays = named_arrays({"train": training.state, "best": training.best})
    values = {k: v for k, v in training.values.items() if k not in TIMES}
    written = {name: array.tobytes() for name, array in arrays.items()}
    return training, written, values, (workdir / "metrics.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "which", ["fptt_config", pytest.param("text_config", marks=pytest.mark.slow)]
)
def test_stop_between_updates_within_sequences(request, monkeypatch, named_arrays, tmp_path, which):
    config = request.getfixturevalue(which)
    assert finish(config, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr("jaxeff.train.interrupt.Interrupt.requested", lambda _, step: step == 24)
        assert not finish(config, tmp_path / "stopped")
    stopped, *_ = last_state(config, tmp_path / "stopped", named_arrays)
    assert stopped.step == 24
    nonzero = [stopped.state.opt_state.multiplier]
    if which == "fptt_config":
        targets, sums = (stopped.state.algo_state[name] for name in ("targets", "sums"))
        assert float(jnp.ptp(targets)) > 1e-3
        nonzero += [sums, stopped.state.algo_state["average"]]
    else:
        nonzero += [stopped.state.carry]
    assert all(leaf.any() for leaf in jax.tree.leaves(nonzero))
    assert finish(config, tmp_path / "stopped")
    whole, *expected = last_state(config, tmp_path / "whole", named_arrays)
    resumed, *found = last_state(config, tmp_path / "stopped", named_arrays)
    assert (whole.step, whole.values["resumed"]) == (28, 0)
    assert (resumed.step, resumed.values["resumed"]) == (28, 1)
    assert found == expected
