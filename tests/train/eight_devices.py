"""Measures training steps on eight forced CPU devices; writes one JSON file.

A program of its own, because the number of devices is fixed when JAX starts, and because a hang of
collectives must not take the tests along. Started by the fixtures ``eight_devices`` and
``eight_devices_in_full``; the latter's run also maps every step by pmap, measures the algorithms
that take long to compile, and some that are wrong on purpose, so that comparisons can fail.
"""

import copy
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxeff import bench, config_files, data
from jaxeff.ops.platforms import platform
from jaxeff.train import DeviceMap, base_config, build, compile_ahead
from jaxeff.train.algorithms import BPTT, FPTT, AffineVAE, Constrained
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.evaluate import Evaluator
from jaxeff.train.parallel import AXIS, METHODS

STEPS = 20
IN_FULL = "--in-full" in sys.argv
MAPPED = METHODS if IN_FULL else ("shard_map",)
CONFIGS = Path(__file__).parents[2] / "configs"
#: Fields by the name of a config, and of what is changed.
COMPILED = {"irnn": {}}


def tiny_config():
    config = base_config()
    config.data.update({"name": "digits", "view": "rows"})
    config.model = {"name": "sequence", "cell": {"name": "irnn", "features": 16, "step_size": 0.1}}
    config.optim.clip_norm = 1.0
    config.train.update({"batch_size": 64, "num_steps": STEPS})
    return config


def sgd_config():
    """The difference of two states is then the gradient itself, unclipped and unscaled."""
    config = tiny_config()
    config.optim.update({"name": "sgd", "schedule_name": "constant", "learning_rate": 1.0})
    config.optim.clip_norm = 0.0
    return config


def fptt_config():
    """Two epochs of three batches; parts of three steps of eight, and a remainder."""
    config = tiny_config()
    config.model.cell = {"name": "lstm", "features": 8}
    config.algorithm = {"name": "fptt", "parts": 3, "auxiliary": "oracle", "alpha": 0.1}
    config.optim.update({"name": "sgd", "schedule_name": "constant", "learning_rate": 0.3})
    config.train.update({"batch_size": 448, "num_steps": 7})
    return config


