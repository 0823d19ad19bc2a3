# %% [markdown]
# # Global and interpolated blocks in your own CNN

# %%
# Installs the package where it is missing: from the checkout that holds this notebook, else from PyPI.
import importlib.util
from pathlib import Path

if importlib.util.find_spec("jaxeff") is None:
    checkout = Path("../..").resolve()
    source = checkout if (checkout / "pyproject.toml").exists() else "jaxeff"
    %pip install -q {source}

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxeff
from jaxeff import bench

# %% [markdown]
# A small network with a slot for what stands in its stage.

# %%
class Body(nn.Module):
    """Two convolutions that keep the shape."""

    @nn.compact
    def __call__(self, x, train=False):
        width = x.shape[-1]
        for _ in range(2):
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(nn.Conv(width, (3, 3), use_bias=False)(x)))
        return x


class Net(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        for _ in range(3):
            if self.kind == "blocks":
                x = x + Body()(x, train)
            elif self.kind == "interpolated":
                x = x + jaxeff.Interpolated(Body(), stride=2)(x, train=train)
        if self.kind == "global":
            x = jaxeff.GlobalLayer(num_steps=3, residual=True)(x, train=train)
        x = nn.relu(nn.Conv(64, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.mean((1, 2)))


# %%
from sklearn.datasets import load_digits

digits = load_digits()
order = np.random.default_rng(0).permutation(1797)
x = np.repeat(np.repeat(digits.images[order, ..., None], 2, 1), 2, 2).astype(np.float32) / 16
y = digits.target[order]
rows = {}


def fit(kind, steps=150):
    model, optimizer = Net(kind), optax.adam(3e-3)
    variables = jax.jit(model.init)(jax.random.key(0), x[:1])
    params, rest = variables["params"], variables.get("batch_stats", {})
    state = optimizer.init(params)

    @jax.jit
    def step(params, rest, state, x, y):
        def loss(params):
            logits, new = model.apply(
                {"params": params, "batch_stats": rest}, x, train=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean(), new.get("batch_stats", {})

        gradient, rest = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), rest, state

    rng = np.random.default_rng(0)
    for _ in range(steps):
        chosen = rng.integers(0, 1400, 64)
        params, rest, state = step(params, rest, state, x[chosen], y[chosen])
    variables = {"params": params, "batch_stats": rest}
    predict = jax.jit(lambda x: model.apply(variables, x))
    accuracy = float((predict(x[1400:]).argmax(-1) == y[1400:]).mean())
    cost = bench.cost_per_example(model.apply, variables, x[:1])
    return predict, accuracy, cost.macs, bench.count_parameters(params)


networks = {kind: fit(kind) for kind in ("blocks", "interpolated", "global")}
times = bench.interleaved({k: lambda p=n[0]: p(x[:64]) for k, n in networks.items()}, 5, 3)
for kind, (_, accuracy, macs, parameters) in networks.items():
    print(
        f"{kind:13s} accuracy {accuracy:.3f}, {parameters:6,} parameters, "
        f"{macs / 1e6:5.2f} million multiply-adds, {times[kind].median_ms:.2f} ms for 64 images"
    )

# %% [markdown]
# What a Global layer does to a single bright pixel: features spread over the map by a solve of an
# advection-diffusion equation.

# %%
from jaxeff.ode import transport

spot = jnp.zeros((16, 16, 1)).at[8, 5].set(1.0)
ones = jnp.ones_like(spot)
field = transport.Coefficients(0 * ones, 0.8 * ones, 0.3 * ones, 0.3 * ones)
_, axes = plt.subplots(1, 4, figsize=(9, 2.5))
for axis, steps in zip(axes, (0, 2, 6, 12)):
    h = transport.leapfrog(spot, field, num_steps=steps, dt=0.2) if steps else spot
    axis.imshow(h[..., 0])
    axis.set_title(f"{steps} steps")
    axis.axis("off")
plt.show()
