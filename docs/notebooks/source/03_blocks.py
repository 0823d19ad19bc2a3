# %% [markdown]
# # Global and interpolated blocks in your own CNN
#
# A small network of your own, with three residual blocks in its middle stage. They are interpolated, or a Global
# layer takes the place of two of them. Accuracy, parameters, multiply-adds and time side by side.

# %%
# Where the package is missing: from the checkout that holds this notebook, otherwise from PyPI.
import importlib.util
from pathlib import Path

if importlib.util.find_spec("jaxeff") is None:
    source = "../.." if Path("../../pyproject.toml").exists() else "jaxeff"
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
# ## The network
#
# `Interpolated` takes the body of any residual block: it computes the body on every second pixel in each
# direction, and fills in the others. `GlobalLayer` replaces blocks by a few steps of an
# advection-diffusion equation.

# %%
class Body(nn.Module):
    """Two convolutions that keep the shape."""

    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(2):
            x = nn.Conv(x.shape[-1], (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
        return x


class Net(nn.Module):
    stage: str

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        for _ in range(1 if self.stage == "global" else 3):
            body = Body()
            if self.stage == "interpolated":
                body = jaxeff.Interpolated(body, stride=2)
            x = x + body(x, train=train)
        if self.stage == "global":
            x = jaxeff.GlobalLayer(num_steps=3, residual=True)(x, train=train)
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.mean((1, 2)))

# %% [markdown]
# ## Training
#
# The digits of scikit-learn, enlarged to 16 x 16 pixels.

# %%
from sklearn.datasets import load_digits

digits = load_digits()
order = np.random.default_rng(0).permutation(1797)
x = np.kron(digits.images[order], np.ones((2, 2)))[..., None].astype(np.float32) / 16
y = digits.target[order]


def fit(stage, steps=200):
    model = Net(stage)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    variables = jax.jit(model.init)(jax.random.key(0), x[:1])
    params, rest = variables["params"], variables.get("batch_stats", {})
    state = optimizer.init(params)

    @jax.jit
    def step(params, rest, state, x, y):
        def loss(params):
            logits, new = model.apply(
                {"params": params, "batch_stats": rest},
                x,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean(), new.get("batch_stats", {})

        gradient, rest = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), rest, state

    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(0, 1400, 32)
        params, rest, state = step(params, rest, state, x[rows], y[rows])
    return model, {"params": params, "batch_stats": rest}


networks = {stage: fit(stage) for stage in ("residual", "interpolated", "global")}

# %% [markdown]
# ## What each costs
#
# Times are of this machine; the networks take turns, so that all see the same load.
# Accuracies are those of one short training each: they say that the networks learn, not which is best.

# %%
calls = {
    stage: lambda f=jax.jit(lambda x, m=model, v=variables: m.apply(v, x)): f(
        x[1400:1464]
    )
    for stage, (model, variables) in networks.items()
}
times = bench.interleaved(calls, rounds=10, calls_per_round=3)
print("stage         accuracy  parameters  million multiply-adds  ms for 64 images")
for stage, (model, variables) in networks.items():
    accuracy = (model.apply(variables, x[1400:]).argmax(-1) == y[1400:]).mean()
    macs = bench.macs_per_example(model.apply, variables, x[:1]) / 1e6
    count = bench.count_parameters(variables["params"])
    print(
        f"{stage:12s}  {accuracy:8.3f}  {count:10,}  {macs:21.2f}  {times[stage].median_ms:16.2f}"
    )

# %% [markdown]
# ## What a Global layer does
#
# A single bright pixel spreads over the map: advection moves it, diffusion widens it. In the layer each channel
# and pixel has coefficients of its own, predicted from the features; here they are constant.

# %%
from jaxeff.ode import transport

spot = jnp.zeros((16, 16, 1)).at[8, 5].set(1.0)
coefficients = transport.Coefficients(u=0.0, v=0.8, diffusion_x=0.3, diffusion_y=0.3)
_, axes = plt.subplots(1, 4, figsize=(9, 2.5))
for axis, steps in zip(axes, (0, 2, 6, 12)):
    field = (
        transport.leapfrog(spot, coefficients, num_steps=steps, dt=0.2)
        if steps
        else spot
    )
    axis.imshow(field[..., 0])
    axis.set_title(f"after {steps} steps")
    axis.axis("off")
plt.show()
