# %% [markdown]
# # Recurrent cells on your own arrays
#
# Four cells learn to tell series of different lengths apart, in a network and a loop of your own. Then the
# same cells stand in Flax's wrappers and in an NNX model.

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
from jaxeff import ode

# %% [markdown]
# A cell is a pure function of an explicit parameter tree. `unroll` runs it over time-major inputs.

# %%
cell = ode.TARNN(features=32)
params = cell.init(jax.random.key(0), input_size=2)
carry, outputs = ode.unroll(
    cell, params, jnp.ones((50, 4, 2))
)  # [time, batch, features]
print(
    "outputs",
    outputs.shape,
    "of",
    sum(p.size for p in jax.tree.leaves(params)),
    "parameters",
)

# %% [markdown]
# ## Data
#
# Each series has two features. A peak appears in both, and the class says in which one it comes first. The
# series end at different times, so each has a mask that is false in the padded steps.

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
_, axes = plt.subplots(1, 2, figsize=(8, 2), sharey=True)
for axis, label in zip(axes, (0, 1)):
    number = int(np.argmax(train[2] == label))
    axis.plot(train[0][number], label=["feature 0", "feature 1"])
    axis.axvspan(train[1][number].sum(), 59, color="0.9", label="padding")
    axis.set(title=f"a series of class {label}", xlabel="time step")
axes[0].legend()
plt.show()

# %% [markdown]
# ## A network around a cell
#
# `jaxeff.layers.RNN` takes the place of `flax.linen.RNN`, and a mask beside the inputs.

# %%
class Classifier(nn.Module):
    cell: nn.Module

    @nn.compact
    def __call__(self, x, mask):
        return nn.Dense(2)(
            jaxeff.layers.RNN(self.cell, return_sequence=False)(x, mask=mask)
        )


def fit(cell, steps=150):
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

    losses, rng = [], np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(0, 2000, 64)
        params, state, value = step(params, state, *(part[rows] for part in train))
        losses.append(value)
    return model, params, np.array(losses)


cells = {
    "iRNN": jaxeff.IRNNCell(32, step_size=0.3),
    "TARNN": jaxeff.TARNNCell(32),
    "FastGRNN": jaxeff.FastGRNNCell(32),
    "LSTM": jaxeff.LSTMCell(32),
}
trained = {}
for name, each in cells.items():
    model, params, losses = trained[name] = fit(each)
    right = model.apply(params, test[0], test[1]).argmax(-1) == test[2]
    count = sum(p.size for p in jax.tree.leaves(params))
    print(f"{name:9s} test accuracy {right.mean():.3f}, {count:5,} parameters")
    plt.plot(np.convolve(losses, np.ones(10) / 10, "valid"), label=name)
plt.legend()
plt.xlabel("update")
plt.ylabel("training loss, mean of 10 updates")
plt.show()

# %% [markdown]
# One seed and one learning rate for all: this shows that they learn, not which is best.
#
# What stands in the padded steps has no influence, whatever it is:

# %%
model, params, _ = trained["TARNN"]
x, mask, _ = test
filled = np.where(mask[..., None], x, np.nan)
same = np.array_equal(model.apply(params, x, mask), model.apply(params, filled, mask))
print("the same outputs with NaN in the padded steps:", same)

# %% [markdown]
# ## In Flax's wrappers, and in NNX

# %%
both_ways = nn.Bidirectional(nn.RNN(jaxeff.IRNNCell(16)), nn.RNN(jaxeff.TARNNCell(16)))
print(
    "both directions:",
    both_ways.init_with_output(jax.random.key(0), train[0][:2])[0].shape,
)

# %%
from flax import nnx
from flax.nnx import bridge


class NNXClassifier(nnx.Module):
    def __init__(self, rngs):
        layer = jaxeff.layers.RNN(jaxeff.TARNNCell(32), return_sequence=False)
        self.rnn = bridge.lazy_init(
            bridge.ToNNX(layer, rngs=rngs), train[0][:1], mask=train[1][:1]
        )
        self.head = nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, x, mask):
        return self.head(self.rnn(x, mask=mask))


model = NNXClassifier(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, x, mask, y):
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x, mask), y).mean()

    optimizer.update(model, nnx.grad(loss)(model))


for _ in range(150):
    rows = rng.integers(0, 2000, 64)
    step(model, optimizer, *(part[rows] for part in train))
print(
    f"NNX, TARNN: test accuracy {(model(test[0], test[1]).argmax(-1) == test[2]).mean():.3f}"
)
