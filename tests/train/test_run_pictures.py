"""What a run draws of its model."""

import numpy as np

from jaxeff.train.run_report import most_varied


def test_the_series_that_changes_most_is_drawn():
    still, slope, wave = np.zeros((6, 2)), np.ones((6, 2)), np.zeros((6, 2))
    slope[:, 0] = np.arange(6)  # changes by 5 in all
    wave[:, 1] = [0, 2, 0, 2, 0, 2]  # changes by 10
    series = np.stack([still, slope, wave])
    assert most_varied(series) == 2
    # Of the wave only the first step is real.
    mask = np.ones((3, 6))
    mask[2, 1:] = 0
    assert most_varied(series, mask) == 1
