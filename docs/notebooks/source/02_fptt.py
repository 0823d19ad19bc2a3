# %% [markdown]
# # Forward propagation through time around your own model
#
# FPTT makes several updates within a sequence. Its memory is that of one part.

# %%
# Installs the package where it is missing: from the checkout that holds this notebook, else from PyPI.
import importlib.util
from pathlib import Path

if importlib.util.find_spec("jaxeff") is None:
    checkout = Path("../..").resolve()
    source = checkout if (checkout / "pyproject.toml").exists() else "jaxeff"
    %pip install -q {source}

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxeff
from jaxeff.train import BPTT, FPTT, Task
from jaxeff.train.objectives import cross_entropy

# %% [markdown]
# Digits of scikit-learn, pixel by pixel: 64 steps of one number.

# %%
from sklearn.datasets import load_digits

digits = load_digits()
x = (digits.images.reshape(-1, 64, 1) / 16).astype(np.float32)
order = np.random.default_rng(0).permutation(len(x))
x, y = x[order], digits.target[order]
x_train, y_train, x_test, y_test = x[:1400], y[:1400], x[1400:], y[1400:]

model = jaxeff.SequenceModel(jaxeff.ode.LSTM(48), num_outputs=10)
task = Task("classification", num_classes=10, length=64, steps_per_epoch=22)

# %%
def fit(algorithm, batches=250):
    state = algorithm.init_state(jax.random.key(0), x_train[:1])
    update = jax.jit(algorithm.update, donate_argnums=0)
    rng, curve = np.random.default_rng(1), []
    for number in range(batches):
        rows = rng.integers(0, len(x_train), 64)
        batch = {"inputs": x_train[rows], "labels": y_train[rows], "weight": np.ones(64, np.float32)}
        state, _ = update(state, batch)
        if number % 25 == 24:
            right = model.apply({"params": state.params}, x_test).argmax(-1) == y_test
            curve.append((number + 1, float(right.mean())))
    return np.array(curve)


curves = {
    "BPTT, one update a batch": fit(BPTT(model, cross_entropy(), optax.adam(3e-3), task)),
    "FPTT, eight updates a batch": fit(
        FPTT(model, cross_entropy(), optax.adam(3e-3), task, parts=8, auxiliary="uniform")
    ),
}
for name, curve in curves.items():
    plt.plot(*curve.T, label=name)
plt.legend()
plt.xlabel("batches")
plt.ylabel("test accuracy")
plt.show()

# %% [markdown]
# One seed and one setting: a look, not a comparison. The results have three seeds and the baselines.
#
# The memory of one update, as the compiler plans it, for a sequence of 2,048 steps:

# %%
long = {"inputs": jnp.ones((16, 2048, 1)), "labels": jnp.zeros(16, int), "weight": jnp.ones(16)}
far = Task("classification", num_classes=10, length=2048, steps_per_epoch=22)
for name, algorithm in {
    "BPTT": BPTT(model, cross_entropy(), optax.adam(3e-3), far),
    "FPTT": FPTT(model, cross_entropy(), optax.adam(3e-3), far, parts=64, auxiliary="uniform"),
}.items():
    state = jax.eval_shape(lambda a=algorithm: a.init_state(jax.random.key(0), long["inputs"][:1]))
    compiled = jax.jit(algorithm.update).lower(state, long).compile()
    print(f"{name}: {compiled.memory_analysis().temp_size_in_bytes / 2**20:.1f} MiB")

# %% [markdown]
# The regulariser by itself wraps any optax optimiser, for a loop of your own.

# %%
optimizer = jaxeff.dynamic_regularizer(optax.adam(1e-3), alpha=0.1)
optimizer.init({"w": jnp.ones(3)})
