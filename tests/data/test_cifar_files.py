import re

import numpy as np
import pytest

from jaxeff import data
from jaxeff.data import cifar
from jaxeff.errors import DataError

RECORDS = 3
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6 * RECORDS, 32, 32, 3))
LABELS = RNG.integers(0, 10, 6 * RECORDS)


def encode(labels, images):
    """Writes records: the label bytes, then the channels one after the other."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([labels, planes], axis=1).astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "RECORDS_CIFAR10", RECORDS)
    monkeypatch.setattr(cifar, "RECORDS_CIFAR100", {"train.bin": 5, "test.bin": 2})
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for i, name in enumerate(names):
        rows = slice(i * RECORDS, (i + 1) * RECORDS)
        (tmp_path / name).write_bytes(encode(LABELS[rows, None], IMAGES[rows]))
    fine, coarse = np.arange(93, 100), np.arange(7)
    both = np.stack([coarse, fine], axis=1)
    (tmp_path / "train.bin").write_bytes(encode(both[:5], IMAGES[:5]))
    (tmp_path / "test.bin").write_bytes(encode(both[5:], IMAGES[5:7]))
    return tmp_path


def everything(split):
    return split.take(np.arange(len(split)))


def test_cifar10_reads_what_was_written(folder):
    dataset = data.load("cifar10", dir=str(folder), validation_fraction=0)
    assert dataset.input_shape == (32, 32, 3)
    train, test = everything(dataset.splits["train"]), everything(dataset.splits["test"])
    np.testing.assert_allclose(
        np.concatenate([train["inputs"], test["inputs"]]), IMAGES / 255, rtol=1e-6
    )
    np.testing.assert_array_equal(np.concatenate([train["labels"], test["labels"]]), LABELS)


def test_cifar100_uses_the_fine_label(folder):
    dataset = data.load("cifar100", dir=str(folder), validation_fraction=0, view="rows")
    assert dataset.num_classes == 100
    assert dataset.input_shape == (32, 96)
    train, test = everything(dataset.splits["train"]), everything(dataset.splits["test"])
    assert train["labels"].tolist() == [93, 94, 95, 96, 97]
    assert test["labels"].tolist() == [98, 99]
    np.testing.assert_allclose(test["inputs"][0, 3], IMAGES[5, 3].ravel() / 255, rtol=1e-6)


def test_the_unpacked_archive_is_found_under_the_data_folder(folder, tmp_path_factory, monkeypatch):
    root = tmp_path_factory.mktemp("root")
    (root / "cifar-10-batches-bin").symlink_to(folder)
    monkeypatch.setenv("JAXEFF_DATA_DIR", str(root))
    assert len(data.load("cifar10").splits["test"]) == RECORDS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:-1], "truncated, 9218 bytes for 3 records of 3073 bytes"),
        (lambda c: c[:3073], "truncated, 3073 bytes for 3 records"),
        (lambda c: c + b"x", "too long, 9220 bytes for 3 records"),
    ],
)
def test_a_damaged_file_is_named(folder, change, message):
    path = folder / "data_batch_4.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        data.load("cifar10", dir=str(folder))


def test_a_missing_file_is_named(folder):
    (folder / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"test_batch.bin: cannot be read \(No such file"):
        data.load("cifar10", dir=str(folder))


def test_a_label_too_large_is_refused(folder):
    path = folder / "data_batch_1.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(DataError, match=r"cifar10: .* a label outside 0\.\.9"):
        data.load("cifar10", dir=str(folder))
