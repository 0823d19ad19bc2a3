# %% [markdown]
# # Forward propagation through time around your own model
#
# FPTT makes several updates within a sequence, each from one part of it. It needs the memory of one part
# instead of the whole sequence. Here it trains a plain Flax network that has nothing of this package in it.

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
from jaxeff.train import BPTT, FPTT, Task
from jaxeff.train.objectives import cross_entropy

# %% [markdown]
# ## The model
#
# A model that can be trained in parts says which state it starts from (`initial_carry`), takes a state
# (`carry`), and returns the next one (`return_carry`).

# %%
class Reader(nn.Module):
    """A GRU of Flax, and a linear layer on its last state."""

    features: int = 64

    @nn.nowrap
    def initial_carry(self, inputs):
        return jnp.zeros((len(inputs), self.features))

    @nn.compact
    def __call__(self, inputs, *, carry=None, return_carry=False):
        layer = nn.RNN(nn.GRUCell(self.features), return_carry=True)
        carry, states = layer(inputs, initial_carry=carry)
        logits = nn.Dense(10)(states[:, -1])
        return (logits, carry) if return_carry else logits

# %% [markdown]
# ## The data
#
# The digits of scikit-learn, one pixel at a time: 64 steps of one number.

# %%
from sklearn.datasets import load_digits

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.images))
x = (digits.images.reshape(-1, 64, 1) / 16).astype(np.float32)[order]
y = digits.target[order]
x_train, y_train, x_test, y_test = x[:1400], y[:1400], x[1400:], y[1400:]

# %% [markdown]
# ## Two algorithms in one loop

# %%
model, batch_size = Reader(), 64
task = Task(
    "classification", num_classes=10, length=64, steps_per_epoch=1400 // batch_size
)


def fit(algorithm, batches=300):
    state = algorithm.init_state(jax.random.key(0), x_train[:1])
    update = jax.jit(algorithm.update, donate_argnums=0)
    predict = jax.jit(lambda params: model.apply({"params": params}, x_test).argmax(-1))
    rng, curve = np.random.default_rng(1), []
    for number in range(1, batches + 1):
        rows = rng.integers(0, len(x_train), batch_size)
        batch = {
            "inputs": x_train[rows],
            "labels": y_train[rows],
            "weight": np.ones(batch_size, np.float32),
        }
        state, _ = update(state, batch)
        if number % 25 == 0:
            curve.append((number, float((predict(state.params) == y_test).mean())))
    return np.array(curve)


algorithms = {
    "BPTT, one update per batch": BPTT(model, cross_entropy(), optax.adam(3e-3), task),
    "FPTT, eight updates per batch": FPTT(
        model, cross_entropy(), optax.adam(3e-3), task, parts=8, auxiliary="uniform"
    ),
}
for name, algorithm in algorithms.items():
    curve = fit(algorithm)
    print(f"{name}: test accuracy {curve[-1, 1]:.3f}")
    plt.plot(*curve.T, label=name)
plt.legend()
plt.xlabel("batches")
plt.ylabel("test accuracy")
plt.show()

# %% [markdown]
# FPTT makes eight times as many updates of the same batches, so it is ahead for the same number of passes over the
# data. This is one seed and one learning rate; the results pages have several, and truncated back-propagation
# with as many updates.
#
# ## Memory
#
# What the compiler reserves for intermediate values of one update, for sequences of 2,048 steps:

# %%
long = {
    "inputs": jnp.ones((16, 2048, 1)),
    "labels": jnp.zeros(16, int),
    "weight": jnp.ones(16),
}
task = Task("classification", num_classes=10, length=2048, steps_per_epoch=100)
parts = [1, 4, 16, 64]
memory = []
for number in parts:
    algorithm = FPTT(
        model,
        cross_entropy(),
        optax.adam(3e-3),
        task,
        parts=number,
        auxiliary="uniform",
    )
    state = jax.eval_shape(
        lambda a=algorithm: a.init_state(jax.random.key(0), long["inputs"][:1])
    )
    compiled = jax.jit(algorithm.update).lower(state, long).compile()
    memory.append(compiled.memory_analysis().temp_size_in_bytes / 2**20)
    print(f"{number:2d} parts: {memory[-1]:6.1f} MiB")
plt.loglog(parts, memory, marker="o", base=2)
plt.xlabel("parts (1 is back-propagation through time)")
plt.ylabel("MiB for one update")
plt.show()

# %% [markdown]
# ## The regulariser alone
#
# It ties the weights to their running average, and wraps any optax optimiser in a loop of your own.

# %%
optimizer = jaxeff.dynamic_regularizer(optax.adam(1e-1), alpha=0.1)
params = {"w": jnp.array([3.0, -2.0])}
state = optimizer.init(params)
for _ in range(200):
    gradient = jax.grad(lambda p: jnp.sum((p["w"] - 1) ** 2))(params)
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
print(
    "minimum of (w - 1)^2 found at",
    params["w"].round(3),
    "- running average",
    state.running["w"].round(3),
)
