import gzip
import re
import struct

import numpy as np
import pytest

from jaxeff import data
from jaxeff.data import idx
from jaxeff.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = {"train": RNG.integers(0, 256, (20, 5, 4)), "test": RNG.integers(0, 256, (6, 5, 4))}
LABELS = {"train": np.arange(20) % 10, "test": np.arange(6)}


def encode(array, magic=None):
    array = np.asarray(array, np.uint8)
    head = struct.pack(">I", magic if magic is not None else 0x800 + array.ndim)
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_files(folder, suffix="", **replaced):
    folder.mkdir(parents=True, exist_ok=True)
    for part, stem in idx.FILES.items():
        split, what = part.split("_")
        content = replaced.get(part, encode((IMAGES if what == "images" else LABELS)[split]))
        if suffix:
            content = gzip.compress(content)
        (folder / (stem + suffix)).write_bytes(content)
    return folder


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_reads_what_was_written(tmp_path, name, suffix):
    write_files(tmp_path, suffix)
    dataset = data.load(name, dir=str(tmp_path), validation_fraction=0.0)
    assert dataset.input_shape == (5, 4, 1)
    for part, scale in (("train", 255), ("test", 255)):
        batch = dataset.splits[part].take(np.arange(len(dataset.splits[part])))
        expected = (IMAGES[part] / scale).astype(np.float32)[..., None]
        np.testing.assert_allclose(batch["inputs"], expected, rtol=1e-6)
        np.testing.assert_array_equal(batch["labels"], LABELS[part])
        assert batch["labels"].dtype == np.int32
    assert len(dataset.class_names) == dataset.num_classes == 10


def test_the_default_folder_holds_a_subfolder_per_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXEFF_DATA_DIR", str(tmp_path))
    write_files(tmp_path)  # could be MNIST or Fashion-MNIST: must not be taken
    with pytest.raises(DataError):
        data.load("mnist")
    write_files(tmp_path / "mnist")
    assert str(tmp_path / "mnist") in data.load("mnist").description


def test_fashion_mnist_is_found_where_debian_puts_it(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXEFF_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(idx, "DEBIAN_FASHION_MNIST", write_files(tmp_path / "debian", ".gz"))
    assert len(data.load("fashion_mnist").splits["test"]) == 6
    with pytest.raises(DataError):  # a folder that the user named is not passed over
        data.load("fashion_mnist", dir=str(tmp_path / "none"))


GOOD = encode(IMAGES["train"])
DAMAGE = [
    (GOOD[:-1], "truncated, 399 bytes of data for 20x5x4 = 400"),
    (GOOD + b"x", "too long, 401 bytes of data for 20x5x4 = 400"),
    (GOOD[:10], "truncated in its header of 16 bytes"),
    (b"", "bad magic number of an empty file"),
    (encode(LABELS["train"]), "bad magic number 00000801, expected 00000803"),
    (encode(IMAGES["train"], 0x0D03), "bad magic number 00000d03"),
]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("content", "message"), DAMAGE)
def test_a_damaged_file_is_named(tmp_path, suffix, content, message):
    write_files(tmp_path, suffix, train_images=content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        data.load("mnist", dir=str(tmp_path))
    assert str(caught.value).startswith(str(tmp_path / f"train-images-idx3-ubyte{suffix}: "))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c[: len(c) // 2], "the compressed file is truncated"),
        (lambda c: b"\0" * 9 + c, "cannot be read .*[Nn]ot a gzipped file"),
        (lambda c: c[:30] + bytes([c[30] ^ 0xFF]) + c[31:], "cannot be read"),
        (lambda c: c[:-8] + b"12345678", "cannot be read .*CRC"),
    ],
)
def test_damaged_compression_is_named(tmp_path, damage, message):
    path = write_files(tmp_path, ".gz") / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte.gz: {message}"):
        data.load("mnist", dir=str(tmp_path))


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"train_labels": encode(LABELS["train"][:-1])}, "19 labels for the 20 images"),
        ({"test_labels": encode(np.arange(7))}, "t10k-labels-idx1-ubyte: 7 labels for the 6"),
        ({"train_labels": encode([10] * 20)}, "a label outside 0..9"),
        ({"test_images": encode(IMAGES["test"][:, :4])}, "images of another size"),
        (
            {"test_images": encode(np.zeros((0, 5, 4))), "test_labels": encode(np.zeros(0))},
            "the test part .* has no examples",
        ),
    ],
)
def test_parts_that_do_not_fit(tmp_path, replaced, message):
    write_files(tmp_path, **replaced)
    with pytest.raises(DataError, match=message):
        data.load("mnist", dir=str(tmp_path))


def test_a_missing_file_is_named(tmp_path):
    (write_files(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="has IDX files but neither t10k-labels-idx1-ubyte nor"):
        data.load("mnist", dir=str(tmp_path))


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        idx.read_idx(tmp_path, 3)


@pytest.mark.skipif(not idx.DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist missing")
def test_the_real_fashion_mnist():
    dataset = data.load("fashion_mnist", view="rows", normalize="standard")
    assert [len(split) for split in dataset.splits.values()] == [54_000, 6_000, 10_000]
    batch = dataset.splits["train"].take(np.arange(0, 54_000, 9))
    assert abs(batch["inputs"].mean(dtype=np.float64)) < 0.02
    assert abs(batch["inputs"].std(dtype=np.float64) - 1) < 0.02
    labels = dataset.splits["test"].take(np.arange(10_000))["labels"]
    np.testing.assert_array_equal(np.bincount(labels), 1000)
    assert dataset.class_names[labels[0]] == "Ankle boot"
