"""Whatever goes wrong is one sentence, and the user learns it before anything is compiled."""

import re
import types

import jax
import numpy as np
import pytest

import jaxeff.train.experiment
from jaxeff import train
from jaxeff.data import Split
from jaxeff.errors import CheckpointError, ConfigError, DataError, TrainingError
from jaxeff.train import check, evaluate, launch, run_report
from jaxeff.train.loop import CHECKPOINTS, Training


@pytest.fixture
def no_compilation(monkeypatch):
    """Makes the compiler out of reach."""
    from jax._src import compiler

    def refuse(*args, **kwargs):
        raise AssertionError("something was compiled before the config was refused")

    monkeypatch.setattr(compiler, "compile_or_get_cached", refuse)


def assert_is_a_sentence(error, kind):
    assert type(error) is kind
    text = str(error)
    assert "\n" not in text
    assert not text.endswith(".")
    assert len(text) > 20


def change(config, field, value):
    *sections, name = field.split(".")
    with config.unlocked(), config.ignore_type():
        for section in sections:
            config = config[section]
        config[name] = value


REFUSED = [
    ("train.num_stepz", 3, "config.train.num_stepz is not a field of a config.*'num_steps'"),
    ("trian", {}, "config.trian is not a field of a config; did you mean 'train'"),
    ("train.num_steps", "many", "config.train.num_steps must be of type int, not 'many'"),
    ("train.num_steps", 2.5, "config.train.num_steps must be of type int, not 2.5"),
    ("train.num_steps", True, "config.train.num_steps must be of type int, not True"),
    ("train.num_steps", 0, "config.train.num_steps must be at least 1, not 0"),
    ("train.log_every", 0, "config.train.log_every must be at least 1"),
    ("train.eval_every", -1, "config.train.eval_every must be at least 1"),
    ("checkpoint.every", 0, "config.checkpoint.every must be at least 1"),
    ("checkpoint.keep", 0, "config.checkpoint.keep must be at least 1"),
    ("train", 3, "config.train must be a section of fields, not 3"),
    ("seed", -1, "config.seed must not be negative"),
    ("devices.cpu", -1, "config.devices.cpu must not be negative"),
    ("devices.coordinator", 5, "config.devices.coordinator must be of type text, not 5"),
    ("eval.select", "bests", "config.eval.select.*'bests'; did you mean 'best'"),
    ("parallel", "jit", "config.parallel must be one of shard_map, pmap, not 'jit'"),
    ("model.name", "sequense", "config.model.name.*'sequense'; did you mean 'sequence'"),
    ("model.cell.name", "irn", "config.model.cell.name.*'irn'; did you mean 'irnn'"),
    ("model.cell.feature", 3, "config.model.cell.feature.*did you mean 'features'"),
    (
        "model.cell.num_inner_steps",
        0,
        "num_inner_steps must be a whole number of at least 1, not 0",
    ),
    ("model.cell.features", -1, "features must be a whole number of at least 1, not -1"),
    ("model.cell.step_size", 1e6, "step_size.*1000000.0"),
    ("model.cell.activation", "tahn", "tahn"),
    ("model.num_layers", 0, "num_layers must be a whole number of at least 1, not 0"),
    ("model.readout", "first", "readout"),
    ("model.dropuot", 0.1, "config.model.dropuot.*did you mean 'dropout'"),
    ("optim.name", "adan", "config.optim.name.*'adan'; did you mean 'adam'"),
    ("optim.momentun", 0.9, "config.optim.momentun"),
    ("optim.learning_rate", 0.0, "config.optim.learning_rate must be positive"),
    ("optim.schedule_name", "cosin", "config.optim.schedule_name.*'cosin'"),
    ("optim.warmup_steps", 60, "config.optim.warmup_steps"),
    ("optim.clip_norm", -1.0, "config.optim.clip_norm must not be negative"),
    ("objective.name", "hinge", "config.objective.name.*'hinge'"),
    ("objective.label_smoothing", 1.0, "config.objective.label_smoothing"),
    ("algorithm.name", "bpt", "config.algorithm.name.*'bpt'; did you mean 'bptt'"),
    ("data.name", "digit", "config.data.name.*'digit'; did you mean 'digits'"),
    ("data.view", "row", "config.data.view.*'row'; did you mean 'rows'"),
    ("data.view", "", "config.data.view"),
    ("data.lenght", 3, "config.data.lenght"),
    ("data.validation_fraction", 1.5, "config.data.validation_fraction"),
]


