"""Integer networks: sums to the bit of unlimited integers, and outputs near floating point."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff
from jaxeff import quantize
from jaxeff.errors import ConfigError, DataError
from jaxeff.models import MODELS
from jaxeff.quantize import Grid, QuantizeOptions, to_integer_network

RNG = np.random.default_rng(0)
LAYOUT = ("NHWC", "HWIO", "NHWC")
FORMATS = [(8, 8), (4, 8), (8, 16)]


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def options_of(bits):
    return QuantizeOptions(weight_bits=bits[0], activation_bits=bits[1])


def exact_convolution(x, kernel, strides, padding, dilation, groups):
    """Sums of int64 products, output by output; by nothing that JAX has."""
    (top, bottom), (left, right) = padding
    x = np.pad(x.astype(np.int64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    reach = [(side - 1) * dilation for side in kernel.shape[:2]]
    sizes = [(n - r - 1) // strides + 1 for n, r in zip(x.shape[1:3], reach, strict=True)]
    result = np.zeros((len(x), *sizes, kernel.shape[3]), np.int64)
    inputs, outputs = kernel.shape[2], kernel.shape[3] // groups
    for i, j, o in itertools.product(range(sizes[0]), range(sizes[1]), range(kernel.shape[3])):
        rows = slice(i * strides, i * strides + reach[0] + 1, dilation)
        columns = slice(j * strides, j * strides + reach[1] + 1, dilation)
        first = o // outputs * inputs
        window = x[:, rows, columns, first : first + inputs]
        result[:, i, j, o] = (window * kernel[..., o].astype(np.int64)).sum((1, 2, 3))
    return result


def check_sums(network, x, exact):
    """Compares the only product of a network with integers of numpy; returns its float result."""
    ((integers, sums),) = network.integers(x)
    (product,) = network.ordered
    assert sums.dtype == jnp.int32
    integers, sums = (np.asarray(each)[:, 0] for each in (integers, sums))
    expected = exact(integers.astype(np.int64) - product.grid.zero, product.weights)
    np.testing.assert_array_equal(sums, expected)
    assert np.abs(expected).max() > 1000
    scaled = expected * (product.scales.astype(np.float64) * product.grid.scale)
    np.testing.assert_allclose(network(x), scaled, rtol=1e-5, atol=1e-6)
    return scaled


@pytest.mark.parametrize(
    ("strides", "dilation", "groups", "bits"),
    [(1, 1, 1, (4, 8)), (2, 1, 1, (8, 16)), (1, 2, 1, (8, 8)), (2, 1, 4, (8, 8))],
)
def test_convolutions_are_exact(strides, dilation, groups, bits):
    x, kernel = 3 * normal(5, 7, 6, 4) + 1, normal(3, 3, 4 // groups, 8)
    padding = ((1, 2), (0, 1))

    def function(x):
        return jax.lax.conv_general_dilated(
            *(x, kernel, (strides, strides), padding),
            rhs_dilation=(dilation, dilation),
            dimension_numbers=LAYOUT,
            feature_group_count=groups,
        )

    def exact(integers, weights):
        return exact_convolution(integers, weights, strides, padding, dilation, groups)

    result = check_sums(to_integer_network(function, x, options_of(bits)), x, exact)
    error = np.sqrt(np.mean((result - function(x)) ** 2) / np.mean(np.square(function(x))))
    assert error < {(8, 8): 0.02, (4, 8): 0.15, (8, 16): 0.01}[bits]


@pytest.mark.parametrize(
    ("equation", "data", "weights", "bits"),
    [
        ("bi,io->bo", (5, 20), (20, 7), (8, 8)),
        ("oi,bji->boj", (5, 3, 20), (7, 20), (8, 16)),  # the weights on the left
        ("bgkd,kd->bkg", (5, 3, 4, 6), (4, 6), (8, 8)),  # an axis that both have
        ("bgkd,kde->bkge", (5, 3, 4, 6), (4, 6, 2), (8, 16)),
        ("bij,ijo->bo", (5, 4, 5), (4, 5, 3), (4, 8)),
    ],
)
def test_matrix_products_are_exact(equation, data, weights, bits):
    x, kernel = normal(*data), normal(*weights)
    x[..., 0] += 2
    operands = equation.split("->")[0].split(",")
    kernel_first = not operands[0].startswith("b")

    def function(x):
        return jnp.einsum(equation, *((kernel, x) if kernel_first else (x, kernel)))

    def exact(integers, weights):
        pair = (weights, integers) if kernel_first else (integers, weights)
        return np.einsum(equation, *(a.astype(np.int64) for a in pair))

    network = to_integer_network(function, x, options_of(bits))
    ((integers, sums),) = network.integers(x)
    (product,) = network.ordered
    # JAX puts the axes of both operands first, and transposes after the product.
    integers = np.asarray(integers, np.int64).reshape(x.shape) - product.grid.zero
    values = exact(integers, product.weights.reshape(kernel.shape))
    np.testing.assert_array_equal(np.sort(np.ravel(sums)), np.sort(np.ravel(values)))
    expected = np.einsum(
        equation, *((kernel, x) if kernel_first else (x, kernel)), dtype=np.float64
    )
    error = np.abs(network(x) - expected).max() / np.abs(expected).max()
    assert error < {(8, 8): 0.02, (4, 8): 0.2, (8, 16): 0.01}[bits]


def test_weights_on_the_left_are_exact():
    x, kernel = normal(5, 20, 3), normal(7, 20)

    def function(x):
        product = jax.lax.dot_general(kernel, x, (((1,), (1,)), ((), ())))  # [7, batch, 3]
        return product.transpose(1, 0, 2)

    network = to_integer_network(function, x)
    ((integers, sums),) = network.integers(x)
    (product,) = network.ordered
    integers = np.asarray(integers, np.int64)[:, 0] - product.grid.zero
    expected = np.einsum("oi,bij->boj", product.weights.astype(np.int64), integers)
    np.testing.assert_array_equal(sums[:, :, 0], expected)
    scales = product.scales.reshape(7, 1).astype(np.float64) * product.grid.scale
    np.testing.assert_allclose(network(x), expected * scales, rtol=1e-5, atol=1e-6)


def test_a_scale_for_every_output_or_one():
    kernel = normal(30, 4) * np.array([0.01, 0.1, 1, 10], np.float32)
    x = normal(50, 30)

    def errors(**fields):
        network = to_integer_network(lambda x: x @ kernel, x, QuantizeOptions(**fields))
        relative = (network(x) - x @ kernel) / np.abs(x @ kernel).max(0)
        return np.sqrt(np.mean(np.square(relative), 0))

    assert errors().max() < 0.02
    assert errors(per_channel=False)[0] > 0.2


def test_sums_of_many_wide_integers_do_not_wrap():
    x, kernel = np.ones((1, 3000), np.float32), np.ones((3000, 1), np.float32)
    network = to_integer_network(lambda x: x @ kernel, x, options_of((8, 16)))
    result = check_sums(network, 100 * x, lambda q, w: q @ w.astype(np.int64))
    np.testing.assert_allclose(result, 3000, rtol=0.05)  # saturated, at the calibration's end


def test_grids():
    grid = Grid.of_range(-1.0, 3.0, 8)
    assert (grid.scale, grid.zero) == (float(np.float32(4 / 255)), -64)
    x = np.linspace(-2, 4, 999, dtype=np.float32)
    integers = np.asarray(grid.integers(x))
    np.testing.assert_array_equal(
        integers[[0, -1]], [-128, 127]
    )  # what is beyond the range saturates
    inside = (x > -1) & (x < 3)
    assert np.abs(grid.reals(integers) - x)[inside].max() <= grid.scale / 2 * 1.001
    np.testing.assert_array_equal(grid.integers(np.float32([0, np.nan])), [-64, -64])
    np.testing.assert_array_equal(grid.integers(grid.reals(integers)), integers)
    # Of one sign, 0 is an end; of 16 bits it is in the middle.
    assert Grid.of_range(0.5, 2.0, 8).zero == -128
    assert Grid.of_range(-2.0, -0.5, 8).zero == 127
    assert Grid.of_range(-1.0, 3.0, 16) == Grid(float(np.float32(3 / 32767)), 0, 16)
    assert Grid.of_range(0.0, 0.0, 8) == Grid(1.0, 0, 8)


def test_a_residual_block_reads_what_the_product_reads():
    kernel, x = normal(6, 6), normal(20, 6)
    network = to_integer_network(lambda x: jax.nn.relu(x + x @ kernel), x)
    (product,) = network.ordered
    q = np.floor(x / product.grid.scale + 0.5).clip(-128 - product.grid.zero)
    q = np.minimum(q, 127 - product.grid.zero)
    expected = q + q @ (product.weights * product.scales.astype(np.float64))
    np.testing.assert_allclose(
        network(x), np.maximum(expected * product.grid.scale, 0), rtol=1e-4, atol=1e-5
    )


class Tiny(nn.Module):
    """A convolution with normalisation, pooling and a dense layer."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(5)(x.mean((1, 2)))


