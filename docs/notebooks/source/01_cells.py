# %% [markdown]
# # Recurrent cells on your own arrays
#
# Cells by themselves, in layers, with masks, in Flax's own wrappers and in NNX.

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
from jaxeff import ode

# %% [markdown]
# A cell is a pure function of a parameter tree. `unroll` runs it over time-major inputs.

# %%
cell = ode.TARNN(features=32)
params = cell.init(jax.random.key(0), input_size=2)
carry, outputs = ode.unroll(cell, params, jnp.ones((50, 4, 2)))  # [time, batch, features]
outputs.shape, sum(p.size for p in jax.tree.leaves(params))

# %% [markdown]
# Series of two features and different lengths: the class is the order in which a bump appears in them.

# %%
rng = np.random.default_rng(0)


def series(examples, time=60):
    x = 0.1 * rng.normal(size=(examples, time, 2)).astype(np.float32)
    first, second = np.sort(rng.integers(5, 40, (2, examples)), axis=0)
    second += 5
    labels = rng.integers(0, 2, examples)
    rows = np.arange(examples)
    x[rows, first, labels] += 3
    x[rows, second, 1 - labels] += 3
    mask = np.arange(time) < (second + 5)[:, None]
    return x * mask[..., None], mask, labels


train, test = series(2000), series(500)


class Classifier(nn.Module):
    cell: nn.Module

    @nn.compact
    def __call__(self, x, mask):
        return nn.Dense(2)(jaxeff.layers.RNN(self.cell, return_sequence=False)(x, mask=mask))


# %%
def fit(cell, steps=300):
    model, optimizer = Classifier(cell), optax.adam(1e-2)
    params = model.init(jax.random.key(0), train[0][:2], train[1][:2])
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, x, mask, y):
        def loss(params):
            logits = model.apply(params, x, mask)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for _ in range(steps):
        rows = rng.integers(0, 2000, 64)
        params, state, value = step(params, state, *(part[rows] for part in train))
        losses.append(value)
    right = model.apply(params, test[0], test[1]).argmax(-1) == test[2]
    return np.array(losses), float(right.mean())


cells = {
    "iRNN": jaxeff.IRNNCell(32, step_size=0.3),
    "TARNN": jaxeff.TARNNCell(32),
    "FastGRNN": jaxeff.FastGRNNCell(32),
    "LSTM": jaxeff.LSTMCell(32),
}
for name, each in cells.items():
    losses, accuracy = fit(each)
    plt.plot(np.convolve(losses, np.ones(20) / 20, "valid"), label=f"{name}: {accuracy:.2f}")
plt.legend(title="test accuracy")
plt.xlabel("update")
plt.ylabel("loss")
plt.show()

# %% [markdown]
# The same cells in Flax's wrappers, and in an NNX model.

# %%
both_ways = nn.Bidirectional(nn.RNN(jaxeff.IRNNCell(16)), nn.RNN(jaxeff.TARNNCell(16)))
print(both_ways.init_with_output(jax.random.key(0), train[0][:2])[0].shape)

from flax import nnx
from flax.nnx import bridge

layer = jaxeff.layers.RNN(jaxeff.TARNNCell(16), return_sequence=False)
model = bridge.lazy_init(bridge.ToNNX(layer, rngs=nnx.Rngs(0)), train[0][:1])
print(model(train[0][:3]).shape)
