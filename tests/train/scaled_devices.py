"""Trains on 1, 2, 4 and 8 forced CPU devices, whole and in parts; writes one JSON file.

A program of its own, because the number of devices is fixed when JAX starts.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from jaxeff import data
from jaxeff.train import DeviceMap, base_config, build

COUNTS, PARTS = (1, 2, 4, 8), (1, 2)
STEPS, PER_DEVICE, RATE = 6, 8, 0.1


def config_for(algorithm, batch_size, rate=RATE):
    config = base_config()
    config.data.update({"name": "digits", "view": "rows"})
    config.model = {"name": "sequence", "cell": {"name": "lstm", "features": 8}, "dropout": 0.2}
    config.algorithm = algorithm
    config.optim.update({"name": "sgd", "schedule_name": "constant", "learning_rate": rate})
    config.optim.clip_norm = 0.0
    config.train.update({"batch_size": batch_size, "num_steps": STEPS})
    return config


def devices(count):
    return DeviceMap("shard_map", jax.devices()[:count])


def trained(config, count, batches):
    """Parameters before and after the batches, as one vector each."""
    experiment = build(config, devices=devices(count))
    step = experiment.devices.map(experiment.algorithm.update)
    state = experiment.devices.replicate(experiment.init_state())
    start = vector(state.params)
    for batch in batches:
        state, _ = step(state, experiment.devices.shard(batch))
    return start, vector(state.params)


def vector(params):
    leaves = jax.tree.leaves(jax.device_get(params))
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in leaves])


def streamed(config, number):
    split = build(config, devices=devices(1)).dataset.splits["train"]
    stream = data.make_train_iterator(split, batch_size=config.train.batch_size, seed=0, prefetch=0)
    return [next(stream) for _ in range(number)]


def by_devices(algorithm):
    """Says how far every number of devices and of parts is from one device and the whole batch."""
    batches = streamed(config_for(algorithm, 64), STEPS)
    start, expected = trained(config_for(algorithm, 64), 1, batches)
    found = {"moved": float(np.abs(expected - start).max())}
    for count in COUNTS:
        for parts in PARTS:
            config = config_for({**algorithm, "accumulate": parts}, 64)
            _, end = trained(config, count, batches)
            found[f"{count} devices, {parts} parts"] = float(np.abs(end - expected).max())
    return found


def by_rate():
    """Says how far n devices at n times the rate are from the n updates of one device, added up."""
    found = {}
    for count in COUNTS:
        scaled = config_for({"name": "bptt"}, PER_DEVICE * count, RATE * count)
        scaled.model.dropout = 0.0  # masks belong to the rows of a whole batch
        (batch,) = streamed(scaled, 1)
        start, end = trained(scaled, count, [batch])
        one = config_for({"name": "bptt"}, PER_DEVICE)
        one.model.dropout = 0.0
        added = np.zeros_like(start)
        for part in range(count):
            rows = slice(part * PER_DEVICE, (part + 1) * PER_DEVICE)
            added += trained(one, 1, [{name: a[rows] for name, a in batch.items()}])[1] - start
        found[str(count)] = float(np.abs(end - start - added).max())
        found["moved"] = float(np.abs(added).max())
    return found


if __name__ == "__main__":
    algorithms = {"bptt": {"name": "bptt"}, "fptt": {"name": "fptt", "parts": 4, "alpha": 0.1}}
    measured = {name: by_devices(algorithm) for name, algorithm in algorithms.items()}
    measured["rate"] = by_rate()
    Path(sys.argv[1]).write_text(json.dumps(measured, indent=1))
