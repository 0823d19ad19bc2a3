"""Sizes and seeds that a run cannot mean, or means in full."""

import jax
import numpy as np
import pytest

from jaxeff.errors import ConfigError
from jaxeff.train import base_config, experiment


def test_a_batch_larger_than_the_training_part_is_refused():
    config = base_config()
    config.name = "sizes"
    config.data.name = "adding"
    config.data.update({"length": 4, "num_train": 7})
    config.model = {"name": "sequence", "cell": {"name": "gru", "features": 4}}
    config.train.batch_size = 8
    with pytest.raises(ConfigError, match=r"batch_size=8 is more than the 7 training examples of"):
        experiment.build(config)


def test_keys_of_seeds_above_32_bits_are_their_own():
    seeds = [0, 1, 2**32, 2**32 + 1, 2**33, 2**64]
    found = [tuple(np.asarray(jax.random.key_data(experiment.key_of(seed)))) for seed in seeds]
    assert len(set(found)) == len(seeds)
    assert found[:2] == [tuple(np.asarray(jax.random.key_data(jax.random.key(s)))) for s in (0, 1)]
