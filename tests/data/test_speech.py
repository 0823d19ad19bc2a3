import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.features import audio_feature

from jaxeff import data
from jaxeff.data import prepared, speech
from jaxeff.data.log_mel import LogMel
from jaxeff.errors import ConfigError, DataError

CLASSES = ["down", "up", "_silence_"]
TYPES = SimpleNamespace(dtypes=SimpleNamespace(as_dtype=np.dtype))
COUNTS = {"train": 20, "validation": 3, "test": 2}


def clip(part, i):
    """A tone that tells its example, of its own length and loudness."""
    pitch = {"train": 300, "validation": 1000, "test": 2000}[part] + 5 * i
    samples = [16_000, 9_000, 20_000][i % 3]
    tone = np.sin(2 * np.pi * pitch * np.arange(samples) / 16_000)
    return (3000 * (1 + i % 5) * tone).astype(np.int16)


def label(i):
    return i % 3


with tfds.core.registered.skip_registration():

    class SpeechCommands(tfds.core.GeneratorBasedBuilder):
        """Files as the stock builder of this name writes them, with few clips."""

        name = "speech_commands"
        VERSION = tfds.core.Version("0.0.3")

        def _info(self):
            features = {
                "audio": tfds.features.Audio(file_format="wav", sample_rate=16000, dtype=np.int16),
                "label": tfds.features.ClassLabel(names=CLASSES),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {part: self._generate_examples(part) for part in COUNTS}

        def _generate_examples(self, part):
            for i in range(COUNTS[part]):
                yield i, {"audio": clip(part, i), "label": CLASSES[label(i)]}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(speech, "_BLOCK", 8)


@pytest.fixture(scope="module")
def speech_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        # The stock feature asks TensorFlow for the name of its type; the examples are written
        # without.
        patch.setattr(audio_feature, "tf", TYPES)
        patch.setattr(tfds.features.Audio, "dtype", np.dtype(np.int16))
        prepared.prepare(SpeechCommands, root)
    return root


def load(root, **options):
    return data.load("speech_commands", dir=str(root), **options)


def everything(split):
    return split.take(np.arange(len(split)))


@pytest.mark.parametrize("high", [4000.0, 8000.0])
def test_features_are_log_mel_of_one_second(speech_dir, high):
    dataset = load(speech_dir, normalize="none", max_frequency=high)
    for part, count in COUNTS.items():
        batch = everything(dataset.splits[part])
        assert batch["inputs"].shape == (count, 99, 32)
        assert [batch[k].dtype for k in ("inputs", "labels")] == ["f4", "i4"]
        assert set(batch) == {"inputs", "labels"}
        np.testing.assert_array_equal(batch["labels"], [label(i) for i in range(count)])
        audio = np.zeros((count, 16_000), np.float32)
        for i in range(count):
            samples = clip(part, i)[:16_000]
            audio[i, : len(samples)] = samples / 32768
        expected = LogMel(max_frequency=high)(audio)
        np.testing.assert_allclose(batch["inputs"], expected, atol=1e-3)
    assert "tensorflow" not in sys.modules


def test_standard_measures_each_filter_over_the_train_part(speech_dir):
    raw, made = load(speech_dir, normalize="none"), load(speech_dir)
    train = everything(made.splits["train"])["inputs"].astype(np.float64)
    np.testing.assert_allclose(train.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(train.std((0, 1)), 1, atol=1e-5)
    measured = everything(raw.splits["train"])["inputs"].astype(np.float64)
    expected = everything(raw.splits["test"])["inputs"] - measured.mean((0, 1))
    expected /= measured.std((0, 1))
    test = everything(made.splits["test"])["inputs"]
    np.testing.assert_allclose(test, expected, atol=1e-4)


def test_what_a_model_must_know(speech_dir):
    dataset = load(speech_dir)
    known = (dataset.task, dataset.num_classes, dataset.num_outputs, dataset.input_shape)
    assert known == ("classification", 3, 3, (99, 32))
    assert dataset.class_names == tuple(CLASSES)
    assert dataset.description == (
        "speech_commands from TFDS speech_commands/0.0.3: 20 train, 3 validation, 2 test;"
        " 3 classes; inputs 99x32 (log-mel 20 to 4000 Hz, standard)"
    )


def test_the_stock_builder_has_the_features_that_are_read(monkeypatch):
    monkeypatch.setattr(audio_feature, "tf", TYPES)
    features = tfds.builder("speech_commands").info.features
    assert set(features) == {"audio", "label"}
    assert (features["audio"].shape, features["audio"].np_dtype) == ((None,), np.int16)
    assert features["label"].num_classes == 12


@pytest.mark.parametrize(
    "damage", ["truncate", "remove", "empty_info", "no_part", "count", "labels"]
)
def test_a_damaged_copy_is_one_sentence(speech_dir, tmp_path, damage):
    folder = tmp_path / "speech_commands" / "0.0.3"
    shutil.copytree(speech_dir / "speech_commands" / "0.0.3", folder)
    (records,) = folder.glob("*train.array_record*")
    info = folder / "dataset_info.json"
    if damage == "truncate":
        records.write_bytes(records.read_bytes()[:1000])
    elif damage == "remove":
        records.unlink()
    elif damage == "empty_info":
        info.write_text("")
    elif damage == "labels":
        (folder / "label.labels.txt").unlink()
    else:
        content = json.loads(info.read_text())
        if damage == "no_part":
            content["splits"] = content["splits"][:1]
        else:
            (train,) = (part for part in content["splits"] if part["name"] == "train")
            train["shardLengths"] = ["19"]
        info.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"{folder}: cannot be read, remove it and") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_label_without_a_name_is_refused(speech_dir, tmp_path):
    folder = tmp_path / "speech_commands" / "0.0.3"
    shutil.copytree(speech_dir / "speech_commands" / "0.0.3", folder)
    (folder / "label.labels.txt").write_text("down\nup\n")
    with pytest.raises(DataError, match=r"0\.0\.3: has a label outside 0\.\.1"):
        load(tmp_path)


def test_a_copy_in_tensorflows_format_is_refused(speech_dir, tmp_path):
    folder = tmp_path / "speech_commands" / "0.0.3"
    shutil.copytree(speech_dir / "speech_commands" / "0.0.3", folder)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="prepared as tfrecord, which needs TensorFlow"):
        load(tmp_path)


def test_a_missing_copy_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"speech_commands is not in {tmp_path}: prepare it with TFDS and ")
    assert "`pip install 'jaxeff[tf]'` and set --config.data.download=True" in message
    assert "\n" not in message


def test_a_download_needs_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"speech_commands: --config.* needs TensorFlow; "):
        load(tmp_path, download=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view": "rows"}, "data set 'speech_commands' has no images to view"),
        ({"normalize": "unit"}, "normalize must be one of standard, none, not 'unit'"),
        ({"max_frequency": 9000.0}, "max_frequency=9000.0 must be in order and between 0 and 8000"),
    ],
)
def test_impossible_fields(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, **options)


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        (np.zeros(0, np.int64), r"samples of shape \(0,\)"),
        (np.zeros((9, 2), np.int64), r"samples of shape \(9, 2\), not of one channel"),
        (np.array([0, 2**15]), "samples beyond 16 bits"),
        (np.array([-(2**15) - 1]), "samples beyond 16 bits"),
    ],
)
def test_clips_that_are_no_16_bit_samples_are_named(audio, words):
    with pytest.raises(DataError, match=f"clip 3 has {words}"):
        speech.check_clip("clip 3", audio)
