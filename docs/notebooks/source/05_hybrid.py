# %% [markdown]
# # Two networks make a hybrid
#
# A small network (the base) answers what it can; a large one (the expert) gets the rest. The threshold between
# them is chosen by coverage, or by milliseconds measured on this device.

# %%
# Where the package is missing: from the checkout that holds this notebook, otherwise from PyPI.
import importlib.util
from pathlib import Path

if importlib.util.find_spec("jaxeff") is None:
    source = "../.." if Path("../../pyproject.toml").exists() else "jaxeff"
    %pip install -q {source}

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxeff
from jaxeff import bench
from jaxeff.config_files import load

# %% [markdown]
# ## Two networks
#
# The expert is a ResNet that comes with the package. The base, a perceptron of 32 units, is
# trained here.

# %%
%%capture
config = load("configs/images.py")
config.model = {"name": "mlp", "hidden": (32,)}
config.train.num_steps, config.train.eval_every = 200, 100
jaxeff.train.run(config, "runs/base")

# %%
base = jaxeff.load("runs/base")
expert = jaxeff.load("digits-resnet").with_examples()


def examples(split):
    part = expert.dataset.splits[split]
    batch = part.take(np.arange(len(part)))
    return batch["inputs"], batch["labels"]


calibration, calibration_labels = examples("validation")
inputs, labels = examples("test")
for name, each in (("base", base), ("expert", expert)):
    accuracy = (each.model.apply(each.variables, inputs).argmax(-1) == labels).mean()
    macs = bench.macs_per_example(each.model.apply, each.variables, inputs[:1])
    print(
        f"{name:6s}: test accuracy {accuracy:.3f}, {macs / 1e3:.0f} thousand multiply-adds"
    )

# %% [markdown]
# ## The hybrid
#
# `measure` times base and expert on batches of this size; `calibrate` chooses the threshold on the validation
# images, here such that the base keeps 80 % of them. The score is the base's own confidence.

# %%
hybrid = jaxeff.HybridModel(
    (base.model, base.variables), (expert.model, expert.variables), batch_size=64
)
cost = hybrid.measure(inputs[:64])
hybrid.calibrate(calibration, calibration_labels, coverage=0.8)
answers = hybrid.predict(inputs)
print(f"test accuracy {(answers.labels == labels).mean():.3f}")
print(
    f"the base keeps {answers.coverage:.2f}, {answers.macs / 1e3:.0f} thousand multiply-adds per image"
)

# %% [markdown]
# Accuracy by the share that the base keeps, from "the expert answers all" on the left to "the base answers
# all" on the right, and by the time per image that follows from the measurement:

# %%
curve = hybrid.curve(inputs, labels)
shares = np.linspace(0, 1, 41)
_, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
axes[0].plot(curve.coverage, curve.accuracy)
axes[0].set(xlabel="share that the base keeps", ylabel="test accuracy")
axes[1].plot(
    [1e3 * cost.milliseconds(share) for share in shares], curve.accuracy_at(shares)
)
axes[1].set(xlabel="microseconds per image, predicted")
plt.show()

# %% [markdown]
# ## By milliseconds
#
# With a budget of time instead, the threshold with the best calibration accuracy within it is taken. Whole
# calls are then timed, in turns, and compared with the prediction.

# %%
cheapest, dearest = cost.milliseconds(1.0), cost.milliseconds(0.0)
budget = (cheapest + dearest) / 2
hybrid.calibrate(calibration, calibration_labels, budget_ms=budget)
answers = hybrid.predict(inputs[:256])
alone = jax.jit(lambda x: expert.model.apply(expert.variables, x).argmax(-1))
times = bench.interleaved(
    {
        "hybrid": lambda: hybrid.predict(inputs[:256]).labels,
        "expert alone": lambda: np.concatenate(
            [alone(inputs[i : i + 64]) for i in range(0, 256, 64)]
        ),
    },
    rounds=10,
    calls_per_round=3,
)
print(f"budget {1e3 * budget:.1f} microseconds per image")
print(f"test accuracy {(answers.labels == labels[:256]).mean():.3f}")
print(
    f"the base keeps {answers.coverage:.2f}; predicted {1e3 * answers.milliseconds:.1f} microseconds"
)
for name, time in times.items():
    print(
        f"{name:12s}: measured {1e3 * time.median_ms / 256:.1f} microseconds per image"
    )
