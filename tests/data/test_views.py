import zlib

import numpy as np
import pytest

from jaxeff.data import VIEWS, counter_rng
from jaxeff.data.views import permutation
from jaxeff.errors import ConfigError

# Value 100 * row + 10 * column + channel, of two examples.
IMAGES = (
    100 * np.arange(4)[:, None, None] + 10 * np.arange(3)[None, :, None] + np.arange(2)[None, None]
).astype(np.float32)
IMAGES = np.stack([IMAGES, -IMAGES])
KEYS = counter_rng.example_keys(0, 0, np.arange(2))
OPTIONS = {"noise_padded_rows": {"padded_length": 9}}


def test_rows_show_one_row_per_step():
    rows = VIEWS["rows"]()(IMAGES, KEYS)
    np.testing.assert_array_equal(rows[0, 2], [200, 201, 210, 211, 220, 221])
    np.testing.assert_array_equal(rows[1], -rows[0])


def test_pixels_run_in_raster_order():
    pixels = VIEWS["pixels"]()(IMAGES, KEYS)
    np.testing.assert_array_equal(pixels[0, :4], [[0, 1], [10, 11], [20, 21], [100, 101]])


@pytest.mark.parametrize("name", sorted(VIEWS))
@pytest.mark.parametrize("size", [1, 2])
def test_shape_tells_the_shape(name, size):
    view = VIEWS[name](**OPTIONS.get(name, {}))
    made = view(IMAGES[:size], KEYS[:size])
    assert made.shape == (size, *view.shape((4, 3, 2)))
    assert made.dtype == np.float32


@pytest.mark.parametrize(
    ("pixels", "checksum"), [(64, 3614013821), (784, 295210723), (1024, 3663736342)]
)
def test_the_permutation_never_changes(pixels, checksum):
    order = permutation(pixels)
    assert zlib.crc32(order.astype("<u4").tobytes()) == checksum
    np.testing.assert_array_equal(np.sort(order), np.arange(pixels))
    assert not order.flags.writeable


def test_permuted_can_be_undone():
    permuted = VIEWS["permuted"]()(IMAGES, KEYS)
    pixels = VIEWS["pixels"]()(IMAGES, KEYS)
    assert not np.array_equal(permuted, pixels)
    np.testing.assert_array_equal(permuted[:, np.argsort(permutation(12))], pixels)
    np.testing.assert_array_equal(permuted[0, 0], pixels[0, permutation(12)[0]])


def test_noise_padding_follows_the_rows_and_is_each_examples_own():
    images = np.zeros((50, 4, 3, 2), np.float32)
    keys = counter_rng.example_keys(0, 0, np.arange(50))
    padded = VIEWS["noise_padded_rows"](padded_length=104)(images, keys)
    assert padded.shape == (50, 104, 6)
    np.testing.assert_array_equal(padded[:, :4], 0)
    noise = padded[:, 4:].reshape(50, -1).astype(np.float64)
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / noise.size)
    # One block for all examples, the known trap, would give correlations of 1.
    correlation = np.corrcoef(noise) - np.eye(50)
    assert abs(correlation).max() < 6 / np.sqrt(600)


def test_noise_padding_to_the_height_is_the_rows():
    padded = VIEWS["noise_padded_rows"](padded_length=4)
    np.testing.assert_array_equal(padded(IMAGES, KEYS), VIEWS["rows"]()(IMAGES, KEYS))


def test_noise_padding_must_leave_room_for_the_image():
    with pytest.raises(ConfigError, match="at least the image's 4 rows, not 3"):
        VIEWS["noise_padded_rows"](padded_length=3).shape((4, 3, 2))


def test_noisy_rows_add_noise_of_the_scale():
    images = np.broadcast_to(IMAGES[:1], (2000, 4, 3, 2))
    keys = counter_rng.example_keys(0, 0, np.arange(2000))
    clean = VIEWS["noisy_rows"](noise_scale=0.0)(images, keys)
    np.testing.assert_array_equal(clean, VIEWS["rows"]()(images, keys))
    added = (VIEWS["noisy_rows"]()(images, keys) - clean).astype(np.float64)
    assert abs(added.mean()) < 5 * 2 / np.sqrt(added.size)
    assert abs(added.std() - 2) < 5 * 2 / np.sqrt(2 * added.size)
    np.testing.assert_array_less(abs(added.mean(0)), 5 * 2 / np.sqrt(2000))


def test_noise_scale_must_not_be_negative():
    with pytest.raises(ConfigError, match="noise_scale must not be negative, not -1"):
        VIEWS["noisy_rows"](noise_scale=-1)
