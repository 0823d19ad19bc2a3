"""Runs of ``configs/selective.py``, and what their analysis finds on splits of known outputs."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxeff import analyses, train
from jaxeff.analyses import selective
from jaxeff.errors import ConfigError, DataError
from jaxeff.selective import calibrate, confidence, metrics
from jaxeff.train import objectives

CONFIG = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "selective.py"))
SLOW = pytest.mark.slow
SIZES = {"calibration": 400, "validation": 100, "test": 300}


def draw(name, classes=3, width=4):
    """Outputs whose abstention is right about which examples the classes get wrong."""
    rng = np.random.default_rng(len(name))
    n = SIZES[name]
    labels = np.arange(n) % classes
    quality = rng.uniform(0, 3, n)
    outputs = rng.normal(size=(n, width)).astype(np.float32)
    outputs[np.arange(n), labels] += quality
    outputs[:, -1] = 1 - 2 * quality
    return {"outputs": outputs, "labels": labels}


@pytest.fixture
def found(monkeypatch, tmp_path):
    monkeypatch.setattr(selective, "collect", lambda trained, split: draw(split))
    # A power that says which split it was tuned on.
    monkeypatch.setattr(confidence, "tune_p_norm", lambda logits, wrong: len(wrong))
    objective = objectives.build({"name": "deep_gamblers"}, "classification")
    splits = {name: range(n) for name, n in SIZES.items()}
    stub = SimpleNamespace(
        config=SimpleNamespace(name="stub"),
        algorithm=SimpleNamespace(objective=objective),
        dataset=SimpleNamespace(splits=splits, num_classes=3, name="stub", task="classification"),
    )
    analysis = analyses.build(
        [{"name": "selective", "joint_errors": (0.05, 0.0001), "selective_risks": (0.1,)}]
    )
    return analysis["selective"](stub, tmp_path), tmp_path


def test_thresholds_are_chosen_on_calibration_and_judged_on_test(found):
    findings, folder = found
    assert (folder / findings.artifacts["risk_coverage"]).stat().st_size > 1000
    extras = findings.extras
    assert extras["examples"] == SIZES
    calibration, test = draw("calibration"), draw("test")
    own = {
        name: confidence.not_abstaining(split["outputs"].astype(np.float64))
        for name, split in (("calibration", calibration), ("test", test))
    }
    wrong = {
        name: split["outputs"][:, :3].argmax(1) != split["labels"]
        for name, split in (("calibration", calibration), ("test", test))
    }
    assert extras["test_error"] == pytest.approx(wrong["test"].mean())
    # A choice made on calibration labels would void the promises of thresholds chosen on them.
    assert extras["p_norm_power"] == SIZES["validation"]
    table = extras["confidences"]["not abstaining"]
    for name, area in (("aurc", metrics.aurc), ("augrc", metrics.augrc)):
        assert table[name] == area(own["test"], wrong["test"])
    assert table["aurc_of_prefixes"] == metrics.aurc_of_prefixes(own["test"], wrong["test"])
    chosen = calibrate.plug_in(own["calibration"], wrong["calibration"], 0.05)
    reached = metrics.rates(own["test"] >= chosen.value, wrong["test"])
    row = dict(zip(extras["columns"], table["at_joint_error"]["0.05"]["plug-in"], strict=True))
    assert row["threshold"] == chosen.value
    assert row["calibrated_coverage"] == pytest.approx(chosen.rates.coverage, abs=1e-4)
    assert row["coverage"] == pytest.approx(reached.coverage, abs=1e-4)
    assert row["joint_error"] == pytest.approx(reached.joint_error, abs=1e-5)
    assert row["selective_risk"] == pytest.approx(reached.selective_risk, abs=1e-5)
    chosen = calibrate.quantile(own["calibration"], 0.8)
    assert table["at_coverage"]["0.8"][0] == chosen.value
    grid = calibrate.grid_of(confidence.not_abstaining(draw("validation")["outputs"].astype(float)))
    options = {"delta": 0.1, "grid": grid}
    chosen = calibrate.learn_then_test(
        own["calibration"], wrong["calibration"], 0.1, "selective", **options
    )
    assert table["at_selective_risk"]["0.1"]["learn then test"][0] == chosen.value
    assert set(table["at_joint_error"]["0.05"]) == set(calibrate.METHODS)
    assert set(table["at_selective_risk"]["0.1"]) == {"plug-in", "learn then test"}
    out_of_reach = table["at_joint_error"]["0.0001"]["conformal risk control"]
    assert "the best possible is" in out_of_reach


def test_all_confidences_are_compared(found):
    tables = found[0].extras["confidences"]
    assert list(tables) == ["not abstaining", *confidence.OF_LOGITS, "max-logit p-norm"]
    # Here the abstention knows best.
    assert min(tables, key=lambda name: tables[name]["augrc"]) == "not abstaining"


def test_data_without_one_class_per_example_is_refused():
    dataset = SimpleNamespace(name="adding", task="regression")
    with pytest.raises(ConfigError, match="data 'adding' is for regression; leave it out"):
        selective.SelectiveAnalysis().check(None, dataset)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"delta": 1.0}, r"config.analyses\[0\]: delta must be in \(0, 1\)"),
        ({"coverages": (0.5, 1.2)}, r"coverages must be in \(0, 1\], not \(0.5, 1.2\)"),
        ({"joint_errors": (0.0,)}, r"joint_errors must be in \(0, 1\)"),
        ({"selective_risks": (1.0,)}, r"selective_risks must be in \(0, 1\)"),
    ],
)
def test_impossible_targets_are_refused_before_training(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        analyses.build([{"name": "selective", **fields}])


def tiny(method):
    config = CONFIG["get_config"](f"quick,method={method}")
    backbone = config.model.get("backbone", config.model)
    backbone.update({"name": "mlp", "hidden": (16,)})
    for field in ("depth", "widths", "axis_name", "design"):
        del backbone[field]
    config.train.num_steps = 60
    config.devices.cpu = 1
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["osp", "sat", *(pytest.param(m, marks=SLOW) for m in ("softmax", "selectivenet", "gamblers"))],
)
def test_every_method_trains_and_reports(method, tmp_path):
    report = train.run(tiny(method), tmp_path)
    extras = report["extras"]["selective"]
    assert extras["examples"] == {"calibration": 300, "test": 297, "validation": 150}
    accuracy = report["metrics"]["test"]["accuracy"]
    assert accuracy == pytest.approx(1 - extras["test_error"], abs=1e-6)
    assert accuracy > 0.5
    own = {
        "osp": "one-sided score",
        "softmax": "softmax response",
        "selectivenet": "selection head",
    }.get(method, "not abstaining")
    assert next(iter(extras["confidences"])) in (own, "margin")  # reports sort their fields
    assert own in extras["confidences"]
    assert (tmp_path / report["artifacts"]["risk_coverage"]).exists()


def test_a_calibration_split_without_a_class_is_one_sentence(tmp_path):
    config = tiny("osp")
    config.train.num_steps = 1
    config.data.calibration_fraction = 0.004
    with pytest.raises(DataError, match=r"calibration split of 6 examples has none of class"):
        train.run(config, tmp_path)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("method=ops", "argument method=ops is unknown; did you mean 'osp'"),
        ("mu=x", "mu in the config's argument must be a positive number, not 'x'"),
        ("mu=-1", "must be a positive number"),
        ("method=sat,mu=1", "mu in the config's argument is of method=osp, not of method=sat"),
        ("imagenet", "no recipe for imagenet here; choose digits, fashion"),
    ],
)
def test_arguments_that_cannot_work_are_refused(argument, sentence):
    with pytest.raises(ConfigError, match=sentence):
        CONFIG["get_config"](argument)


def test_cifar_is_trained_as_published():
    config = CONFIG["get_config"]("cifar10,model=resnet32,mu=1.67")
    assert (config.optim.name, config.optim.learning_rate) == ("adamw", 0.01)
    assert config.optim.weight_decay == 5e-4
    assert config.train.num_steps * config.train.batch_size == pytest.approx(200 * 44_000, rel=1e-3)
    assert config.objective.to_dict() == {"name": "one_sided", "alpha": 0.9, "mu": 1.67}
    assert config.eval.select == "last"
    gamblers = CONFIG["get_config"]("cifar10,method=gamblers")
    assert gamblers.algorithm.pretrain_steps == gamblers.train.num_steps // 3
