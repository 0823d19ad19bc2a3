"""The names of `jaxeff.config`, where configs written before it look for them."""

from jaxeff.config import base_config, split_argument, whole_number

__all__ = ["base_config", "split_argument", "whole_number"]
