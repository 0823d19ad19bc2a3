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

import numpy as np

from jaxeff.data import paths, prepared
from jaxeff.data.base import DATASETS, Dataset, Request
from jaxeff.data.images import ImageArrays, image_dataset
from jaxeff.errors import DataError

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
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except EOFError:
        raise DataError(f"{path}: the compressed file is truncated; fetch it again") from None
    except (OSError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(
            f"{path}: bad magic number {content[:4].hex() or 'of an empty file'}, expected"
            f" 000008{dimensions:02x} (IDX, unsigned bytes, {dimensions} dimensions)"
        )
    if len(content) < header:
        raise DataError(f"{path}: truncated in its header of {header} bytes")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dimensions, 4))
    expected, found = math.prod(shape), len(content) - header
    if found != expected:
        fault = "truncated" if found < expected else "too long"
        shown = "x".join(map(str, shape))
        raise DataError(f"{path}: {fault}, {found} bytes of data for {shown} = {expected}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def find_idx(folders: list[Path]) -> dict[str, Path] | None:
    """Returns the four files of the first folder that has any of them, or None.

    Raises:
      DataError: a folder has some of the files but not all.
    """
    for folder in folders:
        found = {
            part: path
            for part, stem in FILES.items()
            for path in (folder / f"{stem}.gz", folder / stem)
            if path.is_file()
        }
        if found and len(found) < len(FILES):
            missing = next(stem for part, stem in FILES.items() if part not in found)
            raise DataError(f"{folder}: has IDX files but neither {missing} nor {missing}.gz")
        if found:
            return found
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
