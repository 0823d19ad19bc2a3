"""Models composed from the package's layers."""

from jaxeff.models import (
    autoencoder,
    densenet,
    early_exit,
    encoder,
    folding,
    hybrid,
    mlp,
    mobilenet,
    projected,
    resnet,
    selecting,
    staged,
    text,
    xception,
)
from jaxeff.models.base import MODELS
from jaxeff.models.convnet import ConvNet
from jaxeff.models.designs import DESIGNS
from jaxeff.models.factory import create_model, list_models
from jaxeff.models.hybrid import HybridModel, HybridNetwork
from jaxeff.models.sequence import SequenceModel

__all__ = [
    "DESIGNS",
    "MODELS",
    "ConvNet",
    "HybridModel",
    "HybridNetwork",
    "SequenceModel",
    "autoencoder",
    "create_model",
    "densenet",
    "encoder",
    "folding",
    "mlp",
    "staged",
    "text",
    "hybrid",
    "early_exit",
    "mobilenet",
    "list_models",
    "projected",
    "resnet",
    "selecting",
    "xception",
]
