"""jaxeff: efficient neural architectures and their training algorithms for JAX."""

from jaxeff.version import __version__

__all__ = ["__version__"]
