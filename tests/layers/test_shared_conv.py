"""Shared convolutions against dense ones, their counts, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.bench import count
from jaxeff.errors import ConfigError
from jaxeff.layers import SharedConv
from jaxeff.layers.shared_conv import MODES, group_sum, low_rank_width, tile

C, OUT, SIZE = 16, 24, 8
K3 = {"features": OUT, "kernel_size": 3}


def dense(x, kernel, strides=1):
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        ((pad, pad),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def made(strides=1, **fields):
    layer = SharedConv(strides=strides, **fields)
    x = jax.random.normal(jax.random.key(1), (2, SIZE, SIZE, C))
    params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
    return layer, x, params


def apply(layer, params, x):
    return jax.jit(layer.apply)({"params": params}, x)


def expanded(mode, params, factor):
    """The dense kernel ``[k, k, C, OUT]`` that a mode's parameters stand for."""
    if mode == "out_tile":
        return jnp.concatenate([params["kernel"]] * factor, axis=-1)
    if mode == "in_tile":
        return jnp.concatenate([params["kernel"]] * factor, axis=-2)
    if mode == "depthwise_tile":
        whole = jnp.concatenate([params["kernel"]] * factor, axis=-1)
        return jnp.einsum("hwxc,cd->hwcd", whole, jnp.eye(C))
    if mode == "blueprint":
        return jnp.einsum("xyco,hwzo->hwco", params["mixing"], params["kernel"])
    if mode == "blueprint_low":
        mixing = jnp.einsum("xycm,xymo->co", params["down"], params["up"])
        return jnp.einsum("co,hwzo->hwco", mixing, params["kernel"])
    return jnp.einsum("com,hwxm->hwco", params["coefficients"], params["atoms"])


