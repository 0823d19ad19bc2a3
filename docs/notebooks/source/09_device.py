# %% [markdown]
# # From a run to a device
#
# One trained recurrent network: streamed, exported, in integers, and as C that is compiled and run here.

# %%
# Installs the package where it is missing: from the checkout that holds this notebook, else from PyPI.
import importlib.util
from pathlib import Path

if importlib.util.find_spec("jaxeff") is None:
    checkout = Path("../..").resolve()
    source = checkout if (checkout / "pyproject.toml").exists() else "jaxeff"
    %pip install -q {source}

# %%
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import jaxeff
from jaxeff import programs, quantize

# %%
trained = jaxeff.load("digits-fastgrnn").with_examples()
test = trained.dataset.splits["test"].take(np.arange(200))
x, y = test["inputs"], test["labels"]
stream = jaxeff.RecurrentStream(trained.model, trained.variables)
print(x.shape, trained.report["metrics"]["test"])

# %% [markdown]
# Streaming: one value at a time, with the state kept between calls.

# %%
beliefs = []
for value in x[0]:
    logits = stream.push(value)
    beliefs.append(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())
plt.plot(beliefs)
plt.xlabel("pixels seen")
plt.ylabel("probability of each class")
plt.show()

# %% [markdown]
# Integers: 8-bit weights, 16-bit state, simulated to the bit.

# %%
calibration = trained.dataset.splits["train"].take(np.arange(256))["inputs"]
integers = quantize.quantize(trained.model, trained.variables, calibration)
outputs = np.asarray(quantize.run(integers, x))[:, -1]
print("accuracy in integers:", (outputs.argmax(-1) == y).mean())
print(integers.constant_bytes, "bytes of constants,", integers.state_bytes, "of state")

# %% [markdown]
# C99 without dependencies, compiled with the host's compiler where there is one.

# %%
from jaxeff.exporting.c import write_c
from jaxeff.exporting.c.host import HostModel

written = write_c(integers, Path("exported"), "digits")
print(written.source.read_text()[:900])
if shutil.which("gcc"):
    sequence = np.asarray(quantize.to_integers(integers, x[0]), np.int16)
    print("C:", HostModel(written, "gcc").run(sequence)[-1], "simulator:", np.asarray(quantize.run_integers(integers, sequence[None]))[0, -1])

# %% [markdown]
# And files for other runtimes, each compared with the model in its own runtime.

# %%
report = jaxeff.export(trained, folder="exported/files", to="stablehlo")
for row in report.rows:
    print(row.entry, row.format, row.bytes, "bytes, largest difference", row.difference)
