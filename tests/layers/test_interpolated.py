"""Spatially interpolated bodies: what their anchors, constants, shares and gradients must be."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import apply, init
from sweeps import swept

from jaxeff.bench import cost_per_example
from jaxeff.errors import ConfigError
from jaxeff.layers import Interpolated, Ops
from jaxeff.layers.conv import layers_apart
from jaxeff.layers.residual import InvertedBody
from jaxeff.ops import anchors, tiles
from jaxeff.ops.cpu import expanded


class Body(nn.Module):
    """A small inverted residual's body."""

    features: int | None = None

    @nn.compact
    def __call__(self, x, *, train=False):
        channels = x.shape[-1]
        h = nn.swish(nn.Conv(2 * channels, (1, 1), param_dtype=jnp.float64)(x))
        h = nn.Conv(
            2 * channels, (3, 3), feature_group_count=2 * channels, param_dtype=jnp.float64
        )(h)
        h = nn.BatchNorm(use_running_average=not train, param_dtype=jnp.float64)(h)
        return nn.Conv(self.features or channels, (1, 1), param_dtype=jnp.float64)(h)


class Constant(nn.Module):
    def __call__(self, x, *, train=False):
        return jnp.full_like(x, 2.5)


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape or (2, 7, 8, 3)))


def made(jitter, x, body=None, **fields):
    """A layer with parameters moved off their initial values."""
    layer = Interpolated(body or Body(), param_dtype=jnp.float64, **fields)
    variables = init(layer, x)
    return layer, {**variables, "params": jitter(variables["params"])}


def body_alone(variables, x):
    statistics = variables["batch_stats"]["body"]
    return apply(Body(), {"params": variables["params"]["body"], "batch_stats": statistics}, x)


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["linear", "hold", "edge_aware"])
@pytest.mark.parametrize("size", [7, 8, 14])
def test_anchors_carry_the_bodys_value_exactly(x64, jitter, size, interpolation):
    x = images(1, size, size, 3)
    layer, variables = made(jitter, x, interpolation=interpolation)
    y = apply(layer, variables, x)
    np.testing.assert_array_equal(y[:, ::2, ::2], body_alone(variables, x[:, ::2, ::2]))


@pytest.mark.parametrize("fields", [
    {}, {"mixing": "blend"}, {"interpolation": "hold"}, {"interpolation": "edge_aware"},
])  # fmt: skip
def test_constants_stay_constant(x64, jitter, fields):
    x = images()
    layer, variables = made(jitter, x, Constant(), **fields)
    params = variables["params"]
    params["cheap_norm"] = {"scale": jnp.zeros(3), "bias": jnp.full(3, 2.5)}
    np.testing.assert_allclose(apply(layer, {**variables, "params": params}, x), 2.5, atol=1e-12)


def test_stride_one_is_the_body(x64, jitter):
    x = images()
    layer, variables = made(jitter, x, stride=1)
    np.testing.assert_array_equal(apply(layer, variables, x), body_alone(variables, x))
    assert set(variables["params"]) == {"body"}


@pytest.mark.parametrize("mixing", ["anchors", "blend"])
def test_output_goes_from_the_cheap_branch_to_the_interpolation_with_the_share(x64, jitter, mixing):
    x = images()
    layer, variables = made(jitter, x, mixing=mixing)

    def at(logit):
        params = variables["params"] | {"share": jnp.full(3, float(logit))}
        return apply(layer, {**variables, "params": params}, x)

    cheap, mixed, full = (at(logit) for logit in (-50, 0, 50))
    filled = anchors.interpolate(body_alone(variables, x[:, ::2, ::2]), (7, 8), 2)
    np.testing.assert_allclose(full, filled, atol=1e-12)
    np.testing.assert_allclose(mixed, (cheap + full) / 2, atol=1e-12)
    off = jnp.broadcast_to(anchors.is_anchor((7, 8), 2), x.shape) if mixing == "anchors" else False
    assert jnp.abs(jnp.where(off, 1.0, cheap - full)).min() > 1e-6


def test_initial_share():
    x = images().astype(jnp.float32)
    params = init(Interpolated(Constant(), initial_share=0.2), x)["params"]
    np.testing.assert_allclose(jax.nn.sigmoid(params["share"]), 0.2, rtol=1e-6)


@pytest.mark.parametrize(("cheap", "own"), [
    ("none", 1), ("depthwise", 9 + 2 + 1), ("separable", 9 + 2 + 3 + 2 + 1),
])  # fmt: skip
def test_parameters_per_channel(cheap, own):
    shapes = jax.eval_shape(Interpolated(Constant(), cheap=cheap).init, jax.random.key(0), images())
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 3 * own


