"""A run, trained on arrays of one's own, as a model that answers."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import jaxeff
from jaxeff.errors import CheckpointError, ConfigError, DataError

LENGTH, LEVELS = 6, (0.0, 3.0)


@pytest.fixture
def series():
    """Series of two classes, told apart by their level, of different lengths."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 2
    lengths = rng.integers(3, LENGTH + 1, 96)
    noise = rng.normal(size=(96, LENGTH, 2))
    return noise + np.take(LEVELS, labels)[:, None, None], labels, lengths


@pytest.fixture
def run(tiny_config, series, tmp_path):
    values, labels, lengths = series
    arrays = {}
    for part, rows in (("train", slice(0, 64)), ("test", slice(64, 96))):
        arrays |= {f"x_{part}": values[rows], f"y_{part}": labels[rows]}
        arrays[f"lengths_{part}"] = lengths[rows]
    np.savez(tmp_path / "mine.npz", **arrays, class_names=["low", "high"])
    tiny_config.data.update({"name": "arrays", "dir": str(tmp_path / "mine.npz"), "view": ""})
    tiny_config.data.normalize = "standard"
    tiny_config.model = {"name": "sequence", "cell": {"name": "rnn", "features": 4}}
    tiny_config.eval.batch_size = 1  # a single program of inference
    tiny_config.devices.cpu = 1
    tiny_config.train.update({"batch_size": 16, "num_steps": 8, "eval_every": 2})
    return jaxeff.train.run(tiny_config, tmp_path / "run"), tmp_path / "run"


def test_a_loaded_run_answers_as_its_report_says(run, series):
    report, folder = run
    trained = jaxeff.load(folder)
    values, labels, lengths = (part[64:] for part in series)
    raw = [one[:n] for one, n in zip(values, lengths, strict=True)]
    answers = trained.predict(raw, batch_size=12)
    assert trained.report["metrics"] == report["metrics"]
    assert np.mean(answers.labels == labels) == pytest.approx(report["metrics"]["test"]["accuracy"])
    log_shares = answers.outputs - np.logaddexp.reduce(answers.outputs, -1, keepdims=True)
    loss = -log_shares[np.arange(32), labels].mean()
    assert loss == pytest.approx(report["metrics"]["test"]["loss"], rel=1e-5)
    assert set(answers.names) <= {"low", "high"} == set(trained.class_names)
    direct = trained.model.apply(
        trained.variables, **trained.dataset.splits["test"].preprocess(raw)
    )
    np.testing.assert_allclose(answers.outputs, direct, rtol=1e-5, atol=1e-6)
    one = trained.predict(raw[:1])
    np.testing.assert_allclose(one.outputs, answers.outputs[:1], rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="there are no inputs"):
        trained.predict([])
    with pytest.raises(ConfigError, match="batch_size must be a whole number of at least 1, not 0"):
        trained.predict(raw[:1], batch_size=0)
    with pytest.raises(DataError, match="at most 6 steps"):
        trained.predict(np.ones((1, 7, 2)))
    generated = dataclasses.replace(trained, dataset=jaxeff.data.load("adding", length=6))
    with pytest.raises(DataError, match=r"inputs of shape \(6, 2\), not \(5, 2\)"):
        generated.predict(np.ones((1, 5, 2)))


def test_a_run_is_loaded_without_its_data_and_checkpoints(run, series, tmp_path):
    _, folder = run
    values, _, lengths = (part[64:] for part in series)
    raw = [one[:n] for one, n in zip(values, lengths, strict=True)]
    (tmp_path / "mine.npz").unlink()
    shutil.rmtree(folder / "checkpoints")
    trained = jaxeff.load(folder)
    expected = trained.predict(raw)
    trained.save(tmp_path / "elsewhere")
    again = jaxeff.load(tmp_path / "elsewhere")
    answers = again.predict(raw)
    np.testing.assert_array_equal(answers.outputs, expected.outputs)
    np.testing.assert_array_equal(answers.names, expected.names)
    assert again.report == trained.report
    with pytest.raises(DataError, match=r"loaded without its examples; jaxeff.load\(folder, data"):
        again.dataset.splits["train"].take(np.arange(2))
    with pytest.raises(DataError, match=r"mine\.npz: there is no such file"):
        jaxeff.load(tmp_path / "elsewhere", data=True)


def test_a_saved_model_is_that_of_the_checkpoint(run, series):
    _, folder = run
    raw = list(series[0][64:])
    expected = jaxeff.load(folder).predict(raw)
    assert len(jaxeff.load(folder, data=True).dataset.splits["train"])
    # A run that was made longer has checkpoints that its saved model does not have.
    content = json.loads((folder / "config.json").read_text())
    content["train"]["num_steps"] = 9
    (folder / "config.json").write_text(json.dumps(content))
    longer = jaxeff.load(folder)
    assert longer.config.train.num_steps == 9
    np.testing.assert_array_equal(longer.predict(raw).outputs, expected.outputs)


def test_a_folder_of_two_models_is_refused(run, tmp_path):
    _, folder = run
    trained = jaxeff.load(folder)
    trained.save(tmp_path / "first")
    moved = jax.tree.map(lambda leaf: leaf + 1, trained.variables)
    dataclasses.replace(trained, variables=moved).save(tmp_path / "second")
    shutil.copy(tmp_path / "second/model.safetensors", tmp_path / "first")
    with pytest.raises(DataError, match=r"model\.safetensors: was changed, or is not of the same"):
        jaxeff.load(tmp_path / "first")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, content):
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"is no folder of a run.* give the --workdir"):
        jaxeff.load(tmp_path)
