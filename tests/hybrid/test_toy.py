"""A trained router against confidence where confidence cannot tell what helps."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("optimised")

TOY = Path(__file__).parents[2] / "benchmarks" / "routing_toy.py"


@pytest.fixture(scope="module")
def toy():
    spec = importlib.util.spec_from_file_location("routing_toy", TOY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_trained_router_beats_entropy_among_noise_and_equals_it_without(toy):
    shorter = {"steps": {"base": 800, "expert": 1500, "router": 1000}, "seeds": 3}
    gains = {}
    for variant in ("noisy", "clean"):
        found = toy.compare(variant, **shorter)
        gains[variant] = {
            where: np.mean(found["learned"][where]) - np.mean(found["entropy"][where])
            for where in ("0.75", "area")
        }
        for rule in ("learned", "entropy"):
            assert np.mean(found[rule]["area"]) < np.mean(found["label oracle"]["area"])
    assert gains["noisy"]["0.75"] >= 1.5
    assert gains["noisy"]["area"] >= 0.5
    assert gains["clean"]["area"] >= -0.3