@pytest.mark.slow
def test_body_sees_the_anchors_alone(x64, jitter):
    x = images(1, 8, 8, 2)
    layer, variables = made(jitter, x, cheap="none")
    gradient = jax.jit(jax.grad(lambda x: jnp.sin(layer.apply(variables, x)).sum()))(x)
    on = np.broadcast_to(anchors.is_anchor((8, 8), 2), x.shape)
    assert (np.asarray(gradient)[~on] == 0).all()
    assert (np.asarray(gradient)[on] != 0).all()
    layer, variables = made(jitter, x)
    gradient = jax.jit(jax.grad(lambda x: jnp.sin(layer.apply(variables, x)).sum()))(x)
    assert (gradient != 0).all()


@pytest.mark.slow
def test_shifts_by_the_stride_commute_in_the_interior(x64, jitter):
    x = images(1, 16, 16, 2)
    layer, variables = made(jitter, x)
    y = apply(layer, variables, x)
    for by, same in ((2, True), (1, False)):
        moved = apply(layer, variables, jnp.roll(x, (by, by), (1, 2)))
        error = jnp.abs(jnp.roll(y, (by, by), (1, 2)) - moved)[:, 6:-6, 6:-6].max()
        assert bool(error < 1e-12) is same


@pytest.mark.slow
def test_area_sampling_feeds_means(x64, jitter):
    x = images()
    layer, variables = made(jitter, x, sampling="area")
    y = apply(layer, variables, x)
    np.testing.assert_array_equal(y[:, ::2, ::2], body_alone(variables, anchors.area_sample(x, 2)))


def test_zero_init_leaves_the_cheap_branch_out(x64):
    x = images()
    for cheap, last in (("depthwise", "cheap_norm"), ("separable", "cheap_norm_out")):
        layer = Interpolated(Constant(), cheap=cheap, zero_init=True)
        y, variables = jax.jit(layer.init_with_output)(jax.random.key(0), x)
        scales = {name: p["scale"] for name, p in variables["params"].items() if "norm" in name}
        zero = {name for name, scale in scales.items() if not scale.any()}
        assert zero == {last}
        off = ~np.broadcast_to(anchors.is_anchor((7, 8), 2), y.shape)
        np.testing.assert_allclose(np.asarray(y)[off], 1.25, atol=1e-6)


