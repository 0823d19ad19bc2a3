"""The Global layer against recorded outputs of the authors' code and against its equations."""

from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from sweeps import swept

from jaxeff.errors import ConfigError
from jaxeff.layers import GlobalLayer, global_layer_from_reference, unstable_layers
from jaxeff.ode import transport
from jaxeff.ode.transport import stability_number
from jaxeff.ops import platform
from jaxeff.ops.cpu import rows

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = {
    "global_k1": GlobalLayer(use_bias=True),
    "global_k2_constD": GlobalLayer(num_steps=2, diffusivity=(1.0, 0.5), use_bias=True),
}


def nhwc(a):
    return jnp.asarray(a).transpose(0, 2, 3, 1)


def apply(layer, variables, x, *args, **options):
    return jax.device_get(jax.jit(lambda v, x: layer.apply(v, x, *args, **options))(variables, x))


def init(layer, *args):
    return jax.jit(layer.init)(*args)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_outputs_of_the_authors_code(x64, name):
    record = np.load(GOLDEN / f"{name}.npz")
    state = {key[2:]: value for key, value in record.items() if key.startswith("p_")}
    variables = global_layer_from_reference(state)
    layer, x = RECORDED[name], nhwc(record["x"])
    y = apply(layer, variables, x)
    np.testing.assert_allclose(y, nhwc(record["y_eval"]), atol=1e-13)
    y, updated = apply(layer, variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, nhwc(record["y_train"]), atol=1e-13)
    before, after = variables["batch_stats"]["norm_u"], updated["batch_stats"]["norm_u"]
    assert np.abs(before["mean"] - after["mean"]).max() > 1e-3


def formula_inputs():
    """The written-out inputs and weights of the reference values below, ``C=2, H=4, W=5``."""
    x = jnp.sin(0.37 * jnp.arange(40.0)).reshape(1, 2, 4, 5)
    m = jnp.arange(18.0).reshape(2, 1, 3, 3)
    state = {}
    for j, name in enumerate(("g", "g1", "Dx", "Dy")):
        state[f"conv{name}.weight"] = jnp.cos(0.5 * m + j)
    for name in ("bng", "bng1", "bnDx", "bnDy", "bn_out"):
        state |= {f"{name}.weight": jnp.ones(2), f"{name}.bias": jnp.zeros(2)}
        state |= {f"{name}.running_mean": jnp.zeros(2), f"{name}.running_var": jnp.ones(2)}
    return nhwc(x), state


SMALL, CONSTANT = {"coefficient_epsilon": 1e-5}, {"diffusivity": (1.0, 1.0)}
REFERENCE = [
    (1, {}, 20.1557066504, 27.9313174162, (0.37855929, 0.43290963, 1.00426268), 1.50847433),
    (1, SMALL, 22.6834541038, 36.6528651819, (0.50084626, 0.41104061, 1.02791713), 1.63151535),
    (
        1,
        SMALL | CONSTANT,
        13.0638890994,
        12.3477325689,
        (0.36656075, 0.44487676, 0.88255425),
        0.90379964,
    ),
    (
        1,
        SMALL | {"source": False},
        19.0021812746,
        25.3902337169,
        (0.50084626, 0.35212894, 0.88330008),
        1.24854530,
    ),
    (2, {}, 23.2927927247, 36.0630317147, (0.72173892, 0.75118214, 1.31771821), 1.37452971),
    (2, SMALL, 28.5331699263, 58.1242848995, (1.10699249, 0.90968189, 1.51730459), 1.20620530),
    (5, {}, 44.8544009466, 171.1001271548, (1.65773638, 1.68431817, 3.02695058), 2.52087861),
    (
        5,
        SMALL | CONSTANT,
        13.5986555644,
        13.2347698252,
        (0.3957675, 0.56087824, 1.03084421),
        0.98644946,
    ),
    (1, {"velocity": "paper"}, 19.5355280958, 21.8010692123, None, None),
    (2, {"velocity": "paper"}, 19.8449959851, 20.0136415684, None, None),
    (5, {"velocity": "paper"}, 28.4819647009, 41.9612210049, None, None),
    (2, SMALL | {"velocity": "paper"}, 20.7006889216, 22.7688400519, None, None),
]