def text_config(folder):
    """Three windows a stream, so that seven steps begin anew twice."""
    path = Path(folder) / "text.txt"
    characters = np.random.default_rng(0).choice(list("abcdef \n"), 16 * 6 * 3 * 10 // 8 + 20)
    path.write_text("".join(characters), "utf-8")
    config = tiny_config()
    config.data = {**config.data.to_dict(), "name": "text", "file": str(path), "window": 6}
    config.data.view = ""
    config.model = {"name": "sequence", "readout": "every_step", "embedding": 4}
    config.model.cell = {"name": "tarnn", "features": 8, "activation": "tanh"}
    config.algorithm = {"name": "fptt", "parts": 2, "alpha": 0.1, "reset": "epoch_weights"}
    config.optim.update({"name": "sgd", "schedule_name": "constant", "learning_rate": 0.3})
    config.train.update({"batch_size": 16, "num_steps": 7})
    config.eval.batch_size = 8
    return config


def constrained_config():
    """Constraints on outputs and classes, and a share of the hardest examples."""
    config = tiny_config()
    config.algorithm = {"name": "constrained", "dual": {"name": "nupi"}}
    config.algorithm.initial_multiplier = 1.0
    config.algorithm.constraints = (
        {"name": "discount", "start": 0.3},
        {"name": "entropy", "start": 0.99},
        {"name": "class_loss", "slack": 0.0},
        {"name": "margin", "start": 0.0},
    )
    config.optim.update({"name": "sgd", "schedule_name": "constant", "learning_rate": 0.3})
    return config


def pose_config():
    """Poses of images that stay as they are, from starts that do not depend on the device."""
    config = tiny_config()
    config.data = {**config.data.to_dict(), "name": "posed_images", "base": "digits", "view": ""}
    config.data.update({"size": 8, "scale": 1.0, "redraw": False})
    config.model = {"name": "autoencoder", "size": 8, "latents": 2, "sampled": False}
    config.model.update({"pose": {"name": "rotation"}, "axis_name": "data"})
    search = {"starts": 3, "spread": True, "method": "screen"}
    config.algorithm = {"name": "avae", "cache": True, "search": search}
    config.algorithm.evaluation = {"starts": 2, "method": "screen"}
    config.optim.update({"name": "sgd", "schedule_name": "constant", "learning_rate": 1e-3})
    config.train.num_steps = 3
    return config


class OwnPoses(AffineVAE):
    """Every device remembers the poses of its own examples only."""

    def _remember(self, algo_state, batch, pose, axis_name):
        del axis_name
        return super()._remember(algo_state, batch, pose, None)


class OwnViolations(Constrained):
    """Every device moves the multipliers by its own part of the batch."""

    def update(self, state, batch, axis_name=None):
        _, metrics = super().update(state, batch, axis_name)
        return super().update(state, batch)[0], metrics


class OwnPredictions(FPTT):
    """Every device keeps to the oracle of its own examples."""

    def absorb(self, algo_state, observed, axis_name):
        del axis_name
        return super().absorb(algo_state, observed, None)


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


def optimised_text(lowered):
    jax.config.update("jax_disable_most_optimizations", False)
    text = lowered.compile().as_text()
    jax.config.update("jax_disable_most_optimizations", True)
    return text


def train(experiment, devices, batches, with_program=False):
    """Returns parameters and losses, and which arrays the first step deleted; and the program."""
    traced = chex.assert_max_traces(n=1)(experiment.algorithm.update)
    chex.clear_trace_counter()
    mapped = devices.map(traced, donate=devices.how == "shard_map")
    start = experiment.init_state()
    state, losses, facts = devices.replicate(start), [], {}
    for batch in batches:
        sharded, old = devices.shard(batch), state
        if devices.how == "shard_map" and not facts:
            facts["program"] = ""
            if with_program:
                with platform("reference"):  # with loops, where a compiled function has none
                    facts["program"] = optimised_text(mapped.lower(state, sharded))
                chex.clear_trace_counter()
        state, metrics = mapped(state, sharded)
        losses.append(float(metrics["loss"]))
        facts.setdefault("deleted", [x.is_deleted() for x in jax.tree.leaves(old)])
        if devices.how == "shard_map":
            facts.setdefault("batch_deleted", [x.is_deleted() for x in jax.tree.leaves(sharded)])
    return jax.device_get(state.params), losses, facts


def difference(a, b):
    return max(
        float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def relative_difference(a, b):
    """The difference in parts of each value of at least 1."""
    sizes = [np.maximum(np.abs(np.asarray(leaf, np.float64)), 1) for leaf in jax.tree.leaves(b)]
    return difference(
        [x / s for x, s in zip(jax.tree.leaves(a), sizes, strict=True)],
        [x / s for x, s in zip(jax.tree.leaves(b), sizes, strict=True)],
    )


def compare(experiment, batches, reference, how="shard_map", with_program=False):
    """Trains on all devices and says how far that is from the reference."""
    params, losses, facts = train(experiment, DeviceMap(how), batches, with_program)
    start = jax.device_get(experiment.init_state().params)
    found = {
        "params": difference(params, reference[0]),
        "losses": difference(losses, reference[1]),
        "step": difference(reference[0], start),
    }
    return found, facts


def train_whole(experiment, devices, batches):
    """Returns all but the keys of the last state, and the metrics of every step."""
    mapped = devices.map(experiment.algorithm.update)
    state, seen = devices.replicate(experiment.init_state()), []
    for batch in batches:
        state, metrics = mapped(state, devices.shard(batch))
        seen.append(jax.device_get(metrics))
    return jax.device_get(state.replace(key=())), seen


def compare_whole(experiment, batches, wrong=None):
    """Says how far training on eight devices is from training on one, part by part."""
    one = DeviceMap("shard_map", jax.devices()[:1])
    reference, seen = train_whole(experiment, one, batches)
    start = jax.device_get(experiment.init_state())
    result = {"step": difference(reference.params, start.params)}

    def compare(experiment, how):
        state, metrics = train_whole(experiment, DeviceMap(how), batches)
        dynamic, expected = state.opt_state, reference.opt_state
        found = {
            "params": difference(state.params, reference.params),
            "running": difference(dynamic.running, expected.running),
            "multiplier": difference(dynamic.multiplier, expected.multiplier),
            "metrics": difference(metrics, seen),
        }
        if jax.tree.leaves(reference.algo_state):
            found["oracle"] = difference(state.algo_state, reference.algo_state)
        if jax.tree.leaves(reference.carry):
            found["carry"] = difference(state.carry, reference.carry)
        return found

    result |= {how: compare(experiment, how) for how in MAPPED}
    if IN_FULL and wrong is not None:
        changed = copy.copy(experiment.algorithm)
        changed.__class__ = wrong
        result["wrong"] = compare(dataclasses.replace(experiment, algorithm=changed), "shard_map")
    sizes = {
        "multiplier": reference.opt_state.multiplier,
        "oracle": jax.tree.map(lambda a: a - a.mean(), reference.algo_state),
        "carry": reference.carry,
    }
    for name, tree in sizes.items():
        leaves = jax.tree.leaves(tree)
        result["size_" + name] = max((float(np.abs(a).max()) for a in leaves), default=0.0)
    return result


def streamed(experiment, steps):
    split, size = experiment.dataset.splits["train"], experiment.config.train.batch_size
    index = experiment.algorithm.needs_index
    batches = data.make_train_iterator(split, batch_size=size, seed=0, prefetch=0, with_index=index)
    return [next(batches) for _ in range(steps)]


def part_by_part():
    """Updates within sequences, and batches that go on from each other."""
    result = {}
    if IN_FULL:
        experiment = build(fptt_config())
        result["oracle"] = compare_whole(experiment, streamed(experiment, 7), OwnPredictions)
    with tempfile.TemporaryDirectory() as folder:
        experiment = build(text_config(folder))
        batches = streamed(experiment, 7)
        result["text"] = compare_whole(experiment, batches)
        result["text"]["starts"] = [float(batch["start"].mean()) for batch in batches]
        one = dataclasses.replace(experiment, devices=DeviceMap("shard_map", jax.devices()[:1]))
        params = jax.device_get(experiment.init_state().params)
        found = [
            Evaluator(each)(each.devices.replicate(params), {}, "validation")
            for each in (experiment, one)
        ]
        result["text"]["evaluation"] = difference(*found)
    return result


def under_constraints():
    """Says how far multipliers and parameters of eight devices are from those of one."""
    experiment = build(constrained_config())
    batches = streamed(experiment, 5)
    one = DeviceMap("shard_map", jax.devices()[:1])
    reference, seen = train_whole(experiment, one, batches)
    duals = reference.algo_state["duals"]
    result = {name: float(value.max()) for name, value in duals.multiplier.items()}
    changed = copy.copy(experiment.algorithm)
    changed.__class__ = OwnViolations
    wrong = dataclasses.replace(experiment, algorithm=changed)
    for name, each, how in (
        *((how, experiment, how) for how in MAPPED),
        *([("wrong", wrong, "shard_map")] if IN_FULL else []),
    ):
        state, metrics = train_whole(each, DeviceMap(how), batches)
        result[f"{name}_params"] = difference(state.params, reference.params)
        result[f"{name}_duals"] = relative_difference(state.algo_state["duals"], duals)
        result[f"{name}_metrics"] = difference(metrics, seen)
    return result


def remembered_poses():
    """Says how far the poses kept by eight devices are from those of one."""
    experiment = build(pose_config())
    batches = streamed(experiment, 3)
    one = DeviceMap("shard_map", jax.devices()[:1])
    reference, _ = train_whole(experiment, one, batches)
    poses = reference.algo_state["poses"]
    changed = copy.copy(experiment.algorithm)
    changed.__class__ = OwnPoses
    wrong = dataclasses.replace(experiment, algorithm=changed)
    result = {"kept": int(np.count_nonzero(poses))}
    for name, each in (("right", experiment), ("wrong", wrong)):
        state, _ = train_whole(each, DeviceMap("shard_map"), batches)
        result[f"{name}_poses"] = difference(state.algo_state["poses"], poses)
        result[f"{name}_params"] = difference(state.params, reference.params)
    return result


def all_reduces(text):
    """Returns bytes of the all-reduces of a compiled program, and in how many loops each stands."""
    reduced = [c for c in bench.collectives(text) if c.operation == "all-reduce"]
    return {"reduced": [(c.bytes, c.loops) for c in reduced], "loops": text.count(" while(")}


def compiled_ahead():
    """What ``--mode=compile`` reports of small forms of some configs."""
    result = {}
    for name, changes in COMPILED.items():
        config = config_files.load(str(CONFIGS / f"{name.partition(',')[0]}.py"))
        config.devices.topology = "cpu:8"
        config.update_from_flattened_dict(changes)
        with tempfile.TemporaryDirectory() as folder:
            result[name] = compile_ahead.compile_step(config, Path(folder))
    return result


def automatic_text():
    """A recurrence left to automatic partitioning, which reduces at every time step."""
    devices = DeviceMap()

    def loss(matrix, xs):
        def step(state, x):
            return jnp.tanh(state @ matrix + x), None

        state, _ = jax.lax.scan(step, jnp.zeros(xs.shape[::2]), xs.swapaxes(0, 1))
        return jnp.mean(state**2)

    matrix = devices.replicate(np.eye(16, dtype=np.float32))
    xs = devices.shard(np.ones((64, 8, 16), np.float32))
    step = jax.jit(jax.grad(loss), out_shardings=devices.replicated)
    return optimised_text(step.lower(matrix, xs))


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
    jax.config.update("jax_disable_most_optimizations", True)  # what is compiled runs for moments
    result = {"devices": jax.device_count(), "must_wait": DeviceMap().must_wait}
    experiment = build(tiny_config())
    stream = data.make_train_iterator(
        experiment.dataset.splits["train"], batch_size=64, seed=0, prefetch=0
    )
    batches = [next(stream) for _ in range(STEPS)]
    one_device = DeviceMap("shard_map", jax.devices()[:1])
    reference = train(experiment, one_device, batches)
    result["adam"] = {}
    for how in METHODS:
        result["adam"][how], facts = compare(
            experiment, batches, reference, how, with_program=how == "shard_map"
        )
        if how == "shard_map":
            result["shard_map_program"] = all_reduces(facts["program"])
            result["donation"] = {"state": facts["deleted"], "batch": facts["batch_deleted"]}
    result["automatic_program"] = all_reduces(automatic_text())
    result["compiled_ahead"] = compiled_ahead()
    for wrong in (WithoutMean, MeanInside) if IN_FULL else ():
        result[wrong.__name__], _ = compare(
            with_algorithm(experiment, wrong),
            batches[:5],
            train(experiment, one_device, batches[:5]),
        )

    plain = build(sgd_config())
    weight = np.random.default_rng(0).uniform(0.5, 2.0, 64).astype(np.float32)
    weight[3:11] = 0  # parts of two shards
    weight[-8:] = 0  # a whole shard
    uneven = [{**batches[0], "weight": weight}]
    one = train(plain, one_device, uneven)
    result["uneven"] = {how: compare(plain, uneven, one, how)[0] for how in MAPPED}
    if IN_FULL:
        weight = np.maximum(weight, 1e-3)  # a total of zero would be no wrong gradient but none
        uneven = [{**batches[0], "weight": weight}]
        one = train(plain, one_device, uneven)
        result["OwnTotal"], _ = compare(with_algorithm(plain, OwnTotal), uneven, one)
    result["restored"] = restored_elsewhere(experiment)
    result["part_by_part"] = part_by_part()
    result["constrained"] = under_constraints()
    if IN_FULL:
        result["poses"] = remembered_poses()
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
