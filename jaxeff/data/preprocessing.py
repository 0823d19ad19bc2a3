"""What is done to inputs before a model sees them, as data that can be written beside the model.

A `Preprocessing` is a frozen dataclass of plain values: numbers, words, lists. It needs no data
set, so a model that was saved with it answers raw inputs on a machine that has no data.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxeff.data import counter_rng, threads
from jaxeff.data.views import VIEWS, Permuted, permutation
from jaxeff.errors import DataError, UserError
from jaxeff.files import reading
from jaxeff.hub.model_folder import PREPROCESSING
from jaxeff.registry import Registry

if TYPE_CHECKING:
    from jaxeff.data.views import View

#: Classes of `Preprocessing`.
PREPROCESSINGS = Registry("preprocessing")


class Preprocessing:
    """Maps inputs as they come from outside to the inputs of a model.

    A subclass is a frozen dataclass with ``@PREPROCESSINGS.register(name)``, whose fields JSON can
    hold; what it cannot hold goes into `files`.
    """

    def __call__(self, inputs: Any) -> dict[str, np.ndarray]:
        """Returns a batch: ``inputs`` ``[examples, ...]`` and, of padded ones, their ``mask``.

        Raises:
          DataError: inputs of another form.
        """
        raise NotImplementedError

    def of_steps(self, inputs: Any) -> np.ndarray:
        """Returns single steps of a sequence as a model takes them, as a stream pushes them.

        Args:
          inputs: ``[..., features]``, or symbols ``[...]``.

        Raises:
          DataError: a preprocessing of whole inputs.
        """
        raise DataError(
            f"{type(self).__name__} needs whole inputs, not single steps; call predict instead"
        )

    def fields(self) -> dict[str, Any]:
        """Returns the values that JSON holds, by the names of the fields."""
        fields: dict[str, Any] = dataclasses.asdict(self)  # type: ignore[call-overload]
        return fields

    def files(self) -> dict[str, bytes]:
        """Returns the contents of further files, by name."""
        return {}

    @classmethod
    def of_fields(cls, folder: Path, fields: Mapping[str, Any]) -> Preprocessing:
        """Returns what `fields` and `files` describe; ``folder`` has the files."""
        del folder
        return cls(**fields)


@PREPROCESSINGS.register("none")
@dataclasses.dataclass(frozen=True)
class NoPreprocessing(Preprocessing):
    """Inputs that are the model's already."""

    def __call__(self, inputs: Any) -> dict[str, np.ndarray]:
        """See `Preprocessing`."""
        return {"inputs": np.asarray(inputs)}

    def of_steps(self, inputs: Any) -> np.ndarray:
        """See `Preprocessing.of_steps`."""
        return np.asarray(inputs)