@pytest.mark.parametrize(("num_steps", "fields", "total", "squares", "first", "one"), REFERENCE)
def test_reference_values(x64, num_steps, fields, total, squares, first, one):
    x, state = formula_inputs()
    layer = GlobalLayer(num_steps=num_steps, **fields)
    if "diffusivity" in fields:
        state = {key: value for key, value in state.items() if "D" not in key}
    y = apply(layer, global_layer_from_reference(state), x)
    np.testing.assert_allclose([y.sum(), np.square(y).sum()], [total, squares], atol=1e-9)
    if first is not None:
        np.testing.assert_allclose([*y[0, 0, :3, 0], y[0, 3, 4, 1]], [*first, one], atol=1e-8)


def test_reference_values_in_training(x64):
    x, state = formula_inputs()
    layer = GlobalLayer(num_steps=2, coefficient_epsilon=1e-5)
    variables = global_layer_from_reference(state)
    y, _ = apply(layer, variables, x, train=True, mutable=["batch_stats"])
    expected = [16.9296688337, 20.9259503653]
    np.testing.assert_allclose([y.sum(), np.square(y).sum()], expected, atol=1e-9)


@pytest.mark.parametrize(("fields", "per_channel"), [({}, 46), (CONSTANT, 24)])
def test_parameters_per_channel(fields, per_channel):
    shapes = jax.eval_shape(GlobalLayer(**fields).init, jax.random.key(0), jnp.zeros((1, 8, 8, 16)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 16 * per_channel


def test_initial_kernels_have_the_authors_deviation():
    layer = GlobalLayer()
    params = init(layer, jax.random.key(0), jnp.zeros((1, 4, 4, 512)))["params"]
    for name in ("conv_u", "conv_v", "conv_diffusion_x", "conv_diffusion_y"):
        deviation = params[name]["kernel"].std()
        np.testing.assert_allclose(deviation, (2 / (9 * 512)) ** 0.5, rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("num_steps", "spacing", "radius", "pixels"), [
    (1, 1, 3, 21), (2, 1, 4, 37), (3, 1, 5, 57), (5, 1, 7, 109), (1, 2, 4, 33), (2, 2, 6, 73),
])  # fmt: skip
def test_receptive_field(x64, num_steps, spacing, radius, pixels):
    layer = GlobalLayer(num_steps=num_steps, spacing=(spacing, spacing), activation="sigmoid")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 33, 33, 1)))
    variables = init(layer, jax.random.key(1), x)
    gradient = jax.jit(jax.grad(lambda x: layer.apply(variables, x)[0, 16, 16, 0]))(x)
    reached = np.argwhere(np.asarray(gradient[0, ..., 0])) - 16
    assert np.abs(reached).sum(1).max() == radius
    assert len(reached) == pixels


@pytest.mark.slow
@pytest.mark.parametrize("fields", [
    {}, {"num_steps": 3, "velocity": "signed"}, {"scheme": "spectral", "boundary": "periodic"},
    {"start": "euler", "num_steps": 2},
    pytest.param({"scheme": "line_implicit", "boundary": "reflecting"}, marks=pytest.mark.slow),
])  # fmt: skip
def test_gradients_by_differences(x64, jitter, fields):
    layer = GlobalLayer(activation="sigmoid", param_dtype=jnp.float64, **fields)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5, 2)))
    variables = init(layer, jax.random.key(1), x)
    params, statistics = jitter(variables["params"]), variables["batch_stats"]
    direction = jitter(jax.tree.map(jnp.zeros_like, params), seed=3, scale=1.0)

    @jax.jit
    def loss(step):
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        return jnp.sin(layer.apply({"params": moved, "batch_stats": statistics}, x)).sum()

    step = 1e-5
    expected = (loss(step) - loss(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(loss)(0.0), expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"product": True, "num_steps": 2}, CONSTANT])