def tiny():
    x = normal(12, 6, 6, 2)
    shapes = jax.eval_shape(Tiny().init, jax.random.key(0), x)
    return Tiny(), jax.tree.map(lambda a: np.abs(normal(*a.shape)) - 0.2 * (a.ndim > 1), shapes), x


def test_a_network_in_integers_of_numpy():
    model, variables, x = tiny()
    network = quantize.quantize_network(model, variables, x)
    first, second = network.ordered
    q = np.clip(np.floor(x / first.grid.scale + 0.5) + first.grid.zero, -128, 127)
    sums = exact_convolution(q - first.grid.zero, first.weights, 1, ((1, 1), (1, 1)), 1, 1)
    y = sums * (first.scales.astype(np.float64) * first.grid.scale)
    y += variables["params"]["Conv_0"]["bias"]
    statistics, affine = variables["batch_stats"]["BatchNorm_0"], variables["params"]["BatchNorm_0"]
    y = (y - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5)
    pooled = np.maximum(y * affine["scale"] + affine["bias"], 0).mean((1, 2))
    q = np.clip(np.floor(pooled / second.grid.scale + 0.5) + second.grid.zero, -128, 127)
    sums = (q - second.grid.zero) @ second.weights.astype(np.int64)
    dense = variables["params"]["Dense_0"]["bias"]
    expected = sums * (second.scales * second.grid.scale) + dense
    # A value that lies between two integers may go to either in single precision.
    step = np.abs(second.weights).max() * second.scales.max() * second.grid.scale
    outputs = np.asarray(network(x))
    assert np.abs(outputs - expected).max() < 1.01 * step
    assert np.mean(np.abs(outputs - expected) < 1e-4) > 0.9
    # An example's answer is its own.
    np.testing.assert_allclose(network(x[3:5]), outputs[3:5], rtol=1e-6)
    names = ["conv_general_dilated[3, 3, 2, 6]", "dot_general[6, 5]"]
    assert [line.split(" of ")[0] for line in str(network).splitlines()] == names


