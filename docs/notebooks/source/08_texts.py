# %% [markdown]
# # A text encoder under a latency
#
# Shorter sequences between the layers make an encoder faster. A table of measured parts predicts what every
# variant takes on this device.

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
from jaxeff.models import MODELS
from jaxeff.models.encoder_space import EncoderSpace
from jaxeff.search import latency, measure

# %%
shape = {"layers": 4, "width": 128, "heads": 2, "hidden": 512, "vocabulary": 1000}


def network(plan):
    cuts = tuple(plan.cuts)
    spec = {"name": "encoder", "shape": shape, "depth": plan.depth, "cuts": cuts}
    return MODELS.build(spec, num_outputs=2)


space = EncoderSpace(depths=(2, 3, 4), factors=(2, 4), max_cuts=2)
plans = list(space.plans)
len(plans), plans[-1]

# %%
batch, length = 8, 64
times = measure.time_parts(network, plans, plans[:2], batch, length, rounds=3)
table = measure.table(times, batch, length)
predicted = {plan: table(plan) for plan in plans}
fastest = sorted(predicted, key=predicted.get)[:3]
for plan in fastest:
    print(plan, f"{predicted[plan]:.2f} ms")

# %%
plt.scatter([plan.depth for plan in plans], list(predicted.values()), s=8)
plt.xlabel("layers")
plt.ylabel("predicted milliseconds")
plt.show()

# %% [markdown]
# A trained one: found by search, trained on verses, and shipped with the package.

# %%
trained = jaxeff.load("verses-bottleneck")
answers = trained.predict(["In the beginning God created the heaven and the earth."])
print(answers.names, trained.report["metrics"]["test"])
