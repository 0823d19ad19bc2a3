"""MNIST and Fashion-MNIST from IDX files, or from a copy that TFDS prepared.

References:
  Y. LeCun, C. Cortes, C. J. C. Burges. The MNIST database of handwritten digits. 1998.
  H. Xiao, K. Rasul, R. Vollgraf. Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
  Learning Algorithms. 2017. arXiv:1708.07747.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.data import prepared
from jaxeff.data.base import DATASETS, Dataset, Request
from jaxeff.data.images import ImageArrays, image_dataset
from jaxeff.errors import DataError
from jaxeff.files import paths
from jaxeff.files.reading import memory_bytes

#: Where Debian's package dataset-fashion-mnist puts the files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes.

    Args:
      path: the file; a name that ends in ``.gz`` is decompressed.
      dimensions: expected number of dimensions.

    Returns:
      a uint8 array.

    Raises:
      DataError: the file cannot be read, is not IDX of bytes, or is too short or too long.
    """
    header = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(path, file, dimensions, header)
    except EOFError:
        raise DataError(f"{path}: the compressed file is truncated; fetch it again") from None
    except (OSError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _read(path: Path, file: Any, dimensions: int, header: int) -> np.ndarray:
    start = file.read(header)
    if start[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(
            f"{path}: bad magic number {start[:4].hex() or 'of an empty file'}, expected"
            f" 000008{dimensions:02x} (IDX, unsigned bytes, {dimensions} dimensions)"
        )
    if len(start) < header:
        raise DataError(f"{path}: truncated in its header of {header} bytes")
    shape = tuple(int(n) for n in np.frombuffer(start, ">u4", dimensions, 4))
    expected, shape_text = math.prod(shape), "x".join(map(str, shape))
    # Deflate makes nothing smaller than by a factor of 1032.
    size = path.stat().st_size
    most = 1032 * size if path.suffix == ".gz" else size - header
    if expected > most:
        raise DataError(f"{path}: truncated, {most} bytes of data for {shape_text} = {expected}")
    if expected > memory_bytes():
        raise DataError(
            f"{path}: {shape_text} = {expected} bytes are more than the machine's memory"
        )
    content = file.read(expected + 1)
    if len(content) != expected:
        fault = "truncated" if len(content) < expected else "too long"
        raise DataError(
            f"{path}: {fault}, {len(content)} bytes of data for {shape_text} = {expected}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def find_idx(folders: list[Path]) -> dict[str, Path] | None:
    """Returns the four files of the first folder that has any of them, or None.

    Raises:
      DataError: a folder has some of the files but not all.
    """
    for folder in folders:
        files = {
            part: path
            for part, stem in FILES.items()
            # The last that is there is taken; some copies have a dot before "idx".
            for name in (stem.replace("-idx", ".idx"), stem)
            for path in (folder / f"{name}.gz", folder / name)
            if path.is_file()
        }
        if files and len(files) < len(FILES):
            missing = next(stem for part, stem in FILES.items() if part not in files)
            raise DataError(f"{folder}: has IDX files but neither {missing} nor {missing}.gz")
        if files:
            return files
    return None


def read_parts(files: dict[str, Path]) -> ImageArrays:
    """Reads the four IDX files of a data set.

    Raises:
      DataError: a file is damaged, or images and labels differ in number, or sizes differ.
    """
    parts = {part: read_idx(path, 3 if "images" in part else 1) for part, path in files.items()}
    for part in ("train", "test"):
        images, labels = len(parts[f"{part}_images"]), len(parts[f"{part}_labels"])
        if images != labels:
            raise DataError(
                f"{files[f'{part}_labels']}: {labels} labels for the {images} images of"
                f" {files[f'{part}_images'].name}"
            )
    train, test = parts["train_images"], parts["test_images"]
    if train.shape[1:] != test.shape[1:]:
        raise DataError(f"{files['test_images']}: images of another size than the train images")
    folder = files["train_images"].parent
    return ImageArrays(
        train[..., None], parts["train_labels"], test[..., None], parts["test_labels"], str(folder)
    )


@DATASETS.register("mnist")
def mnist(request: Request, *, normalize: str = "unit") -> Dataset:
    """MNIST: 28x28 grey digits, 60,000 train and 10,000 test.

    Raises:
      DataError: no copy is found, or it is damaged.
    """
    files = find_idx(paths.folders(request.dir, "mnist"))
    place = paths.data_dir(request.dir) / "mnist"
    advice = f"put the IDX files ({FILES['train_images']}.gz, ...) into {place}"
    arrays = read_parts(files) if files else prepared.images("mnist", request, advice)
    names = tuple("0123456789")
    return image_dataset(
        "mnist", arrays, request, num_classes=10, normalize=normalize, class_names=names
    )


@DATASETS.register("fashion_mnist")
def fashion_mnist(request: Request, *, normalize: str = "unit") -> Dataset:
    """Fashion-MNIST: 28x28 grey clothes, 60,000 train and 10,000 test.

    Raises:
      DataError: no copy is found, or it is damaged.
    """
    folders = paths.folders(request.dir, "fashion_mnist")
    files = find_idx(folders if request.dir else [*folders, DEBIAN_FASHION_MNIST])
    advice = (
        "on Debian run `apt-get install dataset-fashion-mnist` and set"
        f" --config.data.dir={DEBIAN_FASHION_MNIST}"
    )
    arrays = read_parts(files) if files else prepared.images("fashion_mnist", request, advice)
    names = FASHION_CLASSES
    return image_dataset(
        "fashion_mnist", arrays, request, num_classes=10, normalize=normalize, class_names=names
    )
