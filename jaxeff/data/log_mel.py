"""Log-mel features of speech in numpy.

References:
  S. B. Davis, P. Mermelstein. Comparison of Parametric Representations for Monosyllabic Word
  Recognition in Continuously Spoken Sentences. IEEE Transactions on Acoustics, Speech and Signal
  Processing 28(4), 1980.
  S. Young et al. The HTK Book. Cambridge University, 2006 (section 5.4: the mel scale).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxeff.data import threads
from jaxeff.errors import ConfigError

# Clips that are transformed at a time, so that their windows stay in cache.
_CLIPS = 8
# Multiply-adds of a product for which OpenBLAS wakes no threads of its own: these work already.
_SMALL_PRODUCT = 2**18


def hertz_to_mel(frequency: np.ndarray | float) -> np.ndarray:
    """Returns HTK's mel scale, ``2595 log10(1 + frequency / 700)``."""
    return 2595 * np.log10(1 + np.asarray(frequency, np.float64) / 700)


@dataclasses.dataclass(frozen=True)
class LogMel:
    """Log energies of mel filters over short windows.

    A frame is ``window`` samples under a periodic Hann window, filled with zeros to ``fft_size``;
    its power spectrum is ``|DFT|**2``. Filter ``i`` is a triangle on the mel scale between the
    edges ``i`` and ``i + 2`` of ``num_filters + 2`` equally spaced ones, with peak 1. The features
    are ``log(energy + floor)``.

    Attributes:
      sample_rate: samples a second.
      window: samples in a frame.
      stride: samples from one frame to the next.
      fft_size: length of the Fourier transform.
      num_filters: number of mel filters.
      min_frequency: lower edge of the first filter, hertz.
      max_frequency: upper edge of the last filter, hertz; at most half the sample rate.
      floor: added to the energies, so that silence has a logarithm.
    """

    sample_rate: int = 16_000
    window: int = 400
    stride: int = 160
    fft_size: int = 512
    num_filters: int = 32
    min_frequency: float = 20.0
    max_frequency: float = 4000.0
    floor: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 <= self.min_frequency < self.max_frequency <= self.sample_rate / 2:
            raise ConfigError(
                f"config.data.min_frequency={self.min_frequency} and"
                f" max_frequency={self.max_frequency} must be in order and between 0 and"
                f" {self.sample_rate / 2}"
            )
        if not self.filters.any(0).all():
            raise ConfigError(
                f"config.data.max_frequency={self.max_frequency} with min_frequency="
                f"{self.min_frequency} is too narrow: a mel filter has no frequency of the"
                f" {self.fft_size}-point transform"
            )

    def num_frames(self, samples: int) -> int:
        """Returns the number of frames of a clip, the last one filled with zeros."""
        return 1 + max(0, -(-(samples - self.window) // self.stride))

    @functools.cached_property
    def hann(self) -> np.ndarray:
        """The periodic Hann window, float32 [window]."""
        angle = 2 * np.pi * np.arange(self.window) / self.window
        return (0.5 - 0.5 * np.cos(angle)).astype(np.float32)

    @functools.cached_property
    def filters(self) -> np.ndarray:
        """The weights of the filters, float32 [fft_size // 2 + 1, num_filters]."""
        frequencies = np.arange(self.fft_size // 2 + 1) * self.sample_rate / self.fft_size
        low, high = hertz_to_mel(self.min_frequency), hertz_to_mel(self.max_frequency)
        edges = np.linspace(low, high, self.num_filters + 2)
        mel, step = hertz_to_mel(frequencies)[:, None], edges[1] - edges[0]
        weights: np.ndarray = np.maximum(0, 1 - abs(mel - edges[1:-1]) / step)
        return weights.astype(np.float32)

    def energies(self, audio: np.ndarray) -> np.ndarray:
        """Returns the energies of the filters, float32 [batch, frames, num_filters].

        Args:
          audio: float32 [batch, samples], in [-1, 1].
        """
        import scipy.fft  # by vector instructions, which numpy's does without

        frames = self.num_frames(audio.shape[1])
        padding = (frames - 1) * self.stride + self.window - audio.shape[1]
        used = np.flatnonzero(self.filters.any(1))
        heard = slice(used[0], used[-1] + 1)  # frequencies; the filters are 0 at all others

        filters = self.filters[heard]
        at_once = max(1, _SMALL_PRODUCT // filters.size)

        def transform(audio: np.ndarray, energies: np.ndarray) -> None:
            padded = np.pad(np.asarray(audio, np.float32), ((0, 0), (0, padding)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, self.window, axis=1)
            spectrum = scipy.fft.rfft(windows[:, :: self.stride] * self.hann, self.fft_size)
            spectrum = spectrum[..., heard].reshape(-1, len(filters))
            power = spectrum.real**2 + spectrum.imag**2
            rows = energies.reshape(-1, self.num_filters)
            for start in range(0, len(rows), at_once):
                part = slice(start, start + at_once)
                np.matmul(power[part], filters, out=rows[part])

        energies = np.empty((len(audio), frames, self.num_filters), np.float32)
        return threads.in_blocks(transform, audio, energies, _CLIPS)

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Returns the features of ``audio``, of the type and shape of its ``energies``."""
        return np.log(self.energies(audio) + np.float32(self.floor))
