"""The history of a run that is killed and resumed equals that of one that was not."""

import csv

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxeff.errors import DataError
from jaxeff.eval import MetricsWriter, read_history


def values_at(step):
    """What a run measures: training every step, validation every third, late a column more."""
    values = {"train/loss": 1 / (step + 1), "train/accuracy": np.float32(step / 100)}
    if step % 3 == 0:
        values["validation/loss"] = 0.1 + step
    if step >= 7:
        values["train/penalty, mean"] = -step
    return values


def run(workdir, steps, resume_step=None):
    with MetricsWriter(workdir, resume_step, tensorboard=False) as writer:
        for step in steps:
            writer.write(step, values_at(step))
    return (workdir / "metrics.csv").read_bytes()


def test_file_is_a_table_with_empty_cells(tmp_path):
    run(tmp_path, [2, 3])
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,train/loss,train/accuracy,validation/loss"
    assert lines[1] == f"2,{1 / 3!r},{float(np.float32(0.02))!r},"
    assert lines[2].endswith(",3.1")


def test_history_gives_back_what_was_written(tmp_path):
    run(tmp_path, range(9))
    expected = [
        {"step": step, **{k: float(v) for k, v in values_at(step).items()}} for step in range(9)
    ]
    assert read_history(tmp_path) == expected


def test_rows_are_in_the_file_at_once(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"train/loss": jnp.float32(0.5)})
        assert read_history(tmp_path) == [{"step": 1, "train/loss": 0.5}]
        writer.write(2, {"train/loss": 0.25, "test/loss": 1})
        assert read_history(tmp_path)[1] == {"step": 2, "train/loss": 0.25, "test/loss": 1.0}


def test_numbers_that_are_not_finite_are_kept(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"a": float("nan"), "b": float("-inf")})
    row = read_history(tmp_path)[0]
    assert np.isnan(row["a"])
    assert row["b"] == -np.inf


@pytest.mark.parametrize("saved", [0, 3, 6, 7, 11])
@pytest.mark.parametrize("killed_at", [7, 8, 12])
@pytest.mark.parametrize("torn", ["", "9", "9,0.5,0.", "9,0.5,0.25,1.0,", "\x00\x00"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, saved, killed_at, torn):
    whole = run(tmp_path / "whole", range(15))
    run(tmp_path / "killed", range(killed_at))
    with (tmp_path / "killed" / "metrics.csv").open("a") as file:
        file.write(torn)
    resumed_from = min(saved, killed_at - 1)
    resumed = run(tmp_path / "killed", range(resumed_from + 1, 15), resume_step=resumed_from)
    assert resumed == whole


@settings(deadline=None, max_examples=60)  # it writes files, which takes no fixed time
@given(
    steps=st.integers(1, 12),
    checkpoint=st.integers(0, 12),
    lost_bytes=st.integers(0, 400),
)
def test_a_file_cut_anywhere_after_the_checkpoint_resumes(
    tmp_path_factory, steps, checkpoint, lost_bytes
):
    folder = tmp_path_factory.mktemp("run")
    whole = run(folder, range(13))
    upto = min(checkpoint, steps)
    kept = len(run(folder, range(upto + 1)))
    cut = run(folder, range(steps + 1))
    header_is_final = cut.splitlines()[0] == run(folder, range(upto + 1)).splitlines()[0]
    end = max(len(cut) - lost_bytes, kept if header_is_final else len(cut))
    (folder / "metrics.csv").write_bytes(cut[:end])
    assert run(folder, range(upto + 1, 13), resume_step=upto) == whole


def test_only_a_new_run_forgets_the_old_history(tmp_path):
    run(tmp_path, [1, 2])
    assert [row["step"] for row in _resumed(tmp_path, 2)] == [1, 2]
    assert [row["step"] for row in _resumed(tmp_path, 1)] == [1]
    assert _resumed(tmp_path, None) == []
    assert (tmp_path / "metrics.csv").read_text() == "step\n"


def _resumed(workdir, step):
    MetricsWriter(workdir, step, tensorboard=False).close()
    return read_history(workdir)


def test_resuming_without_a_file_or_with_an_empty_one_starts_one(tmp_path):
    assert _resumed(tmp_path / "new", 5) == []
    (tmp_path / "metrics.csv").write_text("")
    assert _resumed(tmp_path, 5) == []


def test_values_of_the_same_step_share_a_row(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"train/loss": 0.123456789})
        writer.write(2, {"train/loss": 0.123456789})
        writer.write(2, {"validation/loss": 3})
        writer.write(2, {"train/loss": 1})  # a shorter line than the one it replaces
        writer.write(3, {"train/loss": 4})
    assert read_history(tmp_path) == [
        {"step": 1, "train/loss": 0.123456789},
        {"step": 2, "train/loss": 1.0, "validation/loss": 3.0},
        {"step": 3, "train/loss": 4.0},
    ]


