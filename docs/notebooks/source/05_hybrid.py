# %% [markdown]
# # Two networks make a hybrid
#
# A small base answers what it can; an expert gets the rest. The threshold is chosen by coverage, by
# accuracy or by milliseconds measured on this device.

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
import matplotlib.pyplot as plt
import numpy as np

import jaxeff
from jaxeff.config_files import load

# %% [markdown]
# Two networks for digits: one is trained here in some seconds, the other comes with the package.

# %%
config = load("configs/images.py:quick")
config.model = {"name": "resnet", "blocks": (1,), "widths": (4,), "axis_name": "data"}
config.train.num_steps, config.train.eval_every = 100, 50
jaxeff.train.run(config, "runs/notebook-base")
base = jaxeff.load("runs/notebook-base")
expert = jaxeff.load("digits-resnet").with_examples()
{name: m.report["metrics"]["test"]["accuracy"] for name, m in (("base", base), ("expert", expert))}

# %%
def examples(split):
    part = expert.dataset.splits[split]
    batch = part.take(np.arange(len(part)))
    return batch["inputs"], batch["labels"]


hybrid = jaxeff.HybridModel(
    (base.model, base.variables), (expert.model, expert.variables), batch_size=64
)
inputs, labels = examples("validation")
hybrid.measure(inputs[:64])
hybrid.calibrate(inputs, labels, coverage=0.8)
test_inputs, test_labels = examples("test")
answers = hybrid.predict(test_inputs)
asked = (answers.answered_by == 1).mean()
print(f"accuracy {(answers.labels == test_labels).mean():.3f}, expert asked {asked:.2f}")

# %% [markdown]
# Accuracy over the share that the base keeps:

# %%
curve = hybrid.curve(test_inputs, test_labels)
plt.plot(curve.coverage, curve.accuracy)
plt.xlabel("share that the base keeps")
plt.ylabel("accuracy")
plt.show()
