"""Measures training steps on eight forced CPU devices; prints one JSON object.

A program of its own, because the number of devices is fixed when JAX starts, and because a hang of
collectives must not take the tests along. Started by the fixture ``eight_devices``.
"""

import copy
import dataclasses
import json
import re
import runpy
import sys
import tempfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxeff import data
from jaxeff.train import DeviceMap, build
from jaxeff.train.algorithms import BPTT
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.parallel import AXIS, METHODS

CONFIG = Path(__file__).parents[2] / "configs" / "irnn.py"
STEPS = 20


def tiny_config():
    config = runpy.run_path(str(CONFIG))["get_config"]("quick")
    config.model.cell.features = 16
    config.train.num_steps = STEPS
    return config


def sgd_config():
    """The difference of two states is then the gradient itself, unclipped and unscaled."""
    config = tiny_config()
    config.optim.update({"name": "sgd", "schedule_name": "constant", "learning_rate": 1.0})
    config.optim.clip_norm = 0.0
    return config


class WithoutMean(BPTT):
    """Forgets the average over devices: the parameters become those of the first device."""

    def update(self, state, batch, axis_name=None):
        del axis_name
        return super().update(state, batch, axis_name=None)


class MeanInside(BPTT):
    """Averages the loss inside the differentiated function, and the gradient not at all."""

    def update(self, state, batch, axis_name=None):
        objective = self.objective

        def averaged(outputs, batch):
            values = objective(outputs, batch)
            if axis_name is None:
                return values
            return {k: jax.lax.pmean(v.mean(), axis_name) + 0 * v for k, v in values.items()}

        inner = copy.copy(self)
        inner.objective = averaged
        return BPTT.update(inner, state, batch, axis_name=None)


class OwnTotal(BPTT):
    """Averages the devices' own weighted means, which is wrong for unequal weights."""

    def update(self, state, batch, axis_name=None):
        share = jax.lax.psum(jnp.sum(batch["weight"]), axis_name) if axis_name else 1.0
        own = jnp.sum(batch["weight"])
        devices = jax.lax.axis_size(axis_name) if axis_name else 1.0
        scaled = {**batch, "weight": batch["weight"] * share / own / devices}
        return super().update(state, scaled, axis_name=axis_name)


def with_algorithm(experiment, cls):
    old = experiment.algorithm
    new = cls(old.model, old.objective, old.optimizer)
    return dataclasses.replace(experiment, algorithm=new)


def train(experiment, devices, batches):
    experiment = dataclasses.replace(experiment, devices=devices)
    traced = chex.assert_max_traces(n=1)(experiment.algorithm.update)
    step = devices.map(traced, donate=devices.how == "shard_map")
    state, losses = experiment.init_state(), []
    chex.clear_trace_counter()
    for batch in batches:
        state, metrics = step(state, devices.shard(batch))
        losses.append(float(metrics["loss"]))
    return jax.device_get(state.params), losses


