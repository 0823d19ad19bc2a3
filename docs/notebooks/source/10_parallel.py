# %% [markdown]
# # A recurrence in parallel over time
#
# Newton iterations on the whole sequence at once give what the loop gives, in a number of rounds that hardly
# depends on the length. Each round costs more arithmetic and memory than the loop, so on CPUs the loop is faster;
# the method is for long sequences and narrow states on accelerators.

# %%
# Where the package is missing: from the checkout that holds this notebook, otherwise from PyPI.
import importlib.util
from pathlib import Path

if importlib.util.find_spec("jaxeff") is None:
    source = "../.." if Path("../../pyproject.toml").exists() else "jaxeff"
    %pip install -q {source}

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxeff import ode

# %% [markdown]
# ## The same states

# %%
cell = ode.GRU(features=8)
params = cell.init(jax.random.key(0), input_size=4)
inputs = jax.random.normal(jax.random.key(1), (2048, 1, 4))  # [time, batch, features]
_, loop = ode.unroll(cell, params, inputs)
_, parallel, info = ode.unroll_parallel(cell, params, inputs, diagnostics=True)
print(f"largest difference from the loop {float(jnp.abs(loop - parallel).max()):.1e}")
print(
    f"{info.iterations} iterations for {len(inputs)} steps, residual {float(info.residual):.1e}"
)

# %% [markdown]
# Newton's method roughly doubles the number of right digits in each round once it is near. Stopped early by a larger
# tolerance of the residual:

# %%
print("tolerance  iterations  largest difference from the loop")
for tolerance in (1.0, 1e-1, 1e-2, 2e-6):
    _, states, info = ode.unroll_parallel(
        cell, params, inputs, tolerance=tolerance, diagnostics=True
    )
    print(
        f"{tolerance:9.0e}  {info.iterations:10d}  {float(jnp.abs(loop - states).max()):.1e}"
    )

# %% [markdown]
# ## The same gradients
#
# Their adjoint recurrence is solved in the same way.

# %%
def gradient(run):
    return jax.jit(jax.grad(lambda p: jnp.sum(run(cell, p, inputs)[1] ** 2)))(params)


by_loop, in_parallel = gradient(ode.unroll), gradient(ode.unroll_parallel)
print("largest difference, in parts of the largest entry:")
for name, expected in by_loop.items():
    difference = jnp.abs(in_parallel[name] - expected).max() / jnp.abs(expected).max()
    print(f"  {name:3s} {float(difference):.1e}")

# %% [markdown]
# ## Rounds by the length of the sequence
#
# The dense Jacobian of a step needs few rounds, but memory and time that grow with the square and the cube of
# the state's size. Its diagonal is cheap and needs more rounds, and it fails where the features mix strongly.

# %%
lengths = [256, 1024, 4096]
for jacobian in ("dense", "diagonal"):
    counts = []
    for length in lengths:
        xs = jax.random.normal(jax.random.key(2), (length, 1, 4))
        info = ode.unroll_parallel(
            cell, params, xs, jacobian=jacobian, diagnostics=True
        )[-1]
        counts.append(int(info.iterations))
    print(f"{jacobian}: {counts} rounds for {lengths} steps")
    plt.plot(lengths, counts, marker="o", label=jacobian)
plt.xscale("log", base=2)
plt.ylim(0)
plt.xlabel("steps of the sequence")
plt.ylabel("rounds")
plt.legend(title="Jacobian")
plt.show()

# %% [markdown]
# ## When it does not converge
#
# Rounds are limited (100 unless set). What has not converged then comes from the loop, and `fell_back` says so:

# %%
_, states, info = ode.unroll_parallel(
    cell, params, inputs, max_iterations=2, diagnostics=True
)
print(
    "converged",
    bool(info.converged),
    "- fell back on the loop",
    bool(info.fell_back),
    f"- largest difference {float(jnp.abs(loop - states).max()):.1e}",
)
