"""Augmented examples that come again: each epoch shows one of a number of versions."""

import dataclasses

import numpy as np
import pytest

from jaxeff import data
from jaxeff.data.augment import Augmentation
from jaxeff.errors import ConfigError

EXAMPLES = 20


@pytest.fixture
def split(make_split):
    """Random pixels, so that crops of an image differ."""

    def make(**fields):
        images = np.random.default_rng(0).integers(0, 255, (EXAMPLES, 4, 3, 2), np.uint8)
        augment = Augmentation.build({"crop": 2, "flip": True, **fields})
        return dataclasses.replace(make_split(EXAMPLES), images=images, augment=augment)

    return make


def epochs(split, count, batch_size=8, seed=0, **options):
    """Inputs by example and versions, epoch by epoch."""
    stream = data.make_train_iterator(
        split, batch_size=batch_size, seed=seed, with_index=True, prefetch=0, **options
    )
    rows = []
    while len(rows) < count * EXAMPLES:
        batch = next(stream)
        rows += list(zip(batch["index"], batch["version"], batch["inputs"], strict=True))
    found = []
    for number in range(count):
        part = sorted(rows[number * EXAMPLES : (number + 1) * EXAMPLES], key=lambda row: row[0])
        index, version, inputs = (np.stack(column) for column in zip(*part, strict=True))
        np.testing.assert_array_equal(index, np.arange(EXAMPLES))
        found.append((set(version.tolist()), inputs))
    return found


def test_versions_come_again_in_turn(split):
    found = epochs(split(versions=3), 6)
    assert [versions for versions, _ in found] == [{0}, {1}, {2}] * 2
    for number in range(3):
        np.testing.assert_array_equal(found[number][1], found[number + 3][1])
    for other in (1, 2):
        differ = (found[0][1] != found[other][1]).any((1, 2, 3))
        assert differ.mean() > 0.8


def test_a_version_is_the_examples_own_whatever_the_batch_and_the_process(split):
    made = split(versions=2)
    one, two = epochs(made, 2, batch_size=8), epochs(made, 2, batch_size=5)
    for (_, a), (_, b) in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    options = {"batch_size": 8, "seed": 0, "with_index": True, "prefetch": 0}
    whole = next(data.make_train_iterator(made, **options))
    parts = [
        next(data.make_train_iterator(made, process_index=i, process_count=2, **options))
        for i in (0, 1)
    ]
    for name in ("inputs", "index", "version"):
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), whole[name])
    assert whole["version"].dtype == np.int32
    (_, other), *_ = epochs(made, 1, seed=1)
    assert (other != one[0][1]).any()


def test_without_a_number_of_versions_every_epoch_is_new(split):
    (_, first), (versions, second) = epochs(split(), 2)
    assert (first != second).any((1, 2, 3)).mean() > 0.8
    assert versions == {0}


def test_splits_know_how_many_versions_they_show(split, make_split):
    assert split(versions=3).versions == 3
    assert split().versions == 0
    assert make_split(4).versions == 1
    assert make_split(4, "rows").versions == 1
    assert make_split(4, "noisy_rows").versions == 0
    assert make_split(4, "noise_padded_rows", padded_length=6).versions == 0
    assert data.load("adding").splits["train"].versions == 1


def test_a_negative_number_is_refused():
    with pytest.raises(ConfigError, match=r"augment\.versions must not be negative"):
        Augmentation.build({"flip": True, "versions": -1})
