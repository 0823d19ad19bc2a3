import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxeff import data
from jaxeff.data import counter_rng, synthetic
from jaxeff.errors import ConfigError


@settings(max_examples=40, deadline=None)
@given(length=st.integers(2, 60), seed=st.integers(0, 1000))
def test_adding_marks_one_value_in_each_half_and_sums_them(length, seed):
    dataset = data.load("adding", length=length, num_train=20, split_seed=seed)
    batch = dataset.splits["train"].take(np.arange(20))
    values, marks = batch["inputs"][..., 0], batch["inputs"][..., 1]
    assert batch["inputs"].shape == (20, length, 2)
    assert set(np.unique(marks)) <= {0, 1}
    np.testing.assert_array_equal(marks[:, : length // 2].sum(1), 1)
    np.testing.assert_array_equal(marks[:, length // 2 :].sum(1), 1)
    for row in range(20):
        target = sum(values[row, t] for t in range(length) if marks[row, t])
        assert batch["labels"][row, 0] == target
    assert batch["labels"].shape == (20, 1)
    assert batch["labels"].dtype == batch["inputs"].dtype == np.float32


def test_adding_baseline_is_one_sixth():
    labels = data.load("adding", length=20).splits["train"].take(np.arange(50_000))["labels"]
    squared = (labels.astype(np.float64) - 1) ** 2
    assert abs(squared.mean() - 1 / 6) < 5 * squared.std() / np.sqrt(50_000)


def test_adding_marks_are_uniform_over_each_half():
    marks = data.load("adding", length=11).splits["train"].take(np.arange(30_000))["inputs"][..., 1]
    expected = np.array([30_000 / 5] * 5 + [30_000 / 6] * 6)
    assert (((marks.sum(0) - expected) ** 2) / expected).sum() < 35  # chi square, 9 degrees


@pytest.mark.parametrize("length", [2, 3, 65, 127, 129, 1000])
def test_adding_marks_stay_inside_for_the_largest_draw(monkeypatch, length):
    largest = np.float32(1 - 2.0**-24)
    monkeypatch.setattr(counter_rng, "uniform", lambda k, n: np.full((len(k), n), largest))
    inputs, _ = synthetic.adding_batch(np.zeros(1, np.uint64), length)
    assert np.flatnonzero(inputs[0, :, 1]).tolist() == [length // 2 - 1, length - 1]


def test_copy_layout():
    dataset = data.load("copy", length=25, num_train=64)
    batch = dataset.splits["train"].take(np.arange(64))
    assert batch["inputs"].shape == (64, 25, 10)
    assert batch["inputs"].dtype == np.float32
    np.testing.assert_array_equal(batch["inputs"].sum(-1), 1)
    shown = batch["inputs"].argmax(-1)
    assert set(np.unique(shown[:, :10])) == set(range(1, 9))
    np.testing.assert_array_equal(shown[:, 10:14], 0)
    np.testing.assert_array_equal(shown[:, 14], 9)
    np.testing.assert_array_equal(shown[:, 15:], 0)
    np.testing.assert_array_equal(batch["labels"][:, :15], 0)
    np.testing.assert_array_equal(batch["labels"][:, 15:], shown[:, :10])
    assert batch["labels"].dtype == np.int32


@pytest.mark.parametrize("name", ["adding", "copy"])
def test_an_example_is_the_same_in_every_batch_and_no_other(name):
    splits = data.load(name, num_train=100, num_validation=100, num_test=100).splits
    whole = splits["train"].take(np.arange(100))
    picked = splits["train"].take(np.array([42, 7]), np.random.default_rng(1))
    for key, values in picked.items():
        np.testing.assert_array_equal(values, whole[key][[42, 7]])
    seen = np.concatenate([split.take(np.arange(100))["inputs"] for split in splits.values()])
    assert len(np.unique(seen.reshape(300, -1), axis=0)) == 300
    other = data.load(name, num_train=100, split_seed=1).splits["train"].take(np.arange(100))
    assert not np.array_equal(other["inputs"][0], whole["inputs"][0])


def test_what_a_model_must_know():
    adding, copy = data.load("adding"), data.load("copy", length=30)
    known = (adding.task, adding.num_classes, adding.num_outputs, adding.input_shape)
    assert known == ("regression", 0, 1, (200, 2))
    known = (copy.task, copy.num_classes, copy.num_outputs, copy.input_shape)
    assert known == ("tagging", 10, 10, (30, 10))
    assert adding.description == (
        "adding, generated: 50000 train, 5000 validation, 5000 test; inputs 200x2;"
        " constant 1 has MSE 1/6"
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adding", {"length": 1}, "config.data.length must be at least 2 for adding, not 1"),
        ("copy", {"length": 20}, "config.data.length must be above 20 for copy, not 20"),
        ("copy", {"num_train": 0}, "config.data.num_train is too small: 0"),
        ("adding", {"num_test": -1}, "config.data.num_test is too small: -1"),
        ("adding", {"view": "rows"}, "data set 'adding' has no images to view"),
        ("copy", {"view": "rows"}, "data set 'copy' has no images to view"),
    ],
)
def test_impossible_fields(name, options, message):
    with pytest.raises(ConfigError, match=message):
        data.load(name, **options)


@pytest.mark.parametrize("index", [-1, 100])
def test_no_example_outside_the_split(index):
    with pytest.raises(IndexError):
        data.load("adding", num_train=100).splits["train"].take(np.array([index]))
