import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture
def recorded(x64):
    """Logits [8, 6], labels and weights of numbers that were recorded with the authors' code."""
    i, k = np.arange(8)[:, None], np.arange(6)
    logits = 2 * np.sin(0.7 * i + 1.3 * k) + 0.1 * k
    labels = np.array([1, 5, 4, 1, 1, 3, 0, 2])
    weight = 2.0 - np.array([0, 0, 1, 1, 1, 0, 0, 0])
    return jnp.asarray(logits), labels, jnp.asarray(weight)
