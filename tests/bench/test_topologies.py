"""Names of devices that are not there, and what an exchange between them would take."""

import importlib.util

import jax
import pytest

from jaxeff import bench
from jaxeff.bench import topologies
from jaxeff.bench.chips import CHIPS, NETWORK_LATENCY
from jaxeff.errors import ConfigError, UserError


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("v5e:2x4", ("v5e", (2, 4))),
        ("v6e:16x16", ("v6e", (16, 16))),
        ("v5p:2x2x1", ("v5p", (2, 2, 1))),
        ("h100:8", ("h100", (8,))),
        ("h200:64", ("h200", (64,))),
        ("cpu:8", ("cpu", (8,))),
    ],
)
def test_a_name_is_a_kind_and_sizes(name, parsed):
    assert topologies.parse(name) == parsed


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("v5:2x4", "unknown kind of device 'v5'; did you mean"),
        ("v5e", "must be a kind and a size such as v5e:2x4"),
        ("v5e:2x", "must be a kind and a size"),
        ("v5e:0x4", "must be a kind and a size"),
        ("v5e:8", "'v5e' takes a grid such as v5e:2x2, not 'v5e:8'"),
        ("v5p:2x4", "'v5p' takes a grid such as v5p:2x2x2"),
        ("h100:2x4", "'h100' takes a number of devices"),
        ("h100:12", "hosts have 8 GPUs, so that 12 of them are no number of whole hosts"),
    ],
)
def test_what_is_no_name_is_one_sentence(name, sentence):
    with pytest.raises(ConfigError, match=sentence):
        topologies.parse(name)


def test_devices_of_this_process_are_a_topology():
    target = bench.topology("cpu:1")
    assert target.devices == jax.devices("cpu")[:1]
    assert (target.memory_bytes, target.num_hosts) == (None, 1)
    with pytest.raises(ConfigError, match=r"JAX has started with .* fewer than cpu:512 has"):
        bench.topology("cpu:512")


@pytest.mark.parametrize(
    ("name", "extra"), [("v5e:2x4", "jaxeff[aot-tpu]"), ("h100:8", "jaxeff[aot-gpu]")]
)
def test_a_missing_package_is_named_by_its_extra(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    with pytest.raises(UserError) as error:
        topologies.prepare(name)
    assert f"{name} needs a package" in str(error.value)
    assert extra in str(error.value)


def test_a_missing_assembler_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "jax_plugins" or None)
    monkeypatch.setattr(topologies.shutil, "which", lambda program: None)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    with pytest.raises(UserError, match="needs ptxas"):
        topologies.prepare("h100:8")


def test_flags_of_another_version_are_one_sentence(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_from_another_age=1")
    with pytest.raises(UserError, match="does not know: --xla_gpu_from_another_age=1; take"):
        topologies.prepare("cpu:1")


def test_an_exchange_takes_hops_and_bytes():
    chip = CHIPS["v5e"]
    hops = 2 * (1 + 3) * chip.latency  # to the farthest chip of 2 x 4 and back
    sent = 2 * 7 / 8 * 8e6  # bytes that each of eight chips sends of 8 MB
    expected = hops + sent / (chip.link_bandwidth / 2)  # sides that are no rings
    assert bench.all_reduce_seconds("v5e", (2, 4), 8e6) == pytest.approx(expected)
    rings = 32 * chip.latency + 2 * 255 / 256 * 8e6 / chip.link_bandwidth
    assert bench.all_reduce_seconds("v5e", (16, 16), 8e6) == pytest.approx(rings)
    assert bench.all_reduce_seconds("v5e", (1, 1), 8e6) == 0


def test_hosts_of_gpus_exchange_parts():
    chip = CHIPS["h100"]
    inside = chip.latency + 2 * 7 / 8 * 8e6 / chip.link_bandwidth
    assert bench.all_reduce_seconds("h100", (8,), 8e6) == pytest.approx(inside)
    between = 6 * NETWORK_LATENCY + 2 * 7 / 8 * 1e6 / chip.network_bandwidth  # eight hosts
    assert bench.all_reduce_seconds("h100", (64,), 8e6) == pytest.approx(inside + between)


def test_slices_of_tpus_exchange_parts_over_the_network():
    chip, inside = CHIPS["v5e"], bench.all_reduce_seconds("v5e", (16, 16), 8e6)
    between = 4 * NETWORK_LATENCY + 2 * 3 / 4 * 8e6 / 256 / chip.network_bandwidth  # four slices
    found = bench.all_reduce_seconds("v5e", (16, 16), 8e6, slices=4)
    assert found == pytest.approx(inside + between)


def test_half_of_a_step_is_exchange_where_it_is_just_hidden():
    batch = bench.hidden_batch("h100", 1e-4, 1e9)
    assert batch == pytest.approx(CHIPS["h100"].flops * 1e-4 / 1e9)
    assert bench.scaling_efficiency("h100", 1e-4, 1e9, batch) == pytest.approx(0.5)
    assert bench.scaling_efficiency("h100", 1e-4, 1e9, 3 * batch) == pytest.approx(0.75)
