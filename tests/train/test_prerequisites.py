"""Trainings that build on others, and analyses of what was trained."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxeff import analyses, data, train
from jaxeff.config import plain
from jaxeff.data.base import ArraySplit
from jaxeff.errors import CheckpointError, ConfigError
from jaxeff.eval import read_report
from jaxeff.models import MODELS
from jaxeff.models.base import apply_with_features
from jaxeff.models.trained import Trained
from jaxeff.train import launch, prerequisites, run_report
from jaxeff.train.algorithms import ALGORITHMS, BPTT
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.loop import CHECKPOINTS


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """An algorithm that starts from what was trained before, and an analysis that writes a file."""

    class Continued(BPTT):
        def __init__(self, *args, trained, **kwargs):
            super().__init__(*args, **kwargs)
            self.trained = trained

        def init_state(self, key, example):
            state = super().init_state(key, example)
            return state.replace(params=self.trained["first"].variables["params"])

    def counting(split="test"):
        def analysis(trained, workdir):
            found = analyses.collect(trained, split)
            hits = np.argmax(found["outputs"], axis=1) == found["labels"]
            (workdir / "hits.txt").write_text(str(hits.sum()))
            return analyses.Findings({"accuracy": float(hits.mean())}, {"hits": "hits.txt"})

        return analysis

    monkeypatch.setitem(ALGORITHMS._factories, "continued", Continued)
    monkeypatch.setitem(analyses.ANALYSES._factories, "counting", counting)


@pytest.fixture
def continued(tiny_config):
    first = tiny_config.copy_and_resolve_references()
    first.train.num_steps = 30
    tiny_config.train.num_steps = 5
    tiny_config.optim.learning_rate = 1e-9
    tiny_config.algorithm.name = "continued"
    tiny_config.prerequisites = {"first": first}
    return tiny_config


@pytest.mark.slow
def test_what_is_required_is_trained_first_and_handed_over(continued, tmp_path, monkeypatch):
    report = launch.run(continued, tmp_path)
    required = json.loads((tmp_path / "first" / "report.json").read_text())
    assert required["training"]["steps"] == 30
    handed = prerequisites.trained(continued, tmp_path)["first"]
    assert isinstance(handed, Trained)
    # The second training went on from there, and learns next to nothing of its own.
    assert report["metrics"]["test"] == pytest.approx(required["metrics"]["test"], rel=1e-5)
    # The same command trains nothing again.
    monkeypatch.setattr(launch, "Training", _only_restores(launch.Training))
    assert launch.run(continued, tmp_path)["metrics"]["test"] == report["metrics"]["test"]
    assert launch.run(continued, tmp_path, "eval")["metrics"]["test"] == report["metrics"]["test"]


def _only_restores(training):
    class Restores(training):
        def _compile(self, batch):
            raise AssertionError("trained again")

    return Restores


def test_a_mistake_shows_before_anything_is_trained(continued, tmp_path):
    continued.model.cell.features = -1
    with pytest.raises(ConfigError, match="features"):
        launch.run(continued, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.algorithm.update({"name": "bptt"}), "uses no other model"),
        (lambda c: c.prerequisites.first.train.update({"batch_size": 0}), "first.train.batch_size"),
        (lambda c: c.update({"prerequisites": {"eval": c.prerequisites.first}}), "a folder"),
        (lambda c: c.update({"prerequisites": {"x": 3}}), "must be a whole config"),
        (lambda c: c.update({"analyses": [{"name": "countin"}]}), "did you mean 'counting'"),
        (lambda c: c.update({"analyses": [{"name": "counting", "spilt": "x"}]}), "'split'"),
        (lambda c: c.update({"analyses": [3]}), "must be a section"),
        (lambda c: c.update({"analyses": [{"name": "counting"}] * 2}), "name it once"),
    ],
)
def test_impossible_requirements(continued, tmp_path, change, message):
    with continued.unlocked():
        change(continued)
        if "x" in continued.prerequisites or "eval" in continued.prerequisites:
            with continued.prerequisites.unlocked():
                del continued.prerequisites["first"]
    with pytest.raises(ConfigError, match=message):
        launch.run(continued, tmp_path)


def test_an_evaluation_needs_what_was_trained_before(continued, tmp_path):
    # The checkpoints of the second training are none of the first.
    (tmp_path / "whole").mkdir()
    checkpoints = Checkpoints(tmp_path / "whole" / CHECKPOINTS)
    checkpoints.save(5, {"params": np.ones(3, np.float32)}, {}, wait=True)
    checkpoints.close()
    with pytest.raises(CheckpointError, match="first holds no checkpoints"):
        prerequisites.trained(continued, tmp_path / "whole")


def test_stop_of_what_is_required_is_a_stop_of_the_run(continued, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxeff.train.interrupt.Interrupt.requested", lambda _, step: step == 6)
    assert launch.run(continued, tmp_path) is None
    required, whole = read_report(tmp_path / "first"), read_report(tmp_path)
    assert (required["status"], required["training"]["steps"]) == ("interrupted", 6)
    assert (whole["status"], whole["training"]["steps"]) == ("interrupted", 0)
    assert required["artifacts"] == {"config": "config.json", "metrics": "metrics.csv"}
    assert required["model"]["parameter_table"].splitlines()[-1].split()[0] == "total"
    assert not run_report.is_complete(tmp_path / "first")  # the next start goes on with it


@pytest.mark.slow
def test_analyses_are_in_the_report(tiny_config, tmp_path):
    tiny_config.analyses = [{"name": "counting", "split": "calibration"}]
    tiny_config.data.calibration_fraction = 0.1
    report = launch.run(tiny_config, tmp_path)
    built = train.build(tiny_config)
    assert report["data"]["sizes"]["calibration"] == 150
    assert report["artifacts"]["hits"] == "hits.txt"
    accuracy = report["extras"]["counting"]["accuracy"]
    assert accuracy == int((tmp_path / "hits.txt").read_text()) / 150
    # Computed another way: by the evaluator, on all devices.
    training = train.loop.Training(built, tmp_path)
    chosen = training.selection().chosen
    training.close()
    found = training.evaluate(chosen["params"], chosen["model_state"], "calibration")
    assert accuracy == pytest.approx(found["accuracy"])


def test_an_analysis_of_a_split_that_is_not_there(tiny_config):
    built = train.build(tiny_config)
    with pytest.raises(ConfigError, match="calibration_fraction above 0"):
        analyses.collect(built.result({"params": {}, "model_state": {}}), "calibration")
    # One that says beforehand what it needs is refused before the training.
    tiny_config.analyses = [{"name": "selective"}]
    with pytest.raises(ConfigError, match="calibration_fraction above 0"):
        train.build(tiny_config)
    tiny_config.data.calibration_fraction = 0.1
    tiny_config.analyses = [{"name": "hybrid"}]
    with pytest.raises(ConfigError, match=r"needs config\.model\.name='hybrid'"):
        train.build(tiny_config)


def test_the_calibration_split_is_apart():
    dataset = data.load("digits", validation_fraction=0.2, calibration_fraction=0.3)
    parts = [dataset.splits[name] for name in ("train", "validation", "calibration")]
    assert [len(part) for part in parts] == [750, 300, 450]
    together = np.concatenate([part.indices for part in parts])
    assert sorted(together) == list(range(1500))
    without = data.load("digits", validation_fraction=0.2).splits
    assert "calibration" not in without
    np.testing.assert_array_equal(without["validation"].indices, parts[1].indices)
    assert isinstance(parts[2], ArraySplit)
    assert parts[2].stream not in {part.stream for part in parts[:2]}
    with pytest.raises(ConfigError, match="must be below 1 together"):
        data.load("digits", validation_fraction=0.5, calibration_fraction=0.5)
    with pytest.raises(ConfigError, match="has no calibration split"):
        data.load("adding", calibration_fraction=0.5)


def test_batches_say_which_examples_they_hold():
    split = data.load("digits").splits["train"]
    for with_index in (True, False):
        stream = data.make_train_iterator(split, batch_size=32, seed=3, with_index=with_index)
        batch = next(stream)
        assert ("index" in batch) == with_index
    stream = data.make_train_iterator(split, batch_size=32, seed=3, with_index=True)
    batch = next(stream)
    assert batch["index"].dtype == np.int32
    np.testing.assert_array_equal(batch["labels"], split.take(batch["index"])["labels"])
    with pytest.raises(ConfigError, match="windows of one long sequence"):
        data.make_train_iterator(_Ordered(), batch_size=1, seed=0, with_index=True)


class _Ordered:
    ordered = True

    def __len__(self):
        return 9


MODELS_WITH_FEATURES = {
    "sequence": ({"cell": {"name": "irnn", "features": 6}}, (3, 4, 5), "readout"),
    "resnet": ({"blocks": (1,), "widths": (4,)}, (3, 8, 8, 1), "classifier"),
    "densenet": ({"blocks": (1,)}, (3, 8, 8, 1), "classifier"),
}


@pytest.mark.parametrize("name", MODELS_WITH_FEATURES)
def test_features_are_what_the_last_layer_reads(name):
    fields, shape, last = MODELS_WITH_FEATURES[name]
    model = MODELS.build({"name": name, **fields}, num_outputs=7)
    inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), inputs)
    assert "intermediates" not in variables
    options = {"train": True, "mutable": ["batch_stats"]}

    @jax.jit
    def both(variables, inputs):
        plain, _ = model.apply(variables, inputs, **options)
        return apply_with_features(model, variables, inputs, **options), plain

    (outputs, features, changed), plain = jax.tree.map(np.asarray, both(variables, inputs))
    layer = {**variables["params"], **variables["params"].get("head", {})}[last]
    expected = features["penultimate"] @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(outputs, plain)
    assert set(changed) == set(variables) - {"params"}
    if name == "resnet":
        np.testing.assert_allclose(
            features["map"].mean((1, 2)), features["penultimate"], rtol=1e-5, atol=1e-6
        )
    assert ("map" in features) == (name != "sequence")


def test_a_model_that_shows_nothing_is_refused():
    import flax.linen as nn

    class Bare(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Dense(2)(x)

    x = jnp.ones((1, 3))
    with pytest.raises(ValueError, match='sow the input of its last linear layer as "penultimate"'):
        apply_with_features(Bare(), Bare().init(jax.random.key(0), x), x)


def test_a_config_of_a_config_is_plain(continued):
    assert isinstance(continued.prerequisites.first, ml_collections.ConfigDict)
    assert plain(continued)["prerequisites"]["first"]["train"]["num_steps"] == 30
