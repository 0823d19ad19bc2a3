"""Where `jaxeff.train.run` was in version 0.1."""

from jaxeff.train.launch import run

__all__ = ["run"]
