import numpy as np
import pytest

from jaxeff import data
from jaxeff.data import images as image_module
from jaxeff.data.base import Request
from jaxeff.data.images import ImageArrays, image_dataset, moments, split_indices
from jaxeff.errors import ConfigError


def arrays(train=40, test=9, channels=3):
    rng = np.random.default_rng(1)
    return ImageArrays(
        rng.integers(0, 256, (train, 4, 5, channels), dtype=np.uint8),
        rng.integers(0, 10, train),
        rng.integers(0, 256, (test, 4, 5, channels), dtype=np.uint8),
        rng.integers(0, 10, test),
        "a test",
    )


@pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 0.9])
def test_train_and_validation_are_disjoint_and_test_is_apart(fraction):
    made = arrays(41)
    dataset = image_dataset("x", made, Request(validation_fraction=fraction), num_classes=10)
    train, validation, test = (dataset.splits[p] for p in ("train", "validation", "test"))
    assert not set(train.indices) & set(validation.indices)
    assert sorted([*train.indices, *validation.indices]) == list(range(41))
    assert len(validation) == round(fraction * 41)
    assert train.images is validation.images is made.train_images
    assert test.images is made.test_images
    assert list(test.indices) == list(range(9))


def test_the_validation_split_is_the_published_one():
    train, validation, _ = split_indices(1500, 0.1, 0)
    order = np.random.Generator(np.random.PCG64(0)).permutation(1500)
    np.testing.assert_array_equal(validation, np.sort(order[:150]))
    # Written down, so that a change of numpy's permutation shows.
    assert validation[:5].tolist() == [12, 20, 44, 53, 60]
    assert len(train) == 1350
    assert not np.array_equal(split_indices(1500, 0.1, 1)[1], validation)


def test_moments_are_numpys_over_the_rows_asked_for():
    images = np.random.default_rng(0).integers(0, 200, (9000, 2, 3, 2), dtype=np.uint8)
    images[..., 1] //= 3
    rows = np.arange(0, 9000, 2)
    mean, deviation = moments(images, rows)
    np.testing.assert_allclose(mean, images[rows].mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(deviation, images[rows].std((0, 1, 2)), rtol=1e-9)


def test_standard_measures_the_train_part_only():
    made = arrays()
    request = Request(validation_fraction=0.5)
    first = image_dataset("x", made, request, num_classes=10, normalize="standard")
    train = first.splits["train"].take(np.arange(20))["inputs"].astype(np.float64)
    np.testing.assert_allclose(train.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(train.std((0, 1, 2)), 1, atol=1e-6)
    made.train_images[first.splits["validation"].indices] = 255
    made.test_images[:] = 0
    second = image_dataset("x", made, request, num_classes=10, normalize="standard")
    np.testing.assert_array_equal(second.splits["train"].scale, first.splits["train"].scale)
    np.testing.assert_array_equal(second.splits["test"].offset, first.splits["train"].offset)
    made.train_images[first.splits["train"].indices[0]] ^= 255
    third = image_dataset("x", made, request, num_classes=10, normalize="standard")
    assert not np.array_equal(third.splits["train"].offset, first.splits["train"].offset)


def test_a_constant_image_stays_finite():
    made = arrays()
    made.train_images[:] = 7
    dataset = image_dataset("x", made, Request(), num_classes=10, normalize="standard")
    inputs = dataset.splits["train"].take(np.arange(3))["inputs"]
    np.testing.assert_allclose(inputs, 0, atol=1)


@pytest.mark.parametrize("maximum", [16, 255])
def test_unit_maps_the_range_onto_zero_to_one(maximum):
    made = arrays(maximum + 1)
    made.train_images[:] = np.arange(maximum + 1, dtype=np.uint8)[:, None, None, None]
    request = Request(validation_fraction=0)
    dataset = image_dataset("x", made, request, num_classes=10, maximum=maximum)
    inputs = dataset.splits["train"].take(np.arange(maximum + 1))["inputs"][:, 0, 0, 0]
    np.testing.assert_allclose(inputs, np.arange(maximum + 1) / maximum, rtol=2e-7)
    assert inputs.min() == 0
    assert inputs.max() == 1


@pytest.mark.parametrize(
    ("view", "options", "shape"),
    [
        ("", {}, (8, 8, 1)),
        ("rows", {}, (8, 8)),
        ("pixels", {}, (64, 1)),
        ("permuted", {}, (64, 1)),
        ("noise_padded_rows", {"padded_length": 30}, (30, 8)),
        ("noisy_rows", {"noise_scale": 1.0}, (8, 8)),
    ],
)
def test_input_shape_is_the_shape_of_an_example(view, options, shape):
    dataset = data.load("digits", view=view, **options)
    assert dataset.input_shape == shape
    assert (dataset.task, dataset.num_classes, dataset.num_outputs) == ("classification", 10, 10)
    for split in dataset.splits.values():
        batch = split.take(np.array([3, 1]), np.random.default_rng(0))
        assert batch["inputs"].shape == (2, *shape)
        assert batch["inputs"].dtype == np.float32


def test_the_view_is_of_the_image():
    original = data.load("digits").splits["test"].take(np.arange(5))["inputs"]
    rows = data.load("digits", view="rows").splits["test"].take(np.arange(5))["inputs"]
    np.testing.assert_array_equal(rows, original[..., 0])


def test_the_description_says_it_all():
    dataset = data.load("digits", view="noise_padded_rows", padded_length=20, normalize="standard")
    assert dataset.description == (
        "digits from TFDS sk_digits/1.0.0, shuffled: 1350 train, 150 validation, 297 test;"
        " 10 classes;"
        " inputs 20x8 (noise_padded_rows padded_length=20, standard)"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "digit"}, r"config\.data\.name: unknown data set 'digit'; did you mean 'digits'"),
        ({"view": "row"}, r"config\.data\.view: unknown view 'row'; did you mean 'rows'\?"),
        ({"normalise": "unit"}, r"config\.data\.normalise: data set 'digits' .* mean 'normalize'"),
        ({"padded_length": 40, "view": "rows"}, "config.data.padded_length: .* with view 'rows'"),
        ({"padded_lenght": 9, "view": "noise_padded_rows"}, "did you mean 'padded_length'"),
        ({"request": 1}, "config.data.request: data set 'digits' has no such field"),
        ({"normalize": "none"}, "config.data.normalize must be one of unit, standard, not 'none'"),
        ({"validation_fraction": 1.0}, "validation_fraction must be at least 0 and below 1, not"),
        ({"validation_fraction": -0.1}, "validation_fraction must be at least 0 and below 1, not"),
        ({"validation_fraction": 0.9999}, "leaves no train example of 1500"),
        ({"split_seed": -1}, "config.data.split_seed must not be negative, not -1"),
    ],
)
def test_impossible_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        data.load(**{"name": "digits", **fields})


def test_every_name_in_the_registries_is_known():
    assert {"adding", "cifar10", "cifar100", "copy", "digits"} <= set(data.DATASETS)
    assert {"fashion_mnist", "mnist"} <= set(data.DATASETS)
    names = {"noise_padded_rows", "noisy_rows", "permuted", "pixels", "rows"}
    assert set(data.VIEWS) == names
    assert image_module.NORMALIZERS == ("unit", "standard")
