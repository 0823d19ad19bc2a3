import jax
import numpy as np
import pytest

from jaxeff.errors import UserError
from jaxeff.exporting import FORMATS, Exportable, Options


@pytest.fixture
def exportable():
    """Returns a model's variables with random examples of a shape."""

    def of(model, *shape, **fields):
        inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        return Exportable(jax.jit(model.init)(jax.random.key(0), inputs[:1]), inputs, **fields)

    return of


@pytest.fixture
def options():
    """Returns options of an export to one format, and skips where a package is missing."""

    def of(name, **fields):
        try:
            FORMATS.build({"name": name}).require()
        except UserError as error:
            pytest.skip(str(error))
        return Options(**{"to": (name,), "rounds": 0, "batch_sizes": (1,), **fields})

    return of
