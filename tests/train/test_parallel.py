"""Training on eight devices is training on one; measured by ``eight_devices.py``."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import swept

from jaxeff import train
from jaxeff.errors import ConfigError
from jaxeff.train.parallel import METHODS, DeviceMap

TOLERANCE = 1e-5
#: Of the two ways to map a step, pmap waits for the long suite; twenty steps of Adam run by both.
MAPPED = ["shard_map", pytest.param("pmap", marks=pytest.mark.slow)]


@pytest.fixture
def measured(request, how):
    """The measurements that hold what a way of mapping needs."""
    return request.getfixturevalue(
        "eight_devices" if how == "shard_map" else "eight_devices_in_full"
    )


WRONG = ("WithoutMean", "MeanInside")


@pytest.mark.parametrize("how", METHODS)
def test_twenty_steps_on_eight_devices_equal_twenty_on_one(eight_devices, how):
    assert eight_devices["devices"] == 8
    found = eight_devices["adam"][how]
    assert found["step"] > 0.01  # the parameters did move
    assert found["params"] < TOLERANCE
    assert found["losses"] < TOLERANCE


FAST = ("text", "shard_map")
STATES = {
    "oracle": ("params", "running", "multiplier", "oracle", "metrics"),
    "text": ("params", "running", "multiplier", "carry", "metrics"),
}


@pytest.mark.parametrize(("run", "how"), swept(itertools.product(STATES, METHODS), FAST))
def test_updates_within_sequences_are_the_same_on_eight_devices(request, run, how):
    fixture = "eight_devices" if (run, how) == FAST else "eight_devices_in_full"
    measured = request.getfixturevalue(fixture)
    found = measured["part_by_part"][run]
    assert found["step"] > 0.01
    assert found["size_multiplier"] > 1e-3
    assert set(found[how]) == set(STATES[run])
    for name in STATES[run]:
        assert found[how][name] < TOLERANCE, name


@pytest.mark.slow
def test_comparison_sees_an_oracle_of_a_device_of_its_own(eight_devices_in_full):
    found = eight_devices_in_full["part_by_part"]["oracle"]
    assert found["size_oracle"] > 0.01
    assert found["wrong"]["oracle"] > 100 * TOLERANCE


def test_streams_are_carried_over_and_started_anew_on_eight_devices(eight_devices):
    found = eight_devices["part_by_part"]["text"]
    assert found["size_carry"] > 0.01
    assert found["starts"] == [1, 0, 0, 1, 0, 0, 1]
    assert found["evaluation"] < TOLERANCE


@pytest.mark.slow
def test_poses_that_are_remembered_are_those_of_the_whole_batch(eight_devices_in_full):
    found = eight_devices_in_full["poses"]
    assert found["kept"] > 60  # of three batches of 64; where the identity is best it is no less
    assert found["right_poses"] < TOLERANCE
    assert found["right_params"] < TOLERANCE


@pytest.mark.slow
def test_comparison_sees_poses_that_only_their_own_device_remembers(eight_devices_in_full):
    assert eight_devices_in_full["poses"]["wrong_poses"] > 0.1


@pytest.mark.parametrize("how", MAPPED)
def test_multipliers_of_constraints_are_those_of_the_whole_batch(measured, how):
    found = measured["constrained"]
    assert min(found[name] for name in ("entropy", "class_loss", "margin")) > 1e-4
    assert max(found[f"{how}_{part}"] for part in ("params", "duals", "metrics")) < 2 * TOLERANCE


@pytest.mark.slow
def test_comparison_sees_multipliers_of_a_device_of_its_own(eight_devices_in_full):
    assert eight_devices_in_full["constrained"]["wrong_duals"] > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", WRONG)
def test_comparison_sees_an_update_that_does_not_average_gradients(
    eight_devices_in_full, algorithm
):
    assert eight_devices_in_full[algorithm]["params"] > 100 * TOLERANCE


@pytest.mark.parametrize("how", MAPPED)
def test_examples_of_unequal_weight_give_the_gradient_of_one_device(measured, how):
    found = measured["uneven"][how]
    assert found["step"] > 0.01
    assert found["params"] < TOLERANCE
    assert found["losses"] < TOLERANCE


@pytest.mark.slow
def test_comparison_sees_an_average_of_the_devices_own_averages(eight_devices_in_full):
    assert eight_devices_in_full["OwnTotal"]["params"] > 100 * TOLERANCE


def test_compiled_step_reduces_gradients_once_and_outside_of_loops(eight_devices):
    program = eight_devices["shard_map_program"]
    assert program["loops"]
    assert all(loops == 0 for _, loops in program["reduced"])
    assert sum(size > 16 * 16 * 4 for size, _ in program["reduced"]) == 1
    # What is left are scalars: the total weight, which the gradient needs, and the metrics.
    assert len(program["reduced"]) <= 3


def test_count_of_reductions_sees_those_inside_a_loop(eight_devices):
    assert any(loops for _, loops in eight_devices["automatic_program"]["reduced"])


def test_devices_of_a_cpu_are_waited_for(eight_devices):
    assert eight_devices["must_wait"]
    assert not DeviceMap(devices=jax.devices()[:1]).must_wait


def test_step_takes_over_the_memory_of_its_state_and_leaves_the_batch(eight_devices):
    assert all(eight_devices["donation"]["state"])
    assert not any(eight_devices["donation"]["batch"])


@pytest.mark.parametrize("count", ["1", "2", "4"])
def test_checkpoint_of_four_devices_is_restored_on_another_number(eight_devices, count):
    found = eight_devices["restored"][count]
    assert found["devices"] == int(count)
    assert found["same"]
    assert found["split"] == list(range(8))
    assert found["split_spec"]
    assert (found["step"], found["position"]) == (7, 3)


@pytest.mark.parametrize("how", MAPPED)
def test_training_traces_its_step_and_its_evaluation_once(tiny_config, tmp_path, how):
    from jaxeff.train.loop import Training

    tiny_config.parallel = how
    tiny_config.train.num_steps = 6
    tiny_config.train.eval_every = 2
    experiment = train.build(tiny_config)
    algorithm = experiment.algorithm
    chex.clear_trace_counter()
    algorithm.update = chex.assert_max_traces(algorithm.update, n=1)
    algorithm.evaluate_window = chex.assert_max_traces(algorithm.evaluate_window, n=1)
    training = Training(experiment, tmp_path)
    assert training.run()
    training.evaluate(*(training.best[k] for k in ("params", "model_state")), "test")
    training.close()
    assert training.step == 6


def test_trace_limit_sees_a_second_shape(tiny_config):
    experiment = train.build(tiny_config)
    chex.clear_trace_counter()
    limited = chex.assert_max_traces(experiment.algorithm.evaluate, n=1)
    step = DeviceMap(devices=jax.devices()[:1]).map(limited, replicated=2)
    state = experiment.init_state()
    params = jax.device_put(state.params, jax.devices()[0])
    take = experiment.dataset.splits["train"].take
    four, eight = ({**take(np.arange(n)), "weight": np.ones(n, np.float32)} for n in (4, 8))
    step(params, {}, four)
    with pytest.raises(AssertionError, match="trace"):
        step(params, {}, eight)


@pytest.mark.parametrize("how", METHODS)
def test_sharded_batch_keeps_its_order(how):
    devices = DeviceMap(how)
    batch = np.arange(4 * devices.size, dtype=np.float32)
    total = devices.map(
        lambda scale, x, axis_name: jax.lax.all_gather(scale * x, axis_name, tiled=True)
    )
    np.testing.assert_array_equal(total(jnp.float32(2), devices.shard(batch)), 2 * batch)


def test_unknown_mapping_names_the_choices():
    with pytest.raises(ConfigError, match=r"config\.parallel must be one of shard_map, pmap"):
        DeviceMap("jit")
