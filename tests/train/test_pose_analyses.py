"""Looks at trained autoencoders: the files they draw and the numbers they find."""

import types

import jax
import numpy as np
import optax
import pytest

from jaxeff.affine import Transform
from jaxeff.affine.orientation import circular_variance
from jaxeff.affine.poses import rotation_matrix
from jaxeff.analyses import ANALYSES, TrainingResult
from jaxeff.analyses.poses import AutoencoderPredictor
from jaxeff.data.posed import PosedSplit
from jaxeff.errors import ConfigError
from jaxeff.eval import pose_plots
from jaxeff.models import MODELS
from jaxeff.train.algorithms import BPTT, AffineVAE, Task
from jaxeff.train.objectives import elbo

FEW = {"starts": 4, "method": "screen"}


def plane(drawn):
    return rotation_matrix((2 * np.pi * drawn[:, 0]).astype(np.float32), np)


def trained_on(pose, task="reconstruction", targets="unit"):
    spec = {"name": "autoencoder", "size": 8, "latents": 2, "pose": pose}
    model = MODELS.build(spec, num_outputs=1)
    objective, kind = elbo(targets=targets), Task("reconstruction")
    if pose:
        algorithm = AffineVAE(model, objective, optax.sgd(0.1), kind, search=FEW, evaluation=FEW)
    else:
        algorithm = BPTT(model, objective, optax.sgd(0.1), kind)
    images = np.random.default_rng(0).uniform(size=(9, 6, 6, 1)).astype(np.float32)
    labels = np.arange(9, dtype=np.int32) % 3
    split = PosedSplit(images, labels, 8, 1.0, plane, stream=2)
    dataset = types.SimpleNamespace(
        task=task, splits={"test": split}, input_shape=(8, 8, 1), class_names=(), name="toy"
    )
    state = jax.jit(algorithm.init_state)(jax.random.key(0), split.take(np.arange(1))["inputs"])
    config = types.SimpleNamespace(name="toy")
    variables = {"params": state.params, **state.model_state}
    return TrainingResult(config, dataset, model, algorithm, variables)


@pytest.fixture(scope="module")
def posed():
    return trained_on({"name": "rotation"})


@pytest.mark.slow
def test_what_is_seen_is_what_the_search_found(posed):
    built = posed
    predict = AutoencoderPredictor(posed)
    inputs = built.dataset.splits["test"].take(np.arange(5))["inputs"]
    seen = predict(inputs)
    outputs, _, _ = jax.jit(lambda v, x: built.algorithm.forward(v, {"inputs": x}, train=False))(
        built.variables, inputs
    )
    np.testing.assert_allclose(seen["reconstruction"], outputs.reconstruction, atol=1e-5)
    np.testing.assert_allclose(seen["loss"], elbo()(outputs, {"inputs": inputs})["loss"], rtol=1e-5)
    canonical = predict.decoded(seen["mean"])
    assert canonical.shape == (5, 8, 8, 1)


@pytest.fixture
def found_as_told(posed, monkeypatch):
    """The experiment with poses that are told instead of searched, and what it draws."""
    built = posed
    drawn = {}

    def tell(angles):
        poses = np.zeros((32, 1), np.float32)  # of a chunk
        poses[: len(angles), 0] = angles
        monkeypatch.setattr(built.algorithm, "find", lambda variables, inputs: poses)

    def keep(rows, path, **_):
        drawn[path.stem] = rows

    monkeypatch.setattr(pose_plots, "image_grid", keep)
    monkeypatch.setattr(pose_plots, "angle_histograms", keep)
    return built, tell, drawn


def angles_of(batch):
    cosine, sine = batch["pose"][:, 0], batch["pose"][:, 2]
    return np.arctan2(sine, cosine)


def test_angles_of_the_data_and_found_ones_add_up_to_the_orientation(found_as_told, tmp_path):
    built, tell, drawn = found_as_told
    batch = built.dataset.splits["test"].take(np.arange(9))
    labels = batch["labels"]
    # The second class is kept in two opposite orientations, the third at random.
    kept = np.where(labels == 0, 0.3, np.where(np.arange(9) % 2, 0.4 - np.pi, 0.4))
    kept = np.where(labels == 2, np.linspace(-3, 3, 9), kept)
    tell(kept - angles_of(batch))
    found = ANALYSES.build({"name": "recovered_angles"}, "a")(built, tmp_path).extras
    wanted = {name: circular_variance(kept[labels == int(name)]) for name in "012"}
    assert found["circular_variance"] == pytest.approx(wanted, abs=1e-5)
    assert wanted["0"] == pytest.approx(0)
    assert wanted["1"] > 0.5
    assert found["circular_variance_of_axis"]["1"] == pytest.approx(0, abs=1e-5)
    assert found["conclusion"].startswith(
        "No preferred orientation: all 3 classes"
    )  # three images of each
    data = circular_variance(angles_of(batch))
    assert found["circular_variance_of_data"] == pytest.approx(data, abs=1e-5)
    turned = np.exp(1j * drawn["angles"]["all"])
    np.testing.assert_allclose(turned, np.exp(1j * (kept - angles_of(batch))), atol=1e-5)


