"""Data sets of a user's own arrays: what they hold, and what is said where they are wrong."""

import numpy as np
import pytest

from jaxeff import data
from jaxeff.data import DATASETS, VIEWS, Request, from_arrays
from jaxeff.data.base import Dataset
from jaxeff.data.series import SeriesSplit
from jaxeff.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
LABELS, TEST_LABELS = np.arange(20) % 3, np.arange(4) % 3
IMAGES = RNG.integers(0, 256, (24, 5, 4, 2), np.uint8)
SERIES = RNG.normal(size=(24, 6, 2))
SYMBOLS = RNG.integers(0, 9, (24, 6))


def made(values, labels=LABELS, test_labels=TEST_LABELS, fraction=0.2, **options):
    request = Request(validation_fraction=fraction)
    pairs = (values[:20], labels), (values[20:], test_labels)
    return from_arrays("mine", request, *pairs, **options)


@pytest.mark.parametrize(
    ("values", "dtype", "scale", "vocabulary"),
    [
        (IMAGES, "float32", 1 / 255, 0),
        (SERIES, "float32", 1, 0),
        (SERIES.astype(np.float16), "float32", 1, 0),
        (SYMBOLS, "int32", 1, SYMBOLS.max() + 1),
        (SYMBOLS.astype(np.uint8), "int32", 1, SYMBOLS.max() + 1),
    ],
)
def test_arrays_become_splits(values, dtype, scale, vocabulary):
    dataset = made(values)
    assert [len(s) for s in dataset.splits.values()] == [16, 4, 4]
    assert dataset.class_names == ("0", "1", "2")
    assert (dataset.input_shape, dataset.input_dtype) == (values.shape[1:], dtype)
    assert dataset.vocabulary == vocabulary
    batch = dataset.splits["test"].take(np.arange(4))
    assert batch["inputs"].dtype == dtype
    np.testing.assert_allclose(batch["inputs"], values[20:] * scale, rtol=1e-6)
    np.testing.assert_array_equal(batch["labels"], TEST_LABELS)


GREY = RNG.integers(0, 256, (24, 5, 4), np.uint8)
LENGTHS = RNG.integers(1, 7, 24)
LENGTHS[[0, 23]] = 6  # in either part a series of full length
MASK = (np.arange(6) < LENGTHS[:, None]).astype(np.float32)


def test_bytes_of_two_axes_are_grey_images():
    one, other = made(GREY), made(GREY[..., None])
    assert one.input_shape == other.input_shape == (5, 4, 1)
    np.testing.assert_array_equal(
        one.splits["train"].take(np.arange(16))["inputs"],
        other.splits["train"].take(np.arange(16))["inputs"],
    )


@pytest.mark.parametrize("values", [SERIES, SYMBOLS])
@pytest.mark.parametrize("form", ["lengths", "mask", "list"])
def test_series_of_different_lengths_have_a_mask(values, form):
    cut = [one[:n] for one, n in zip(values, LENGTHS, strict=True)]
    spoilt = np.where(MASK.reshape(24, 6, *(1,) * (values.ndim - 2)) > 0, values, 7)
    whole = {"lengths": (spoilt, LENGTHS), "mask": (spoilt, MASK > 0), "list": (cut, None)}[form]
    rest = [] if form == "list" else [whole[1]]
    dataset = from_arrays(
        "mine",
        Request(validation_fraction=0.2),
        (whole[0][:20], LABELS, *(one[:20] for one in rest)),
        (whole[0][20:], TEST_LABELS, *(one[20:] for one in rest)),
    )
    assert dataset.input_shape == values.shape[1:]
    batch = dataset.splits["test"].take(np.arange(4))
    np.testing.assert_array_equal(batch["mask"], MASK[20:])
    for row, one in zip(batch["inputs"], cut[20:], strict=True):
        np.testing.assert_allclose(row[: len(one)], one, rtol=1e-6)
        assert not row[len(one) :].any()
    assert dataset.vocabulary == (0 if values is SERIES else max(map(np.max, cut)) + 1)


SPLIT = ((slice(0, 20), LABELS), (slice(20, 24), TEST_LABELS))


