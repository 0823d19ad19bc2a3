"""What docs/extending.md shows does what it says."""

import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxeff
from jaxeff import config_files, train
from jaxeff.data import DATASETS
from jaxeff.errors import DataError
from jaxeff.models import MODELS
from jaxeff.ode import CELLS
from jaxeff.train import OBJECTIVES, launch

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
CELL, CONFIG, OTHERS, ARRAYS, CALL = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(autouse=True)
def registries(monkeypatch, tmp_path):
    """Forgets afterwards what a test registers, imports, and where from."""
    for registry in (CELLS, DATASETS, MODELS, OBJECTIVES):
        monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("JAXEFF_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("leaky", None)


def test_a_config_names_what_a_module_beside_it_registers(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "leaky.py").write_text(CELL)
    (folder / "my_config.py").write_text(CONFIG)
    config = config_files.load(str(folder / "my_config.py"))
    assert sys.path[-1] == str(folder)
    experiment = train.build(config)
    assert type(experiment.model.cell).__name__ == "Leaky"
    assert "leaky" in jaxeff.list_models()
    inputs = np.ones((2, 3, 4), np.float32)
    layer = jaxeff.layers.RNN(jaxeff.layers.from_pure(sys.modules["leaky"].Leaky(5)))
    outputs = jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x)[0], inputs)
    assert outputs.shape == (2, 3, 5)
    assert len(CELL.splitlines()) <= 25


def test_models_data_and_objectives_are_registered_alike():
    exec(OTHERS, {})
    config = train.base_config()
    config.data.name, config.model = "signs", {"name": "line", "bias": False}
    config.objective = {"name": "focal", "power": 1.0}
    config.train.batch_size = 32
    assert len(train.build(config).dataset.splits["test"]) == 50


def test_a_file_of_arrays_is_trained_on_by_a_shipped_config():
    exec(ARRAYS, {})
    config = config_files.load("configs/irnn.py")
    for field in re.search(r"--config=configs/irnn.py (.*?)```", PAGE, re.DOTALL)[1].split():
        if field.startswith("--config."):
            name, value = field.removeprefix("--config.data.").split("=")
            config.data[name] = value
    dataset = train.build(config).dataset
    assert (dataset.input_shape, dataset.num_classes) == ((20, 3), 4)


def test_prerequisites_on_the_same_data_train_on_the_arrays_too(tmp_path):
    config = config_files.load("configs/disk.py")
    config.prerequisites.student.data.name = "fashion_mnist"
    changed = launch.with_arrays(config, tmp_path, {"x_train": np.zeros(3)})
    path = str(tmp_path / "arrays.npz")
    assert (changed.data.name, changed.data.dir) == ("arrays", path)
    teacher, student = changed.prerequisites.teacher.data, changed.prerequisites.student.data
    assert (teacher.name, teacher.dir) == ("arrays", path)
    assert (student.name, student.dir) == ("fashion_mnist", "")
    assert config.data.name == config.prerequisites.teacher.data.name == "digits"


def test_a_data_set_of_turned_images_turns_those_of_the_arrays(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8)).astype(np.uint8)
    labels = np.arange(30) % 3
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:6], "y_test": labels[:6]}
    config = config_files.load("configs/avae.py")
    config.train.batch_size = 9
    config = launch.with_arrays(config, tmp_path, arrays)
    dataset = train.build(config).dataset
    assert (dataset.task, len(dataset.splits["train"])) == ("reconstruction", 27)


def test_arrays_are_trained_on_without_a_file(monkeypatch):
    exec(ARRAYS, names := {})
    monkeypatch.setattr(train, "run", lambda *args, **options: names.update(options, args=args))
    exec(CALL, names)
    config, workdir = names["args"]
    config = launch.with_arrays(config, Path(workdir), names["arrays"])
    dataset = train.build(config).dataset
    assert (dataset.input_shape, dataset.num_classes) == ((20, 3), 4)
    np.testing.assert_array_equal(
        dataset.splits["test"].take(np.arange(100))["labels"], names["y"][200:]
    )
    ragged = [np.ones((n, 3)) for n in (2, 3)]
    with pytest.raises(DataError, match=r"x_train is no array .*; number classes by numpy\.unique"):
        launch.with_arrays(config, Path(workdir), {"x_train": np.array(ragged, object)})
