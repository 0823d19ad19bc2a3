import cmath
import math

import numpy as np
import pytest

from jaxeff.data.log_mel import LogMel, hertz_to_mel
from jaxeff.errors import ConfigError

RNG = np.random.default_rng(0)
SMALL = LogMel(
    sample_rate=1000,
    window=40,
    stride=16,
    fft_size=64,
    num_filters=5,
    min_frequency=20.0,
    max_frequency=450.0,
)


def slow_log_mel(m, clip):
    """The definition, one Fourier coefficient and one filter at a time."""

    def mel(f):
        return 2595 * math.log10(1 + f / 700)

    low, high = mel(m.min_frequency), mel(m.max_frequency)
    edges = [low + (high - low) * i / (m.num_filters + 1) for i in range(m.num_filters + 2)]
    features, start = [], 0
    while True:
        frame = [clip[start + n] if start + n < len(clip) else 0.0 for n in range(m.window)]
        energies = [0.0] * m.num_filters
        for k in range(m.fft_size // 2 + 1):
            turn = -2j * math.pi * k / m.fft_size
            value = sum(
                x * math.sin(math.pi * n / m.window) ** 2 * cmath.exp(turn * n)
                for n, x in enumerate(frame)
            )
            here = mel(k * m.sample_rate / m.fft_size)
            for i, (left, peak, right) in enumerate(
                zip(edges[:-2], edges[1:-1], edges[2:], strict=True)
            ):
                if left < here <= peak:
                    energies[i] += abs(value) ** 2 * (here - left) / (peak - left)
                elif peak < here < right:
                    energies[i] += abs(value) ** 2 * (right - here) / (right - peak)
        features.append([math.log(e + m.floor) for e in energies])
        start += m.stride
        if start + m.window - m.stride >= len(clip):
            return np.array(features)


@pytest.mark.parametrize("samples", [30, 40, 41, 56, 57, 100])
def test_the_definition_summed_by_hand(samples):
    clips = RNG.uniform(-1, 1, (2, samples))
    made = SMALL(clips.astype(np.float32))
    expected = np.stack([slow_log_mel(SMALL, clip) for clip in clips])
    assert made.shape == (2, SMALL.num_frames(samples), 5) == expected.shape
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, atol=2e-4)


def test_a_second_of_speech_is_99_frames_of_32():
    assert LogMel()(np.zeros((3, 16_000), np.float32)).shape == (3, 99, 32)


def test_clips_do_not_depend_on_how_many_there_are():
    clips = np.random.default_rng(0).normal(0, 0.1, (19, 4000)).astype(np.float32)
    alone = np.concatenate([LogMel()(clip[None]) for clip in clips])
    np.testing.assert_allclose(LogMel()(clips), alone, rtol=1e-5, atol=1e-5)


def test_silence_is_the_floor():
    made = LogMel()(np.zeros((1, 16_000), np.float32))
    np.testing.assert_allclose(made, math.log(1e-6), rtol=1e-6)


@pytest.mark.parametrize("high", [4000.0, 8000.0])
def test_a_tone_peaks_in_the_filter_at_its_pitch(high):
    m = LogMel(max_frequency=high)
    # Its own formula, inverted: the pitch in the middle of each filter.
    mels = np.linspace(*(2595 * np.log10(1 + np.array([20.0, high]) / 700)), 34)[1:-1]
    pitches = 700 * (10 ** (mels / 2595) - 1)
    times = np.arange(16_000) / 16_000
    tones = np.sin(2 * np.pi * pitches[:, None] * times).astype(np.float32)
    # Low filters are narrower than the window's main lobe, so only their neighbour is excluded.
    loudest = m.energies(tones)[:, 1:-1].mean(1).argmax(1)
    np.testing.assert_array_equal(loudest[4:], np.arange(4, 32))
    assert abs(loudest[:4] - np.arange(4)).max() <= 1


def test_energies_grow_with_the_square_of_the_amplitude_and_add_over_apart_tones():
    m = LogMel()
    times = np.arange(16_000) / 16_000
    low, high = (np.sin(2 * np.pi * f * times).astype(np.float32)[None] for f in (500, 3000))
    one, other = m.energies(low)[:, :-1], m.energies(high)[:, :-1]
    np.testing.assert_allclose(m.energies(3 * low)[:, :-1], 9 * one, rtol=1e-3, atol=1e-6)
    both = m.energies(low + high)[:, :-1]
    np.testing.assert_allclose(both, one + other, rtol=0.02, atol=0.02)


def test_the_spectrum_obeys_parseval():
    # Between the middles of the first and last filter the triangles sum to one, so the energies of
    # a sound in that band sum to half the energy of the windowed frame times the transform's size.
    m = LogMel(max_frequency=8000.0)
    times = np.arange(400) / 16_000
    sound = sum(np.sin(2 * np.pi * f * times + f) for f in range(1000, 5000, 250))
    hann = np.sin(np.pi * np.arange(400) / 400) ** 2
    energy = 512 / 2 * np.sum((sound * hann) ** 2)
    np.testing.assert_allclose(m.energies(sound[None]).sum(), energy, rtol=1e-3)


def test_frames_do_not_see_their_neighbours():
    clip = RNG.uniform(-1, 1, (1, 16_000)).astype(np.float32)
    made = LogMel()(clip)
    changed = clip.copy()
    changed[0, 8000] += 0.5
    frames = np.flatnonzero((LogMel()(changed) != made).any((0, 2)))
    first = [i for i in range(99) if 160 * i < 8000 < 160 * i + 400]
    assert frames.tolist() == first


@pytest.mark.parametrize(("hertz", "mel"), [(0, 0), (700, 781.17), (1000, 1000)])
def test_the_scale_is_htks(hertz, mel):
    assert hertz_to_mel(hertz) == pytest.approx(mel, abs=0.02)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (20.0, 8001.0, "must be in order and between 0 and 8000"),
        (-1.0, 4000.0, "must be in order and between 0 and 8000"),
        (4000.0, 4000.0, "must be in order and between 0 and 8000"),
        (20.0, 400.0, "config.data.max_frequency=400.0 .* too narrow: a mel filter has no freq"),
    ],
)
def test_impossible_bands(low, high, message):
    with pytest.raises(ConfigError, match=message):
        LogMel(min_frequency=low, max_frequency=high)
