"""The autoencoders: their sizes as published, what a pose does to them, and what they refuse."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff import bench
from jaxeff.affine import inverse, resample
from jaxeff.errors import ConfigError
from jaxeff.layers.strided import StridedConv, TransposedConv
from jaxeff.models import MODELS
from jaxeff.models.autoencoder import ConvEncoder
from jaxeff.models.coordinates import with_waves

SMALL = {"name": "autoencoder", "size": 8, "latents": 3}
KEY = jax.random.key(0)


def build(**fields):
    return MODELS.build({**SMALL, **fields}, "model", num_outputs=1)


def shapes_of(model):
    images = jax.ShapeDtypeStruct((1, *model.shape, 1), jnp.float32)
    return jax.eval_shape(lambda x: model.init(KEY, x), images), images


@pytest.mark.parametrize(
    ("name", "size", "latents", "parameters"),
    [
        ("autoencoder", 40, 6, 119_565),
        ("autoencoder", 40, 7, 124_367),
        ("autoencoder", 40, 8, 129_169),
        ("autoencoder", 40, 16, 167_585),
        ("autoencoder", 40, 32, 244_417),
        ("voxel_autoencoder", 48, 8, 236_337),
        ("voxel_autoencoder", 48, 16, 263_993),
        ("voxel_autoencoder", 48, 22, 284_735),
    ],
)
def test_parameters_as_published(name, size, latents, parameters):
    variables, _ = shapes_of(build(name=name, size=size, latents=latents))
    assert bench.count_parameters(variables["params"]) == parameters


def test_multiply_adds_as_published():
    model = build(size=40, latents=8)
    variables, images = shapes_of(model)
    counted = {"encoder": 0, "canonical": 0}

    def count(call, args, kwargs, context):
        found, part = call(*args, **kwargs), next(iter(context.module.path), "")
        if context.method_name == "__call__" and part in counted:
            x = args[0]
            kernel = context.module.variables.get("params", {}).get("kernel")
            if isinstance(context.module, (StridedConv, nn.Dense)):
                counted[part] += math.prod(found.shape[1:-1]) * kernel.size
            if isinstance(context.module, TransposedConv):  # every input pixel by every tap
                counted[part] += math.prod(x.shape[1:-1]) * kernel.size
        return found

    with nn.intercept_methods(count):
        jax.eval_shape(model.apply, variables, images)
    assert counted == {"encoder": 12_262_400, "canonical": 4_659_200}
    cost = bench.count(lambda v, x: model.apply(v, x, None, method="encode"), variables, images)
    assert cost.macs == 12_262_400


def test_sides_along_the_layers():
    variables, _ = shapes_of(build(size=40, latents=8))
    assert variables["params"]["canonical"]["linear"]["linear"]["kernel"].shape == (8, 1600)
    assert variables["params"]["encoder"]["mean"]["linear"]["kernel"].shape == (1600, 8)
    variables, _ = shapes_of(build(name="voxel_autoencoder", size=48, latents=8))
    assert variables["params"]["encoder"]["mean"]["linear"]["kernel"].shape == (1728, 8)
    assert "log_variance" not in variables["params"]["encoder"]


@pytest.fixture(scope="module")
def posed():
    model = build(pose={"name": "rotation", "translation": 0.2}, latents=3)
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype(np.float32)
    return model, jax.jit(model.init)(KEY, images), images


@pytest.mark.slow
def test_without_turning_it_is_the_plain_one(posed):
    model, variables, images = posed
    plain = build()
    pose = jnp.tile(model.family.identity(), (4, 1))
    for one, other in zip(
        jax.jit(model.apply)(variables, images, pose),
        jax.jit(plain.apply)(variables, images),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_pose_is_a_transform_before_and_its_inverse_after(posed):
    model, variables, images = posed

    @jax.jit
    def both(variables):
        pose = model.family.starts(KEY, 4)
        transform = model.family.transform(pose)
        plain = build().apply(variables, resample(images, transform))
        wanted = resample(plain.reconstruction, inverse(transform))
        return model.apply(variables, images, pose), plain.mean, wanted

    found, mean, wanted = both(variables)
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    np.testing.assert_allclose(found.reconstruction, wanted, atol=1e-5)


def test_training_draws_codes_and_evaluation_does_not(posed):
    model, variables, images = posed
    pose = np.zeros((4, 3), np.float32)

    def trained(key, sampled=True):
        used = model.clone(sampled=sampled)
        found, _ = used.apply(
            variables, images, pose, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return found.reconstruction

    apply = jax.jit(lambda key: (trained(key), trained(key, False)))
    (one, mean), (other, same) = (map(np.asarray, apply(jax.random.key(n))) for n in (1, 2))
    assert np.abs(one - other).max() > 1e-4
    np.testing.assert_array_equal(mean, same)


@pytest.mark.slow
def test_drawn_codes_have_the_mean_and_variance_of_the_encoder():
    model, count = build(latents=2), 4000
    images = jnp.tile(jax.random.uniform(KEY, (1, 8, 8, 1)), (count, 1, 1, 1))
    variables = jax.jit(model.init)(KEY, images[:1])

    def codes(module, images):
        seen = []

        def watch(call, args, kwargs, context):
            if context.module.name == "canonical" and context.method_name == "__call__":
                seen.append(args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(watch):
            found = module(images, None, train=True)
        return seen[0], found

    (z, found), _ = jax.jit(
        lambda v: nn.apply(codes, model, mutable=["batch_stats"])(
            v, images, rngs={"dropout": jax.random.key(5)}
        )
    )(variables)
    spread = np.exp(found.log_variance[0] / 2)
    np.testing.assert_allclose(z.mean(0), found.mean[0], atol=0.06)
    np.testing.assert_allclose(z.std(0), spread, rtol=0.05)


def test_waves_double_their_frequency_from_a_quarter_period():
    points = np.float32([[0.0, 1.0], [0.5, -1.0]])
    found = jax.jit(with_waves, static_argnums=1)(points, 3)
    assert found.shape == (2, 2 * (1 + 2 * 3))
    x, sines, cosines = np.split(np.asarray(found), [2, 8], -1)
    np.testing.assert_array_equal(x, points)
    half = np.sqrt(0.5)  # the sine of pi / 4
    np.testing.assert_allclose(sines, [[0, 0, 0, 1, 0, 0], [half, 1, 0, -1, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(cosines, [[1, 1, 1, 0, -1, 1], [half, 0, -1, 0, -1, 1]], atol=1e-6)


def test_the_decoder_of_coordinates_turns_without_resampling():
    model = build(pose={"name": "rotation"}, decoder="coordinates")
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(2, 8, 8, 1)).astype(np.float32)
    variables = jax.jit(model.init)(KEY, images)
    codes = rng.normal(size=(2, 3)).astype(np.float32)

    @jax.jit
    def found(variables):
        poses = None, jnp.zeros((2, 1)), jnp.full((2, 1), jnp.pi / 2)
        return [model.apply(variables, codes, pose, method="place") for pose in poses]

    plain, upright, turned = map(np.asarray, found(variables))
    # By the inverse of a quarter turn of the points, exactly.
    np.testing.assert_allclose(turned, np.rot90(upright, -1, (1, 2)), atol=1e-5)
    np.testing.assert_allclose(plain, upright, atol=1e-6)
    assert upright.shape == (2, 8, 8, 1)


@pytest.mark.slow
def test_proposals_are_ordered_and_begin_all_over():
    model = build(pose={"name": "rotation"}, proposals=4)
    images = jax.random.uniform(KEY, (3, 8, 8, 1))
    variables = jax.jit(model.init)(KEY, images)
    params = variables["params"]["head"]["scores"]
    params["kernel"] = jax.random.normal(KEY, params["kernel"].shape)
    poses, scores = jax.jit(lambda v: model.apply(v, images, method="propose"))(variables)
    assert poses.shape == (3, 4, 1)
    assert (np.diff(scores, axis=1) <= 0).all()
    angles = np.sort(np.mod(poses[..., 0] + 0.5, 2 * np.pi), 1)
    np.testing.assert_allclose(angles, 0.5 + np.pi / 2 * np.tile(np.arange(4), (3, 1)), atol=0.4)
    # Without a pose, the first proposal is used.
    found = jax.jit(model.apply)(variables, images)
    wanted = jax.jit(model.apply)(variables, images, poses[:, 0])
    np.testing.assert_allclose(found.reconstruction, wanted.reconstruction, atol=1e-6)


def test_code_lengths():
    assert build().code_length == 3
    assert build(pose={"name": "rotation"}).code_length == 4
    assert build(pose={"name": "rotation", "translation": 0.1}).code_length == 6


def test_a_variance_of_one_is_a_logarithm_of_zero():
    images = np.ones((1, 8, 8, 1), np.float32)
    encoder = ConvEncoder(2, with_variance=False)
    (_, log_variance), _ = jax.jit(encoder.init_with_output)(KEY, images)
    np.testing.assert_array_equal(log_variance, 0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 30}, "size must be a multiple of 4 and at least 8, not 30"),
        ({"name": "voxel_autoencoder", "size": 12}, "size must be a multiple of 8"),
        ({"latents": 0}, "latents must be at least 1"),
        ({"decoder": "conv"}, "decoder must be one of convolutional, coordinates"),
        ({"pose": {"name": "euler"}}, "'euler' is for 3 dimensions, but the model's images have 2"),
        ({"proposals": 2}, "proposals needs a continuous pose"),
        ({"pose": {"name": "quarter_turns"}, "proposals": 2}, "needs a continuous pose"),
    ],
)
def test_impossible_fields_are_one_sentence(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(**fields)


def test_images_of_another_size_are_one_sentence():
    with pytest.raises(ConfigError, match=r"takes images \(8, 8, 1\), not \(12, 12, 1\)"):
        build().init(KEY, jnp.zeros((1, 12, 12, 1)))