def test_examples_are_computed_by_themselves_outside_training(x64, jitter, monkeypatch, fields):
    """Values and gradients on a CPU, two images at a time, are those of the whole batch."""
    layer = GlobalLayer(use_bias=True, **fields)
    x = jax.random.normal(jax.random.key(0), (5, 4, 5, 2))
    variables = jitter(jax.tree.map(jnp.float64, init(layer, jax.random.key(1), x)))

    def loss(x, variables):
        return jnp.sum(jnp.sin(layer.apply(variables, x)))

    def traced_for(name):
        with platform(name):
            return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, variables)

    monkeypatch.setattr(rows, "BLOCK", 2 * x[0].nbytes)
    chex.assert_trees_all_close(traced_for("cpu"), traced_for("reference"), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_initial_field_of_another_shape_replaces_the_input(x64):
    x, h = (
        jnp.asarray(np.random.default_rng(0).normal(size=s)) for s in ((2, 8, 8, 3), (2, 4, 4, 5))
    )
    layer = GlobalLayer(num_steps=2)
    variables = init(layer, jax.random.key(0), x, h)
    np.testing.assert_allclose(apply(layer, variables, x, h), apply(layer, variables, h))
    same = x + 1
    variables = init(layer, jax.random.key(0), x)
    assert np.abs(apply(layer, variables, x, same) - apply(layer, variables, same)).max() > 1e-2
    with pytest.raises(ValueError, match="cannot be added"):
        init(GlobalLayer(residual=True), jax.random.key(0), x, h)


def test_field_before_the_first_is_the_input(x64):
    x, h = (jnp.asarray(np.random.default_rng(s).normal(size=(1, 4, 4, 2))) for s in (0, 1))
    layer = GlobalLayer(source=False, activation="sigmoid")
    variables = init(layer, jax.random.key(0), x)
    # DuFort-Frankel's weight on the field before is not zero, so the input shows through.
    assert np.abs(apply(layer, variables, x, h) - apply(layer, variables, h, h)).max() > 1e-3


def test_spectral_scheme_goes_as_far_as_the_steps(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 2)))
    fields = {"scheme": "spectral", "num_steps": 3, "diffusivity": (1.0, 1.0)}
    variables = init(GlobalLayer(dt=0.2, **fields), jax.random.key(0), x)
    one = GlobalLayer(dt=0.6, **{**fields, "num_steps": 1})
    three = GlobalLayer(dt=0.2, **fields)
    np.testing.assert_allclose(apply(three, variables, x), apply(one, variables, x), atol=1e-14)


@pytest.mark.slow
def test_signed_velocities_go_both_ways_and_stay_stable(x64, monkeypatch):
    seen = []
    monkeypatch.setattr(transport, "leapfrog", lambda h, c, source, **_: seen.append(c) or h)
    x = 1e4 * jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 2)))
    layer = GlobalLayer(velocity="signed", diffusivity=(1.0, 1.0), spacing=(2, 2))
    layer.init(jax.random.key(0), x)  # not compiled, so that what is seen are numbers
    for velocity in seen[0][:2]:
        np.testing.assert_allclose([velocity.min(), velocity.max()], [-5, 5], rtol=1e-3)
    assert (stability_number(seen[0], spacing=(2, 2)) <= 1).all()


@pytest.mark.slow
def test_residual_adds_the_input(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)))
    variables = init(GlobalLayer(), jax.random.key(0), x)
    difference = apply(GlobalLayer(residual=True), variables, x) - apply(
        GlobalLayer(), variables, x
    )
    np.testing.assert_allclose(difference, x, atol=1e-14)


def test_coefficient_gradients_are_finite_where_diffusion_vanishes(x64):
    x = jnp.zeros((1, 4, 4, 2)).at[0, 1, 1].set(1.0)
    layer = GlobalLayer(num_steps=3)
    variables = init(layer, jax.random.key(0), x)
    params = jax.tree.map(lambda p: -np.abs(p), variables["params"])
    loss = jax.jit(jax.grad(lambda p: layer.apply({**variables, "params": p}, x).sum()))
    gradient = loss(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_computes_in_its_dtype_with_float32_parameters():
    x = jnp.ones((2, 4, 4, 3), jnp.bfloat16)
    layer = GlobalLayer(dtype=jnp.bfloat16, num_steps=2)
    y, variables = jax.jit(layer.init_with_output)(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    flat = traverse_util.flatten_dict(variables)
    assert {leaf.dtype for leaf in flat.values()} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_an_empty_batch_gives_an_empty_batch():
    layer = GlobalLayer(num_steps=2)
    variables = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 4, 4, 2)))
    variables = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), variables)
    assert layer.apply(variables, jnp.ones((0, 4, 4, 2))).shape == (0, 4, 4, 2)