def test_training_updates_the_statistics_of_both_branches(x64, jitter):
    x = images()
    layer, variables = made(jitter, x)
    _, new = apply(layer, variables, x, train=True, mutable=["batch_stats"])
    changed = jax.tree.map(
        lambda a, b: bool((a != b).all()), variables["batch_stats"], new["batch_stats"]
    )
    assert all(jax.tree.leaves(changed))
    assert set(changed) == {"body", "cheap_norm"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"cheap": "free"}, "cheap must be one of"),
        ({"interpolation": "cubic"}, "interpolation must be one of"),
        ({"cheap": "none", "interpolation": "edge_aware"}, "needs the cheap branch"),
        ({"initial_share": 1.0}, r"initial_share must be in \(0, 1\)"),
        ({"stride": 0}, "stride must be a whole number"),
        ({"stride": 9}, "7 x 8 pixels is smaller than the anchors' stride 9"),
    ],
)
def test_mistakes_are_one_sentence(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Interpolated(Constant(), **fields).init(jax.random.key(0), images())


def test_a_body_that_changes_channels_is_refused(x64):
    with pytest.raises(ValueError, match="replace only blocks with a skip"):
        Interpolated(Body(features=5)).init(jax.random.key(0), images())


def refined(share, x, train=False, **fields):
    layer = Interpolated(Pointwise(), dense_share=share, tile=4, **fields)
    variables = init(layer, x)
    return layer, variables


class Pointwise(nn.Module):
    """A pointwise body, for which tiles have no edges."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return jnp.tanh(nn.Dense(x.shape[-1], name="dense")(x))


@pytest.mark.slow
def test_dense_tiles_have_the_bodys_own_values_where_the_cheap_branch_is_large():
    x = jax.random.normal(jax.random.key(1), (2, 8, 12, 3))
    x = x.at[0, 4:, 8:].mul(20.0).at[1, :4, :4].mul(20.0)
    layer, variables = refined(1 / 6, x)
    y = apply(layer, variables, x)
    body = apply(Pointwise(), {"params": variables["params"]["body"]}, x)
    coarse = apply(Interpolated(Pointwise()), variables, x)
    for image, rows, columns in ((0, slice(4, 8), slice(8, 12)), (1, slice(0, 4), slice(0, 4))):
        np.testing.assert_allclose(y[image, rows, columns], body[image, rows, columns], atol=1e-6)
        outside = np.ones((8, 12), bool)
        outside[rows, columns] = False
        np.testing.assert_array_equal(y[image][outside], coarse[image][outside])


def test_all_tiles_dense_is_the_body_and_anchors_stay_exact():
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    layer, variables = refined(1.0, x)
    body = apply(Pointwise(), {"params": variables["params"]["body"]}, x)
    np.testing.assert_allclose(apply(layer, variables, x), body, atol=1e-6)
    some = apply(refined(0.25, x)[0], variables, x)
    np.testing.assert_allclose(some[:, ::2, ::2], body[:, ::2, ::2], atol=1e-6)


@pytest.mark.slow
def test_the_choice_of_tiles_has_a_gradient():
    numbers, gates = tiles.choose(jnp.array([[1.0, 3.0, 2.0, 0.5]]), 2)
    np.testing.assert_array_equal(numbers, [[1, 2]])
    np.testing.assert_allclose(gates, 1.0)
    slope = jax.grad(lambda e: tiles.choose(e, 2)[1].sum())(jnp.array([[1.0, 3.0, 2.0, 0.5]]))
    mean = 6.5 / 4
    sigmoid = 1 / (1 + np.exp(1 - np.array([3.0, 2.0]) / mean))
    np.testing.assert_allclose(slope[0, 1:3], sigmoid * (1 - sigmoid) / mean, rtol=1e-4)
    np.testing.assert_array_equal(slope[0, [0, 3]], 0)


def test_tiles_join_to_the_map_that_they_were_cut_from():
    x = jnp.arange(2 * 6 * 9 * 2.0).reshape(2, 6, 9, 2)
    cut = tiles.split(x, 3)
    assert cut.shape == (2, 6, 3, 3, 2)
    np.testing.assert_array_equal(cut[1, 4], x[1, 3:6, 3:6])
    np.testing.assert_array_equal(tiles.join(cut, (6, 9)), x)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dense_share": 1.5}, "dense_share must be in"),
        ({"dense_share": 0.5, "tile": 3}, "tile 3 does not divide an image of 8 x 8"),
        ({"dense_share": 0.5, "cheap": "none"}, "chosen by the cheap branch"),
    ],
)
def test_impossible_tiles_are_refused_in_a_sentence(fields, message):
    with pytest.raises(ConfigError, match=message):
        Interpolated(Pointwise(), **fields).init(jax.random.key(0), jnp.zeros((1, 8, 8, 2)))


@pytest.mark.parametrize(
    ("strides", "activation"),
    # The last is none of the compiled ones.
    swept([(1, "swish"), (2, "relu6"), (1, "tanh")], (2, "relu6")),
)
def test_joined_layers_compute_what_layers_apart_do(monkeypatch, strides, activation):
    monkeypatch.setattr(expanded, "LARGE", 0)
    body = InvertedBody(Ops(activation), 4, strides, hidden=24, kernel_size=5, squeeze=2)
    x = jax.random.normal(jax.random.key(1), (2, 9, 8, 4))
    variables = body.init(jax.random.key(0), x)
    numbers = iter(range(100))
    variables = jax.tree.map(  # normalisations that differ, of positive variance
        lambda v: v + 0.5 * jax.random.uniform(jax.random.key(next(numbers)), v.shape), variables
    )
    joined = jax.jit(lambda x: body.apply(variables, x))(x)
    with layers_apart():
        apart = jax.jit(lambda x: body.apply(variables, x))(x)
    np.testing.assert_allclose(joined, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "channels", "k", "full", "ratio"),
    [
        (56, 24, 3, 25_740_288, 0.282),
        (28, 40, 5, 19_756_800, 0.267),
        (14, 80, 3, 15_899_520, 0.261),
        (14, 112, 5, 32_796_288, 0.257),
        (7, 192, 5, 23_087_232, 0.331),
    ],
)
def test_multiply_adds_of_inverted_residuals(size, channels, k, full, ratio):
    body = InvertedBody(Ops(), channels, hidden=6 * channels, kernel_size=k)
    x = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)

    def macs(module):
        variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), x)
        return cost_per_example(module.apply, variables, x).macs

    assert macs(body) == full
    interpolation = 2 * channels * size * size  # two multiply-adds per value on average
    assert round((macs(Interpolated(body)) + interpolation) / full, 3) == ratio
