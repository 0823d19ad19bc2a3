"""Programs for accelerators and for export: plain JAX, without custom derivatives or branches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import swept

from jaxeff import ode
from jaxeff.bench import count
from jaxeff.layers import GlobalLayer
from jaxeff.models import MODELS
from jaxeff.ops import platform


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


TOKENS = jax.ShapeDtypeStruct((1, 12), jnp.int32)
SHAPE = {"vocabulary": 40, "width": 8, "layers": 2, "heads": 2, "hidden": 12, "positions": 12}
GLOBAL = {"name": "global", "initial": "block"}
RESNET = {"name": "resnet", "blocks": (2, 2), "widths": (4, 8)}
MLP = {"name": "mlp", "hidden": (4,)}

#: A small one of every model, and the shape that it reads.
SMALL = {
    "autoencoder": ({"latents": 2}, floats(1, 40, 40, 1)),
    "voxel_autoencoder": ({"latents": 2}, floats(1, 48, 48, 48, 1)),
    "densenet": ({"blocks": (2, 2), "growth": 4, "stem_width": 8}, floats(1, 16, 16, 3)),
    "early_exit": ({"backbone": RESNET, "exits": (0,)}, floats(1, 16, 16, 3)),
    "efficientnet_b0": ({"width": 0.25}, floats(1, 32, 32, 3)),
    "encoder": ({"shape": SHAPE}, TOKENS),
    "encoder_supernet": ({"shape": SHAPE, "factors": (2,), "max_cuts": 1}, TOKENS),
    "hybrid": ({"base": MLP, "expert": MLP}, floats(2, 6)),
    "mlp": ({"hidden": (4,)}, floats(1, 6)),
    "mobilenet_v2": ({"width": 0.25}, floats(1, 32, 32, 3)),
    "mobilenet_v3": ({"width": 0.25}, floats(1, 32, 32, 3)),
    "mobilenet_v3_global": ({"width": 0.25}, floats(1, 32, 32, 3)),
    "projected": ({"backbone": RESNET, "width": 8}, floats(1, 16, 16, 3)),
    "resnet": ({**RESNET, "design": GLOBAL}, floats(1, 16, 16, 3)),
    "selecting": ({"backbone": MLP, "hidden": 4}, floats(1, 6)),
    "sequence": ({"cell": {"name": "rnn", "features": 4}}, floats(1, 5, 6)),
    "wide_resnet": ({"depth": 16, "width": 1}, floats(1, 16, 16, 3)),
    "xception": ({"small": True, "divide": 16}, floats(1, 32, 32, 3)),
}

#: Functions of JAX with a derivative of their own.
ALLOWED = {"relu", "relu6"}


def equations(jaxpr):
    """Yields the operations of a traced function, and of all functions within it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(value, "jaxpr", value)  # closed, or as it is
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def what_depends_on_the_platform(jaxpr):
    """Names of functions with custom derivatives, and of choices between platforms."""
    names = set()
    for equation in equations(jaxpr):
        if equation.primitive.name.startswith("custom_") and "call_jaxpr" in equation.params:
            names.add(equation.params["call_jaxpr"].jaxpr.debug_info.func_name)
        if equation.primitive.name == "platform_index":
            names.add("platform_index")
    return names - ALLOWED


@pytest.mark.parametrize(
    "name", swept(MODELS, "encoder", "mlp", "mobilenet_v2", "resnet", "sequence")
)
def test_inference_of_a_model_is_plain(name):
    fields, x = SMALL[name]
    model = MODELS.build({"name": name, **fields}, "model", num_outputs=3)

    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def traced(platform_name):
        with platform(platform_name):
            return what_depends_on_the_platform(jax.make_jaxpr(model.apply)(variables, x).jaxpr)

    assert traced("reference") == set()
    if name in ("resnet", "sequence"):
        assert traced("cpu")  # or this test would see nothing


@pytest.mark.slow
def test_recurrences_have_derivatives_of_every_mode_and_order(x64):
    cell = ode.LSTM(2)
    params = cell.init(jax.random.key(0), 2, jnp.float64)
    xs = jax.random.normal(jax.random.key(1), (3, 1, 2), jnp.float64)

    def loss(scale, backward="auto"):
        scaled = jax.tree.map(lambda p: scale * p, params)
        return jnp.sum(ode.unroll(cell, scaled, xs, backward=backward)[1] ** 2)

    with platform("reference"):
        slope, second = jax.jvp(jax.grad(loss), (1.0,), (1.0,))
    step = 1e-5
    up, down = (jax.grad(loss)(1 + sign * step, "fused") for sign in (1, -1))
    np.testing.assert_allclose(slope, jax.grad(loss)(1.0, "fused"), rtol=1e-12)
    np.testing.assert_allclose(second, (up - down) / (2 * step), rtol=1e-8)


def test_a_global_layer_costs_what_its_equation_costs():
    """Value and gradient of five steps, against automatic differentiation of the plain equation."""
    layer = GlobalLayer(num_steps=5, boundary="periodic")
    x = floats(2, 8, 8, 4)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)

    def plain(variables, x):
        params, statistics = variables["params"], variables["batch_stats"]

        def normalised(h, name, epsilon):
            norm, seen = params[name], statistics[name]
            scale = norm["scale"] * jax.lax.rsqrt(seen["var"] + epsilon)
            return (h - seen["mean"]) * scale + norm["bias"]

        def predicted(name):
            y = jax.lax.conv_general_dilated(
                x,
                params[f"conv_{name}"]["kernel"],
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=4,
            )
            return jax.nn.relu(normalised(y, f"norm_{name}", 4.0))

        u, v = -predicted("u"), -predicted("v")
        bx, by = 0.2 * predicted("diffusion_x"), 0.2 * predicted("diffusion_y")
        ax, ay = 0.2 * u, 0.2 * v
        total = 2 * bx + 2 * by
        e = 0.1 * (jnp.roll(u, -1, 1) - jnp.roll(u, 1, 1) + jnp.roll(v, -1, 2) - jnp.roll(v, 1, 2))

        def step(state, _):
            h, before = state
            new = (1 - total) * before - 2 * e * h + 0.4 * x
            new += (2 * bx - ax) * jnp.roll(h, -1, 1) + (2 * bx + ax) * jnp.roll(h, 1, 1)
            new += (2 * by - ay) * jnp.roll(h, -1, 2) + (2 * by + ay) * jnp.roll(h, 1, 2)
            return (new / (1 + total), h), None

        h = jax.lax.scan(step, (x, x), length=5)[0][0]
        return jax.nn.relu(normalised(h, "norm_out", 1e-5))

    def cost(apply):
        def loss(variables, x):
            return jnp.sum(apply(variables, x) ** 2)

        return count(jax.value_and_grad(loss, (0, 1)), variables, x)

    ours, theirs = cost(layer.apply), cost(plain)
    assert not ours.unknown
    assert ours.macs == theirs.macs
    assert ours.flops <= theirs.flops, (ours.flops, theirs.flops)