def test_bytes_are_those_of_weights_scales_and_other_constants():
    kernel, bias, x = normal(10, 4), normal(4), normal(5, 10)

    def function(x):
        return (x @ kernel + bias) @ kernel.T @ kernel + bias  # kernel and bias twice, scales too

    network = to_integer_network(function, x)
    assert network.constant_bytes == 40 + 40 + 4 * (4 + 10 + 4)


def test_errors_fall_with_more_bits():
    model, variables, x = tiny()
    found = {}
    for bits in FORMATS[:2]:
        network = quantize.quantize_network(model, variables, x, options_of(bits))
        errors = network.errors(x)
        found[bits] = errors.rms / errors.size
    assert (found[8, 8] < found[4, 8]).all()
    assert errors.names == ("conv_general_dilated[3, 3, 2, 6]", "dot_general[6, 5]")
    dense = variables["params"]["Dense_0"]["bias"]
    exact = model.apply(variables, x) - dense
    mine = network(x) - dense
    np.testing.assert_allclose(errors.rms[1], np.sqrt(np.mean((mine - exact) ** 2)), rtol=1e-3)
    np.testing.assert_allclose(errors.size[1], np.sqrt(np.mean(exact**2)), rtol=1e-4)


def test_loops_are_written_out():
    kernel, x = 0.3 * normal(6, 6), normal(9, 6)

    def function(x):
        return jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ kernel + x), x)

    network = to_integer_network(function, x)
    assert len(network.ordered) == 3
    assert network.constant_bytes == 36 + 4 * 6
    np.testing.assert_allclose(network(x), function(x), atol=0.05)


