"""The compiled CPU forms: shapes, transformations of JAX, and where there is no compiler."""

import contextlib
import fcntl
import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from sweeps import swept

from jaxeff.errors import ConfigError
from jaxeff.ops import anchors, convolution, platform
from jaxeff.ops.activations import ACTIVATIONS
from jaxeff.ops.cpu import native
from jaxeff.ops.cpu.native import library
from jaxeff.ops.normalisation import Normalisation

pytestmark = pytest.mark.skipif(
    not native.is_available(), reason="no C++ compiler, or JAXEFF_NATIVE=never"
)

#: Shapes of inputs and kernels, and strides: full and partial vectors and tiles, several pieces.
SHAPES = (
    ((3, 11, 9, 20), (3, 3, 20, 40), 1),
    ((3, 12, 17, 16), (3, 3, 16, 16), 2),
    ((17, 9, 11, 5), (5, 3, 5, 70), 3),
    ((2, 7, 7, 24), (1, 1, 24, 33), 1),
    ((2, 7, 8, 24), (1, 1, 24, 33), 2),
    ((2, 3, 3, 4), (7, 7, 4, 3), 2),
    ((1, 70, 80, 33), (3, 3, 33, 17), 1),
    ((2, 23, 23, 100), (3, 3, 100, 300), 1),
    ((40, 9, 12, 36), (3, 3, 36, 40), 1),  # enough pixels for fewer products
    ((1, 8, 8, 64), (3, 3, 64, 64), 1),  # few pixels: output channels are divided too
    ((1, 7, 7, 150), (1, 1, 150, 345), 1),
)


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "strides"), swept(SHAPES, *SHAPES[:3], SHAPES[5], *SHAPES[8:])
)
def test_values_and_gradients_are_those_of_double_precision(x_shape, kernel_shape, strides):
    rows, columns = (-(-size // strides) for size in x_shape[1:3])
    y_shape = (x_shape[0], rows, columns, kernel_shape[3])
    gate_shape = (x_shape[0], x_shape[-1])
    args = arrays(x_shape, kernel_shape, y_shape[-1:], y_shape, (4, *y_shape[-1:]), gate_shape)

    def conv(x, kernel, bias, skip, rows, gate):
        norm = Normalisation(*rows[:3], rows[3] ** 2 + 0.5, 1e-3)
        return convolution.conv(x, kernel, strides, bias, skip, "relu", norm, gate)

    def both(*args):
        y, pull = jax.vjp(conv, *args)
        return y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    with platform("cpu"):
        ours = jax.jit(both)(*args)
    with platform("reference"), jax.enable_x64(True):
        exact = jax.jit(both)(*(a.astype("float64") for a in args))
    for value, other in zip(ours, exact, strict=True):
        value, other = np.asarray(value, np.float64), np.asarray(other)
        assert np.linalg.norm(value - other) < 2e-6 * np.linalg.norm(other)


@pytest.mark.parametrize("activation", native.convolution.ACTIVATIONS)
def test_activations_are_those_of_double_precision(activation):
    x = jnp.concatenate([jnp.linspace(-30, 30, 2001), jnp.asarray([-1e4, -200, -88, 88, 200, 1e4])])
    ones, zero = jnp.ones((1, 1, 1, 1)), jnp.zeros(1)
    with platform("cpu"):
        y = convolution.depthwise_conv(x.reshape(1, 1, -1, 1), ones, 1, zero, None, activation)
    with jax.enable_x64(True):
        exact = ACTIVATIONS[activation](x.astype("float64"))
    np.testing.assert_allclose(y.ravel(), exact, rtol=1e-6, atol=1e-9)


def test_nothing_becomes_a_number_in_an_activation():
    x = jnp.full((1, 1, 20, 1), jnp.nan)
    for activation in native.convolution.ACTIVATIONS:
        with platform("cpu"):
            y = convolution.depthwise_conv(
                x, jnp.ones((1, 1, 1, 1)), 1, jnp.zeros(1), None, activation
            )
        assert jnp.isnan(y).all()


def test_nothing_becomes_a_number_in_a_mixture_with_anchors():
    x = arrays((1, 5, 6, 3))[0].at[0, 2, 2, 1].set(jnp.nan)
    args = anchors.sample(x, 2), x, *arrays((3, 3, 1, 3), (3,), (3,))
    for blend in (False, True):
        y = anchors.mixed(*args, stride=2, blend=blend, relu=True)
        with platform("reference"):
            exact = anchors.mixed(*args, stride=2, blend=blend, relu=True)
        np.testing.assert_array_equal(jnp.isnan(y), jnp.isnan(exact))


@pytest.mark.parametrize(
    ("place", "cut", "message"),
    [
        (0, np.s_[:, :2], "6 pixels at stride 2 have 3 anchors|5 pixels"),
        (2, np.s_[..., :2], r"needs a kernel \[k, k, 1, channels\]"),
        (5, np.s_[:, :4], "the skip"),
    ],
)
def test_a_mixture_of_arrays_that_do_not_fit_is_refused(place, cut, message):
    (x,) = arrays((1, 5, 6, 3))
    args = [x[:, ::2, ::2], x, *arrays((3, 3, 1, 3), (3,), (3,)), x]
    args[place] = args[place][cut]
    with platform("cpu"), pytest.raises(ValueError, match=message):
        anchors.mixed(*args[:5], 2, skip=args[5])


def test_what_is_shared_by_a_mixture_is_broadcast():
    (x,) = arrays((2, 5, 6, 3))
    args = x[:1, ::2, ::2, :1], x, *arrays((3, 3, 1, 3), (3,)), jnp.asarray([0.3])
    with platform("cpu"):
        y = anchors.mixed(*args, 2)
    with platform("reference"):
        np.testing.assert_allclose(y, anchors.mixed(*args, 2), rtol=1e-5, atol=1e-5)


def test_derivatives_of_derivatives():
    x, kernel, direction = arrays((2, 5, 6, 3), (3, 3, 3, 4), (2, 5, 6, 3))

    def slope(x, kernel):
        return jnp.sum(
            jax.grad(lambda x: jnp.sum(convolution.conv(x, kernel, 2) ** 3))(x) * direction
        )

    def second(name):
        with platform(name):
            return jax.jit(jax.grad(slope, (0, 1)))(x, kernel)

    for ours, reference in zip(second("cpu"), second("reference"), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-3)


def test_vmap_and_shard_map():
    x, kernel = arrays((2, 3, 5, 6, 3), (3, 3, 3, 4))
    with platform("cpu"):
        each = jnp.stack([convolution.conv(images, kernel) for images in x])
        np.testing.assert_array_equal(jax.vmap(convolution.conv, (0, None))(x, kernel), each)
        mesh, spec = Mesh(jax.devices()[:1], ("data",)), PartitionSpec("data")
        mapped = jax.shard_map(
            lambda x: convolution.conv(x, kernel),
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
            check_vma=False,
        )
        np.testing.assert_array_equal(jax.jit(mapped)(x[0]), each[0])


def test_results_do_not_depend_on_threads(monkeypatch):
    x, kernel, g = arrays((9, 16, 16, 16), (3, 3, 16, 16), (9, 16, 16, 16))
    few, wide = arrays((1, 7, 7, 150), (1, 1, 150, 345))
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(library, "threads", lambda threads=threads: threads)
        y = native.convolution.conv(x, kernel, 1, None, None, "identity")
        dkernel = native.convolution.kernel_gradient(x, g, kernel.shape, 1)
        sums = native.normalisation.channel_sums(x, g, x[0, 0, 0])
        means = native.normalisation.pixel_sums(x)
        divided = native.convolution.conv(few, wide, 1, None, None, "identity")
        results.append((y, dkernel, sums, means, divided))
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, results[0])


@pytest.mark.slow
def test_results_do_not_depend_on_threads_that_run_at_once():
    """In a process of its own, whose pool has a thread for every core."""
    test = f"{__file__}::test_results_do_not_depend_on_threads"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", test]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])


def library_in(cache, content):
    """Where a library of such content is kept for this machine."""
    name = f"{library._key(library._compiler())}-{hashlib.sha256(content).hexdigest()[:16]}.so"
    return cache / "jaxeff" / "native" / name


def test_one_process_compiles_for_all(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    target = library_in(tmp_path, b"")
    alone, compiled = library._alone, []

    @contextlib.contextmanager
    def after_another(path):
        with alone(path):
            with path.open("a") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            target.touch()
            yield

    monkeypatch.setattr(library, "_alone", after_another)
    monkeypatch.setattr(library, "_run", compiled.append)
    assert library.build() == target
    assert not compiled


def test_a_part_of_a_library_is_not_loaded(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "_compile", lambda *_: "compiled anew")
    target = library_in(tmp_path, b"a whole library")
    target.parent.mkdir(parents=True)
    target.write_bytes(b"a whole")
    assert library.build() == "compiled anew"
    target.write_bytes(b"a whole library")
    assert library.build() == target


def test_a_skip_a_bias_or_a_gate_of_another_shape_is_refused():
    x, kernel, skip = arrays((2, 5, 6, 3), (3, 3, 3, 4), (2, 5, 6, 3))
    with platform("cpu"), pytest.raises(ValueError, match=r"gives \(2, 5, 6, 4\)"):
        convolution.conv(x, kernel, 1, None, skip)
    with platform("cpu"), pytest.raises(ValueError, match=r"must be \(4,\)"):
        convolution.conv(x, kernel, 1, jnp.ones(3))
    with platform("cpu"), pytest.raises(ValueError, match=r"gates must be \[batch, channels\]"):
        convolution.conv(x, kernel, gate=jnp.ones((2, 4)))


@pytest.fixture
def afresh():
    """Forgets the library, before and after."""
    library.is_available.cache_clear()
    yield
    library.is_available.cache_clear()


@pytest.mark.usefixtures("afresh")
class TestWithoutACompiler:
    @pytest.fixture(autouse=True)
    def broken(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("CXX", f"{sys.executable} -c 'import sys; sys.exit(1)'")

    def test_plain_jax_takes_its_place(self):
        x, kernel = arrays((2, 5, 6, 3), (3, 3, 3, 4))
        with platform("cpu"):
            text = jax.jit(functools.partial(convolution.conv)).lower(x, kernel).as_text()
        assert "jaxeff_conv" not in text

    @pytest.mark.parametrize("command", ["g++ '", "no_such_compiler -O3"])
    def test_what_is_no_command_is_no_compiler(self, monkeypatch, command):
        monkeypatch.setenv("CXX", command)
        assert not library.is_available()

    def test_a_folder_that_cannot_be_made_is_named(self, monkeypatch, tmp_path):
        (tmp_path / "jaxeff").touch()
        with pytest.raises(library.NativeError, match=r"kept in .*native .* XDG_CACHE_HOME"):
            library.build()

    def test_a_user_without_a_home_has_no_library(self, monkeypatch):
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # of no user
        assert not library.is_available()

    def test_asking_for_it_is_an_error(self, monkeypatch):
        monkeypatch.setenv("JAXEFF_NATIVE", "always")
        with pytest.raises(library.NativeError, match=r"could not compile .* install a C"):
            library.is_available()


@pytest.mark.usefixtures("afresh")
def test_another_choice_is_refused(monkeypatch):
    monkeypatch.setenv("JAXEFF_NATIVE", "maybe")
    with pytest.raises(ConfigError, match="auto, never, always"):
        library.is_available()


def test_an_output_beyond_the_caches_is_that_of_its_images():
    x, kernel, depthwise, skip = arrays(
        (3, 420, 420, 4), (1, 1, 4, 16), (3, 3, 1, 16), (3, 1, 1, 16)
    )
    skip = jnp.broadcast_to(skip, (3, 420, 420, 16))

    def both(x, skip):  # 8.5 million numbers of three images, 2.8 of one
        y = convolution.conv(x, kernel, 1, jnp.ones(16), skip, "swish")
        return convolution.depthwise_conv(y, depthwise, 1, jnp.ones(16), skip, "relu")

    with platform("cpu"):
        whole = both(x, skip)
        each = [both(x[i : i + 1], skip[i : i + 1]) for i in range(3)]
    np.testing.assert_array_equal(whole, jnp.concatenate(each))
