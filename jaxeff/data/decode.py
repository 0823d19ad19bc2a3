"""Image files of any kind as 8-bit colour: depth, orientation and transparency are heeded.

- 16-bit grey becomes the 8-bit picture of the same shares of white. Integers of 32 bits and floats
  have no white of their own: it is 1 (floats), 255 or 65535, the smallest that all pixels are
  within.
- The picture is turned as its EXIF orientation says.
- What is transparent shows black.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxeff.errors import DataError

# Only formats that are decoded in this process: PostScript, for one, would start an interpreter.
_FORMATS = (
    *("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF"),
    *("MPO", "ICO", "PCX"),
)
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # orientations that exchange width and height


@functools.cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def resized(path: str, size: int, box_of: Callable[[int, int], Any]) -> np.ndarray:
    """Returns a part of an image, resized, uint8 ``[size, size, 3]``.

    Args:
      path: the file.
      size: side of the result.
      box_of: maps width and height of the upright image to left, top, right and bottom of the part.

    Raises:
      DataError: the file is no image, damaged, or too large to be decoded.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes that are still decoded
            image = Image.open(path, formats=_formats())
        with image:
            if image.format == "TIFF":
                image.load()  # turns the picture upright, and takes the orientation away
            orientation = _orientation(image)
            whole = image.size[::-1] if orientation in _TURNED else image.size
            box = np.asarray(box_of(*whole))
            share = min(box[2] - box[0], box[3] - box[1]) / size
            # A JPEG can be decoded at an eighth, quarter or half of its size at once.
            if share > 1:
                image.draft("RGB", (int(image.size[0] / share), int(image.size[1] / share)))
            pixels = _colours(image)
            pixels = _upright(pixels, orientation)
            scale = np.tile(np.divide(pixels.size, whole), 2)
            pixels = pixels.resize(
                (size, size), Image.Resampling.BICUBIC, tuple(box * scale), reducing_gap=2.0
            )
            return np.asarray(pixels)
    except Exception as error:  # whatever a damaged file makes Pillow's decoders raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: cannot be read as an image ({reason}); remove it") from None


def _orientation(image: Any) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata are no reason to refuse the picture
        return 1


def _upright(image: Any, orientation: int) -> Any:
    from PIL import Image

    turns = Image.Transpose
    turn = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)


def _colours(image: Any) -> Any:
    """Returns the image in 8-bit red, green and blue."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_bytes(np.asarray(image), _white(image))).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _white(image: Any) -> float:
    """Returns the value of white in an image of integers or floats."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return 65535.0
    low, high = image.getextrema()
    whites = (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0, 65535.0)
    # Written so that NaN is refused too.
    if not (low >= 0 and high <= whites[-1]) or not np.isfinite(np.asarray(image)).all():
        raise ValueError(
            f"its values, {low:g} to {high:g}, are no shares of white; scale them to 0 to 255"
        )
    return next(white for white in whites if high <= white)


def _bytes(values: np.ndarray, white: float) -> np.ndarray:
    return np.round(values.astype(np.float64) * (255 / white)).astype(np.uint8)