@pytest.mark.parametrize(
    ("field", "value", "sentence"), REFUSED, ids=[f"{f}={v}" for f, v, _ in REFUSED]
)
def test_impossible_field_is_named_before_anything_is_compiled(
    tiny_config, tmp_path, no_compilation, field, value, sentence
):
    change(tiny_config, field, value)
    with pytest.raises(ConfigError) as caught:
        launch.train(tiny_config, tmp_path / "run")
    assert_is_a_sentence(caught.value, ConfigError)
    assert re.search(sentence, str(caught.value)), str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("section", ["data", "model", "model.cell", "optim", "algorithm"])
def test_missing_name_is_named(tiny_config, tmp_path, no_compilation, section):
    part = tiny_config
    for name in section.split("."):
        part = part[name]
    with part.unlocked():
        del part["name"]
    with pytest.raises(ConfigError, match=rf"config\.{section}.*name") as caught:
        launch.train(tiny_config, tmp_path / "run")
    assert_is_a_sentence(caught.value, ConfigError)


def test_missing_cell_is_a_sentence(tiny_config, tmp_path, no_compilation):
    with tiny_config.model.unlocked():
        del tiny_config.model["cell"]
    with pytest.raises(ConfigError, match=r"config\.model.*cell") as caught:
        launch.train(tiny_config, tmp_path / "run")
    assert_is_a_sentence(caught.value, ConfigError)


def test_training_batch_that_does_not_split_over_the_devices_is_refused(
    tiny_config, monkeypatch, no_compilation
):
    tiny_config.train.batch_size = 65
    devices = jax.devices()[:1] * 2
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    monkeypatch.setattr(train.parallel, "Mesh", lambda *_, **__: None)
    monkeypatch.setattr(train.parallel, "NamedSharding", lambda *_: None)
    with pytest.raises(ConfigError) as caught:
        train.build(tiny_config)
    assert str(caught.value) == (
        "config.train.batch_size must be a positive multiple of the 2 devices, not 65"
    )


def test_missing_data_set_is_named_with_where_it_was_looked_for(
    tiny_config, tmp_path, no_compilation
):
    change(tiny_config, "data.name", "fashion_mnist")
    change(tiny_config, "data.dir", str(tmp_path / "nothing_here"))
    with pytest.raises(DataError, match="fashion_mnist") as caught:
        launch.train(tiny_config, tmp_path / "run")
    assert str(tmp_path / "nothing_here") in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_folder_of_another_config_is_refused_and_left_alone(tiny_config, tmp_path, no_compilation):
    check.claim_workdir(tmp_path, tiny_config)
    before = (tmp_path / "config.json").read_text()
    tiny_config.optim.learning_rate = 0.5
    with pytest.raises(CheckpointError) as caught:
        launch.train(tiny_config, tmp_path)
    assert_is_a_sentence(caught.value, CheckpointError)
    assert "config.optim.learning_rate was 0.01 and is now 0.5" in str(caught.value)
    assert (tmp_path / "config.json").read_text() == before
    assert not (tmp_path / CHECKPOINTS).exists()


def test_folder_whose_config_was_cut_off_by_a_kill_is_claimed(tiny_config, tmp_path):
    (tmp_path / "config.json").write_text('{"name": "ti')
    check.claim_workdir(tmp_path, tiny_config)
    check.claim_workdir(tmp_path, tiny_config)
    assert '"name": "tiny"' in (tmp_path / "config.json").read_text()


def test_evaluation_without_checkpoints_is_refused(tiny_config, tmp_path, no_compilation):
    with pytest.raises(CheckpointError, match=r"holds no checkpoints.*--mode=train") as caught:
        evaluate.evaluate(tiny_config, tmp_path)
    assert_is_a_sentence(caught.value, CheckpointError)


def test_evaluation_with_an_empty_checkpoint_folder_is_refused(tiny_config, tmp_path):
    """A run that was killed before its first save leaves a folder without a checkpoint."""
    (tmp_path / CHECKPOINTS).mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        evaluate.evaluate(tiny_config, tmp_path)


