"""Operations on arrays: convolutions, interpolation, tiles; `platform` names what runs them."""

from jaxeff.ops.platforms import forward_mode, platform

__all__ = ["forward_mode", "platform"]