@pytest.mark.parametrize("extra", [(), (LENGTHS,)])
def test_raw_inputs_become_what_the_model_was_trained_on(extra):
    parts = [(SERIES[r], y, *(e[r] for e in extra)) for r, y in SPLIT]
    split = from_arrays("mine", Request(), *parts, normalize="standard").splits["test"]
    batch = split.take(np.arange(4))
    raw = list(SERIES[20:]) if not extra else [SERIES[20 + i, : LENGTHS[20 + i]] for i in range(4)]
    found = split.preprocess(raw)
    assert found.keys() == batch.keys() - {"labels"}
    for name, value in found.items():
        np.testing.assert_allclose(value, batch[name], rtol=1e-6)
    with pytest.raises(DataError, match=r"takes series of \(2,\) features and at most 6 steps"):
        split.preprocess(SERIES[:, :, :1])
    with pytest.raises(DataError, match=r"not \(2,\) and 9; give .* a list, each without padding"):
        split.preprocess(np.zeros((1, 9, 2)))
    with pytest.raises(DataError, match="the array of inputs has NaN or infinite inputs, first in"):
        split.preprocess(np.full((1, 6, 2), np.nan))


@pytest.mark.parametrize("values", [IMAGES, GREY])
@pytest.mark.parametrize("view", [None, VIEWS["permuted"]()])
def test_raw_images_become_what_the_model_was_trained_on(values, view):
    request = Request(view=view)
    parts = [(values[r], y) for r, y in SPLIT]
    split = from_arrays("mine", request, *parts, normalize="standard").splits["test"]
    batch = split.take(np.arange(4))
    np.testing.assert_array_equal(split.preprocess(values[20:])["inputs"], batch["inputs"])
    for wrong in (values[20:] / 255, values[20:, :3]):
        with pytest.raises(DataError, match=r"the model takes images uint8 .*, not"):
            split.preprocess(wrong)


