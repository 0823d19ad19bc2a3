"""The trained models that come with the package: what they are said to reach, and their size."""

import shutil

import numpy as np
import pytest
from sklearn.datasets import load_digits

import jaxeff
from jaxeff.data.digits import SHUFFLE_SEED
from jaxeff.errors import CheckpointError, UserError
from jaxeff.hub import shipped

TEST_EXAMPLES = 297  # the last ones of the data set's permutation of scikit-learn's file
NAMES = jaxeff.list_models(trained=True)
FAST = ("digits-fastgrnn",)


@pytest.fixture(scope="module")
def digits():
    loaded = load_digits()
    order = np.random.Generator(np.random.PCG64(SHUFFLE_SEED)).permutation(len(loaded.target))
    rows = order[-TEST_EXAMPLES:]
    return loaded.images[rows].astype(np.uint8), loaded.target[rows]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in NAMES]
)
def test_a_model_reaches_what_its_report_says(name, digits, monkeypatch):
    monkeypatch.setattr(jaxeff.data, "load", None)  # none is needed
    model = jaxeff.load(name)
    expected = model.report["metrics"]["test"].get("accuracy")
    if model.dataset.name != "digits":
        shape = (2, *model.dataset.input_shape)
        texts = model.dataset.name == "verses"
        inputs = ["In the beginning"] * 2 if texts else np.zeros(shape, np.float32)
        assert np.isfinite(np.asarray(model.predict(inputs).outputs[0])).all()
        return
    images, labels = digits
    answers = model.predict(images, batch_size=len(images))
    # A hybrid model asks about a share of each batch.
    slack = 0.02 if name == "digits-hybrid" else 0.5 / len(images)
    assert np.mean(answers.labels == labels) == pytest.approx(expected, abs=slack)


def test_models_are_small():
    sizes = {n: sum(f.stat().st_size for f in (shipped.FOLDER / n).iterdir()) for n in NAMES}
    assert all(size < 1e6 for size in sizes.values()), sizes
    assert sum(sizes.values()) < 5e6


def test_a_model_of_an_unregistered_cell_says_what_to_import(tmp_path):
    folder = shutil.copytree(shipped.FOLDER / "digits-irnn", tmp_path / "model")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"irnn"', '"leaky"'))
    with pytest.raises(UserError, match=r"unknown cell 'leaky'.*import that module first"):
        jaxeff.load(folder)


def test_a_name_that_is_not_known_is_one_sentence():
    with pytest.raises(CheckpointError, match=r"no folder digits-tarn, .* mean digits-tarnn"):
        jaxeff.load("digits-tarn")
    with pytest.raises(CheckpointError, match=r"list_models\(trained=True\) has all"):
        jaxeff.load("qqq")
    assert "digits-tarnn" in jaxeff.list_models("digits-*", trained=True)
