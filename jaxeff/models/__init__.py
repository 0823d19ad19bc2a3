"""Models composed from the package's layers."""

from jaxeff.models.base import MODELS
from jaxeff.models.sequence import SequenceModel

__all__ = ["MODELS", "SequenceModel"]
