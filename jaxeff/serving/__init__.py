"""Trained models as folders that answer raw inputs."""

from jaxeff.serving.text import Prediction, TextModel

__all__ = ["Prediction", "TextModel"]
