"""Operations on arrays: convolutions, interpolation, tiles; `platform` selects the form."""

from jaxeff.ops.platforms import forward_mode, platform

__all__ = ["forward_mode", "platform"]
