"""Scans in one call of the compiled library: its operations, and whole recurrences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scan_cases import CASES, FEW, weighted
from sweeps import swept

from jaxeff.ode import Elman, unroll
from jaxeff.ode.carry import parts_of
from jaxeff.ops.cpu import native
from jaxeff.ops.cpu import row_scan as forms
from jaxeff.ops.cpu.row_code import OPERATIONS
from jaxeff.ops.cpu.row_program import translated
from jaxeff.ops.platforms import current_platform, platform
from jaxeff.ops.row_scan import Window, row_scan, scan_steps

pytestmark = pytest.mark.skipif(
    current_platform() != "cpu" or not native.is_available(), reason="needs a C++ compiler"
)

NOTHING = Window(None, 0)
CALL = "jaxeff_row_scan"


def arrays(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def positive(x):
    return jnp.abs(x) + 0.1


#: A function of arrays ``[rows, width]`` and ``[rows, 1]`` for every operation.
FUNCTIONS = {
    "copy": lambda a, b, c: jax.lax.optimization_barrier(a),
    "column": lambda a, b, c: a * c,
    "add": lambda a, b, c: a + b,
    "sub": lambda a, b, c: 1.5 - a,
    "mul": lambda a, b, c: a * b * 0.5,
    "div": lambda a, b, c: a / positive(b),
    "max": lambda a, b, c: jnp.maximum(a, b),
    "min": lambda a, b, c: jnp.minimum(a, 0.2),
    "neg": lambda a, b, c: -a,
    "abs": lambda a, b, c: jnp.abs(a),
    "sign": lambda a, b, c: jnp.sign(a),
    "exp": lambda a, b, c: jnp.exp(a),
    "tanh": lambda a, b, c: jnp.tanh(a),
    "logistic": lambda a, b, c: jax.nn.sigmoid(a),
    "square": lambda a, b, c: jnp.square(a),
    "integer_pow": lambda a, b, c: a**3 + positive(b) ** -2,
    "sqrt": lambda a, b, c: jnp.sqrt(positive(a)),
    "rsqrt": lambda a, b, c: jax.lax.rsqrt(positive(a)),
    "log": lambda a, b, c: jnp.log(positive(a)),
    "log1p": lambda a, b, c: jnp.log1p(positive(a)),
    "expm1": lambda a, b, c: jnp.expm1(a),
    "sin": lambda a, b, c: jnp.sin(a),
    "cos": lambda a, b, c: jnp.cos(a),
    "eq": lambda a, b, c: jnp.where(a == jnp.maximum(a, b), a, 2.0),
    "ne": lambda a, b, c: jnp.where(a != jnp.maximum(a, b), a, 2.0),
    "lt": lambda a, b, c: jnp.where(a < b, a, 2.0),
    "le": lambda a, b, c: jnp.where(a <= b, a, b),
    "gt": lambda a, b, c: jnp.where(a > c, a, b),
    "ge": lambda a, b, c: (a >= b).astype(a.dtype),
    "and": lambda a, b, c: jnp.where((a > 0) & (b > 0), a, b),
    "or": lambda a, b, c: jnp.where((a > 0) | (b > 0), a, b),
    "not": lambda a, b, c: jnp.where(~(a > 0), a, b),
    "select_n": lambda a, b, c: jnp.where(c > 0, a, 0.0),
    "mul_add": lambda a, b, c: (3.0 * a) * b + c,
    "mul_rest": lambda a, b, c: b * (1.0 - 1.5 * a),
    "rest_of_square": lambda a, b, c: 1.0 - (2.0 * a) * (2.0 * a) + b,
    "logistic_slope": lambda a, b, c: (0.7 * b) * ((0.4 * a) * (1.0 - 0.4 * a)),
    "tanh_slope": lambda a, b, c: (0.6 * b) * (1.0 - (0.3 * a) * (0.3 * a)),
    "add zero": lambda a, b, c: jnp.zeros_like(a) + a,
    "product": lambda a, b, c: a @ (0.2 * arrays(7, a.shape[-1], a.shape[-1])) + b,
    "product and number": lambda a, b, c: a @ (0.2 * arrays(8, a.shape[-1], a.shape[-1])) + 0.5,
    "join": lambda a, b, c: jnp.concatenate([c, a, b], -1)[:, 1 : a.shape[-1] + 1],
    "cut": lambda a, b, c: jnp.concatenate([b[:, 1:], a[:, :1]], -1),
    "split": lambda a, b, c: jnp.split(jnp.concatenate([a, b], -1), [2, a.shape[-1] + 2], -1)[1],
    "split of arrays": lambda a, b, c: jnp.split(jnp.stack([a, b, a * b]), [1], 0)[1].sum(0),
    "slope of tanh": lambda a, b, c: jax.jvp(jnp.tanh, (a,), (b,))[1],
    "clamp": lambda a, b, c: jnp.clip(a, -0.3, 0.4),
    "no axes": lambda a, b, c: a.sum(()),
    "axes": lambda a, b, c: jnp.stack([a, b])[None, 1:].sum((0, 1)) + jnp.stack([a, b])[0],
}


def test_every_operation_has_a_case():
    assert set(OPERATIONS) <= set(FUNCTIONS)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda a, b, c, k: c + a * b, ["mul_add"]),
        (lambda a, b, c, k: b * (1 - a), ["mul_rest"]),
        (lambda a, b, c, k: b * (a * (1 - a)), ["logistic_slope"]),
        (lambda a, b, c, k: b * (1 - a * a), ["tanh_slope"]),
        (lambda a, b, c, k: (1 - a * b) + jnp.zeros_like(a), ["mul", "not"]),
        # What others read as well is not computed twice.
        (lambda a, b, c, k: (c + a * b) * jnp.exp(a * b), ["mul", "add", "exp", "mul"]),
        # A sum begins with a product's start, and no operand lives until after another product.
        (lambda a, b, c, k: a * b + c @ k, ["mul", "product"]),
        (
            lambda a, b, c, k: a * b + jnp.tanh(c @ k),
            ["mul", "product", "tanh", "add"],
        ),
    ],
)
def test_operations_are_combined_where_nothing_else_reads_what_is_between(function, names):
    late = (jax.ShapeDtypeStruct((2, 4), jnp.float32),) * 3
    kernel = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    program = translated(
        lambda k, late: function(*late, *k), [kernel], late, ("input",) * 3, "room"
    )
    assert [op.name for op in program.code] == names


def close(ours, exact, **tolerances):
    tolerances = {"rtol": 5e-5, "atol": 5e-5} | tolerances
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerances), ours, exact)


def compared(length, step, *args, reverse=False):
    """The result of the compiled function, which is that of a loop."""

    def ours(*args):
        return row_scan(length, step, *args, reverse=reverse)

    text = jax.jit(ours).lower(*args).as_text()
    assert CALL in text
    assert "while" not in text
    results = jax.jit(ours)(*args)
    exact = scan_steps(length, step, reverse, *args)
    close(results, exact)
    return results


@pytest.mark.parametrize(("rows", "width"), [(3, 5), (9, 32)])
def test_operations(rows, width):
    def step(shared, indexed, carry, late):
        (b, c), _ = late
        values = {name: function(carry, b, c) for name, function in FUNCTIONS.items()}
        return jnp.tanh(sum(values.values())) + 0.1 * carry, (values, None)

    xs = arrays(1, 4, rows, width), arrays(2, 4, rows, 1)
    compared(4, step, None, None, arrays(0, rows, width), xs, NOTHING, NOTHING)


@pytest.mark.parametrize(("rows", "width"), [(1, 360), (5, 257)])
def test_threads_share_the_columns_of_a_few_rows(rows, width):
    """Of sums that read others too; a thread that is late or missing changes no bit."""
    square = [0.05 * arrays(seed, width, width) for seed in range(4)]
    shared = square, 0.1 * arrays(4, 7, width), arrays(5, width)

    def step(shared, indexed, carry, late):
        (a, b, c, d), of_inputs, bias = shared
        (h, memory), (x, _) = carry, late
        gate = jnp.tanh(h @ a + x @ of_inputs + bias)
        new = jnp.tanh(gate @ d.T + memory) * jax.nn.sigmoid((h @ b) @ c + gate)
        return (new, 0.5 * memory + gate), (2 * new, None)

    start = arrays(6, rows, width), arrays(7, rows, width)
    args = shared, None, start, arrays(8, 50, rows, 7), NOTHING, NOTHING
    first = compared(50, step, *args)
    again = jax.jit(functools.partial(row_scan, 50, step))
    for _ in range(20):
        jax.tree.map(np.testing.assert_array_equal, again(*args), first)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("depth", "columns"), [(5, 3), (16, 48), (83, 37), (260, 300)])
def test_products_with_transposed_kernels(rows, depth, columns):
    """Alone, added to something, and with the product of a kernel that is not transposed."""
    shapes = (columns, depth), (columns, depth), (columns, columns)
    kernels = tuple(0.05 * arrays(seed, *shape) for seed, shape in enumerate(shapes))

    def step(shared, indexed, carry, late):
        (a, b, c), ((x, y), _) = shared, late
        turned = functools.partial(jax.lax.dot_general, dimension_numbers=(((1,), (1,)), ((), ())))
        return turned(x, a) + turned(y, b) + carry @ c, (turned(y, a), None)

    xs = arrays(3, 2, rows, depth), arrays(4, 2, rows, depth)
    carry = arrays(5, rows, columns)
    args = kernels, None, carry, xs, NOTHING, NOTHING
    last, ys, _ = compared(2, step, *args)
    a, b, c, x, y, h = (np.asarray(v, np.float64) for v in (*kernels, *xs, carry))
    for t in range(2):
        h = x[t] @ a.T + y[t] @ b.T + h @ c
    close((last, ys), (h, y @ a.T), rtol=0, atol=4e-6 * np.abs(h).max())


def test_elementary_functions_are_accurate():
    values = np.concatenate([
        np.linspace(-100, 100, 4001), np.linspace(-1e-3, 1e-3, 101), [-np.inf, np.inf, -0.0],
    ])  # fmt: skip
    x = jnp.asarray(values, jnp.float32)[:, None] * jnp.ones((1, 16), jnp.float32)
    functions = {
        "exp": (jnp.exp, np.exp),
        "tanh": (jnp.tanh, np.tanh),
        "logistic": (jax.nn.sigmoid, lambda v: 1 / (1 + np.exp(-v))),
    }
    for function, exact in functions.values():

        def step(shared, indexed, carry, late, function=function):
            return carry, (function(late[0]), None)

        ys = row_scan(1, step, None, None, x, x[None], NOTHING, NOTHING)[1]
        with np.errstate(over="ignore", under="ignore"):
            truth = exact(np.asarray(x, np.float64))
        truth = np.where(truth > np.finfo(np.float32).max, np.inf, truth)
        # Below the least normal number there are zeros.
        np.testing.assert_allclose(ys[0], truth, rtol=6e-7, atol=1.2e-38)
    ends = jnp.asarray([-jnp.inf, -1e30, -8, 8, 1e30, jnp.inf])[:, None]

    def slopes(shared, indexed, carry, late):
        t = jnp.tanh(late[0])
        return carry, (1 - t * t, None)

    # A slope that is not zero would be multiplied with the large number later.
    assert not row_scan(1, slopes, None, None, ends, ends[None], NOTHING, NOTHING)[1].any()
    nan = jnp.full((1, 2, 16), jnp.nan)
    for function, _ in functions.values():

        def step(shared, indexed, carry, late, function=function):
            return carry, (jnp.maximum(function(late[0]), 0.0), None)

        assert np.isnan(row_scan(1, step, None, None, nan[0], nan, NOTHING, NOTHING)[1]).all()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(5, 3), (40, 33), (2, 3, 16)])
def test_windows_are_read_and_written_in_place(shape, reverse):
    def step(shared, indexed, carry, late):
        x, past = late
        (weight, bias), moved = shared, jnp.where(indexed > 1, carry, past[1])
        new = jnp.tanh(moved @ weight + x * bias[0] + bias)
        return new, (new - past[0], (jnp.stack([new, carry]), None))

    width = shape[-1]
    shared = 0.2 * arrays(0, width, width), arrays(1, width)
    steps = jnp.arange(4).reshape(4, *(1,) * len(shape))
    indexed = jnp.broadcast_to(steps, (4, *shape[:-1], 1))
    known = Window((arrays(2, 9, *shape), arrays(3, 9, *shape)), jnp.int32(3))
    rooms = Window((arrays(4, 7, 2, *shape), None), jnp.int32(2))
    args = shared, indexed, arrays(5, *shape), arrays(6, 4, *shape), known, rooms
    _, _, (room, _) = compared(4, step, *args, reverse=reverse)
    np.testing.assert_array_equal(room[:2], rooms.values[0][:2])
    np.testing.assert_array_equal(room[6:], rooms.values[0][6:])


def program(cell, mask, options, params, xs, carry):
    """The value and gradients of a function of everything that a recurrence returns."""

    def total(params, xs, carry):
        last, ys = unroll(cell, params, xs, carry, mask=mask, **options)
        return weighted((parts_of(last).state, ys))

    return jax.value_and_grad(total, (0, 1))(params, xs, carry)


def agree(cell, time, batch, inputs=3, seed=0, **options):
    """Compares a recurrence with that of plain JAX, in single precision."""
    params = jax.tree.map(
        lambda a: a + 0.1 * arrays(3, *a.shape), cell.init(jax.random.key(seed), inputs)
    )
    xs = arrays(1, time, *batch, inputs)
    mask = arrays(2, time, *batch) > -0.7
    carry = cell.initial_carry(batch, jnp.float32, inputs)
    run = functools.partial(program, cell, mask, options)
    text = jax.jit(run).lower(params, xs, carry).as_text()
    ours = jax.jit(run)(params, xs, carry)
    with platform("reference"):
        exact = jax.jit(run)(params, xs, carry)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * (1 + float(jnp.abs(b).max())))
    return text


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_every_cell_agrees_with_plain_jax(name, monkeypatch):
    if CASES[name].fused:
        monkeypatch.setattr(forms, "scan_steps", None)  # in no pass is it run in a loop of XLA
    text = agree(CASES[name], 7, (2,))
    assert (CALL in text) == CASES[name].fused


@pytest.mark.parametrize(
    ("batch", "time", "options"),
    [
        ((), 5, {}),
        ((2, 3), 5, {"reverse": True}),
        pytest.param((41,), 19, {"backward": "remat", "block_size": 4}, marks=pytest.mark.slow),
        pytest.param((70,), 33, {"block_size": 8}, marks=pytest.mark.slow),
    ],
)
def test_batches_and_blocks(batch, time, options):
    assert CALL in agree(dataclasses.replace(CASES["lstm"], features=17), time, batch, **options)


@pytest.mark.parametrize(("block_size", "calls"), [(6, 2), (2, 3)])
def test_states_of_one_block_are_kept_and_those_of_more_rebuilt(block_size, calls):
    text = agree(CASES["lstm"], 6, (3,), block_size=block_size)
    assert text.count(f"@{CALL}") == calls


def test_kernels_are_transposed_once_for_all_blocks():
    cell = CASES["lstm"]
    xs, params = arrays(0, 6, 3, 3), cell.init(jax.random.key(0), 3)

    def loss(params):
        return weighted(unroll(cell, params, xs, block_size=2))

    text = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
    assert text.count('target="jaxeff_transposed"') == cell.gates
    assert text.split("ENTRY")[1].count('target="jaxeff_transposed"') == cell.gates


def test_memory_is_taken_anew_in_each_turn_of_a_loop_over_parts():
    cell = CASES["lstm"]

    def part(carry, xs):
        params, state = carry

        def loss(params):
            last, ys = unroll(cell, params, xs, state, block_size=2)
            return weighted(ys), last

        (_, state), slopes = jax.value_and_grad(loss, has_aux=True)(params)
        return (jax.tree.map(lambda p, g: p - 0.1 * g, params, slopes), state), None

    xs, params = arrays(0, 3, 4, 2, 3), cell.init(jax.random.key(0), 3)
    carry = params, cell.initial_carry((2,), jnp.float32, 3)
    trained = jax.jit(lambda carry, xs: jax.lax.scan(part, carry, xs)[0])
    text = trained.lower(carry, xs).compile().as_text()
    before, entry = text.split("ENTRY")
    # Outside of the loop it would be copied in every turn.
    assert 'target="jaxeff_memory"' in before
    assert 'target="jaxeff_memory"' not in entry


def test_a_batch_of_scans_is_one_call_and_a_batch_of_cells_a_loop():
    cell = CASES["gru"]
    params = cell.init(jax.random.key(0), 3)
    many = jax.tree.map(lambda a: jnp.stack([a, 1.1 * a, 0.9 * a]), params)
    xs = arrays(1, 3, 5, 2, 3)

    @jax.jit
    def gradient(params, xs):
        return jax.grad(lambda p: weighted(unroll(cell, p, xs)))(params)

    for axes, args in (((None, 0), (params, xs)), ((0, None), (many, xs[0]))):
        ours = jax.jit(jax.vmap(gradient, axes))
        text = ours.lower(*args).as_text()
        assert (CALL in text) == (axes[1] == 0)
        results = ours(*args)
        for i in range(3):
            one = [
                jax.tree.map(functools.partial(jnp.take, indices=i, axis=0), a) if axis == 0 else a
                for a, axis in zip(args, axes, strict=True)
            ]
            of_one = jax.tree.map(functools.partial(jnp.take, indices=i, axis=0), results)
            close(of_one, gradient(*one))


def test_second_derivatives():
    cell = CASES["rnn"]
    params, xs = cell.init(jax.random.key(0), 3), arrays(1, 4, 2, 3)

    def curvature(params):
        def slope(params):
            grads = jax.grad(lambda p: weighted(unroll(cell, p, xs)))(params)
            return sum(jnp.sum(g**2) for g in jax.tree.leaves(grads))

        return jax.grad(slope)(params)

    ours = jax.jit(curvature)(params)
    with platform("reference"):
        exact = jax.jit(curvature)(params)
    close(ours, exact, rtol=1e-3, atol=1e-4)


@dataclasses.dataclass(frozen=True)
class Sorted(Elman):
    """A cell whose update is none of the operations."""

    def update(self, coefficients, state, t, at):
        return jnp.cumsum(t[0], -1) * 0.3 + 0.1 * state


def test_a_step_of_other_operations_runs_in_a_loop():
    assert CALL not in agree(Sorted(6), 5, (2,), backward="remat")


@pytest.mark.parametrize(("threads", "features"), swept([(1, 24), (1, 40), (2, 40)], (1, 40)))
def test_large_states_are_trained_in_a_loop_where_a_device_has_one_core(
    threads, features, monkeypatch
):
    monkeypatch.setattr(native, "threads", lambda: threads)
    monkeypatch.setattr(forms, "MOST_IN_TRAINING", 5 * 30)
    text = agree(dataclasses.replace(CASES["lstm"], features=features), 9, (5,))
    assert (CALL in text) == (threads == 2 or 5 * features <= 5 * 30)


def test_states_that_no_step_reads():
    def step(shared, indexed, carry, late):
        x, _ = late
        return (jnp.sin(x), 0.5 * carry[1] + x, x), (carry[1] + 1.0, None)

    carry = arrays(0, 5, 7), arrays(1, 5, 7), arrays(2, 5, 7)
    compared(4, step, None, None, carry, arrays(3, 4, 5, 7), NOTHING, NOTHING)


@pytest.mark.usefixtures("x64")
def test_single_precision_where_double_is_the_default():
    assert CALL in agree(CASES["gru"], 5, (2,))
