"""Handwritten digits that come with scikit-learn: the data set that is always there.

References:
  E. Alpaydin, C. Kaynak. Optical Recognition of Handwritten Digits. UCI Machine Learning
  Repository, 1998.
"""

from __future__ import annotations

from jaxeff.data import paths, prepared
from jaxeff.data.base import DATASETS, Dataset, Request
from jaxeff.data.images import image_dataset


@DATASETS.register("digits")
def digits(request: Request, *, normalize: str = "unit") -> Dataset:
    """Digits: 8x8 grey images of 10 classes, 1,500 train and 297 test in the order of the file.

    Prepared once by TFDS under the data directory, then decoded from there.

    Raises:
      DataError: the data directory cannot be written, or its copy is damaged.
    """
    from jaxeff.data.sk_digits import SkDigits

    arrays = prepared.read(prepared.prepare(SkDigits, paths.data_dir(request.dir)))
    return image_dataset(
        "digits",
        arrays,
        request,
        num_classes=10,
        normalize=normalize,
        maximum=16,  # scikit-learn's intensities are 0..16
        class_names=tuple("0123456789"),
    )
