"""Sizes that a config asks for, against the data and the memory there is."""

import jax
import pytest

from jaxeff import data, train
from jaxeff.errors import ConfigError
from jaxeff.train import parallel, runtime, sizes, values
from jaxeff.train.parallel import DeviceMap


@pytest.fixture
def gigabyte(monkeypatch):
    monkeypatch.setattr(runtime, "memory_limit", lambda device=None: 10**9)


def test_limit_is_the_smallest_of_the_machine_and_its_container(monkeypatch, tmp_path):
    files = [tmp_path / "new", tmp_path / "old", tmp_path / "missing"]
    monkeypatch.setattr(runtime, "CGROUP_LIMITS", files)
    machine = runtime.memory_limit()
    assert machine > 2**28
    files[0].write_text("max\n")
    assert runtime.memory_limit() == machine
    files[1].write_text("123456789\n")
    assert runtime.memory_limit() == 123456789
    files[0].write_text("1048576\n")
    assert runtime.memory_limit() == 1048576


def test_an_accelerators_own_memory_counts():
    class Device:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 7}

    assert runtime.memory_limit(Device()) == 7


def memory_error(config):
    with pytest.raises(ConfigError) as error:
        train.build(config)
    return str(error.value)


def test_parameters_beyond_memory_are_refused_with_their_bytes(tiny_config, gigabyte):
    """Parameters, two moments of Adam, the best so far, and the gradient are five copies."""
    train.build(tiny_config)
    features = 8000  # 256 MB for the square matrix of the cell
    tiny_config.model.cell.features = features
    text = memory_error(tiny_config)
    assert text.startswith("config.model needs more memory than available: 1.28 GB for parameters")
    assert "of 1 GB in all" in text
    tiny_config.model.cell.features = 6000
    train.build(tiny_config)


@pytest.mark.parametrize("section", ["train", "eval"])
def test_a_batch_beyond_memory_is_refused(tiny_config, gigabyte, monkeypatch, section):
    monkeypatch.setattr(sizes, "check_batch", lambda *_: None)
    pixels = 64  # of 4 bytes each in an image of digits
    tiny_config[section].batch_size = 10**9 // (4 * pixels) + 10_000_000
    text = memory_error(tiny_config)
    assert text.startswith(f"config.{section}.batch_size needs more memory than available: ")
    assert "3.56 GB for a batch of inputs" in text


def test_devices_that_share_memory_hold_a_copy_each(tiny_config, monkeypatch):
    built = train.build(tiny_config)
    state = jax.eval_shape(built.algorithm.init_state, jax.random.key(0), built.example)
    needed = []

    def limit(device=None):
        return needed[-1]

    monkeypatch.setattr(runtime, "memory_limit", limit)
    one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    one += 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    batch = tiny_config.eval.batch_size * 64 * 4

    class Two(DeviceMap):
        def __init__(self):
            self.devices, self.memory_bytes = [*jax.devices()[:1]] * 2, None

    for devices, copies in ((DeviceMap(devices=jax.devices()[:1]), 1), (Two(), 2)):
        needed.append(copies * one + batch)
        sizes.check_memory(tiny_config, state, built.dataset, devices)
        needed.append(copies * one + batch - 1)
        with pytest.raises(ConfigError, match=r"config\.\S+ needs more memory than available"):
            sizes.check_memory(tiny_config, state, built.dataset, devices)


def test_unknown_memory_refuses_nothing(tiny_config, monkeypatch):
    monkeypatch.setattr(runtime, "memory_limit", lambda device=None: None)
    tiny_config.eval.batch_size = 10**12
    train.build(tiny_config)


def test_a_batch_of_all_examples_is_the_largest(tiny_config):
    dataset = data.load(**tiny_config.data.to_dict())
    examples = len(dataset.splits["train"])
    sizes.check_batch(examples, dataset)
    with pytest.raises(ConfigError, match=rf"batch_size is {examples + 1}, but .* has {examples} "):
        sizes.check_batch(examples + 1, dataset)


def test_the_axis_that_configs_may_name_is_the_one_that_is_mapped():
    assert values.AXIS == parallel.AXIS
