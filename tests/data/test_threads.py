"""Blocks of rows on threads give what one call gives."""

import numpy as np
import pytest

from jaxeff.data import threads
from jaxeff.data.preprocessing import scaled_pixels


@pytest.mark.parametrize("rows", [0, 1, 3, 400])
def test_every_row_is_written_once(rows):
    rng = np.random.default_rng(0)
    array = rng.normal(size=(rows, 1000)).astype(np.float32)
    out, calls = np.full((rows, 2000), np.nan, np.float32), []

    def doubled(block, out):
        calls.append(len(block))
        out[:] = np.concatenate([block, -block], -1)

    assert threads.in_blocks(doubled, array, out) is out
    np.testing.assert_array_equal(out, np.concatenate([array, -array], -1))
    assert sum(calls) == rows
    assert (len(calls) > 1) == (rows == 400)


def test_a_failing_block_fails_the_call():
    def failing(block, out):
        raise ValueError("a block")

    with pytest.raises(ValueError, match="a block"):
        threads.in_blocks(failing, np.zeros((400, 1000)), np.zeros((400, 1000)))


def test_many_images_are_scaled_as_one_by_one():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 64, 60, 3), np.uint8)
    scale, offset = rng.normal(size=(2, 3)).astype(np.float32)
    at_once = scaled_pixels(images, scale, offset)
    np.testing.assert_array_equal(at_once, images * scale + offset)
    single = np.concatenate([scaled_pixels(image[None], scale, offset) for image in images])
    np.testing.assert_array_equal(at_once, single)
