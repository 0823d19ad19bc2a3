"""Augmentation: what each change does, by hand, and that draws belong to examples."""

import importlib.util

import numpy as np
import pytest

from jaxeff import data
from jaxeff.data.augment import Augmentation
from jaxeff.errors import ConfigError, DataError

BATCH = 256
KEYS = np.arange(1, BATCH + 1, dtype=np.uint64)
RAMP = (1 + np.arange(8)[:, None] * 8 + np.arange(8)).astype(np.uint8)[None, :, :, None]
IMAGES = np.repeat(RAMP, BATCH, axis=0)


def digits(**augment):
    return data.load("digits", augment=augment)


def batch(dataset, number=0, size=64, **options):
    stream = data.make_train_iterator(dataset.splits["train"], batch_size=size, seed=3, **options)
    for _ in range(number):
        next(stream)
    return next(stream)


def test_crops_are_shifts_between_the_extremes_padded_with_zeros():
    found = Augmentation(crop=2)(IMAGES, KEYS)
    shifts = set()
    for image in found[..., 0]:
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                expected = np.zeros((8, 8), np.uint8)
                rows = slice(max(0, -dy), min(8, 8 - dy)), slice(max(0, dy), min(8, 8 + dy))
                cols = slice(max(0, -dx), min(8, 8 - dx)), slice(max(0, dx), min(8, 8 + dx))
                expected[rows[0], cols[0]] = RAMP[0, rows[1], cols[1], 0]
                if (image == expected).all():
                    shifts.add((dy, dx))
                    break
            else:
                continue
            break
        else:
            pytest.fail("a crop is no shift of the image")
    assert len(shifts) == 25


def test_half_of_the_images_are_mirrored():
    found = Augmentation(flip=True)(IMAGES, KEYS)
    mirrored = (found == IMAGES[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (found == IMAGES).all((1, 2, 3))).all()
    assert 0.4 < mirrored.mean() < 0.6


def test_mirrored_pixels_keep_their_channels():
    colours = np.arange(16 * 2 * 4 * 3).astype(np.uint8).reshape(16, 2, 4, 3)
    found = Augmentation(flip=True)(colours, KEYS[:16])
    mirrored = (found == colours[:, :, ::-1]).all((1, 2, 3))
    assert 0 < mirrored.sum() < 16
    np.testing.assert_array_equal(found[~mirrored], colours[~mirrored])


def test_cutouts_are_squares_clipped_at_the_edge():
    found = Augmentation(cutout=4)(IMAGES, KEYS)[..., 0]
    zero = found == 0
    assert (found[~zero] == IMAGES[..., 0][~zero]).all()
    for hole in zero:
        rows, columns = hole.any(1), hole.any(0)
        assert (hole == rows[:, None] & columns).all()
        assert 2 <= rows.sum() <= 4
        assert 2 <= columns.sum() <= 4
    assert zero.sum((1, 2)).min() == 4  # centred on a corner
    np.testing.assert_allclose(zero[:, 0, 0].mean(), 9 / 64, atol=0.06)


def test_mixup_blends_a_second_example_by_its_share():
    plain = digits()
    mixed = digits(mixup=0.4)
    one, two = batch(plain), batch(mixed)
    np.testing.assert_array_equal(one["labels"], two["labels"])
    share = two["mixed_share"][:, None, None, None]
    assert share.dtype == np.float32
    other = (two["inputs"] - (1 - share) * one["inputs"]) / np.maximum(share, 1e-6)
    train = plain.splits["train"]
    everything = train.take(np.arange(len(train)))
    for row in np.flatnonzero(two["mixed_share"] > 0.05):
        gaps = np.abs(everything["inputs"] - other[row]).max((1, 2, 3))
        assert gaps.min() < 1e-4
        assert everything["labels"][gaps.argmin()] == two["mixed_labels"][row]
    shares = Augmentation(mixup=0.4).partners(np.arange(1, 4001, dtype=np.uint64), 10)[1]
    assert abs(shares.mean() - 0.5) < 0.02
    assert abs(shares.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.01  # of Beta(a, a)


def test_only_training_is_augmented():
    dataset = digits(crop=2, flip=True)
    seen = batch(dataset, shuffle=False)["inputs"]
    kept = dataset.splits["train"].take(np.arange(64))["inputs"]
    assert (seen != kept).any()
    evaluated = next(data.eval_batches(dataset.splits["train"], 64))["inputs"]
    np.testing.assert_array_equal(evaluated, kept)


def test_draws_do_not_depend_on_the_number_of_processes_and_differ_between_epochs():
    dataset = digits(crop=2, flip=True, cutout=3, mixup=1.0)
    whole = batch(dataset)
    parts = [batch(dataset, process_index=i, process_count=2) for i in range(2)]
    for name, values in whole.items():
        np.testing.assert_array_equal(values, np.concatenate([p[name] for p in parts]))
    assert (batch(dataset, 1)["inputs"] != whole["inputs"]).any()


@pytest.mark.skipif(not importlib.util.find_spec("torchvision"), reason="needs torchvision")
def test_randaugment_belongs_to_the_example():
    augment = Augmentation(randaugment=2)
    found = augment(IMAGES[:16], KEYS[:16])
    np.testing.assert_array_equal(found[5:9], augment(IMAGES[5:9], KEYS[5:9]))
    assert (found != IMAGES[:16]).any((1, 2, 3)).mean() > 0.5


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is not None, reason="torchvision is there"
)
def test_randaugment_says_what_to_install():
    with pytest.raises(DataError, match=r"install jaxeff\[augment\]"):
        Augmentation(randaugment=2)(IMAGES[:1], KEYS[:1])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", {"augment": {"crops": 4}}, "augment.crops is no field; did you mean 'crop'"),
        ("digits", {"augment": {"crop": -1}}, "crop must not be negative"),
        ("digits", {"augment": {"magnitude": 31}}, "magnitude must be at most 30"),
        ("digits", {"augment": {"flip": True}, "view": "rows"}, "leave one of them out"),
        ("adding", {"augment": {"flip": True}}, "has no images to augment"),
    ],
)
def test_impossible_augmentations_are_refused_in_a_sentence(name, options, message):
    with pytest.raises(ConfigError, match=message):
        data.load(name, **options)


def test_neutral_values_are_no_augmentation():
    assert Augmentation.build({"crop": 0, "flip": False}) is None
    assert Augmentation.build(None) is None