def difference(a, b):
    return max(
        float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def many_and_one(experiment, batches, how="shard_map", reference=None):
    params, losses = train(experiment, DeviceMap(how), batches)
    if reference is None:
        reference = train(experiment, DeviceMap("shard_map", jax.devices()[:1]), batches)
    return {
        "params": difference(params, reference[0]),
        "losses": difference(losses, reference[1]),
        "step": difference(reference[0], jax.device_get(experiment.init_state().params)),
    }


def all_reduces(text):
    """Counts the all-reduces of a compiled program, outside and inside of loops.

    Returns:
      the operand shapes of each all-reduce outside any loop, and of each inside one.
    """
    bodies, name = {}, None
    for line in text.splitlines():
        header = re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            name = header.group(1)
            bodies[name] = []
        elif name is not None:
            bodies[name].append(line)
    calls = {
        key: set(re.findall(r"%([\w.\-]+)", " ".join(lines))) & bodies.keys()
        for key, lines in bodies.items()
    }
    looped = {
        target
        for lines in bodies.values()
        for line in lines
        for target in re.findall(r"(?:body|condition)=%?([\w.\-]+)", line)
    }
    frontier = set(looped)
    while frontier:
        frontier = {callee for caller in frontier for callee in calls[caller]} - looped
        looped |= frontier
    outside, inside = [], []
    for key, lines in bodies.items():
        for line in lines:
            found = re.search(r" = (.*?) all-reduce(?:-start)?\(", line)
            if found:
                (inside if key in looped else outside).append(found.group(1))
    return {"outside": outside, "inside": inside, "loops": len(looped)}


def compiled_text(experiment, batch):
    devices = experiment.devices
    step = devices.map(experiment.algorithm.update, donate=True)
    return step.lower(experiment.init_state(), devices.shard(batch)).compile().as_text()


def automatic_text(experiment, batch):
    """The same step left to the automatic partitioning, which reduces at every time step."""
    devices = experiment.devices
    step = jax.jit(experiment.algorithm.update, out_shardings=devices.replicated)
    return step.lower(experiment.init_state(), devices.shard(batch)).compile().as_text()


def donation(experiment, batch):
    devices = experiment.devices
    step = devices.map(experiment.algorithm.update, donate=True)
    state, sharded = experiment.init_state(), devices.shard(batch)
    step(state, sharded)
    return {
        "state": [leaf.is_deleted() for leaf in jax.tree.leaves(state)],
        "batch": [leaf.is_deleted() for leaf in jax.tree.leaves(sharded)],
    }


def restored_elsewhere(experiment):
    """Saves a state on four devices and restores it on two, on one and on four."""
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        four = dataclasses.replace(experiment, devices=DeviceMap("shard_map", jax.devices()[:4]))
        saved = four.init_state()
        tree = {"state": saved, "split": four.devices.shard(np.arange(8.0, dtype=np.float32))}
        checkpoints = Checkpoints(Path(folder) / "checkpoints")
        checkpoints.save(7, tree, {"data": {"position": 3}}, wait=True)
        checkpoints.close()
        for count in (2, 1, 4):
            devices = DeviceMap("shard_map", jax.devices()[:count])
            like = {
                "state": devices.replicate(jax.tree.map(jnp.zeros_like, saved.replace(key=0))),
                "split": devices.shard(np.zeros(8, np.float32)),
            }
            like["state"] = like["state"].replace(key=devices.replicate(jax.random.key(99)))
            checkpoints = Checkpoints(Path(folder) / "checkpoints")
            step, found, values = checkpoints.restore(like)
            checkpoints.close()
            plain = found["state"]
            keys = [jax.random.key_data(key) for key in (plain.key, saved.key)]
            same = difference(plain.params, saved.params) == 0 and difference(*keys) == 0
            result[str(count)] = {
                "step": step,
                "position": int(values["data"]["position"]),
                "same": same,
                "split": np.asarray(found["split"]).tolist(),
                "devices": len(plain.step.sharding.device_set),
                "split_spec": found["split"].sharding.spec == PartitionSpec(AXIS),
            }
    return result


def main():
    result = {"devices": jax.device_count(), "must_wait": DeviceMap().must_wait}
    experiment = build(tiny_config())
    stream = data.make_train_iterator(
        experiment.dataset.splits["train"], batch_size=64, seed=0, prefetch=0
    )
    batches = [next(stream) for _ in range(STEPS)]
    reference = train(experiment, DeviceMap("shard_map", jax.devices()[:1]), batches)
    result["adam"] = {how: many_and_one(experiment, batches, how, reference) for how in METHODS}
    for wrong in (WithoutMean, MeanInside):
        result[wrong.__name__] = many_and_one(
            with_algorithm(experiment, wrong), batches, "shard_map", reference
        )

    plain = build(sgd_config())
    weight = np.random.default_rng(0).uniform(0.5, 2.0, 64).astype(np.float32)
    weight[3:11] = 0  # parts of two shards
    weight[-8:] = 0  # a whole shard
    uneven = [{**batches[0], "weight": weight}]
    one = train(plain, DeviceMap("shard_map", jax.devices()[:1]), uneven)
    result["uneven"] = {how: many_and_one(plain, uneven, how, one) for how in METHODS}
    weight[-8:] = 1e-3  # an own total must not be zero
    uneven = [{**batches[0], "weight": weight}]
    one = train(plain, DeviceMap("shard_map", jax.devices()[:1]), uneven)
    result["OwnTotal"] = many_and_one(with_algorithm(plain, OwnTotal), uneven, "shard_map", one)

    result["shard_map_program"] = all_reduces(compiled_text(experiment, batches[0]))
    result["automatic_program"] = all_reduces(automatic_text(experiment, batches[0]))
    result["donation"] = donation(experiment, batches[0])
    result["restored"] = restored_elsewhere(experiment)
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