def test_a_resumed_run_may_measure_its_first_step_again(tmp_path):
    run(tmp_path, [1, 3])
    before = (tmp_path / "metrics.csv").read_bytes()
    assert run(tmp_path, [3], resume_step=3) == before


def test_steps_do_not_fall(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(5, {"a": 1})
        with pytest.raises(ValueError, match="step 4 comes after step 5"):
            writer.write(4, {"a": 1})
    with (
        MetricsWriter(tmp_path, 5, tensorboard=False) as writer,
        pytest.raises(ValueError, match="after step 5"),
    ):
        writer.write(4, {"a": 1})


@pytest.mark.parametrize("name", ["step", "", "a\nb"])
def test_names_that_would_break_the_file(tmp_path, name):
    with (
        MetricsWriter(tmp_path, tensorboard=False) as writer,
        pytest.raises(ValueError, match="cannot be the name"),
    ):
        writer.write(1, {name: 1})
    assert read_history(tmp_path) == []


@pytest.mark.parametrize("line", ["2,0.5", "x,0.5,0.5", "2,0.5,high"])
def test_damage_before_the_last_line_is_reported(tmp_path, line):
    (tmp_path / "metrics.csv").write_text(f"step,a,b\n1,1,1\n{line}\n3,1,1\n")
    with pytest.raises(DataError, match="line 3"):
        read_history(tmp_path)
    with pytest.raises(DataError, match="line 3"):
        MetricsWriter(tmp_path, 3, tensorboard=False)


def test_no_history(tmp_path):
    with pytest.raises(DataError, match=r"no metrics\.csv"):
        read_history(tmp_path)


def test_other_programs_can_read_the_file(tmp_path):
    run(tmp_path, range(9))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[8]["train/penalty, mean"] == "-8.0"
    assert rows[1]["validation/loss"] == ""


def test_event_files_hold_the_values_and_the_purge_step(tmp_path):
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    writer = MetricsWriter(tmp_path, 4)
    writer.write(5, {"train/loss": 0.5})
    writer.close()
    writer.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    events = list(_events(path.read_bytes(), proto.Event))
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert scalars == [(5, "train/loss", 0.5)]
    assert [e.step for e in events if e.HasField("session_log")] == [5]


def _events(data, event):
    """Yields the records of an event file: length, its checksum, content, its checksum."""
    while data:
        size = int.from_bytes(data[:8], "little")
        yield event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def test_row_that_a_full_disk_cuts_is_an_error_and_no_row(tmp_path):
    """The system call takes what fits and says how much that was."""

    class Full:
        def __init__(self, file):
            self._file = file

        def write(self, line):
            return self._file.write(line[:5])

        def __getattr__(self, name):
            return getattr(self._file, name)

    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"train/loss": 0.5})
        writer._file, file = Full(writer._file), writer._file
        with pytest.raises(OSError, match="No space left"):
            writer.write(2, {"train/loss": 0.25})
        assert (tmp_path / "metrics.csv").read_text() == "step,train/loss\n1,0.5\n"
        writer._file = file
