"""``configs/dcl.py``: every method trains what it is called after."""

import importlib.util
from pathlib import Path

import pytest
from sweeps import swept

from jaxeff import train
from jaxeff.constraints import CONSTRAINTS
from jaxeff.errors import ConfigError
from jaxeff.train import check

PATH = Path(__file__).parents[1] / "configs" / "dcl.py"


def load():
    spec = importlib.util.spec_from_file_location("config_dcl_methods", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULE = load()


@pytest.fixture
def data_dir(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("JAXEFF_DATA_DIR", str(tmp_path_factory.getbasetemp() / "configs_data"))


def build(argument):
    config = MODULE.get_config(argument)
    check.check(config)
    return config, train.build(config)


@pytest.mark.parametrize("method", swept(MODULE.METHODS, *list(MODULE.METHODS)[:2]))
def test_every_method_builds(method, data_dir):
    config, built = build(f"digits,method={method},quick")
    algorithm = built.algorithm
    names = [constraint.name for constraint in algorithm.constraints]
    assert config.name == f"{method}_resnet20_digits"
    assert "entropy" in names  # known of all, so that they can be compared
    assert algorithm.settings.is_inactive == (method not in ("dcl", "penalty"))
    assert bool(algorithm.sharpness_radius) == (method == "sam")
    assert bool(config.objective.get("label_smoothing")) == (method == "smoothing")
    reweighting = {"dcl": "discount", "cvar": "cvar"}.get(method)
    assert getattr(algorithm.reweighting, "name", None) == reweighting
    assert ("width" in names) == (method in ("dcl", "penalty"))


def test_levels_are_relaxed_over_the_first_half_of_the_run(data_dir):
    config, built = build("digits")
    epochs = config.train.num_steps * config.train.batch_size / len(built.dataset.splits["train"])
    entropy = built.algorithm.constraints[0]
    assert entropy.level_at(0.0) == pytest.approx(0.3)
    assert entropy.level_at(epochs / 4) == pytest.approx(0.15)
    assert entropy.level_at(epochs / 2) == 0


def test_constraints_and_weights_can_be_chosen(data_dir):
    _, built = build("digits,method=penalty,weight=0.3,constraints=margin+class_loss")
    assert [c.name for c in built.algorithm.constraints] == ["margin", "class_loss"]
    assert built.algorithm.settings.initial == 0.3
    assert built.algorithm.settings.step.frozen
    assert set(MODULE.CONSTRAINTS) <= set(CONSTRAINTS)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("method=dlc", "did you mean 'dcl'"),
        ("constraints=widht", "no 'widht'; did you mean 'width'"),
        ("method=penalty,weight=heavy", "weight in the config's argument must be a number"),
        ("method=penalty,weight=-1", "weight in the config's argument must be a number"),
    ],
)
def test_unknown_arguments_are_one_sentence(argument, message):
    with pytest.raises(ConfigError, match=message):
        MODULE.get_config(argument)