def test_composes_in_a_network():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return GlobalLayer()(nn.Conv(4, (3, 3))(x), train=train).mean((1, 2))

    y, _ = jax.jit(lambda x: Network().init_with_output(jax.random.key(0), x, True))(
        jnp.ones((2, 8, 8, 1))
    )
    assert y.shape == (2, 4)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"scheme": "magic"}, "scheme must be one of"),
        ({"velocity": "up"}, "velocity must be one of"),
        ({"activation": "gelu"}, "activation must be one of"),
        ({"dt": 0.0}, "dt must be positive"),
        ({"scheme": "spectral", "start": "euler"}, "start has no effect"),
        ({"diffusivity": (1.0, -1.0)}, "must not be negative"),
        ({"spacing": (4, 1)}, "does not fit a grid of 4 cells"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1"),
    ],
)
def test_mistakes_are_one_sentence(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        init(GlobalLayer(**fields), jax.random.key(0), jnp.ones((1, 4, 4, 2)))


def test_missing_arrays_of_the_reference_are_named():
    _, state = formula_inputs()
    del state["bng1.running_var"]
    with pytest.raises(ValueError, match=r"no 'bng1\.running_var'"):
        global_layer_from_reference(state)
    with pytest.raises(ValueError, match=r"no 'a.convg.weight'"):
        global_layer_from_reference(state, prefix="a.")


@pytest.mark.slow
def test_one_velocity_and_one_diffusivity_from_products():
    """With equal kernels along both axes, the product of the activated predictions by hand."""
    layer = GlobalLayer(product=True, coefficient_epsilon=1e-5)
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 3))
    variables = jax.jit(layer.init)(jax.random.key(1), x)

    @jax.jit
    def by_hand(params, x):
        def predicted(name):
            conv = nn.Conv(3, (3, 3), feature_group_count=3, use_bias=False)
            return conv.apply({"params": params[f"conv_{name}"]}, x) / np.sqrt(1 + 1e-5)

        u = -jax.nn.relu(predicted("u") * jax.nn.relu(predicted("v")))
        d = jax.nn.relu(predicted("diffusion_x") * jax.nn.relu(predicted("diffusion_y")))
        h = transport.leapfrog(
            x, transport.Coefficients(u, u, d, d), x, num_steps=1, dt=0.2, start="repeat", before=x
        )
        return jax.nn.relu(h / np.sqrt(1 + 1e-5))

    expected = by_hand(variables["params"], x)
    np.testing.assert_allclose(apply(layer, variables, x), expected, atol=2e-5)


def test_unstable_time_steps_are_told_in_a_sentence():
    layer = GlobalLayer(num_steps=3, coefficient_epsilon=1e-5, diffusivity=(1.0, 1.0))
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 3))
    variables = dict(init(layer, jax.random.key(1), x))
    assert set(variables) == {"params", "batch_stats"}
    assert not unstable_layers(layer, variables, x)
    (sentence,) = unstable_layers(layer, variables, 100 * x)
    assert "unstable for these inputs" in sentence
    assert "lower dt" in sentence
    once = GlobalLayer(coefficient_epsilon=1e-5, diffusivity=(1.0, 1.0))
    assert not unstable_layers(once, variables, 100 * x)
    signed = GlobalLayer(
        num_steps=3, coefficient_epsilon=1e-5, diffusivity=(1.0, 1.0), velocity="signed"
    )
    assert not unstable_layers(signed, variables, 100 * x)


@pytest.mark.parametrize("steps", swept([2, 10], 2))
def test_a_fresh_layer_is_stable_though_some_diffusivities_are_zero(steps):
    layer = GlobalLayer(num_steps=steps)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    assert unstable_layers(layer, variables, x) == []
    (sentence,) = unstable_layers(layer, variables, 1e4 * x)
    assert sentence.startswith("the leapfrog scheme of GlobalLayer is unstable")
    assert "inf" not in sentence


@pytest.mark.parametrize(
    "options", swept([{"num_steps": 3}, {}, {"scheme": "line_implicit"}], {"num_steps": 3})
)
def test_a_layer_of_nan_is_named(options):
    layer = GlobalLayer(**options)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    assert unstable_layers(layer, variables, x) == []
    (sentence,) = unstable_layers(layer, variables, x.at[0, 0, 0, 0].set(jnp.nan))
    assert sentence.startswith("the features of GlobalLayer are not finite")
