"""A run's folder has one config and one writer, and what is wrong with it is a sentence."""

import errno
import json
import os
import socket
import subprocess
import sys

import pytest

from jaxeff import train
from jaxeff.errors import CheckpointError
from jaxeff.train import check, launch, workdir


@pytest.fixture
def config():
    made = train.base_config()
    made.name = "tiny"
    made.optim.schedule_name = "constant"
    made.train.num_steps = 60
    return made


def complaint(function, *args):
    with pytest.raises(CheckpointError) as caught:
        function(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


def enter(folder, config):
    with workdir.owned(folder, config):
        raise AssertionError("it was not refused")


def test_second_writer_is_refused_and_told_by_whom(config, tmp_path):
    with workdir.owned(tmp_path / "run", config):
        text = complaint(enter, tmp_path / "run", config)
    assert text.startswith(f"{tmp_path / 'run'} is in use by process {os.getpid()} on ")
    assert socket.gethostname() in text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    with workdir.owned(tmp_path / "run", config):  # it was given back
        pass


def test_lock_that_its_holder_removes_meanwhile_is_taken_anew(config, tmp_path, monkeypatch):
    """Two processes must not each hold a lock, on the file before and on the one after."""
    flock, removed = workdir.fcntl.flock, []

    def removing(file, how):
        flock(file, how)
        if not removed:
            removed.append((tmp_path / ".lock").unlink())

    monkeypatch.setattr(workdir.fcntl, "flock", removing)
    with workdir.owned(tmp_path, config):
        assert "is in use by process" in complaint(enter, tmp_path, config)
    assert removed


def test_prerequisites_have_locks_of_their_own(config, tmp_path):
    with workdir.owned(tmp_path / "run", config), workdir.owned(tmp_path / "run" / "base", config):
        assert (tmp_path / "run" / "base" / "config.json").exists()


def test_lock_of_a_process_that_was_killed_is_no_lock(config, tmp_path):
    (tmp_path / ".lock").write_text(
        "process 1 on another machine since 2020-01-01 00:00:00, and on"
    )
    with workdir.owned(tmp_path, config):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    code = "import fcntl, os, sys; fcntl.flock(open(sys.argv[1], 'a'), 2); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, tmp_path / ".lock"], check=False, timeout=30)
    with workdir.owned(tmp_path, config):
        pass


def test_file_system_without_locks_is_used_all_the_same(config, tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(workdir.fcntl, "flock", refuses)
    with workdir.owned(tmp_path, config):
        assert (tmp_path / "config.json").exists()


def test_owner_removes_what_killed_saves_left(config, tmp_path):
    unfinished = tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp"
    unfinished.mkdir(parents=True)
    with workdir.owned(tmp_path, config):
        assert not unfinished.exists()


@pytest.mark.parametrize("mode", ["train", "eval", "bench"])
@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/run"])
def test_url_is_refused(config, mode, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "mount the storage" in complaint(launch.run, config, url, mode)
    assert list(tmp_path.iterdir()) == []


def test_file_in_the_place_of_the_folder_is_refused(config, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    assert complaint(launch.run, config, path) == f"--workdir={path} is a file; give a folder"
    assert complaint(enter, path / "run", config).startswith(f"Not a directory ({path / 'run'});")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "make it writable or give another --workdir"),
        (errno.EIO, "mend that"),
    ],
)
def test_error_of_the_file_system_is_a_sentence(number, hint):
    def fails():
        with workdir.file_errors():
            raise OSError(number, os.strerror(number), "/some/file")

    assert complaint(fails) == (
        f"{os.strerror(number)} (/some/file); {hint}, and run the same command again: it goes on "
        "from the last checkpoint, if there is one"
    )


def a_checkpoint(folder):
    path = folder / "checkpoints" / "5" / "content"
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    return path


@pytest.mark.parametrize("text", ["", '{"name": "ti', "[1, 2]", "null", "\x00\x01"])
@pytest.mark.parametrize("function", [check.claim_workdir, check.check_workdir])
def test_damaged_config_beside_checkpoints_is_named_and_left(config, tmp_path, text, function):
    precious = a_checkpoint(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(text)
    assert complaint(function, tmp_path, config).startswith(f"{path} is damaged; bring it back")
    assert path.read_text() == text
    path.unlink()
    function(tmp_path, config)  # what the sentence says to do
    assert path.exists() == (function is check.claim_workdir)
    assert precious.read_text() == "precious"


def test_config_is_written_in_one_piece(config, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="No space"):
            check.claim_workdir(tmp_path, config)
    assert list(tmp_path.iterdir()) == []


def test_run_with_a_constant_rate_can_be_made_longer(config, tmp_path):
    check.claim_workdir(tmp_path, config)
    config.train.num_steps = 90
    check.claim_workdir(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["num_steps"] == 90
    config.train.num_steps = 60
    assert "config.train.num_steps was 90 and is now 60" in complaint(
        check.claim_workdir, tmp_path, config
    )


def test_longer_run_that_changes_something_else_is_refused(config, tmp_path):
    check.claim_workdir(tmp_path, config)
    config.train.num_steps, config.seed = 90, 5
    assert "config.seed was 0 and is now 5" in complaint(check.claim_workdir, tmp_path, config)


def test_schedule_over_the_whole_run_says_how_to_train_longer(config, tmp_path):
    config.optim.schedule_name = "cosine"
    check.claim_workdir(tmp_path, config)
    config.train.num_steps = 90
    text = complaint(check.claim_workdir, tmp_path, config)
    assert text == (
        f"{tmp_path} was trained for 60 steps, over which its learning rate follows the schedule "
        "'cosine', so that it cannot go on to 90; train those from the start in another --workdir, "
        "or give --config.optim.schedule_name=constant to a run that shall be made longer"
    )
    assert json.loads((tmp_path / "config.json").read_text())["train"]["num_steps"] == 60


def test_reader_accepts_its_own_config_alone(config, tmp_path):
    check.claim_workdir(tmp_path, config)
    before = (tmp_path / "config.json").read_text()
    check.check_workdir(tmp_path, config)
    config.train.num_steps = 90
    assert "num_steps was 60 and is now 90" in complaint(check.check_workdir, tmp_path, config)
    assert (tmp_path / "config.json").read_text() == before