@PREPROCESSINGS.register("images")
@dataclasses.dataclass(frozen=True)
class ImagePreprocessing(Preprocessing):
    """Images of bytes, scaled channel by channel, and read as sequences if there is a view.

    Attributes:
      shape: of an image, (height, width, channels).
      scale: a number for each channel; the model sees ``image * scale + offset``.
      offset: a number for each channel.
      view: name and fields of a view in `jaxeff.data.VIEWS`, or None.
      permutation: step ``t`` of the model's sequence is step ``permutation[t]`` of the view's;
        () leaves their order.
      stream: number of the split whose noise a noisy view draws, see `jaxeff.data.Split`.
    """

    shape: tuple[int, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    view: Mapping[str, Any] | None = None
    permutation: tuple[int, ...] = ()
    stream: int = 0

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        scale: np.ndarray,
        offset: np.ndarray,
        view: View | None,
        stream: int,
    ) -> ImagePreprocessing:
        """Returns the preprocessing of arrays ``scale`` and ``offset`` and of a registered view."""
        spec: dict[str, Any] | None = None
        order: tuple[int, ...] = ()
        if isinstance(view, Permuted):
            spec = {"name": "pixels"}
            order = tuple(permutation(shape[0] * shape[1]).tolist())
        elif view is not None:
            name = next((name for name in VIEWS if VIEWS[name] is type(view)), None)
            if name is None:
                raise DataError(
                    f"view {type(view).__name__} is not registered; register its class with "
                    "@jaxeff.data.VIEWS.register"
                )
            spec = {"name": name, **dataclasses.asdict(view)}  # type: ignore[call-overload]
        factors = tuple(map(float, scale))
        return cls(shape, factors, tuple(map(float, offset)), spec, order, stream)

    def __call__(self, inputs: Any) -> dict[str, np.ndarray]:
        """See `Preprocessing`: uint8 ``[examples, height, width(, channels)]``."""
        images = np.asarray(inputs)
        images = images[..., None] if images.ndim == 3 else images
        if images.dtype != np.uint8 or images.shape[1:] != tuple(self.shape):
            raise DataError(
                f"the model takes images uint8 {('examples', *self.shape)}, not {images.dtype} "
                f"{images.shape}"
            )
        scale, offset = (np.array(values, np.float32) for values in (self.scale, self.offset))
        scaled_images = scaled_pixels(images, scale, offset)
        if self.view is None:
            return {"inputs": scaled_images}
        view: View = VIEWS.build(self.view, "data.view")
        keys = counter_rng.example_keys(0, self.stream, np.arange(len(images)))
        sequences = view(scaled_images, keys)
        if self.permutation:
            sequences = np.take(sequences, np.array(self.permutation), axis=1)
        return {"inputs": sequences}

    def of_steps(self, inputs: Any) -> np.ndarray:
        """See `Preprocessing.of_steps`: values of pixels, in the order of the view."""
        name = None if self.view is None else self.view["name"]
        if name not in ("pixels", "rows"):
            raise DataError(f"images as '{name or 'images'}' have no steps that can be streamed")
        values, channels = np.asarray(inputs, np.float32), self.shape[-1]
        if not values.ndim or values.shape[-1] % channels:
            raise DataError(f"a step has {channels} channels for each pixel, not {values.shape}")
        scale, offset = (np.array(numbers, np.float32) for numbers in (self.scale, self.offset))
        pixels = values.reshape(*values.shape[:-1], -1, channels)
        return scaled_pixels(pixels, scale, offset).reshape(values.shape)


def scaled_pixels(images: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Returns ``images * scale + offset`` in float32; scale and offset are float32 [channels]."""
    # Row by row of pixels: a loop over no more than the channels costs numpy four times as much.
    rows = images.reshape(*images.shape[:-2], -1)
    scales, offsets = (np.tile(vector, images.shape[-2]) for vector in (scale, offset))

    def scaled(pixels: np.ndarray, out: np.ndarray) -> None:
        np.multiply(pixels, scales, out=out, dtype=np.float32)
        if offset.any():
            out += offsets

    return threads.in_blocks(scaled, rows, np.empty(rows.shape, np.float32)).reshape(images.shape)


def contents(preprocessing: Preprocessing) -> dict[str, bytes]:
    """Returns the files, by name, from which `read` makes the preprocessing again.

    Raises:
      DataError: its class is not registered.
    """
    kind = type(preprocessing)
    name = next((name for name in PREPROCESSINGS if PREPROCESSINGS[name] is kind), None)
    if name is None:
        raise DataError(
            f"preprocessing {kind.__name__} is not registered; register its class with "
            "@jaxeff.data.PREPROCESSINGS.register"
        )
    fields = {"name": name, **preprocessing.fields()}
    text = json.dumps(fields, ensure_ascii=False) + "\n"
    return {PREPROCESSING: text.encode(), **preprocessing.files()}


def read(folder: Path) -> Preprocessing:
    """Returns the preprocessing in a folder.

    Raises:
      DataError: its files are missing or damaged, or its class is not registered.
    """
    path = folder / PREPROCESSING
    text = reading.read_text(path, limit=reading.MAX_JSON_BYTES)
    try:
        fields = json.loads(text)
        kind: Any = PREPROCESSINGS[fields.pop("name")]
        steps: Preprocessing = kind.of_fields(folder, fields)
        return steps
    except UserError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # whatever a damaged file makes of it
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: is no preprocessing ({reason})") from None
