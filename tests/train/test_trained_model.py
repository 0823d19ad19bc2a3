"""A run, trained on arrays of one's own, as a model that answers."""

import dataclasses

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
    with pytest.raises(DataError, match="no inputs to answer"):
        trained.predict([])
    with pytest.raises(ConfigError, match="batch_size must be a whole number of at least 1, not 0"):
        trained.predict(raw[:1], batch_size=0)
    with pytest.raises(DataError, match="at most 6 steps"):
        trained.predict(np.ones((1, 7, 2)))
    generated = dataclasses.replace(trained, dataset=jaxeff.data.load("adding", length=6))
    with pytest.raises(DataError, match=r"inputs of shape \(6, 2\), not \(5, 2\)"):
        generated.predict(np.ones((1, 5, 2)))


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, content):
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"is no folder of a run.* give the --workdir"):
        jaxeff.load(tmp_path)
