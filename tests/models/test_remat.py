"""What is computed again in the backward pass is not kept for it, and changes no number."""

import jax
import jax.numpy as jnp
import pytest
from sweeps import swept

from jaxeff.errors import ConfigError
from jaxeff.models import MODELS

CONVNET = {"name": "resnet", "blocks": (1,), "widths": (4,)}
SHAPE = {"vocabulary": 11, "width": 8, "layers": 2, "heads": 2, "hidden": 8, "dropout": 0.0}
ENCODER = {"name": "encoder", "shape": SHAPE, "cuts": ((1, 2),), "pooled_queries": True}
CASES = [(CONVNET, "stage"), (CONVNET, "block"), (ENCODER, "layer")]


def case(spec, batch, remat, dtype="float32"):
    """Shapes of a model's variables, and its loss and statistics as a function of them."""
    model = MODELS.build({**spec, "dtype": dtype, "remat": remat}, num_outputs=3)
    if spec is ENCODER:
        inputs = jnp.arange(batch * 16).reshape(batch, 16) % 11
    else:
        inputs = jnp.sin(jnp.arange(batch * 8 * 8 * 3.0)).reshape(batch, 8, 8, 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)

    def loss(params, state):
        variables = {"params": params, **state}
        outputs, state = model.apply(variables, inputs, train=True, mutable=[*state])
        return jnp.sum(outputs**2), state

    return shapes, loss


def values(shapes):
    """Arrays of such shapes, in double precision."""
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(
        tree,
        [1 + jnp.sin(i + jnp.arange(a.size * 1.0)).reshape(a.shape) for i, a in enumerate(leaves)],
    )


@pytest.mark.parametrize(("spec", "remat"), swept(CASES, CASES[0]))
def test_parameters_gradients_and_statistics_are_the_same(x64, spec, remat):
    shapes, plain = case(spec, 2, "none", "float64")
    same, recomputed = case(spec, 2, remat, "float64")
    assert shapes == same
    variables = values(shapes)
    params = variables.pop("params")

    @jax.jit
    def gradients(params, state):
        return [jax.value_and_grad(f, has_aux=True)(params, state) for f in (plain, recomputed)]

    expected, found = gradients(params, variables)
    for one, other in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
        assert one.dtype == other.dtype == jnp.float64
        assert float(jnp.abs(one - other).max()) <= 1e-11 * max(1.0, float(jnp.abs(one).max()))


@pytest.mark.parametrize(("spec", "remat"), CASES)
def test_the_forward_pass_keeps_little(spec, remat):
    kept = {}
    for kind in ("none", remat):
        shapes, loss = case(spec, 8, kind)
        state = {name: tree for name, tree in shapes.items() if name != "params"}
        residuals = jax.eval_shape(
            lambda p, s, loss=loss: jax.vjp(lambda p: loss(p, s)[0], p)[1], shapes["params"], state
        )
        kept[kind] = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(residuals))
    assert kept[remat] < kept["none"] / 2


@pytest.mark.parametrize("spec", [CONVNET, ENCODER])
def test_other_words_are_refused(spec):
    with pytest.raises(ConfigError, match=r"remat must be one of none, .*, not 'all'"):
        case(spec, 1, "all")