@pytest.mark.slow
def test_pictures_are_of_canonical_poses_and_of_the_codes_that_vary_most(found_as_told, tmp_path):
    built, tell, drawn = found_as_told
    tell(np.full(9, np.pi / 2))
    inputs = built.dataset.splits["test"].take(np.arange(9))["inputs"]
    ANALYSES.build({"name": "reconstructions", "images": 9}, "a")(built, tmp_path)
    quarter = drawn["reconstructions"]["canonical pose"]
    turns = [np.abs(quarter - np.rot90(inputs, k, (1, 2))).max() for k in (1, 3)]
    assert min(turns) < 1e-5 < max(turns)
    predict = AutoencoderPredictor(built)
    seen = predict(inputs)
    order = np.argsort(-seen["mean"].var(0))
    variances = seen["mean"].var(0)
    labels = [f"z{number}, variance {variances[number]:.2f}" for number in order]
    assert list(drawn["traversals"]) == labels
    for label, number in zip(labels, order, strict=True):
        code = seen["mean"][:1].copy()
        code[0, number] = -2
        images = drawn["traversals"][label]
        np.testing.assert_allclose(images[:1], predict.decoded(code), atol=1e-5)


@pytest.mark.slow
def test_pixels_that_the_loss_does_not_see_are_left_out(found_as_told, tmp_path):
    built, tell, drawn = found_as_told
    tell(np.full(9, np.pi / 4))
    ANALYSES.build({"name": "reconstructions", "images": 3}, "a")(built, tmp_path)
    places = (2 * np.arange(8) + 1) / 8 - 1
    # A square turned by half a right angle.
    hidden = np.abs(places[:, None]) + np.abs(places) > np.sqrt(2)
    for row in ("canonical pose", "canonical\nreconstruction"):
        images = drawn["reconstructions"][row]
        assert images.shape == (3, 8, 8, 1)
        np.testing.assert_array_equal(np.isnan(images[..., 0]), np.tile(hidden, (3, 1, 1)))
    for images in drawn["traversals"].values():
        np.testing.assert_array_equal(np.isnan(images[..., 0]), np.tile(hidden, (9, 1, 1)))
    for row in ("input", "reconstruction"):
        assert np.isfinite(drawn["reconstructions"][row]).all()


@pytest.mark.slow
def test_losses_by_angle_are_those_of_turned_images(found_as_told, tmp_path):
    built, tell, _ = found_as_told
    tell(np.full(9, 0.2))
    predict, split = AutoencoderPredictor(built), built.dataset.splits["test"]
    found = ANALYSES.build({"name": "loss_by_angle", "step": 45}, "a")(built, tmp_path)

    def turned(angle):
        turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix = np.tile(np.array(turn, np.float32), (9, 1, 1))
        return split.posed(np.arange(9), Transform(matrix, np.zeros((9, 2), np.float32)))

    losses = [predict(turned(np.deg2rad(d)))["loss"].mean() for d in range(0, 360, 45)]
    assert np.ptp(losses) > 0.1  # corners are lost on the diagonal
    assert found.extras["loss"] == pytest.approx(losses, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reconstructions", "recovered_angles", "loss_by_angle"])
def test_every_analysis_draws_its_pictures(name, posed, tmp_path):
    analysis = ANALYSES.build({"name": name}, "analyses")
    found = analysis(posed, tmp_path)
    assert found.artifacts
    for file in found.artifacts.values():
        assert (tmp_path / file).read_bytes()[:4] == b"\x89PNG"
    if name == "recovered_angles":
        assert set(found.extras["circular_variance"]) == {"0", "1", "2"}
        assert all(0 <= v <= 1 for v in found.extras["circular_variance"].values())
    if name == "loss_by_angle":
        assert found.extras["degrees"] == list(range(0, 360, 30))
        assert len(found.extras["resampling_floor"]) == 12
        # Nothing is lost by whole quarter turns.
        np.testing.assert_allclose(found.extras["reducible_loss"], found.extras["loss"])


@pytest.mark.slow
def test_a_plain_autoencoder_has_no_poses_to_look_at(tmp_path):
    built = trained_on(None, targets="code2019")
    found = ANALYSES.build({"name": "loss_by_angle", "step": 90}, "a")(built, tmp_path)
    assert found.extras["resampling_floor"] == []
    assert (np.array(found.extras["output_floor"]) > 10).all()
    np.testing.assert_allclose(
        np.add(found.extras["output_floor"], found.extras["reducible_loss"]), found.extras["loss"]
    )
    with pytest.raises(ConfigError, match="'recovered_angles' needs a model with poses"):
        ANALYSES.build({"name": "recovered_angles"}, "a")(built, tmp_path)


def test_other_data_is_one_sentence(tmp_path):
    built = trained_on(None, task="classification")
    with pytest.raises(ConfigError, match="looks at autoencoders, but"):
        ANALYSES.build({"name": "reconstructions"}, "a")(built, tmp_path)


def test_spread_of_angles():
    assert circular_variance(np.full(5, 2.0)) == pytest.approx(0.0)
    assert circular_variance(2 * np.pi * np.arange(8) / 8) == pytest.approx(1.0)
    assert circular_variance(np.array([np.pi - 0.1, -np.pi + 0.1])) == pytest.approx(
        1 - np.cos(0.1)
    )


@pytest.mark.slow
def test_voxels_are_seen_from_outside():
    voxels = np.zeros((2, 12, 12, 12, 1), np.float32)
    voxels[0, 3:9, 3:9, 3:9] = 1.0
    views = pose_plots.rendered(voxels)
    assert views.shape == (2, 12, 12)
    assert views[0, 6, 6] > 0.2
    assert views[0].max() <= 1.0
    np.testing.assert_allclose(views[0][[0, -1]], 0.0, atol=1e-6)
    np.testing.assert_array_equal(views[1], 0.0)
    # What is behind cannot be seen.
    hollow = voxels.copy()
    hollow[0, 5:7, 5:7, 5:7] = 0.0
    np.testing.assert_allclose(pose_plots.rendered(hollow)[0, 6, 6], views[0, 6, 6], atol=0.15)
