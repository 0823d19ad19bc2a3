# %% [markdown]
# # From a run to a device
#
# A recurrent network is trained, fed value by value, put into integers, written as C that is compiled and run here,
# and exported for another runtime.

# %%
# Where the package is missing: from the checkout that holds this notebook, otherwise from PyPI.
import importlib.util
from pathlib import Path

if importlib.util.find_spec("jaxeff") is None:
    source = "../.." if Path("../../pyproject.toml").exists() else "jaxeff"
    %pip install -q {source}

# %%
import shutil

import matplotlib.pyplot as plt
import numpy as np

import jaxeff
from jaxeff import quantize
from jaxeff.config_files import load

# %% [markdown]
# ## Train
#
# A FastGRNN reads the digits of scikit-learn pixel by pixel. This run is short; a longer one of the same
# config is part of the package.

# %%
%%capture
config = load("configs/irnn.py:pixels,cell=fastgrnn")
config.train.num_steps, config.train.eval_every = 100, 50
report = jaxeff.train.run(config, "runs/fastgrnn")

# %%
trained = jaxeff.load("digits-fastgrnn").with_examples()
print(
    f"test accuracy after {config.train.num_steps} steps {report['metrics']['test']['accuracy']:.3f}"
)
print(
    f"test accuracy of digits-fastgrnn, {trained.config.train.num_steps} steps,",
    f"{trained.report['metrics']['test']['accuracy']:.3f}",
)
test = trained.dataset.splits["test"].take(np.arange(200))
x, y = test["inputs"], test["labels"]  # [200, 64, 1]

# %% [markdown]
# ## Stream
#
# One value at a time; the state is kept between the calls.

# %%
stream = jaxeff.RecurrentStream(trained.model, trained.variables)
logits = np.stack([stream.push(value) for value in x[0]])
probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
plt.figure(figsize=(6, 3))
plt.imshow(probabilities.T, aspect="auto", origin="lower")
plt.colorbar(label="probability")
plt.yticks(range(10))
plt.xlabel("pixels seen")
plt.ylabel("class")
plt.title(f"a {y[0]}, pixel by pixel")
plt.show()

# %% [markdown]
# ## Integers
#
# Weights of 8 bits, a state of 16 bits, no floating point. The simulator computes what a device would, bit for
# bit.

# %%
calibration = trained.dataset.splits["train"].take(np.arange(256))["inputs"]
integers = quantize.quantize(trained.model, trained.variables, calibration)
in_integers = np.asarray(quantize.run(integers, x))[:, -1]
in_floats = np.asarray(trained.model.apply(trained.variables, x))
print(
    f"accuracy on 200 test images: floats {(in_floats.argmax(-1) == y).mean():.3f},",
    f"integers {(in_integers.argmax(-1) == y).mean():.3f}",
)
print(
    f"{integers.constant_bytes:,} bytes of constants, {integers.state_bytes} bytes of state"
)

# %% [markdown]
# ## C
#
# C99 without dependencies. Where there is a C compiler, it is compiled and compared with the simulator.

# %%
from jaxeff.exporting.c import write_c
from jaxeff.exporting.c.host import HostModel

written = write_c(integers, Path("exported"), "digits")
print(written.header.read_text())

# %%
compiler = shutil.which("gcc") or shutil.which("clang")
if compiler:
    sequence = np.asarray(quantize.to_integers(integers, x[0]), np.int16)
    compiled = HostModel(written, compiler).run(sequence)[-1]
    simulated = np.asarray(quantize.run_integers(integers, sequence[None]))[0, -1]
    print("outputs of the compiled C:", compiled)
    print("equal to the simulator's: ", np.array_equal(compiled, simulated))
else:
    print("no C compiler here")

# %% [markdown]
# ## Other runtimes
#
# Every file is opened in its own runtime, compared with the model, and timed on this machine. `to="litert"` and
# `to="onnx"` write for those runtimes where their packages are installed.

# %%
report = jaxeff.export(
    trained, folder="exported/files", to="stablehlo,c", batch_sizes=(1,)
)
for row in report.rows:
    if row.failure:
        print(row.failure)
    else:
        print(
            f"{row.entry:8s} {row.format:9s} {row.bytes:7,} bytes,",
            f"largest difference {row.difference:.1e}, {row.latency_ms[1]['artifact']:.3f} ms",
        )
