"""Data sets that TensorFlow Datasets prepared as array_record files, read without TensorFlow."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.data.base import Request
from jaxeff.data.images import ImageArrays
from jaxeff.errors import DataError
from jaxeff.files import paths


def find(name: str, root: Path) -> Path | None:
    """Returns the folder of the newest prepared version of ``name`` under ``root``, or None."""
    candidates = [path.parent for path in (root / name).glob("*/dataset_info.json")]
    # A folder being prepared, "1.0.0.incompleteX", is not a version.
    versions = [path for path in candidates if re.fullmatch(r"\d+(\.\d+)*", path.name)]
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


@contextlib.contextmanager
def refusing(folder: Path) -> Iterator[None]:
    """Raises `DataError` for whatever a damaged copy makes its reader raise."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{folder}: cannot be read, remove it and prepare it again ({reason})"
        ) from None


def require_array_record(folder: Path, file_format: str) -> None:
    """Raises `DataError` for a copy in a format that needs TensorFlow."""
    if file_format != "array_record":
        raise DataError(
            f"{folder}: prepared as {file_format}, which needs TensorFlow to read; prepare it with"
            " file_format='array_record'"
        )


def builder_of(folder: Path) -> Any:
    """Returns the builder of a prepared copy.

    Raises:
      DataError: it has a format that needs TensorFlow.
      Exception: whatever TFDS raises for a damaged copy.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    require_array_record(folder, builder.info.file_format.value)
    return builder


def read(folder: Path) -> ImageArrays:
    """Decodes the train and test parts of a prepared image data set into memory.

    Raises:
      DataError: the copy is damaged, or has a format that needs TensorFlow.
    """
    with refusing(folder):
        builder = builder_of(folder)
        train, test = _decode(builder, "train"), _decode(builder, "test")
    return ImageArrays(*train, *test, origin=f"TFDS {builder.info.full_name}")


def _decode(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds

    encoded = isinstance(builder.info.features["image"], tfds.features.Image)
    # TFDS decodes images one at a time through its feature code; Pillow alone takes half as long.
    decoders = {"image": tfds.decode.SkipDecoding()} if encoded else None
    source = builder.as_data_source(split=split, decoders=decoders)
    examples = source.__getitems__(range(len(source)))
    decode = _decode_image if encoded else np.asarray
    images = np.stack([decode(example["image"]) for example in examples]).astype(np.uint8)
    labels = np.array([example["label"] for example in examples], np.int64)
    return images.reshape(len(labels), *builder.info.features["image"].shape), labels


def _decode_image(content: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)))


def prepare(builder_class: Any, root: Path) -> Path:
    """Prepares a builder of our own under ``root`` if it is not there, and returns its folder.

    The files are written to a private folder and moved in one step, so that processes that prepare
    at the same time cannot see or break each other's half-written files.

    Raises:
      DataError: ``root`` cannot be written.
    """
    folder: Path = root / builder_class.name / str(builder_class.VERSION)
    if (folder / "dataset_info.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _private_folder(root) as private:
            with _quiet():
                builder = builder_class(data_dir=private, file_format="array_record")
                builder.download_and_prepare()
            _move(Path(builder.data_dir), folder)
    except OSError as error:
        raise DataError(
            f"{root}: cannot prepare {builder_class.name} there ({error.strerror or error}); set"
            " --config.data.dir or JAXEFF_DATA_DIR to a folder that can be written"
        ) from None
    return folder


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        # Another process was first: a rename onto a folder that has files is refused.
        if not (target / "dataset_info.json").is_file():
            raise


@contextlib.contextmanager
def _private_folder(root: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=".preparing-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops TFDS's progress bars and notices; errors are raised, not printed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def images(name: str, request: Request, advice: str) -> ImageArrays:
    """Reads a stock image data set of TFDS; for arguments and errors see `locate` and `read`."""
    return read(locate(name, request, advice))


def locate(name: str, request: Request, advice: str) -> Path:
    """Returns the folder of a stock data set, prepared before or, if allowed, downloaded now.

    Args:
      name: TFDS's name of the data set, with its config if it has some: ``glue/sst2``.
      request: where to look, and whether to download.
      advice: how else to get it, for the message.

    Raises:
      DataError: it is not there and may not be downloaded.
    """
    root = paths.data_dir(request.dir)
    folder = find(name, root)
    if folder is None and request.download:
        folder = download(name, root, advice)
    if folder is None:
        raise DataError(
            f"{name} is not in {root}: {advice}, or install TensorFlow with"
            " `pip install 'jaxeff[tf]'` and set --config.data.download=True"
        )
    return folder


def download(name: str, root: Path, advice: str) -> Path:
    """Downloads and prepares a stock data set of TFDS; returns its folder.

    Raises:
      DataError: TensorFlow is missing, or the download fails.
    """
    # Without TensorFlow the stock builders fail only after the download.
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            f"{name}: --config.data.download=True needs TensorFlow; install it with"
            f" `pip install 'jaxeff[tf]'`, or {advice}"
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # network, disk and checksum errors of any library
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{name}: the download into {root} failed ({reason})") from None
    return Path(builder.data_dir)
