# %% [markdown]
# # A recurrence in parallel over time
#
# Newton iterations on the whole sequence at once give what the loop gives, in a number of rounds that hardly
# depends on the length. On CPUs the loop is faster; the method is for accelerators.

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

from jaxeff import ode

# %%
cell = ode.GRU(features=8)
params = cell.init(jax.random.key(0), input_size=4)
xs = jax.random.normal(jax.random.key(1), (2048, 1, 4))
_, loop = ode.unroll(cell, params, xs)
result = ode.unroll_parallel(cell, params, xs, diagnostics=True)
(_, parallel), seen = result[:2], result[2:]
print("largest difference:", float(jnp.abs(loop - parallel).max()))
seen

# %% [markdown]
# Gradients agree too.

# %%
def total(run):
    return jax.grad(lambda p: jnp.sum(run(cell, p, xs)[1] ** 2))


differences = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max() / (jnp.abs(a).max() + 1e-12)),
    jax.jit(total(ode.unroll))(params),
    jax.jit(total(ode.unroll_parallel))(params),
)
differences

# %% [markdown]
# Iterations against the length of the sequence:

# %%
lengths = [256, 512, 1024, 2048, 4096]
for jacobian in ("dense", "diagonal"):
    counts = []
    for length in lengths:
        inputs = jax.random.normal(jax.random.key(2), (length, 1, 4))
        out = ode.unroll_parallel(cell, params, inputs, jacobian=jacobian, diagnostics=True)
        counts.append(int(out[-1].iterations))
    plt.plot(lengths, counts, marker="o", label=jacobian)
plt.xscale("log", base=2)
plt.ylim(0)
plt.xlabel("steps")
plt.ylabel("iterations")
plt.legend()
plt.show()
