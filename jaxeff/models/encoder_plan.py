"""Plans of shortened encoders: the depth, and where sequences are shortened."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from jaxeff.arguments import require_whole
from jaxeff.errors import ConfigError
from jaxeff.layers.bottleneck import check, shortened


class Sizes(Protocol):
    """Sizes that determine an encoder's multiply-adds, see `jaxeff.models.encoder.EncoderShape`."""

    @property
    def width(self) -> int:
        """Features of a token."""

    @property
    def hidden(self) -> int:
        """Inner width of the feed-forward part."""


@dataclasses.dataclass(frozen=True)
class EncoderPlan:
    """Depth of an encoder and the layers after which sequences are shortened.

    Attributes:
      depth: number of layers used, from the first.
      cuts: pairs (l, k): after layer l, counted from 1, the length is divided by k.
      keep_first: number of tokens at the start that cuts leave unchanged.
      kind: of the bottlenecks, see `jaxeff.layers.bottleneck.Bottleneck`.
      pooled_queries: whether the layer after a cut still has keys and values of the longer
        sequence, as in Dai et al., "Funnel-Transformer", 2020.
    """

    depth: int
    cuts: tuple[tuple[int, int], ...] = ()
    keep_first: int = 0
    kind: str = "linear"
    pooled_queries: bool = False

    def __post_init__(self) -> None:
        require_whole("depth", self.depth, 1)
        require_whole("keep_first", self.keep_first, 0)
        places = [place for place, _ in self.cuts]
        if places != sorted(set(places)) or any(not 0 < p < self.depth for p in places):
            raise ConfigError(
                f"cuts must be after layers 1 to {self.depth - 1}, each once and in order, not "
                f"after {places}"
            )
        for _, factor in self.cuts:
            check(self.kind, factor)

    def lengths(self, length: int) -> list[tuple[int, int]]:
        """Returns the numbers of queries and of keys of every layer, for ``length`` tokens."""
        lengths, factors = [], dict(self.cuts)
        for layer in range(self.depth):
            before = length
            length = shortened(length, factors.get(layer, 1), self.keep_first)
            lengths.append((length, before if self.pooled_queries else length))
        return lengths

    def macs(self, shape: Sizes, length: int) -> int:
        """Returns the multiply-adds of the layers' matrix products, without the bottlenecks."""
        d = shape.width
        return sum(
            2 * q * d * d + 2 * k * d * d + 2 * q * k * d + 2 * q * d * shape.hidden
            for q, k in self.lengths(length)
        )