class SpoiledSplit(Split):
    """A split that is spoiled from some batch on: labels of no class make the loss NaN."""

    def __init__(self, split, good_batches, what, value):
        self._what, self._value, self._split, self._left, self.stream = (
            what,
            value,
            split,
            good_batches,
            split.stream,
        )

    def __len__(self):
        return len(self._split)

    def take(self, indices, rng=None):
        batch = self._split.take(indices, rng)
        self._left -= 1
        if self._left < 0:
            batch[self._what] = np.full_like(batch[self._what], self._value)
        return batch


@pytest.fixture
def spoil(monkeypatch):
    def spoil(good_batches, what="labels", value=99):
        load = jaxeff.train.experiment.data.load

        def loading(*args, **kwargs):
            dataset = load(*args, **kwargs)
            dataset.splits["train"] = SpoiledSplit(
                dataset.splits["train"], good_batches, what, value
            )
            return dataset

        monkeypatch.setattr(jaxeff.train.experiment.data, "load", loading)

    return spoil


def run_until_it_fails(config, workdir):
    training = Training(train.build(config), workdir)
    try:
        with pytest.raises(TrainingError) as caught:
            training.run()
    finally:
        training.close()
    assert_is_a_sentence(caught.value, TrainingError)
    return str(caught.value), training.checkpoints.directory


def steps_in(folder):
    return sorted(int(path.name) for path in folder.glob("*"))


def test_loss_of_nan_names_its_step_and_the_last_good_checkpoint(tiny_config, tmp_path, spoil):
    tiny_config.train.update({"log_every": 50, "eval_every": 50})
    spoil(good_batches=12)
    text, folder = run_until_it_fails(tiny_config, tmp_path)
    assert text.startswith("the loss became nan at step 13; lower config.optim.learning_rate")
    assert "(now 0.01)" in text
    assert "config.optim.clip_norm (now 0.0)" in text
    assert text.endswith(f"last good checkpoint: step 10 in {folder}")
    assert steps_in(folder) == [5, 10]  # nothing of step 15, when it was noticed


def test_inputs_of_nan_name_their_batch(tiny_config, tmp_path, spoil):
    spoil(good_batches=3, what="inputs", value=np.nan)
    training = Training(train.build(tiny_config), tmp_path)
    with pytest.raises(DataError, match=r"batch 3 .*NaN or infinite inputs.*clean the data") as e:
        training.run()
    training.close()
    assert_is_a_sentence(e.value, DataError)


def test_loss_of_nan_before_the_first_checkpoint(tiny_config, tmp_path, spoil):
    spoil(good_batches=1)
    text, folder = run_until_it_fails(tiny_config, tmp_path)
    assert "at step 2;" in text
    assert text.endswith("last good checkpoint: none yet")
    assert steps_in(folder) == []


@pytest.mark.slow
def test_loss_of_nan_at_the_step_of_a_save_is_not_saved(tiny_config, tmp_path, spoil):
    spoil(good_batches=9)
    text, folder = run_until_it_fails(tiny_config, tmp_path)
    assert "at step 10;" in text
    assert steps_in(folder) == [5]


def test_update_that_spoils_the_parameters_is_not_saved(tiny_config, tmp_path):
    """The loss of the saved step is finite, the parameters that its update made are not."""
    tiny_config.optim = {
        **tiny_config.optim.to_dict(),
        "name": "sgd",
        "schedule_name": "constant",
        "learning_rate": 1e40,
    }
    tiny_config.checkpoint.every = 1
    _, folder = run_until_it_fails(tiny_config, tmp_path)
    assert steps_in(folder) == []


@pytest.mark.parametrize("number", [0, 1, 15, 16, 40])
def test_model_speaks_of_itself_on_however_few_test_examples(number):
    """The report comes after the training, whose result must not be lost to a small split."""

    class Model:
        def warnings(self, variables, examples):
            return [f"seen {len(examples)}"]

    class Algorithm:
        def warnings(self, state):
            return ["trained"]

    class Examples(Split):
        def __len__(self):
            return number

        def take(self, indices, rng=None):
            return {"inputs": np.zeros((number, 2))[indices]}

    split = Examples()
    experiment = types.SimpleNamespace(
        model=Model(), algorithm=Algorithm(), dataset=types.SimpleNamespace(splits={"test": split})
    )
    found = run_report.warnings(experiment, {"params": {}, "model_state": {}}, None)
    assert found == ["trained", *([f"seen {min(number, 16)}"] if number else [])]
