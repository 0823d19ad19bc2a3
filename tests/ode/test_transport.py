"""The grid solvers against closed forms, conservation laws, and other discretisations."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads
from sweeps import swept

from jaxeff.errors import ConfigError
from jaxeff.ode import transport
from jaxeff.ode.transport import Coefficients, growth, solve_tridiagonal, stability_number

pytestmark = pytest.mark.usefixtures("x64")


def compiled(solver):
    """One program per call, with coefficients that are left out still seen as such.

    Results are NumPy's, so that comparing them compiles nothing.
    """

    @functools.wraps(solver)
    def call(h, coefficients, source=0.0, **options):
        return np.asarray(jax.jit(lambda h: solver(h, coefficients, source, **options))(h))

    return call


leapfrog = compiled(transport.leapfrog)
line_implicit = compiled(transport.line_implicit)
spectral = compiled(transport.spectral)

STILL = Coefficients(0.0, 0.0, 1.0, 1.0)
BOTH = pytest.mark.parametrize("boundary", ["periodic", "reflecting"])


def field(shape=(8, 6, 2), seed=0, low=0.0, high=1.0):
    return np.random.default_rng(seed).uniform(low, high, shape)


def wave(n, p, q):
    i, j = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    return np.cos(2 * np.pi * (p * i + q * j) / n)[..., None]


def delta(n=17, at=None):
    at = n // 2 if at is None else at
    spot = np.zeros((n, n, 1))
    spot[at, at] = 1.0
    return spot


def equation(h, c, f, dt, k, dx=(1, 1)):
    """The published scheme in loops over the pixels, periodic, written from the equation."""
    u, v, dif_x, dif_y, f = (np.broadcast_to(a, h.shape) for a in (*c, f))
    before, h = np.array(h), np.array(h)
    rows, columns, _ = h.shape
    for _ in range(k):
        new = np.empty_like(h)
        for i, j in itertools.product(range(rows), range(columns)):
            up, down = (i + dx[0]) % rows, (i - dx[0]) % rows
            right, left = (j + dx[1]) % columns, (j - dx[1]) % columns
            ax, ay = u[i, j] * dt / dx[0], v[i, j] * dt / dx[1]
            bx, by = dif_x[i, j] * dt / dx[0] ** 2, dif_y[i, j] * dt / dx[1] ** 2
            s = 2 * bx + 2 * by
            e = dt * (
                (u[up, j] - u[down, j]) / (2 * dx[0]) + (v[i, right] - v[i, left]) / 2 / dx[1]
            )
            new[i, j] = (
                (1 - s) * before[i, j] - 2 * e * h[i, j] + 2 * dt * f[i, j]
                + (2 * bx - ax) * h[up, j] + (2 * bx + ax) * h[down, j]
                + (2 * by - ay) * h[i, right] + (2 * by + ay) * h[i, left]
            ) / (1 + s)  # fmt: skip
        before, h = h, new
    return h


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("spacing", [(1, 1), (2, 1)])
def test_leapfrog_is_the_published_equation(num_steps, spacing):
    h, f = field(), field(seed=5)
    c = Coefficients(*(field(seed=s, low=-1.0) for s in (1, 2)), *(field(seed=s) for s in (3, 4)))
    actual = leapfrog(h, c, f, num_steps=num_steps, spacing=spacing, dt=0.3)
    expected = equation(np.array(h), c, f, 0.3, num_steps, spacing)
    np.testing.assert_allclose(actual, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("num_steps", "value"), [(1, 1.2222222222), (2, 1.4197530864), (5, 2.0200003), (20, 5.02)]
)
def test_constant_field_with_constant_source(num_steps, value):
    ones = np.ones((5, 4, 1))
    y = leapfrog(ones, STILL, ones, num_steps=num_steps)
    rho = -0.2 / 1.8
    c = 0.2 * rho / (1 - rho)
    np.testing.assert_allclose(y, 1 - c + 0.2 * num_steps + c * rho**num_steps, atol=1e-14)
    np.testing.assert_allclose(y, value, atol=1e-7)


@BOTH
def test_constant_field_stays(boundary):
    c = Coefficients(0.7, -0.4, field(), field(seed=1))
    if boundary == "reflecting":
        c = c._replace(u=0.0, v=0.0)
    ones = np.ones((8, 6, 2))
    for y in (
        leapfrog(ones, c, num_steps=7, boundary=boundary),
        line_implicit(ones, c, num_steps=7, boundary=boundary),
    ):
        np.testing.assert_allclose(y, 1.0, atol=1e-14)


HEAT = [
    ((1, 0), 1.0, 0.2, 5, 0.8544220569),
    ((3, 2), 1.0, 0.2, 10, 0.0133340137),
    ((2, 5), 4.0, 0.2, 10, -0.0161904124),
    ((1, 0), 0.5, 0.05, 5, 0.9788201271),
]


@pytest.mark.parametrize(("mode", "d", "dt", "num_steps", "factor"), HEAT)
def test_waves_decay_as_the_recursion_says(mode, d, dt, num_steps, factor):
    y = leapfrog(wave(16, *mode), Coefficients(0.0, 0.0, d, d), num_steps=num_steps, dt=dt)
    np.testing.assert_allclose(y, factor * wave(16, *mode), atol=1e-10)


def exact_heat(h, time):
    """The heat equation on the periodic grid, exact in time, by a dense matrix exponential."""
    n = h.shape[0]
    second = np.roll(np.eye(n), 1, 0) + np.roll(np.eye(n), -1, 0) - 2 * np.eye(n)
    line = scipy.linalg.expm(time * second)
    return line @ np.array(h[..., 0]) @ line.T


ORDERS = {"repeat": (0.0857, 0.0432, 0.0221, 0.0112), "euler": (0.0684, 0.0169, 0.0042, 0.0010)}


@pytest.mark.parametrize("start", ORDERS)
def test_order_of_convergence(start):
    h = np.random.default_rng(0).random((16, 16))[..., None]
    exact = exact_heat(h, 1.0)
    errors = [
        np.abs(leapfrog(h, STILL, num_steps=k, dt=1 / k, start=start)[..., 0] - exact).max()
        for k in (5, 10, 20, 40)
    ]
    np.testing.assert_allclose(errors, ORDERS[start], atol=6e-5)


@BOTH
@pytest.mark.parametrize("num_steps", swept([1, 5, 20], 5))
def test_mass_is_conserved_by_any_flow(boundary, num_steps):
    h = field((9, 7, 1))
    flow = Coefficients(field(h.shape, 1, -1), field(h.shape, 2, -1), 1.0, 1.0)
    y = leapfrog(h, flow, num_steps=num_steps, boundary=boundary)
    np.testing.assert_allclose(y.sum(), h.sum(), rtol=1e-12)
    assert np.abs(y - h).max() > 0.05
    varying = flow._replace(
        diffusion_x=field(h.shape, 3, high=2.0), diffusion_y=field(h.shape, 4, high=2.0)
    )
    lost = leapfrog(h, varying, num_steps=num_steps, boundary=boundary).sum() / h.sum() - 1
    assert abs(lost) > 1e-4  # diffusion outside the derivative
    y = line_implicit(h, varying, num_steps=num_steps, dt=2.0, boundary=boundary)
    np.testing.assert_allclose(y.sum(), h.sum(), rtol=1e-12)
    assert y.min() > 0


@pytest.mark.parametrize(
    ("d", "u", "low", "high"),
    [
        (1.0, 0.0, 0.0, 0.2222),
        (1.3, 0.0, -0.0196, None),
        (4.0, 0.0, -0.524, None),
        (1.0, 1.9, 0.0, None),
        (1.0, 2.1, -0.0111, None),
    ],
)
def test_maximum_principle_of_one_step(d, u, low, high):
    y = leapfrog(delta(), Coefficients(u, 0.0, d, d))
    np.testing.assert_allclose(y.min(), low, atol=5e-4 if d == 4 else 5e-5)
    if high is not None:
        np.testing.assert_allclose(y.max(), high, atol=5e-5)


@pytest.mark.parametrize(
    ("u", "v", "stable"), [(2.4, 2.4, True), (2.6, 2.6, False), (3.5, 0.0, True), (4.0, 0.0, False)]
)
def test_stability_limit(u, v, stable):
    c = Coefficients(u, v, 1.0, 1.0)
    y = leapfrog(field((32, 32, 1)), c, num_steps=2000)
    assert bool(np.abs(y).max() < 2) is stable
    assert bool(stability_number(c) <= 1) is stable


def test_stability_numbers_of_special_cases():
    expected = {
        Coefficients(12.5**0.5, 0.0, 1.0, 1.0): 1.0,
        Coefficients(2.5, 2.5, 3.0, 3.0): 1.0,
        Coefficients(2.0, -3.0, 0.0, 0.0): 1.0,
        Coefficients(0.0, 0.0, 100.0, 100.0): 0.0,
        Coefficients(1.0, 0.0, 0.0, 1.0): np.inf,
    }
    for c, number in expected.items():
        np.testing.assert_allclose(stability_number(c), number, rtol=1e-12)
    anisotropic = Coefficients(0.2875 / 0.2, 0.2875 / 0.2, 1.0, 0.1)
    np.testing.assert_allclose(stability_number(anisotropic), 1.0, rtol=2e-4)


@pytest.mark.parametrize(
    ("num_steps", "moved"), swept(enumerate((0.4, 0.4, 0.8, 0.8, 1.2, 1.2), 1), (1, 0.4), (4, 0.8))
)
def test_a_velocity_moves_mass_along_its_axis(num_steps, moved):
    place = np.arange(17.0)
    for axis, c in ((0, Coefficients(1.0, 0.0)), (1, Coefficients(0.0, 1.0))):
        y = leapfrog(delta(), c, num_steps=num_steps)[..., 0]
        np.testing.assert_allclose(y.sum(1 - axis) @ place - 8, moved, atol=1e-12)
        exact = spectral(delta(), c, time=0.2 * num_steps)[..., 0]
        np.testing.assert_allclose(exact.sum(1 - axis) @ place - 8, 0.2 * num_steps, atol=1e-3)
        upwind = line_implicit(delta(), c, num_steps=num_steps)[..., 0]
        np.testing.assert_allclose(upwind.sum(1 - axis) @ place - 8, 0.2 * num_steps, atol=1e-2)


@BOTH
def test_spectral_step_is_exact(boundary):
    h, f = field((6, 5, 2)), field((6, 5, 2), 1, -1)
    c = Coefficients(0.0, 0.0, np.array([0.5, 2.0]), np.array([1.5, 0.1]))
    if boundary == "periodic":
        c = c._replace(u=np.array([0.8, -0.3]), v=np.array([-1.1, 0.4]))
    y = spectral(h, c, f, time=0.7, boundary=boundary)
    np.testing.assert_allclose(spectral(h, c, time=0.0, boundary=boundary), h, atol=1e-15)

    def line(n, velocity, diffusion):
        ahead, behind = np.eye(n, k=1), np.eye(n, k=-1)
        if boundary == "periodic":
            ahead[-1, 0] = behind[0, -1] = 1
        else:
            ahead[-1, -1] = behind[0, 0] = 1
        return diffusion * (ahead + behind - 2 * np.eye(n)) - velocity * (ahead - behind) / 2

    for channel in range(2):
        u, v, d, e = (np.broadcast_to(value, 2)[channel] for value in c)
        a, b = line(6, u, d), line(5, v, e)
        operator = np.kron(a, np.eye(5)) + np.kron(np.eye(6), b)
        # One matrix exponential for field and source: d/dt (h, f) = (L h + f, 0).
        block = np.block([[operator, np.eye(30)], [np.zeros((30, 60))]])
        start = np.concatenate([np.ravel(h[..., channel]), np.ravel(f[..., channel])])
        expected = (scipy.linalg.expm(0.7 * block) @ start)[:30].reshape(6, 5)
        np.testing.assert_allclose(y[..., channel], expected, atol=1e-12)


@BOTH
def test_long_times_leave_the_mean(boundary):
    h = field()
    y = spectral(h, STILL, time=1e4, boundary=boundary)
    np.testing.assert_allclose(y, np.broadcast_to(h.mean((0, 1)), h.shape), atol=1e-14)
    y = line_implicit(h, STILL, dt=1e8, boundary=boundary)
    np.testing.assert_allclose(y, np.broadcast_to(h.mean((0, 1)), h.shape), atol=1e-6)
    some = spectral(h, STILL, time=50.0, boundary=boundary)
    np.testing.assert_allclose(some.sum(), h.sum(), rtol=1e-13)


@BOTH
@pytest.mark.parametrize("dt", swept([0.2, 50.0], 50.0))
def test_implicit_diffusion_keeps_the_range(boundary, dt):
    h = field((9, 7, 2))
    c = Coefficients(0.0, 0.0, field(h.shape, 1, high=9.0), field(h.shape, 2, high=9.0))
    y = line_implicit(h, c, dt=dt, num_steps=3, boundary=boundary)
    assert y.min() >= h.min() - 1e-12
    assert y.max() <= h.max() + 1e-12
    flow = c._replace(u=field(h.shape, 3, -5, 5), v=field(h.shape, 4, -5, 5))
    assert line_implicit(h, flow, dt=dt, boundary=boundary).min() > 0


@BOTH
def test_implicit_step_solves_its_equation(boundary):
    h, f = field((6, 5, 1)), field((6, 5, 1), 9)
    c = Coefficients(field(h.shape, 1, -2, 2), 0.0, field(h.shape, 2, high=3.0), 0.0)
    y = line_implicit(h, c, f, dt=0.4, boundary=boundary)

    def divergence(y):
        u, d = c.u, c.diffusion_x
        nexts = [np.roll(a, -1, 0) for a in (y, u, d)]
        wind, spread = (u + nexts[1]) / 2, (d + nexts[2]) / 2
        flux = np.where(wind > 0, wind * y, wind * nexts[0]) - spread * (nexts[0] - y)
        if boundary == "reflecting":
            flux[-1] = 0
        return flux - np.roll(flux, 1, 0)

    np.testing.assert_allclose(y + 0.4 * divergence(y), h + 0.4 * f, atol=1e-12)


@pytest.mark.slow
def test_three_schemes_agree_on_small_steps():
    h = np.cos(2 * np.pi * np.arange(16) / 16)[:, None, None] + field((16, 16, 1)) * 0
    c = Coefficients(0.3, -0.2, 1.0, 0.5)
    exact = spectral(h, c, time=0.5)
    steps = {"num_steps": 500, "dt": 0.001}
    np.testing.assert_allclose(leapfrog(h, c, start="euler", **steps), exact, atol=1e-4)
    still = c._replace(u=0.0, v=0.0)
    exact = spectral(h, still, time=0.5)
    np.testing.assert_allclose(line_implicit(h, still, **steps), exact, atol=1e-3)


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow), 5])
def test_tridiagonal_solve_and_its_gradients(size):
    rng = np.random.default_rng(0)
    lower, upper, b = (rng.normal(size=(size, 2)) for _ in range(3))
    diagonal = 5 + rng.random((size, 2))
    lower[0, 1] = upper[-1, 1] = 0  # one system with corners, one without

    def dense(lower, diagonal, upper, b):
        def one(low, mid, up, b):
            eye = jnp.eye(size)
            sides = low[:, None] * jnp.roll(eye, -1, 1) + up[:, None] * jnp.roll(eye, 1, 1)
            return jnp.linalg.solve(jnp.diag(mid) + sides, b)

        return jax.vmap(one, -1, -1)(lower, diagonal, upper, b)

    def values_and_gradients(function, *args):
        found, pull = jax.vjp(function, *args)
        return found, pull(jnp.cos(found))

    args = (lower, diagonal, upper, b)
    both = [
        jax.jit(functools.partial(values_and_gradients, f))(*args)
        for f in (solve_tridiagonal, dense)
    ]
    chex.assert_trees_all_close(*both, atol=1e-12)


@pytest.mark.parametrize(
    ("num_steps", "spacing"), swept(itertools.product([1, 2, 3, 5], [1, 2]), (1, 1), (3, 2), (5, 1))
)
def test_field_reaches_as_far_as_its_steps(num_steps, spacing):
    c = Coefficients(0.1, 0.2, 1.0, 1.0)
    reach = leapfrog(delta(33), c, num_steps=num_steps, spacing=(spacing, spacing))[..., 0] != 0
    far = np.abs(np.argwhere(reach) - 16).sum(1).max()
    assert far == num_steps * spacing


@pytest.mark.parametrize(
    ("solver", "boundary"),
    swept(
        itertools.product([leapfrog, line_implicit, spectral], ["periodic", "reflecting"]),
        (leapfrog, "periodic"),
        (line_implicit, "reflecting"),
        (spectral, "periodic"),
    ),
)
def test_gradients(solver, boundary):
    h = field((5, 4, 1))
    shape = (1, 1, 1) if solver is spectral else h.shape
    c = Coefficients(*(field(shape, s, 0.1) for s in range(4)))
    if solver is spectral and boundary == "reflecting":
        c = c._replace(u=0.0, v=0.0)
    leaves, tree = jax.tree.flatten(c)
    moving = [leaf for leaf in leaves if not isinstance(leaf, float)]

    def f(h, source, *moving):
        values = iter(moving)
        c = tree.unflatten([x if isinstance(x, float) else next(values) for x in leaves])
        steps = {} if solver is spectral else {"num_steps": 2}
        return jnp.sin(solver.__wrapped__(h, c, source, boundary=boundary, **steps)).sum()

    points = (h, field((5, 4, 1), 7), *moving)
    check_grads(jax.jit(f), points, order=1, modes=["rev"], atol=1e-7, rtol=1e-7)


@pytest.mark.slow
def test_gradients_are_finite_without_diffusion():
    h = field()
    zero = np.zeros((1, 1, 2))
    for solver in (leapfrog, line_implicit, spectral):

        def square(d, solver=solver.__wrapped__):
            return solver(h, Coefficients(0.0, 0.0, d, d)).sum() ** 2

        assert np.isfinite(jax.jit(jax.grad(square))(zero)).all()


@pytest.mark.parametrize("solver", [leapfrog, line_implicit, spectral])
def test_single_precision_and_leading_axes(solver):
    h = field((2, 3, 5, 4, 2)).astype(np.float32)
    c = Coefficients(0.0, 0.0, np.float32(0.5), np.float32(0.5))
    y = solver(h, c, h)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y[1, 2], solver(h[1, 2], c, h[1, 2]), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda h: leapfrog(h, STILL, boundary="open"), "boundary must be one of"),
        (lambda h: leapfrog(h, STILL, start="none"), "start must be one of"),
        (lambda h: leapfrog(h, STILL, start="euler", before=h), "before has no effect"),
        (lambda h: leapfrog(h, STILL, num_steps=0), "num_steps must be at least 1"),
        (lambda h: leapfrog(h, STILL, spacing=(1, 0)), "spacing must be two whole numbers"),
        (lambda h: leapfrog(h, STILL, spacing=(1, 6)), "does not fit a grid of 6 cells"),
        (lambda h: spectral(h, Coefficients(0.5, 0.0), boundary="reflecting"), "no velocity"),
    ],
)
def test_mistakes_are_one_sentence(call, sentence):
    with pytest.raises(ConfigError, match=sentence):
        call(field())


@pytest.mark.parametrize("solver", [line_implicit, spectral])
def test_spacing_is_but_a_number_where_neighbours_are_adjacent(solver):
    h = field()
    wide = solver(h, Coefficients(0.0, 0.0, 64.0, 1.0), spacing=(8, 1))
    np.testing.assert_allclose(wide, solver(h, STILL), atol=1e-12)


def test_mistakes_in_shapes():
    with pytest.raises(ValueError, match="constant over the grid, but diffusion_x"):
        spectral(field(), Coefficients(0.0, 0.0, field(), 1.0))
    with pytest.raises(ValueError, match="rows, columns, channels"):
        leapfrog(field((4, 4)), STILL)


def test_growth_is_that_of_the_fastest_wave():
    turns = 2 * np.pi / 8 * np.arange(8)
    modes = [(1, 0), (2, 0), (2, 2), (3, 2), (0, 0)]
    phases = [p * turns[:, None] + q * turns for p, q in modes]
    waves = jnp.asarray(np.stack([f(p) for p in phases for f in (np.cos, np.sin)])[..., None])

    @jax.jit
    def after(c):
        return [transport.leapfrog(waves, c, num_steps=n) for n in (40, 80)]

    for numbers in ((0.9, 0.3, 0.2, 0.4), (3.0, -2.0, 0.5, 1.5), (2.0, 0.0, 0.0, 1.0)):
        c = Coefficients(*map(jnp.asarray, numbers))
        sizes = [np.hypot(a[::2], a[1::2]).max((1, 2, 3)) for a in after(c)]
        expected = ((sizes[1] / sizes[0]) ** (1 / 40)).max()
        found = float(growth(c))
        assert expected - 0.02 <= found <= max(1 + 1e-6, 1.1 * expected)
        assert (found <= 1 + 1e-6) == bool(stability_number(c) <= 1)