def test_scaling_is_measured_on_real_steps_of_the_train_rows():
    parts = [(SERIES[r], y, LENGTHS[r]) for r, y in SPLIT]
    request = Request(validation_fraction=0.2)
    dataset = from_arrays("mine", request, *parts, normalize="standard")
    train = dataset.splits["train"].take(np.arange(16))
    real = train["inputs"][train["mask"] > 0]
    np.testing.assert_allclose(real.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(real.std(0), 1, atol=1e-5)


def test_a_file_of_arrays_is_a_data_set(tmp_path):
    path = tmp_path / "mine.npz"
    named = {"x_train": SERIES[:20], "y_train": LABELS, "x_test": SERIES[20:]}
    lengths = {"lengths_train": LENGTHS[:20], "mask_test": MASK[20:]}
    np.savez(path, **named, **lengths, y_test=TEST_LABELS, class_names=["a", "b", "c"])
    dataset = data.load("arrays", dir=str(path))
    assert (dataset.name, dataset.class_names) == ("arrays", ("a", "b", "c"))
    np.testing.assert_array_equal(dataset.splits["test"].take(np.arange(4))["mask"], MASK[20:])
    np.savez(path, **named)
    with pytest.raises(DataError, match=r"mine\.npz: has no array y_test, but x_test, x_train, y"):
        data.load("arrays", dir=str(path))
    np.savez(path, **named, y_test=TEST_LABELS, x_train_of="", **lengths, lengths_test=LENGTHS)
    with pytest.raises(DataError, match="has lengths and a mask of the test part"):
        data.load("arrays", dir=str(path))
    np.savez(path, **named, y_test=TEST_LABELS, length_train=LENGTHS[:20])
    with pytest.raises(DataError, match="array length_train; did you mean 'lengths_train'"):
        data.load("arrays", dir=str(path))
    with pytest.raises(DataError, match="there is no such file"):
        data.load("arrays", dir=str(tmp_path / "other.npz"))
    with pytest.raises(ConfigError, match=r"config.data.dir must be the .npz file"):
        data.load("arrays")


@pytest.mark.parametrize("targets", [RNG.normal(size=20), RNG.normal(size=(20, 2))])
def test_numbers_to_predict(tmp_path, targets):
    path = tmp_path / "mine.npz"
    parts = {"x_train": SERIES[:20], "x_test": SERIES[20:], "y_test": targets[:4].copy()}
    np.savez(path, y_train=targets, **parts)
    dataset = data.load("arrays", dir=str(path), task="regression")
    assert (dataset.task, dataset.num_classes, dataset.class_names) == ("regression", 0, ())
    assert dataset.num_outputs == targets.reshape(20, -1).shape[1]
    batch = dataset.splits["test"].take(np.arange(4))
    expected = targets[:4].reshape(4, -1).astype(np.float32)
    np.testing.assert_array_equal(batch["labels"], expected)
    held_out = dataset.splits["validation"]
    np.testing.assert_array_equal(
        held_out.take(np.arange(2))["labels"],
        targets.reshape(20, -1)[held_out.indices].astype(np.float32),
    )
    targets = targets.copy()
    targets[3] = np.nan
    np.savez(path, y_train=targets, **parts)
    with pytest.raises(DataError, match="train part has a label in row 3 that is no number"):
        data.load("arrays", dir=str(path), task="regression")
    np.savez(path, y_train=np.ones((20, 1, 1)), **parts)
    with pytest.raises(DataError, match="for regression give numbers"):
        data.load("arrays", dir=str(path), task="regression")
    np.savez(path, y_train=np.ones((20, 3)), **parts)
    with pytest.raises(DataError, match="numbers to predict, but the train part 3"):
        data.load("arrays", dir=str(path), task="regression")
    with pytest.raises(ConfigError, match="regression has no classes"):
        data.load("arrays", dir=str(path), task="regression", class_names=["a"])
    with pytest.raises(ConfigError, match=r"config\.data\.task: unknown choice 'regresion'"):
        data.load("arrays", dir=str(path), task="regresion")


def spoilt(value):
    series = SERIES.copy()
    series[7, 3, 1] = value
    return series


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (IMAGES / 255, {}, "train part of arrays has images of float64, .* give uint8"),
        (spoilt(np.nan), {}, "train part has NaN or infinite inputs, first in row 7"),
        (spoilt(1e300), {}, "NaN or infinite inputs, first in row 7"),
        (SERIES.astype(object), {}, "inputs of object"),
        (SERIES[..., 0], {}, r"inputs of float64, shape \(20, 6\).*\[\.\.\., None\]"),
        (-1 - SYMBOLS, {}, "symbols from -9"),
        (SERIES, {"labels": LABELS.astype(float)}, r"labels of float64, shape \(20,\), for 20"),
        (SERIES, {"labels": LABELS[:, None]}, r"labels of int64, shape \(20, 1\).* labels.ravel"),
        (SERIES, {"labels": np.eye(3)[LABELS]}, r"shape \(20, 3\), .* labels.argmax\(-1\)"),
        (SERIES, {"labels": LABELS[1:]}, r"shape \(19,\), .*, one for each$"),
        (SERIES, {"labels": list(LABELS)}, "labels of list, not a numpy array"),
        (SERIES, {"labels": LABELS.astype(str)}, "labels of <U.* class_names = np.unique"),
        (SERIES, {"labels": LABELS - 1}, "train part has label -1 in row 0, outside"),
        (SERIES, {"test_labels": TEST_LABELS + 1}, "test part has label 3 in row 2, outside 0..2"),
        (SERIES[:20], {"test_labels": TEST_LABELS[:0]}, "test part has no examples"),
        (SERIES, {"class_names": "ab"}, "label 2 in row 2, outside 0..1 of class_names"),
    ],
)
def test_what_is_wrong_is_one_sentence(values, options, words):
    with pytest.raises(DataError, match=f"^mine: .*{words}") as caught:
        made(values, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [IMAGES, SERIES])
def test_classes_without_examples_are_told(values):
    assert "none of class" not in made(values).description
    described = made(values, labels=LABELS + 1, test_labels=TEST_LABELS + 1).description
    assert "4 classes, none of class 0 in the train part; inputs" in described


@pytest.mark.parametrize("values", [IMAGES, SERIES])
@pytest.mark.parametrize(
    ("fraction", "words"),
    [
        (
            1e-9,
            r"validation_fraction=1e-09 of the 20 examples of 'mine' is none; give at least 0.05",
        ),
        (0.99, "leaves no train example of 20"),
        (float("nan"), "must be at least 0 and below 1"),
        (1.0, "must be at least 0 and below 1"),
        (-0.1, "must be at least 0 and below 1"),
    ],
)
def test_fractions_that_leave_nothing_are_refused(values, fraction, words):
    with pytest.raises(ConfigError, match=words):
        made(values, fraction=fraction)


