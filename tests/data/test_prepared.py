import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from jaxeff import data
from jaxeff.data import prepared
from jaxeff.data.sk_digits import SkDigits
from jaxeff.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    stream.seek(0)
    return stream


with tfds.core.registered.skip_registration():

    class Cifar10(tfds.core.GeneratorBasedBuilder):
        """Files as the stock builder of this name writes them, with seven images."""

        name = "cifar10"
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0, 5), "test": self._generate_examples(5, 7)}

        def _generate_examples(self, start, stop):
            for i in range(start, stop):
                yield i, {"id": f"train_{i}", "image": png(PIXELS[i]), "label": i}


@pytest.fixture(scope="module")
def stock_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    prepared.prepare(Cifar10, root)
    return root


def test_digits_are_scikit_learns_in_the_order_of_the_file():
    dataset = data.load("digits_file_order", validation_fraction=0)
    original = load_digits()
    images = (original.images / 16).astype(np.float32)[..., None]
    for part, rows in (("train", slice(1500)), ("test", slice(1500, None))):
        batch = dataset.splits[part].take(np.arange(len(dataset.splits[part])))
        np.testing.assert_array_equal(batch["inputs"], images[rows])
        np.testing.assert_array_equal(batch["labels"], original.target[rows])
    assert batch["inputs"].dtype == np.float32
    assert batch["labels"].dtype == np.int32


def test_shuffled_digits_are_the_same_digits_cut_after_the_published_permutation():
    dataset = data.load("digits", validation_fraction=0)
    original = load_digits()
    order = np.random.Generator(np.random.PCG64(1797)).permutation(1797)
    images = (original.images / 16).astype(np.float32)[..., None]
    for part, rows in (("train", order[:1500]), ("test", order[1500:])):
        batch = dataset.splits[part].take(np.arange(len(rows)))
        np.testing.assert_array_equal(batch["inputs"], images[rows])
        np.testing.assert_array_equal(batch["labels"], original.target[rows])


def test_digits_are_a_tfds_data_set(data_dir):
    data.load("digits")
    source = tfds.data_source("sk_digits", data_dir=data_dir, split="train[:10%]")
    assert len(source) == 150
    assert source[0]["image"].shape == (8, 8, 1)


def test_a_stock_copy_is_read_without_tensorflow(stock_dir):
    dataset = data.load("cifar10", dir=str(stock_dir), validation_fraction=0, view="pixels")
    train = dataset.splits["train"].take(np.arange(5))
    test = dataset.splits["test"].take(np.arange(2))
    inputs = np.concatenate([train["inputs"], test["inputs"]])
    np.testing.assert_allclose(inputs, PIXELS.reshape(7, 1024, 3) / 255, rtol=1e-6)
    assert [*train["labels"], *test["labels"]] == list(range(7))
    assert "TFDS cifar10/3.0.2: 5 train, 0 validation, 2 test" in dataset.description
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_stock_builders_have_the_features_that_are_read(name):
    with tfds.testing.mock_data(num_examples=3):
        example = tfds.data_source(name, split="train")[0]
    channels = 1 if name == "mnist" else 3
    assert example["image"].shape[-1] == channels
    assert np.ndim(example["label"]) == 0


def test_the_newest_finished_version_is_read(tmp_path):
    for version in ("3.0.2", "3.0.10", "3.1.0.incompleteABC", "notes", "4..0", "5."):
        (tmp_path / "cifar10" / version).mkdir(parents=True)
        (tmp_path / "cifar10" / version / "dataset_info.json").touch()
    (tmp_path / "cifar10" / "4.0.0").mkdir()
    assert prepared.find("cifar10", tmp_path).name == "3.0.10"
    assert prepared.find("mnist", tmp_path) is None


@pytest.mark.parametrize("damage", ["truncate", "remove", "empty_info"])
def test_a_damaged_copy_is_one_sentence(stock_dir, tmp_path, damage):
    folder = tmp_path / "cifar10" / "3.0.2"
    shutil.copytree(stock_dir / "cifar10" / "3.0.2", folder)
    (records,) = folder.glob("*train.array_record*")
    if damage == "truncate":
        records.write_bytes(records.read_bytes()[:1000])
    elif damage == "remove":
        records.unlink()
    else:
        (folder / "dataset_info.json").write_text("")
    with pytest.raises(DataError, match=f"{folder}: cannot be read, remove it and") as caught:
        data.load("cifar10", dir=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_copy_in_tensorflows_format_is_refused(stock_dir, tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    shutil.copytree(stock_dir / "cifar10" / "3.0.2", folder)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="prepared as tfrecord, which needs TensorFlow"):
        data.load("cifar10", dir=str(tmp_path))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_missing_data_set_says_where_to_get_it(name, tmp_path):
    with pytest.raises(DataError) as caught:
        data.load(name, dir=str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"{name} is not in {tmp_path}: ")
    assert "`pip install 'jaxeff[tf]'` and set --config.data.download=True" in message
    assert ("apt-get install dataset-fashion-mnist" in message) == (name == "fashion_mnist")
    assert "\n" not in message


def test_a_download_needs_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"mnist: --config.* needs TensorFlow; .* or put the IDX"):
        data.load("mnist", dir=str(tmp_path), download=True)


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    def builder(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(prepared.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(tfds, "builder", builder)
    with pytest.raises(DataError, match=r"mnist: the download .* failed \(no route to host\)"):
        data.load("mnist", dir=str(tmp_path), download=True)


def test_the_process_that_comes_second_takes_the_copy_of_the_first(tmp_path, monkeypatch):
    def move_after_other(source, target, move=prepared._move):
        shutil.copytree(source, target)
        (target / "first").touch()
        move(source, target)

    monkeypatch.setattr(prepared, "_move", move_after_other)
    folder = prepared.prepare(SkDigits, tmp_path)
    assert (folder / "first").exists()
    assert len(prepared.read(folder).train_labels) == 1500
    assert [path.name for path in tmp_path.iterdir()] == ["sk_digits"]


def test_a_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SkDigits, "_generate_examples", fail)
    with pytest.raises(DataError, match="cannot prepare sk_digits there"):
        prepared.prepare(SkDigits, tmp_path)
    assert list(tmp_path.rglob("*.json")) == []
    assert not list(tmp_path.glob(".preparing*"))


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"set --config\.data\.dir or JAXEFF_DATA_DIR"):
        data.load("digits", dir=str(tmp_path / "file"))


@pytest.mark.slow
def test_two_processes_prepare_at_once_and_quietly(tmp_path):
    code = (
        "import sys; from jaxeff import data\n"
        "slow = {'jax', 'grain', 'tensorflow_datasets', 'sklearn'} & set(sys.modules)\n"
        "assert not slow, slow\n"
        "assert len(data.load('digits').splits['test']) == 297\n"
        "if 'jax' in sys.modules:\n"
        "    from jax._src import xla_bridge\n"
        "    assert not xla_bridge.backends_are_initialized()\n"
    )
    env = {**os.environ, "JAXEFF_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    runs = [
        subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True) for _ in range(2)
    ]
    for run in runs:
        out, err = run.communicate(timeout=60)
        assert run.returncode == 0, err
        assert (out, err) == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["sk_digits"]
