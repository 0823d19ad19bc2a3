"""Training of networks with exits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxeff import train
from jaxeff.errors import ConfigError
from jaxeff.models import MODELS
from jaxeff.train import objectives
from jaxeff.train.algorithms import EarlyExits

CROSS_ENTROPY = objectives.build({"name": "auto"}, "classification")


@pytest.mark.slow
def test_exits_are_trained_together_and_evaluated_at_the_last():
    backbone = {"name": "resnet", "blocks": (1, 1), "widths": (4, 4)}
    spec = {"name": "early_exit", "backbone": backbone, "exits": (0,)}
    model = MODELS.build(spec, "model", num_outputs=4)
    fields = {"model": model, "objective": CROSS_ENTROPY, "optimizer": optax.sgd(0.1)}
    algo = EarlyExits(exit_weights=(1.0, 3.0), **fields)
    rng = np.random.default_rng(0)
    data = {
        "inputs": rng.normal(size=(16, 4, 4, 1)).astype(np.float32),
        "labels": rng.integers(0, 4, 16).astype(np.int32),
        "weight": (np.arange(16) < 14).astype(np.float32),
    }
    state = jax.jit(algo.init_state)(jax.random.key(0), data["inputs"])
    variables = {"params": state.params, **state.model_state}
    new, metrics = jax.jit(algo.update)(state, data)

    @jax.jit
    def losses(variables):
        outputs, _ = model.apply(
            variables, data["inputs"], train=True, mutable=["batch_stats"], method="every_exit"
        )
        return jnp.stack([CROSS_ENTROPY(one, data)["loss"] for one in outputs])

    expected = np.average(losses(variables), axis=1, weights=data["weight"])
    np.testing.assert_allclose(metrics["loss"], (expected[0] + 3 * expected[1]) / 4, rtol=1e-5)
    for name in ("exit_heads_0", "head"):
        before, after = (jax.tree.leaves(s.params[name]) for s in (state, new))
        assert all(np.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True))
    found = jax.jit(lambda: algo.evaluate(state.params, state.model_state, data))()
    last = CROSS_ENTROPY(jax.jit(model.apply)(variables, data["inputs"]), data)["loss"]
    np.testing.assert_allclose(found["loss"], np.sum(last * data["weight"]), rtol=1e-5)
    for weights, message in (((1.0,), "must be 2 numbers"), ((0.0, 0.0), "not all be 0")):
        with pytest.raises(ConfigError, match=message):
            EarlyExits(exit_weights=weights, **fields)


def test_other_models_are_refused():
    model = MODELS.build({"name": "mlp"}, "model", num_outputs=4)
    with pytest.raises(ConfigError, match=r"needs .*name='early_exit'"):
        EarlyExits(model=model, objective=CROSS_ENTROPY, optimizer=optax.sgd(0.1))


@pytest.mark.slow
def test_a_run_with_exits_plans_their_thresholds(tmp_path):
    backbone = {"name": "resnet", "blocks": (1, 1), "widths": (4, 8)}
    model = {"name": "early_exit", "backbone": backbone, "exits": (0,)}
    analysis = {"name": "early_exits", "budgets": (0.1, 0.8, 1.0), "rounds": 1}
    made = train.base_config()
    made.name = "small"
    made.data.update({"name": "digits", "calibration_fraction": 0.2})
    made.model, made.algorithm, made.analyses = model, {"name": "early_exits"}, [analysis]
    made.optim.learning_rate = 1e-2
    made.train.update({"batch_size": 64, "num_steps": 60, "log_every": 30, "eval_every": 60})
    made.eval.batch_size = 64
    made.devices.cpu = 1
    report = train.run(made, tmp_path)
    found = report["extras"]["early_exits"]
    assert "unreachable" in found["budgets"]["0.1"]
    whole, most = found["budgets"]["1"], found["budgets"]["0.8"]
    assert most["calibration_accuracy"] <= whole["calibration_accuracy"]
    assert whole["price"] <= sum(found["macs"])
    assert found["exit_accuracy"][-1] == pytest.approx(
        report["metrics"]["test"]["accuracy"], abs=1e-6
    )
    assert (tmp_path / report["artifacts"]["accuracy_cost"]).exists()
