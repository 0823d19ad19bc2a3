"""Models composed from the package's layers."""

from jaxeff.models import densenet, encoder, mobilenet, resnet, xception
from jaxeff.models.base import MODELS
from jaxeff.models.convnet import ConvNet
from jaxeff.models.designs import DESIGNS
from jaxeff.models.sequence import SequenceModel

__all__ = [
    "DESIGNS",
    "MODELS",
    "ConvNet",
    "SequenceModel",
    "densenet",
    "encoder",
    "mobilenet",
    "resnet",
    "xception",
]
