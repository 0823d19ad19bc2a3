# %% [markdown]
# # Constraints in training, and abstaining with a guarantee
#
# A network is trained under a constraint on its predictions. Then a threshold is chosen below which it abstains,
# so that the share of wrong answers stays below a target with a stated probability.

# %%
# Where the package is missing: from the checkout that holds this notebook, otherwise from PyPI.
import importlib.util
from pathlib import Path

if importlib.util.find_spec("jaxeff") is None:
    source = "../.." if Path("../../pyproject.toml").exists() else "jaxeff"
    %pip install -q {source}

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxeff
from jaxeff import selective
from jaxeff.train import Task
from jaxeff.train.objectives import cross_entropy

# %% [markdown]
# ## Data
#
# Noisy digits: 300 images to train on, and others, which do not overlap, for everything else.

# %%
rng = np.random.default_rng(0)
digits = load_digits()
images, labels = digits.data / 16, digits.target
order = rng.permutation(len(images))
for_training, for_use = order[:300], order[300:]


def draw(rows, count):
    chosen = rng.choice(rows, count)
    noise = 0.25 * rng.normal(size=(count, 64))
    return (images[chosen] + noise).astype(np.float32), labels[chosen]


_, axes = plt.subplots(1, 8, figsize=(9, 1.5))
for axis, image, label in zip(axes, *draw(for_use, 8)):
    axis.imshow(image.reshape(8, 8), cmap="gray")
    axis.set_title(f"a {label}")
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Training under a constraint
#
# The mean entropy of the predictions shall be at least 0.3 of its maximum, so that the network is not surer than need
# be. A multiplier grows while the constraint is violated, and weighs it in the loss. Other constraints (margins,
# losses of the classes, shares of hard examples, cost) are stated in the same way.

# %%
class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x)))


network = Network()
task = Task("classification", num_classes=10, steps_per_epoch=10)


def fit(constraints, batches=600):
    algorithm = jaxeff.Constrained(
        network,
        cross_entropy(),
        optax.adam(3e-3),
        task,
        constraints=constraints,
        decay=0.9,
    )
    state = algorithm.init_state(jax.random.key(0), np.zeros((1, 64), np.float32))
    update = jax.jit(algorithm.update, donate_argnums=0)
    history = []
    for _ in range(batches):
        x, y = draw(for_training, 128)
        batch = {"inputs": x, "labels": y, "weight": np.ones(128, np.float32)}
        state, metrics = update(state, batch)
        history.append(jax.device_get(metrics))
    return {"params": state.params}, history


plain, _ = fit([])
constrained, history = fit([{"name": "entropy", "start": 0.3}])

# %%
_, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
axes[0].plot([float(row["entropy"]) for row in history], label="of the batch")
axes[0].axhline(0.3, color="k", linestyle=":", label="constraint")
axes[0].set(
    xlabel="batch", ylabel="entropy / maximum", title="entropy of the predictions"
)
axes[0].legend()
axes[1].plot([float(row["entropy_multiplier"]) for row in history], color="C1")
axes[1].set(xlabel="batch", ylabel="multiplier", title="multiplier of the constraint")
plt.show()
x, y = draw(for_use, 20_000)
for name, variables in {"plain": plain, "constrained": constrained}.items():
    probabilities = np.array(jax.nn.softmax(network.apply(variables, x)))
    accuracy, confidence = (
        (probabilities.argmax(-1) == y).mean(),
        probabilities.max(-1).mean(),
    )
    print(f"{name:11s} test accuracy {accuracy:.3f}, mean confidence {confidence:.3f}")

# %% [markdown]
# ## A threshold with a guarantee
#
# The network answers where its largest probability reaches a threshold. The threshold is chosen on 600
# labelled examples such that at most 5 % of all inputs get a wrong answer.

# %%
target = 0.05


def answers(x, y):
    probabilities = jax.nn.softmax(network.apply(constrained, x))
    return np.array(probabilities.max(-1)), np.array(probabilities.argmax(-1) != y)


methods = {
    "plug-in": lambda c, w: selective.calibrate.plug_in(c, w, target, kind="joint"),
    "learn then test": lambda c, w: selective.calibrate.learn_then_test(
        c, w, target, kind="joint", delta=0.1
    ),
    "conformal risk control": lambda c, w: selective.calibrate.conformal_risk_control(
        c, w, target
    ),
}
confidence, wrong = answers(*draw(for_use, 600))
new_confidence, new_wrong = answers(x, y)
print(f"without abstaining {new_wrong.mean():.3f} of the answers are wrong\n")
for name, method in methods.items():
    threshold = method(confidence, wrong)
    answered = new_confidence >= threshold.value
    print(
        f"{name}: answers {answered.mean():.2f} of new inputs, {(answered & new_wrong).mean():.4f} wrongly"
    )
    print(f"    guarantee: {threshold.guarantee}")

# %% [markdown]
# A guarantee is a statement about many calibrations. So calibrate 300 times, each time with 600 fresh examples,
# and look at the error of each threshold on 20,000 others:

# %%
errors = {name: [] for name in methods}
for _ in range(300):
    calibration = answers(*draw(for_use, 600))
    for name, method in methods.items():
        answered = new_confidence >= method(*calibration).value
        errors[name].append((answered & new_wrong).mean())
_, axes = plt.subplots(1, 3, figsize=(10, 2.6), sharex=True, sharey=True)
for axis, (name, values) in zip(axes, errors.items()):
    above = np.mean(np.array(values) > target)
    axis.hist(values, np.linspace(0.02, 0.08, 31))
    axis.axvline(target, color="k", linestyle=":")
    axis.set(
        title=f"{name}:\nabove the target in {above:.0%}",
        xlabel="share of wrong answers",
    )
axes[0].set_ylabel("calibrations")
plt.show()

# %% [markdown]
# Learn then test promised to fail in at most 10 % of the calibrations; the plug-in threshold promises nothing
# and fails about every second time. What the promise costs is coverage:

# %%
order = np.argsort(-new_confidence)
share = np.arange(1, len(order) + 1) / len(order)
plt.plot(share, np.cumsum(new_wrong[order]) / len(order))
for color, (name, method) in zip(("C1", "C2", "C3"), methods.items()):
    answered = (new_confidence >= method(confidence, wrong).value).mean()
    plt.axvline(answered, color=color, linestyle="--", label=name)
plt.axhline(target, color="k", linestyle=":", label="target")
plt.xlabel("share of inputs answered")
plt.ylabel("share answered wrongly")
plt.legend()
plt.show()
