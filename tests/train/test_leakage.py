"""Prerequisites take over the run's seed and data, and see nothing that judges it."""

import dataclasses
import runpy
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from jaxeff import data
from jaxeff.config import follow
from jaxeff.errors import ConfigError, DataError
from jaxeff.train import experiment, leakage, prerequisites
from jaxeff.train.check import identity
from jaxeff.train.datasets import DatasetCache

CONFIGS = Path(__file__).parents[2] / "configs"


def config_of(name, arg):
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](arg)


def small_hybrid():
    """The recipe, with networks that are quick to trace."""
    config = config_of("hybrid", "digits,quick")
    for name, width in (("base", 2), ("expert", 3)):
        small = {"name": "mlp", "hidden": (width,)}
        with config.unlocked():
            config.prerequisites[name].model = small
            config.model[name] = small
    return config


@pytest.fixture
def hybrid():
    return small_hybrid()


@pytest.fixture(scope="module")
def built():
    config = small_hybrid()
    return experiment.build(config, prerequisites.untrained(config))


def check_leakage(built, seen):
    leakage.check(built.config.data, built.dataset, built.algorithm, seen)


@pytest.mark.parametrize(
    ("name", "arg"), [("hybrid", "digits"), ("disk", "digits"), ("bottleneck", "verses")]
)
def test_prerequisites_follow_the_runs_seed_and_data(name, arg):
    config = config_of(name, arg)
    before = identity(config)
    config.seed, config.data.split_seed, config.data.dir = 3, 7, "elsewhere"
    config.data.validation_fraction = 0.25
    assert config.prerequisites
    for required in config.prerequisites.values():
        assert (required.seed, required.data.split_seed, required.data.dir) == (3, 7, "elsewhere")
        assert required.data.validation_fraction == 0.25
    # Whatever follows, what a run is known again by are the values.
    assert identity(config_of(name, arg)) == before
    found = identity(config)["prerequisites"]
    assert all(required["seed"] == 3 for required in found.values())


def test_what_is_set_in_a_prerequisite_stays(hybrid):
    hybrid.prerequisites.base.seed = 5
    hybrid.seed = 2
    assert hybrid.prerequisites.base.seed == 5
    assert hybrid.prerequisites.expert.seed == 2
    assert hybrid.seed == 2


def test_what_differs_at_first_does_not_follow():
    one = ml_collections.ConfigDict(
        {"seed": 0, "data": {"size": 1, "more": {"x": 1, "y": 2}}, "prerequisites": {}}
    )
    other = one.copy_and_resolve_references()
    other.seed, other.data.more.y = 4, 5
    one.prerequisites = {"first": other}
    follow(one)
    one.seed, one.data.size, one.data.more.x, one.data.more.y = 8, 9, 10, 11
    assert other.to_dict() == {
        "seed": 4,
        "data": {"size": 9, "more": {"x": 10, "y": 5}},
        "prerequisites": {},
    }


def test_splits_and_folds_of_the_natural_command_do_not_meet(hybrid):
    hybrid.data.split_seed, hybrid.data.calibration_fraction = 1, 0.3
    hybrid.algorithm.router_folds = 3
    built = experiment.build(hybrid, prerequisites.untrained(hybrid))
    own, *below = built.experience
    assert [each.where for each in below] == ["base", "expert"]
    train = built.dataset.splits["train"].indices
    fold = train[np.arange(len(train)) % 3 == 0]
    kept = train[np.arange(len(train)) % 3 > 0]
    for each in below:
        np.testing.assert_array_equal(each.trained.numbers, kept)
        assert not len(np.intersect1d(each.trained.numbers, fold))
    np.testing.assert_array_equal(own.trained.numbers, train)
    np.testing.assert_array_equal(own.chosen.numbers, built.dataset.splits["validation"].indices)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("data.split_seed", 1, r"base would see \d+ of the \d+ calibration examples of this"),
        ("data.calibration_fraction", 0.05, "base would see .* calibration examples"),
        ("data.validation_fraction", 0.05, "base would see"),
        ("data.validation_fraction", 0.15, "base would see"),
        ("algorithm.folds", 4, r"base learns from \d+ of the \d+ training examples .* folds equal"),
        ("algorithm.fold", 1, "base learns from"),
    ],
)
def test_prerequisites_that_see_what_judges_are_refused(built, hybrid, field, value, sentence):
    base = hybrid.prerequisites.base
    section, name = field.split(".")
    base[section][name] = value
    seen = {"base": experiment.build(base).experience}
    with pytest.raises(ConfigError, match=rf"^config\.prerequisites\.{sentence}"):
        check_leakage(built, seen)


def test_what_prerequisites_build_on_is_compared_too(built, hybrid):
    hybrid.prerequisites.base.data.split_seed = 1
    first = experiment.build(hybrid.prerequisites.base).experience
    base = dataclasses.replace(built.experience[1], where="")
    check_leakage(built, {"base": (base,)})
    below = dataclasses.replace(first[0], where="first")
    with pytest.raises(ConfigError, match=r"prerequisites\.base\.prerequisites\.first would see"):
        check_leakage(built, {"base": (base, below)})


def test_a_training_checks_its_prerequisites(hybrid):
    hybrid.prerequisites.expert.data.split_seed = 1
    with pytest.raises(ConfigError, match=r"config\.prerequisites\.expert would see"):
        experiment.build(hybrid, prerequisites.untrained(hybrid))


def test_other_data_may_be_learned_from(built):
    others = leakage.ExampleRows(("tiny", "train", "x"), np.arange(2000))
    seen = leakage.Experience("", {"name": "tiny"}, others, others)
    check_leakage(built, {"teacher": (seen,)})
    unknown = leakage.Experience("", built.config.data.to_dict() | {"split_seed": 1}, None, None)
    with pytest.raises(ConfigError, match=r"teacher\.data splits 'digits' in another way"):
        check_leakage(built, {"teacher": (unknown,)})


def test_rows_of_other_arrays_are_others():
    one = leakage.ExampleRows(("digits", "train", "a"), np.arange(5))
    assert one.shared(leakage.ExampleRows(("digits", "train", "a"), np.arange(3, 9))) == 2
    assert one.shared(leakage.ExampleRows(("digits", "test", "a"), np.arange(3, 9))) == 0
    assert one.shared(leakage.ExampleRows(("digits", "train", "b"), np.arange(3, 9))) == 0


def test_labels_of_no_class_in_a_users_data_are_one_sentence(hybrid, monkeypatch):
    load = experiment.data.load

    def damaged(*args, **fields):
        found = load(*args, **fields)
        split = found.splits["validation"]
        split.labels[split.indices[2]] = 77
        return found

    monkeypatch.setattr(experiment.data, "load", damaged)
    with pytest.raises(
        DataError, match=r"digits: validation labels .* 0 to 9, but example 2 has 77"
    ):
        experiment.build(hybrid.prerequisites.base)


def test_data_of_one_config_is_loaded_once(hybrid, monkeypatch):
    loaded, load = [], data.load
    monkeypatch.setattr(
        data, "load", lambda *args, **fields: loaded.append(1) or load(*args, **fields)
    )
    datasets = DatasetCache()
    with hybrid.unlocked():
        hybrid.prerequisites.base.data.augment = {"crop": 1, "flip": False}
    models = prerequisites.untrained(hybrid, datasets)
    built = experiment.build(hybrid, models, datasets)
    assert len(loaded) == 2  # the base's own, and that of expert and run
    assert built.dataset is datasets.load(hybrid.prerequisites.expert.data)
