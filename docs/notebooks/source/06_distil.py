# %% [markdown]
# # Distillation: classic and selective
#
# A student of three hidden units learns digits from labels, and from a teacher.

# %%
# Installs the package where it is missing: from the checkout that holds this notebook, else from PyPI.
import importlib.util
from pathlib import Path

if importlib.util.find_spec("jaxeff") is None:
    checkout = Path("../..").resolve()
    source = checkout if (checkout / "pyproject.toml").exists() else "jaxeff"
    %pip install -q {source}

# %%
import matplotlib.pyplot as plt
import numpy as np

import jaxeff
from jaxeff.config_files import load

# %%
accuracies = {}
for method in ("ce", "kd", "disk"):
    config = load(f"configs/disk.py:quick,method={method}")
    report = jaxeff.train.run(config, f"runs/notebook-{method}")
    accuracies[method] = report["metrics"]["test"]["accuracy"]
accuracies

# %% [markdown]
# Quick runs of one seed: differences between methods are within the noise. The results page has six seeds.
#
# What the gate does: it lifts the student's answer on selected classes, within a budget.

# %%
import jax
import jax.numpy as jnp

from jaxeff.distill import Disk

student = jnp.array([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]])
teacher = jnp.array([[4.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
labels = jnp.array([0, 0])
gates = np.linspace(0, 2, 50)
losses = np.array([Disk().loss(student, teacher, labels, jnp.full(2, g)) for g in gates])
plt.plot(gates, losses, label=["right already", "beyond the student"])
plt.xlabel("gate")
plt.ylabel("loss")
plt.legend()
plt.show()
