"""Location of `jaxeff.train.run` in version 0.1, kept for imports."""

from jaxeff.train.launch import run

__all__ = ["run"]