@pytest.mark.parametrize(
    ("factor", "strides"),
    [
        (4, 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(2, 2), (4, 1), (2, 1), (8, 1), (8, 2)]
        ),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_expanded_to_a_dense_kernel_it_is_a_plain_convolution(x64, mode, factor, strides):
    layer, x, params = made(strides, mode=mode, factor=factor, param_dtype=jnp.float64, **K3)
    found = apply(layer, params, x)
    expected = jax.jit(lambda p, x: dense(x, expanded(mode, p, factor), strides))(params, x)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("mode", ["out_tile", "in_tile", "depthwise_tile"])
def test_the_gradient_of_a_tied_kernel_is_the_sum_over_its_copies(x64, mode):
    layer, x, params = made(mode=mode, factor=4, param_dtype=jnp.float64, **K3)

    def loss(y):
        return jnp.sum(jnp.sin(y))

    def both(params):
        ours = jax.grad(lambda p: loss(layer.apply({"params": p}, x)))(params)["kernel"]
        return ours, jax.grad(lambda k: loss(dense(x, k)))(expanded(mode, params, 4))

    ours, copies = jax.jit(both)(params)
    if mode == "out_tile":
        summed = group_sum(copies, 4)
    elif mode == "in_tile":
        summed = group_sum(copies.swapaxes(-1, -2), 4).swapaxes(-1, -2)
    else:
        summed = group_sum(jnp.einsum("hwcc->hwc", copies), 4)[:, :, None]
    np.testing.assert_allclose(ours, summed, atol=1e-11)


@pytest.mark.parametrize("mode", ["out_tile", "in_tile", "depthwise_tile"])
def test_a_factor_of_one_is_the_plain_layer(mode):
    layer, x, params = made(mode=mode, factor=1, **K3)
    np.testing.assert_allclose(
        apply(layer, params, x), dense(x, expanded(mode, params, 1)), atol=1e-5
    )


COUNTS = {
    "out_tile": 9 * C * OUT // 4,
    "depthwise_tile": 9 * C // 4,
    "in_tile": 9 * C * OUT // 4,
    "blueprint": C * OUT + 9 * OUT,
    "blueprint_low": C * 4 + 4 * OUT + 9 * OUT,
    "basis": C * OUT * 3 + 9 * 3,
}
MACS = {**COUNTS, "depthwise_tile": 9 * C, "basis": 9 * C * OUT}


@pytest.mark.parametrize("mode", MODES)
def test_parameters_and_multiply_adds_are_the_closed_forms(mode):
    layer, x, params = made(mode=mode, factor=4, rank=3, share=0.25, **K3)
    assert sum(p.size for p in jax.tree.leaves(params)) == COUNTS[mode]
    cost = count(lambda p, x: layer.apply({"params": p}, x), params, x)
    expansion = 9 * C * OUT * 3 if mode == "basis" else 0  # of the kernel, once for the batch
    assert cost.macs - expansion == 2 * SIZE * SIZE * MACS[mode]


def test_tiles_repeat_whole_blocks():
    np.testing.assert_array_equal(tile(jnp.array([1, 2, 3]), 2), [1, 2, 3, 1, 2, 3])
    np.testing.assert_array_equal(group_sum(jnp.arange(6), 2), [3, 5, 7])


@pytest.mark.parametrize("mode", ["out_tile", "in_tile", "depthwise_tile"])
def test_modulation_makes_the_copies_differ(mode):
    plain, x, params = made(mode=mode, factor=2, **K3)
    layer, _, modulated = made(mode=mode, factor=2, modulate=True, **K3)
    tied = OUT if mode == "out_tile" else C
    extra = sum(p.size for p in jax.tree.leaves(modulated)) - sum(
        p.size for p in jax.tree.leaves(params)
    )
    assert extra == 2 * tied
    y = np.asarray(apply(plain, params, x))
    if mode == "out_tile":
        np.testing.assert_array_equal(y[..., : OUT // 2], y[..., OUT // 2 :])
        z = np.asarray(apply(layer, modulated, x))
        assert np.abs(z[..., : OUT // 2] - z[..., OUT // 2 :]).max() > 0.1
    assert set(np.unique(modulated["scale"])) == {-1.0, 1.0}


def test_kernels_are_drawn_for_the_size_that_they_act_with_or_for_their_own():
    big = {"features": 512, "kernel_size": 3, "mode": "out_tile", "factor": 8}
    x = jnp.zeros((1, 4, 4, 64))
    deviations = []
    for effective in (True, False):
        layer = SharedConv(effective_init=effective, **big)
        deviations.append(
            float(jax.jit(layer.init)(jax.random.key(0), x)["params"]["kernel"].std())
        )
    np.testing.assert_allclose(
        deviations, [(2 / (9 * 512)) ** 0.5, (2 / (9 * 64)) ** 0.5], rtol=0.05
    )


def test_the_inner_width_of_bsconv_s():
    assert [low_rank_width(c, 0.25) for c in (3, 8, 16, 30, 64)] == [3, 4, 4, 8, 16]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "tile"}, "mode must be one of out_tile"),
        ({"mode": "out_tile", "factor": 7}, "factor 7 does not divide the 24 output channels"),
        ({"mode": "in_tile", "factor": 3}, "factor 3 does not divide the 16 input channels"),
        ({"mode": "depthwise_tile", "factor": 0}, "factor 0 does not divide"),
        ({"mode": "basis", "kernel_size": 2}, "kernel_size must be odd"),
        ({"mode": "basis", "features": 0}, "features must be positive"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(fields, message):
    with pytest.raises(ConfigError, match=message):
        made(**{**K3, **fields})


@pytest.mark.slow
def test_computes_in_the_asked_type():
    for mode in MODES:
        layer, x, params = made(mode=mode, factor=2, dtype=jnp.bfloat16, modulate=True, **K3)
        assert apply(layer, params, x).dtype == jnp.bfloat16
        assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))


def test_a_basis_is_drawn_with_the_variance_of_the_plain_kernel():
    _, _, params = made(kernel_size=3, mode="basis", rank=16, features=256)
    kernel = expanded("basis", params, 1)
    np.testing.assert_allclose(kernel.std(), (2 / (9 * 256)) ** 0.5, rtol=0.1)
