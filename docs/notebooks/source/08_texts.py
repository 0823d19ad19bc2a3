# %% [markdown]
# # A text encoder under a latency
#
# Shorter sequences between the layers make an encoder faster. Which layers stay, and behind which of them
# sequences are cut, is chosen such that the network keeps within a time on this device.

# %%
# Where the package is missing: from the checkout that holds this notebook, otherwise from PyPI.
import importlib.util
from pathlib import Path

if importlib.util.find_spec("jaxeff") is None:
    source = "../..[text]" if Path("../../pyproject.toml").exists() else "jaxeff[text]"
    %pip install -q {source}

# %%
import matplotlib.pyplot as plt
import numpy as np

import jaxeff
from jaxeff import bench
from jaxeff.models import MODELS
from jaxeff.models.encoder_space import EncoderSpace, stratified
from jaxeff.search import measure

# %% [markdown]
# ## The candidates
#
# An encoder of four layers. A plan is a number of layers and a list of cuts: `(2, 4)` makes one token of four
# behind layer 2.

# %%
shape = {"layers": 4, "width": 128, "heads": 2, "hidden": 512, "vocabulary": 1000}


def network(plan):
    spec = {"name": "encoder", "shape": shape, "depth": plan.depth, "cuts": plan.cuts}
    return MODELS.build(spec, num_outputs=2)


space = EncoderSpace(depths=(2, 3, 4), factors=(2, 4), max_cuts=2)
print(len(space), "plans, among them:")
for plan in (space.full, space.plan(4, [(2, 4)]), space.smallest):
    print(
        "  ",
        plan.depth,
        "layers, cuts",
        plan.cuts,
        "- tokens in each layer",
        [queries for queries, _ in plan.lengths(64)],
    )

# %% [markdown]
# ## A table of measured parts
#
# Timing every plan would take long. Layers and cuts are timed instead, by the number of tokens they see, and two
# whole networks, which give what all networks have in common.

# %%
batch, length = 16, 64
times = measure.time_parts(
    network, space.plans, [space.full, space.smallest], batch, length, rounds=5
)
table = measure.table(times, batch, length)
for (tokens, _), milliseconds in sorted(table.layers.items()):
    print(f"a layer of {tokens:2d} tokens: {milliseconds:.2f} ms")

# %% [markdown]
# ## Within a budget
#
# Two fifths of the full network's time may be spent. Before anything is trained, the multiply-adds stand in for accuracy:
# the plan that computes most within the budget. (A search on a trained supernet takes the accuracy itself,
# see `configs/bottleneck.py`.)

# %%
predicted = {plan: table(plan) for plan in space.plans}
macs = {
    plan: plan.macs(network(plan).encoder.shape, length) / 1e6 for plan in space.plans
}
budget = 0.4 * predicted[space.full]
chosen = max((plan for plan in space.plans if predicted[plan] <= budget), key=macs.get)
print(f"full: {predicted[space.full]:.2f} ms, budget {budget:.2f} ms")
print(
    f"chosen: {chosen.depth} layers, cuts {chosen.cuts}, predicted {predicted[chosen]:.2f} ms"
)

# %% [markdown]
# Does the table tell the truth? Ten plans and the chosen one, timed as whole networks in turns:

# %%
sample = stratified(space.plans, predicted.get, 10, seed=0) + [chosen]
calls = {
    str(i): measure.network_call(network(plan), batch, length)
    for i, plan in enumerate(sample)
}
measured = [
    time.median_ms
    for time in bench.interleaved(calls, rounds=5, calls_per_round=3).values()
]
expected = [predicted[plan] for plan in sample]
_, axes = plt.subplots(1, 2, figsize=(10, 3.4))
axes[0].scatter(predicted.values(), macs.values(), s=10, label="all plans")
axes[0].scatter(predicted[chosen], macs[chosen], color="C3", label="chosen")
axes[0].axvline(budget, color="k", linestyle=":", label="budget")
axes[0].set(xlabel="predicted ms per batch", ylabel="million multiply-adds per text")
axes[0].legend()
axes[1].scatter(expected[:-1], measured[:-1], label="some plans")
axes[1].scatter(expected[-1], measured[-1], color="C3", label="chosen")
axes[1].axline((0, 0), slope=1, color="0.7")
axes[1].set(
    xlabel="predicted ms per batch", ylabel="measured ms per batch", xlim=0, ylim=0
)
axes[1].legend()
plt.show()
print(f"chosen: predicted {expected[-1]:.2f} ms, measured {measured[-1]:.2f} ms")

# %% [markdown]
# ## A trained one
#
# Found by a search on a supernet, trained on verses, and part of the package. It says from which part of the
# Bible a verse is, and is right for seven verses of ten.

# %%
trained = jaxeff.load("verses-bottleneck")
plan = trained.model.encoder.plan
print(
    f"{plan.depth} layers, cuts {plan.cuts}; test accuracy {trained.report['metrics']['test']['accuracy']:.3f}"
)
verses = [
    "In the beginning God created the heaven and the earth.",
    "The LORD is my shepherd; I shall not want.",
    "Paul, an apostle of Jesus Christ by the will of God, to the saints which are at Ephesus.",
]
for verse, name in zip(verses, trained.predict(verses).names):
    print(f"{name:17s} {verse}")
