"""Names of `jaxeff.config`, for older configs that import them from here."""

from jaxeff.config import base_config, split_argument, whole_number

__all__ = ["base_config", "split_argument", "whole_number"]
