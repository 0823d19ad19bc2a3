"""CIFAR-10 and CIFAR-100 from the binary version, or from a copy that TFDS prepared.

References:
  A. Krizhevsky. Learning Multiple Layers of Features from Tiny Images. Technical report, University
  of Toronto, 2009.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxeff.data import prepared
from jaxeff.data.base import DATASETS, Dataset, Request
from jaxeff.data.images import ImageArrays, image_dataset
from jaxeff.errors import DataError
from jaxeff.files import paths

#: Examples in each file of the two binary versions.
RECORDS_CIFAR10 = 10_000
RECORDS_CIFAR100 = {"train.bin": 50_000, "test.bin": 10_000}

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_IMAGE_BYTES = 3 * 32 * 32


def read_binary(path: Path, label_bytes: int, records: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads one file of the binary version.

    A record is ``label_bytes`` bytes, of which the last is the label used (CIFAR-100 has the coarse
    label first), then 3072 bytes, channel by channel in raster order.

    Returns:
      images uint8 [records, 32, 32, 3] and labels uint8 [records].

    Raises:
      DataError: the file cannot be read or has another size.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    width = label_bytes + _IMAGE_BYTES
    if content.size != records * width:
        fault = "truncated" if content.size < records * width else "too long"
        raise DataError(
            f"{path}: {fault}, {content.size} bytes for {records} records of {width} bytes"
        )
    rows = content.reshape(records, width)
    images = rows[:, label_bytes:].reshape(records, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, label_bytes - 1].copy()


def read_folder(
    folder: Path, train: dict[str, int], test: dict[str, int], label_bytes: int
) -> ImageArrays:
    """Reads the files of a folder; ``train`` and ``test`` map file names to numbers of records.

    Raises:
      DataError: a file is missing or damaged.
    """

    def part(files: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
        read = [read_binary(folder / name, label_bytes, count) for name, count in files.items()]
        return np.concatenate([x for x, _ in read]), np.concatenate([y for _, y in read])

    return ImageArrays(*part(train), *part(test), str(folder))


def _first_with(name: str, folders: list[Path]) -> Path | None:
    return next((folder for folder in folders if (folder / name).is_file()), None)


@DATASETS.register("cifar10")
def cifar10(request: Request, *, normalize: str = "unit") -> Dataset:
    """CIFAR-10: 32x32 colour images of 10 classes, 50,000 train and 10,000 test.

    Raises:
      DataError: no copy is found, or it is damaged.
    """
    subfolder = "cifar-10-batches-bin"
    train = {f"data_batch_{i}.bin": RECORDS_CIFAR10 for i in range(1, 6)}
    folder = _first_with("data_batch_1.bin", paths.folders(request.dir, subfolder))
    if folder:
        arrays = read_folder(folder, train, {"test_batch.bin": RECORDS_CIFAR10}, 1)
    else:
        arrays = prepared.images("cifar10", request, _advice(request, subfolder))
    names = CIFAR10_CLASSES
    return image_dataset(
        "cifar10", arrays, request, num_classes=10, normalize=normalize, class_names=names
    )


@DATASETS.register("cifar100")
def cifar100(request: Request, *, normalize: str = "unit") -> Dataset:
    """CIFAR-100: 32x32 colour images of 100 fine classes, 50,000 train and 10,000 test.

    Raises:
      DataError: no copy is found, or it is damaged.
    """
    subfolder = "cifar-100-binary"
    train, test = ({name: RECORDS_CIFAR100[name]} for name in ("train.bin", "test.bin"))
    folder = _first_with("train.bin", paths.folders(request.dir, subfolder))
    if folder:
        arrays = read_folder(folder, train, test, 2)
    else:
        arrays = prepared.images("cifar100", request, _advice(request, subfolder))
    return image_dataset("cifar100", arrays, request, num_classes=100, normalize=normalize)


def _advice(request: Request, subfolder: str) -> str:
    place = paths.data_dir(request.dir) / subfolder
    return f"unpack the binary version ({subfolder}) into {place}"
