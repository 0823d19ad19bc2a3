"""Counts against closed forms, unrolled loops, brute force and the compiler's own count."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxeff.bench import Cost, cost_per_example, count, macs_per_example


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


RNN_PARAMS = {"w": shape(1, 32), "u": shape(32, 32), "b": shape(32), "head": shape(32, 10)}


def rnn_step(params, h, x):
    return jnp.tanh(x @ params["w"] + h @ params["u"] + params["b"])


def scanned_rnn(params, xs):
    h = jnp.zeros((xs.shape[1], 32))
    h, _ = lax.scan(lambda h, x: (rnn_step(params, h, x), None), h, xs)
    return h @ params["head"]


def unrolled_rnn(params, xs):
    h = jnp.zeros((xs.shape[1], 32))
    for x in xs:
        h = rnn_step(params, h, x)
    return h @ params["head"]


def test_rnn_of_28_steps_has_the_flops_worked_out_by_hand():
    # Per step and example: 32 inputs' and 32 * 32 states' MACs, two additions and a tanh of 32.
    macs = 2 * (28 * (32 + 32 * 32) + 32 * 10)
    cost = count(scanned_rnn, RNN_PARAMS, shape(28, 2, 1))
    assert cost == Cost(macs=macs, flops=2 * macs + 2 * 28 * 3 * 32)
    assert cost.flops == 124_928


@pytest.mark.parametrize("steps", [1, 7, 28])
def test_scan_counts_as_its_unrolled_loop(steps):
    xs = shape(steps, 2, 1)
    assert count(scanned_rnn, RNN_PARAMS, xs) == count(unrolled_rnn, RNN_PARAMS, xs)


def test_nested_scans_multiply():
    def nested(x):
        def outer(c, _):
            return lax.scan(lambda d, _: (d @ d, None), c, length=5)[0], None

        return lax.scan(outer, x, length=3)[0]

    assert count(nested, shape(4, 4)).macs == 3 * 5 * 4**3


def test_batched_matrix_product():
    def product(a, b):
        return jnp.einsum("bhqd,bhkd->bhqk", a, b)

    assert count(product, shape(2, 3, 5, 7), shape(2, 3, 11, 7)) == Cost(
        macs=2 * 3 * 5 * 11 * 7, flops=2 * 2 * 3 * 5 * 11 * 7
    )


def test_integer_products_count_but_integer_arithmetic_does_not():
    x = shape(4, 4, dtype=jnp.int8)
    assert count(lambda a: a @ a + a, x) == Cost(macs=64, flops=128)


def brute_force_taps(size, kernel, stride, padding, lhs_dilation, rhs_dilation, *, padded):
    """Walks every output position and tap of one dimension of a convolution."""
    dilated = (size - 1) * lhs_dilation + 1
    span = (kernel - 1) * rhs_dilation + 1
    taps = 0
    for start in range(-padding[0], dilated + padding[1] - span + 1, stride):
        for tap in range(kernel):
            at = start + tap * rhs_dilation
            inside = 0 <= at < dilated
            taps += (inside and at % lhs_dilation == 0) or (padded and not inside)
    return taps


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("stride", "padding", "lhs_dilation", "rhs_dilation"),
    [
        (1, (0, 0), 1, 1),
        (1, (1, 1), 1, 1),
        (2, (1, 0), 1, 1),
        (2, (2, 2), 1, 2),
        (1, (2, 2), 2, 1),
        (1, (1, 2), 3, 2),
        (2, (-1, 1), 1, 1),
    ],
)
def test_convolution_against_a_loop(groups, stride, padding, lhs_dilation, rhs_dilation):
    batch, features, units, sizes, kernel = 2, 8, 12, (9, 11), (3, 2)

    def convolve(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            (stride,) * 2,
            (padding,) * 2,
            lhs_dilation=(lhs_dilation,) * 2,
            rhs_dilation=(rhs_dilation,) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    args = shape(batch, *sizes, features), shape(*kernel, features // groups, units)
    macs = batch * units * (features // groups)
    for size, width in zip(sizes, kernel, strict=True):
        macs *= brute_force_taps(
            size, width, stride, padding, lhs_dilation, rhs_dilation, padded=lhs_dilation == 1
        )
    assert count(convolve, *args).macs == macs
    if lhs_dilation == 1:  # the textbook formula
        height, width = jax.eval_shape(convolve, *args).shape[1:3]
        assert macs == batch * height * width * units * features // groups * 6


def test_depthwise_convolution_costs_one_product_per_tap_and_channel():
    def depthwise(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=16)

    assert count(depthwise, shape(1, 16, 10, 10), shape(16, 1, 3, 3)).macs == 10 * 10 * 16 * 9


def test_gradient_of_a_strided_convolution_does_not_count_holes():
    def convolve(x, w):
        return lax.conv_general_dilated(x, w, (2,), "VALID")

    x, w = shape(1, 4, 21), shape(8, 4, 3)
    forward = count(convolve, x, w).macs
    backward = jax.grad(lambda x, w: convolve(x, w).sum())
    assert count(backward, x, w).macs == 2 * forward  # the forward pass is traced too


@pytest.mark.parametrize(
    ("fn", "flops"),
    [
        (jnp.exp, 12),
        (jnp.tanh, 12),
        (jax.nn.sigmoid, 12),
        (jax.nn.relu, 12),
        (lambda x: x / 2 + x, 24),
        (lambda x: x > 0, 12),
        (lambda x: x.sum(), 12),
        (lambda x: x.max(axis=1), 12),
        (lambda x: jnp.argmax(x, axis=1), 12),
        (lambda x: jnp.cumsum(x, axis=0), 12),
        (lambda x: jnp.where(True, x, 0.0), 0),
        (lambda x: x.T.reshape(-1)[2:].astype(jnp.bfloat16), 0),
        (lambda x: x[jnp.array([0, 1])], 0),
        (lambda x: x.at[jnp.array([0, 1])].add(1.0), 8),
        (lambda x: jnp.concatenate([x, x]), 0),
        (lambda x: jnp.stack(list(x)), 0),
        (lambda x: lax.stop_gradient(x), 0),
        (lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"), 12),
        (lambda x: lax.reduce(x, 0.0, lambda a, b: a + 2 * b, (0,)), 12),
    ],
)
def test_elementwise_reductions_and_movement(fn, flops):
    assert count(fn, shape(3, 4)) == Cost(macs=0, flops=flops)


def test_primitives_that_only_some_versions_of_jax_have():
    # One primitive of two products and two sums, or a loop that also starts from zero.
    assert count(lambda x: jnp.polyval(jnp.zeros(3), x), shape(12)).flops in (48, 72)
    # tanh, its sum, the product with the cotangent, and 1 - y * y in one primitive or more.
    gradient = count(jax.grad(lambda x: jnp.tanh(x).sum()), shape(12))
    assert gradient.flops == pytest.approx(60, abs=12)
    assert not gradient.unknown


def test_random_bits_are_free():
    cost = count(lambda key: jax.random.bits(key, (8,)), jax.eval_shape(lambda: jax.random.key(0)))
    assert cost == Cost()


def custom_vjp_square(x):
    square = jax.custom_vjp(lambda x: x @ x)
    square.defvjp(lambda x: (x @ x @ x, x), lambda x, g: (g @ x,))
    return square(x)


def custom_jvp_square(x):
    square = jax.custom_jvp(lambda x: x @ x)
    square.defjvp(lambda primals, tangents: (primals[0] @ primals[0], tangents[0] @ primals[0]))
    return square(x)


@pytest.mark.parametrize(
    "wrap",
    [
        jax.jit,
        jax.checkpoint,
        jax.named_call,
        lambda f: jax.jit(jax.checkpoint(jax.jit(f))),
        lambda f: lambda x: custom_vjp_square(x),
        lambda f: lambda x: custom_jvp_square(x),
        lambda f: lambda x: jax.vmap(f)(x[None])[0],
        lambda f: lambda x: lax.map(f, x[None])[0],
        lambda f: lambda x: lax.cond(x[0, 0] > 0, f, f, x),
    ],
)
def test_calls_count_as_their_bodies(wrap):
    cost = count(wrap(lambda x: x @ x), shape(4, 4))
    assert (cost.macs, cost.unknown) == (64, ())


def test_checkpoint_counts_what_is_computed_again():
    def loss(x, wrap):
        return wrap(lambda y: jnp.sin(y @ y))(x).sum()

    plain = count(jax.grad(lambda x: loss(x, lambda f: f)), shape(4, 4)).macs
    again = count(jax.grad(lambda x: loss(x, jax.checkpoint)), shape(4, 4)).macs
    assert again == plain + 64


def test_cond_counts_the_dearest_branch_and_says_so():
    branches = [lambda x: x, lambda x: x @ x, lambda x: x + x]
    cost = count(lambda i, x: lax.switch(i, branches, x), shape(dtype=jnp.int32), shape(4, 4))
    assert cost == Cost(macs=64, flops=128, unknown=("cond",))


def test_while_counts_one_pass_and_says_so():
    def loop(n, x):
        return lax.fori_loop(0, n, lambda _, y: y @ y, x)

    cost = count(loop, shape(dtype=jnp.int32), shape(4, 4))
    assert cost == Cost(macs=64, flops=128, unknown=("while",))
    assert count(lambda x: loop(6, x), shape(4, 4)) == Cost(macs=6 * 64, flops=6 * 128)


def test_unknown_primitives_are_named():
    cost = count(lambda x: jnp.sort(jnp.linalg.cholesky(x)), shape(4, 4))
    assert {"cholesky", "sort"} <= set(cost.unknown)


def test_shard_map_counts_all_devices():
    # The tests' machine may have one device only; an abstract mesh needs none.
    automatic = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((4,), ("data",), axis_types=automatic)
    spec = jax.sharding.PartitionSpec("data")
    fn = jax.shard_map(lambda x: jnp.tanh(x @ x.T), mesh=mesh, in_specs=spec, out_specs=spec)
    assert count(jax.jit(fn), shape(8, 3)) == Cost(macs=4 * 2 * 2 * 3, flops=4 * (24 + 4))


def test_pallas_kernel_counts_its_grid():
    pallas = pytest.importorskip("jax.experimental.pallas")

    def kernel(x, out):
        out[...] = x[...] + 1.0

    block = pallas.BlockSpec((2, 8), lambda i: (i, 0))
    call = pallas.pallas_call(
        kernel, out_shape=shape(8, 8), grid=(4,), in_specs=[block], out_specs=block
    )
    assert count(call, shape(8, 8)) == Cost(flops=64, unknown=("pallas_call",))


def two_layers(x, w, v):
    return jnp.maximum(x @ w, 0.0) @ v


def strided_convolution(x, w):
    return lax.conv_general_dilated(x, w, (2, 2), "VALID")


@pytest.mark.parametrize(
    ("fn", "args"),
    [
        (two_layers, (shape(8, 64), shape(64, 128), shape(128, 10))),
        (strided_convolution, (shape(2, 8, 17, 17), shape(16, 8, 3, 3))),
        (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (shape(3, 8, 16), shape(3, 16, 32))),
    ],
)
def test_the_compiler_agrees_on_programs_without_loops(fn, args):
    analysis = jax.jit(fn).lower(*args).compile().cost_analysis()
    assert count(fn, *args).flops == pytest.approx(analysis["flops"], rel=0.01)


def test_per_example_does_not_depend_on_the_batch():
    def forward(params, inputs):
        return jnp.tanh(inputs["image"] @ params["w"])

    params = {"w": shape(6, 5)}
    for batch in (1, 8):
        inputs = {"image": shape(batch, 6), "mask": shape(batch)}
        assert macs_per_example(forward, params, inputs) == 30
        assert cost_per_example(forward, params, inputs).flops == 65
    per_example = cost_per_example(scanned_rnn, RNN_PARAMS, shape(28, 2, 1), batch_axis=1)
    assert per_example.flops == 124_928 // 2


@pytest.mark.parametrize("inputs", [(), shape(0, 3), (shape(2, 3), shape(3, 3))])
def test_per_example_needs_one_batch_size(inputs):
    with pytest.raises(ValueError, match="one batch size"):
        macs_per_example(lambda p, x: x, {}, inputs)


def test_counting_runs_nothing():
    seen = []

    def fn(x):
        jax.debug.callback(seen.append, x)
        return x @ x

    big = shape(1 << 20, 1 << 20)  # 4 TiB, were it made
    assert count(fn, big).macs == 1 << 60
    assert count(fn, jnp.eye(2)).macs == 8
    jax.effects_barrier()
    assert not seen


def test_costs_add_and_multiply():
    total = Cost(1, 2, ("while",)) * 3 + Cost(1, 1, ("cond",))
    assert total == Cost(4, 7, ("cond", "while"))


@pytest.mark.slow
def test_importing_starts_no_device():
    code = (
        "import jaxeff.bench, jaxeff.eval, sys, jax;"
        "from jax._src import xla_bridge;"
        "assert not xla_bridge.backends_are_initialized();"
        "assert 'matplotlib' not in sys.modules and 'tensorboardX' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_known_primitives_are_in_one_group_only():
    from jaxeff.bench import primitives as p

    groups = [p.FREE, p.ELEMENTWISE, p.REDUCTIONS, p.SCATTERS, set(p.WINDOWED)]
    for first, second in itertools.combinations(groups, 2):
        assert not first & second


@pytest.mark.parametrize("axis", [2, -3])
def test_per_example_needs_the_batch_axis(axis):
    with pytest.raises(ValueError, match=r"no batch axis .* in shape \(2, 3\)"):
        cost_per_example(lambda _, x: x, (), shape(2, 3), batch_axis=axis)
