"""The registry of models and what a model is.

A model is a Flax module called with ``(inputs, train=...)``; it returns outputs that an objective
understands. Its factory gets the data set's facts (``num_outputs``) and the config's fields.
"""

from __future__ import annotations

from jaxeff.registry import Registry

MODELS = Registry("model")
