"""Nothing but a threshold is chosen on the labels of a calibration split."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxeff import analyses
from jaxeff.analyses import hybrid, selective
from jaxeff.errors import ConfigError
from jaxeff.selective import confidence
from jaxeff.train import objectives

SIZES = {"calibration": 40, "validation": 30, "test": 50}


def trained(validation):
    sizes = SIZES | {"validation": validation}
    return SimpleNamespace(
        config=SimpleNamespace(name="stub"),
        algorithm=SimpleNamespace(objective=objectives.build({"name": "auto"}, "classification")),
        dataset=SimpleNamespace(
            splits={name: range(size) for name, size in sizes.items()},
            num_classes=3,
            name="stub",
            task="classification",
        ),
    )


def draw(split, width):
    rng = np.random.default_rng(len(split))
    labels = np.arange(SIZES[split]) % 3
    return rng.normal(size=(SIZES[split], width)).astype(np.float32), labels


@pytest.fixture
def powers(monkeypatch):
    """Powers as they are used; a tuned one is the number of examples that it was tuned on."""
    used = []
    monkeypatch.setattr(confidence, "tune_p_norm", lambda logits, wrong: len(wrong))

    def confident(logits, power):
        used.append(power)
        return logits.max(-1)

    monkeypatch.setattr(confidence, "p_norm_or_response", confident)
    return used


@pytest.mark.parametrize(("validation", "power"), [(30, 30), (0, None)])
def test_a_hybrids_power_is_that_of_the_validation_split(validation, power, powers, monkeypatch):
    monkeypatch.setattr(
        hybrid,
        "collect",
        lambda trained, split, apply: dict(zip(("outputs", "labels"), draw(split, 7), strict=True)),
    )
    found = hybrid.HybridAnalysis()._splits(trained(validation))
    assert set(found) == {"calibration", "test"}
    assert powers == [power, power]


@pytest.mark.parametrize(("validation", "power"), [(30, 30), (0, None)])
def test_a_selective_power_is_that_of_the_validation_split(
    validation, power, powers, monkeypatch, tmp_path
):
    def collect(trained, split):
        outputs, labels = draw(split, 3)
        return {"outputs": outputs, "labels": labels}

    monkeypatch.setattr(selective, "collect", collect)
    monkeypatch.setattr(selective, "risk_coverage", lambda *args, **options: None)
    found = selective.SelectiveAnalysis()(trained(validation), tmp_path)
    assert found.extras["p_norm_power"] == power
    assert set(powers) == {power}


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "hybrid", "accuracy_losses": (1.5,)},
        {"name": "hybrid", "coverages": (90,)},
        {"name": "hybrid", "rounds": 0},
        {"name": "early_exits", "budgets": (0.5, float("nan"))},
        {"name": "early_exits", "budgets": (0.0,)},
        {"name": "early_exits", "candidates": 0},
        {"name": "selective", "delta": float("nan")},
        {"name": "selective", "coverages": (float("nan"),)},
    ],
)
def test_impossible_targets_are_refused_before_the_training(fields):
    with pytest.raises(ConfigError, match=r"config\.analyses\[0\]: .* must be in"):
        analyses.build([fields])