def within(wrap):
    """Returns a function with a product within an operation that stays."""
    kernel = normal(6, 6)
    return lambda x: wrap(lambda h: jnp.tanh(h @ kernel), x)


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (within(lambda f, x: jax.lax.fori_loop(0, 40, lambda i, h: f(h), x)), "within 'scan'"),
        (within(lambda f, x: jax.lax.cond(x.sum() > 0, f, lambda h: h, x)), "within 'cond'"),
        (within(lambda f, x: jax.lax.while_loop(lambda h: h.sum() > 1, f, x)), "within 'while'"),
        (lambda x: jnp.tanh(x), "nothing to make integers of"),
        (lambda x: x @ x.T, "nothing to make integers of"),
        (lambda x: x.astype(jnp.bfloat16) @ jnp.ones((6, 2), jnp.bfloat16), "dtype=float32"),
    ],
)
def test_what_has_no_integer_form_is_refused(function, match):
    with pytest.raises(ConfigError, match=match):
        to_integer_network(function, normal(4, 6))


def test_bad_calibration_is_refused():
    kernel = normal(6, 2)
    with pytest.raises(DataError, match="at least one example"):
        to_integer_network(lambda x: x @ kernel, normal(0, 6))
    with pytest.raises(DataError, match="not finite"):
        to_integer_network(lambda x: jnp.log(x) @ kernel, normal(4, 6))
    with pytest.raises(ConfigError, match="activation_bits must be 8 or 16"):
        QuantizeOptions(activation_bits=4)


def test_products_of_two_inputs_stay_in_floating_point():
    kernel, x = normal(6, 6), normal(4, 3, 6)

    def function(x):
        return jnp.einsum("bid,bjd->bij", x @ kernel, x)

    network = to_integer_network(function, x)
    assert len(network.ordered) == 1
    np.testing.assert_allclose(network(x), function(x), atol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-resnet", "digits-global", "digits-disk"])
def test_trained_networks_keep_their_accuracy(name, optimised):
    run = jaxeff.load(name, data=True)
    train, test = (run.dataset.splits[each] for each in ("train", "test"))
    inputs = train.take(np.arange(128))["inputs"]
    network = quantize.quantize_network(run.model, run.variables, inputs)
    batch = test.take(np.arange(len(test)))
    exact = np.asarray(run.forward(run.variables, {"inputs": batch["inputs"]}))
    labels = np.asarray(network(batch["inputs"])).argmax(-1)
    assert np.mean(labels == exact.argmax(-1)) > 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    "design", [{"name": "interpolated"}, {"name": "shared", "mode": "out_tile"}, {"name": "looped"}]
)
def test_every_design_has_an_integer_form(design):
    model = MODELS.build({"name": "resnet", "depth": 14, "design": design}, num_outputs=10)
    x = np.abs(normal(4, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    network = quantize.quantize_network(model, variables, x, options_of((8, 16)))
    exact = np.asarray(jax.jit(model.apply)(variables, x))
    assert np.abs(network(x) - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.slow
def test_an_encoder_keeps_its_attention_in_floating_point():
    shape = {"layers": 1, "width": 16, "heads": 2, "hidden": 32, "vocabulary": 50}
    model = MODELS.build({"name": "encoder", "shape": shape}, num_outputs=2)
    tokens = RNG.integers(0, 50, (6, 12)).astype(np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    variables = jax.tree.map(lambda a: 0.5 * normal(*a.shape), shapes)
    network = quantize.quantize_network(model, variables, tokens, options_of((8, 16)))
    assert len(network.ordered) == 6  # four of the layer, pooling over the steps, the classifier
    exact = np.asarray(model.apply(variables, tokens))
    assert np.abs(network(tokens) - exact).max() < 0.1 * np.abs(exact).max()
