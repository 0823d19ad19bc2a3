"""Data sets, views of images as sequences, and the batch pipeline.

``load`` is the one entrance: it builds the data set that a config section names and returns its
train, validation and test splits, which ``make_train_iterator`` and ``eval_batches`` turn into
batches. Nothing here starts a JAX device, and TensorFlow Datasets or scikit-learn are imported only
when a data set needs them.
"""

from jaxeff.data import (
    cifar,
    digits,
    idx,
    image_folder,
    labelled_texts,
    mnist_5k,
    posed,
    prepared_texts,
    series,
    snippets,
    speech,
    synthetic,
    text,
    voxels,
)
from jaxeff.data.arrays import from_arrays
from jaxeff.data.base import DATASETS, Dataset, Request, Split
from jaxeff.data.loading import load
from jaxeff.data.pipeline import eval_batches, make_train_iterator, padded_size
from jaxeff.data.preprocessing import PREPROCESSINGS, Preprocessing
from jaxeff.data.views import VIEWS

__all__ = [
    "DATASETS",
    "PREPROCESSINGS",
    "VIEWS",
    "Dataset",
    "Preprocessing",
    "Request",
    "Split",
    "cifar",
    "digits",
    "eval_batches",
    "from_arrays",
    "idx",
    "image_folder",
    "labelled_texts",
    "load",
    "make_train_iterator",
    "mnist_5k",
    "padded_size",
    "posed",
    "prepared_texts",
    "series",
    "snippets",
    "speech",
    "synthetic",
    "text",
    "voxels",
]