def test_fractions_are_compared_together():
    with pytest.raises(ConfigError, match=r"calibration_fraction=0\.5 must be below 1 together"):
        Request(validation_fraction=0.5, calibration_fraction=0.5)
    request = Request(validation_fraction=0, calibration_fraction=1e-9)
    with pytest.raises(ConfigError, match="calibration_fraction=1e-09 of the 20 examples"):
        from_arrays("mine", request, (IMAGES[:20], LABELS), (IMAGES[20:], TEST_LABELS))


def series(labels=LABELS, values=None):
    values = SERIES.astype(np.float32) if values is None else values
    splits = {p: SeriesSplit(values, labels, np.arange(4)) for p in ("train", "validation", "test")}
    return Dataset("own", "classification", 3, 3, (6, 2), splits, "own")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda request: None, "is a NoneType, not a jaxeff.data.Dataset"),
        (lambda request: series(values=SERIES), "inputs of float64, .* but says float32"),
        (lambda request: series(values=SERIES[:, 1:].astype("f4")), r"shape \(5, 2\), but says"),
        (lambda request: series(LABELS.astype(np.float32)), "labels of float32, .* needs integers"),
        (lambda request: series(LABELS[:, None]), r"shape \(1,\), for an example"),
    ],
)
def test_registered_data_sets_are_what_they_say(monkeypatch, build, words):
    monkeypatch.setitem(DATASETS._factories, "own", build)
    with pytest.raises(DataError, match=f"data set 'own' .*{words}"):
        data.load("own")


@pytest.mark.parametrize(
    ("values", "padding", "words"),
    [
        (SERIES, LENGTHS - 1, "needs as lengths whole numbers from 1 to 6, one for each of its 20"),
        (SERIES, LENGTHS[:19], "needs as lengths"),
        (SERIES, LENGTHS.astype(float), "needs as lengths"),
        (SERIES, MASK[:, ::-1], r"a mask \(20, 6\) that is not ones and then zeros"),
        (SERIES, MASK[:, :5], r"a mask \(20, 5\) that is not"),
        (GREY, LENGTHS, "images have no lengths"),
        (list(SERIES[:5]) + [SERIES[0, :, :1]] * 19, None, r"series of \(2,\) and of \(1,\) feat"),
        ([SERIES[0][:0]] * 24, None, "a series without steps"),
        ({}, None, "inputs of dict, neither a numpy array nor a list"),
        (np.ma.masked_less(SERIES, 0), None, "inputs in a masked array"),
    ],
)
def test_impossible_padding_is_refused(values, padding, words):
    rest = [] if padding is None else [padding[:20]]
    train = values[:20] if len(values) else values
    with pytest.raises(DataError, match=f"^mine: .*{words}"):
        from_arrays("mine", Request(), (train, LABELS, *rest), (SERIES[20:], TEST_LABELS))


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (SERIES, SERIES[:, :3], r"test part has inputs of shape \(3, 2\), but .* of \(6, 2\)"),
        (SERIES, SYMBOLS, r"test part has inputs of shape \(6,\), but the train part of \(6, 2\)"),
        (SERIES[:, :0], SERIES[:, :0], r"has inputs of shape \(20, 0, 2\), .* no values"),
        (SYMBOLS[:, :0], SYMBOLS, r"inputs of shape \(20, 0\), which hold no values"),
        (IMAGES[..., :0], IMAGES, r"shape \(20, 5, 4, 0\), which hold no values"),
    ],
)
def test_parts_have_values_of_one_shape(train, test, words):
    with pytest.raises(DataError, match=f"^mine: .*{words}"):
        from_arrays("mine", Request(), (train[:20], LABELS), (test[:4], TEST_LABELS))


def test_numbers_that_are_no_classes_are_refused():
    labels = LABELS + 1_234_567_890
    with pytest.raises(DataError, match="label 1234567892 in row 2, too large to be the number"):
        made(SERIES, labels)
    with pytest.raises(DataError, match="train part has no examples"):
        from_arrays("mine", Request(), (np.array(5), LABELS), (SERIES[:4], TEST_LABELS))
