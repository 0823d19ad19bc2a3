"""Directions of angles that were drawn about known ones."""

import numpy as np
import pytest

from jaxeff.affine.orientation import OrientationModes, circular_variance, conclusion

SPREAD = 0.15
NOISE = SPREAD * np.random.default_rng(0).normal(size=400)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("first", [0.4, 3.0, -1.2])
def test_angles_about_even_directions_have_these_directions(count, first):
    even = 2 * np.pi * np.arange(count) / count
    angles = first + even[np.arange(400) % count] + NOISE
    modes = OrientationModes.of(angles)
    assert len(modes.directions) == count
    nearest = [np.abs(np.angle(np.exp(1j * (first + e - modes.directions)))).min() for e in even]
    np.testing.assert_allclose(nearest, 0, atol=0.03)
    # The mean of exp(i k x) of a normal x.
    assert modes.concentration == pytest.approx(np.exp(-((count * SPREAD) ** 2) / 2), abs=0.03)
    assert all(-np.pi < d <= np.pi for d in modes.directions)


def test_angles_all_around_have_no_direction():
    modes = OrientationModes.of(np.random.default_rng(1).uniform(-np.pi, np.pi, 300))
    assert modes.directions == ()
    assert modes.concentration < 0.2


def test_few_angles_show_no_direction():
    # Rayleigh's probability of n equal angles is about exp(-n): below 0.01 from 5 on.
    assert OrientationModes.of(np.zeros(4)).directions == ()
    assert OrientationModes.of(np.zeros(5)).directions == (0.0,)


def test_the_direction_backwards_is_positive():
    (direction,) = OrientationModes.of(np.full(20, -np.pi)).directions
    assert direction == pytest.approx(np.pi)


def test_concentration_about_one_direction_is_what_the_variance_lacks_to_one():
    angles = 1.0 + NOISE
    variance = circular_variance(angles)
    assert OrientationModes.of(angles).concentration == pytest.approx(1 - variance)


def test_the_conclusion_groups_the_names():
    one, two = OrientationModes((0.0,), 0.9), OrientationModes((0.0, np.pi), 0.8)
    less, none = OrientationModes((0.0,), 0.8), OrientationModes((), 0.1)
    line = conclusion({"3": one, "8": two, "0": none, "5": less})
    assert line == (
        "One orientation: 3, 5 (mean concentration 0.85); "
        "two opposite orientations: 8 (mean concentration 0.80); "
        "no preferred orientation: 0 (mean concentration 0.10)"
    )
    line = conclusion({"3": two, "8": two})
    assert line == "Two opposite orientations: all 2 classes (mean concentration 0.80)"
