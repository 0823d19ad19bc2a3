# %% [markdown]
# # Abstaining with a guarantee
#
# A classifier answers where it is sure. The threshold is chosen on a calibration split so that the
# share of wrong answers stays below a target with a stated probability.

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
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from jaxeff import selective

# %% [markdown]
# Any classifier will do: here a linear one on noisy digits. One part trains it, one chooses thresholds, one
# judges them.

# %%
rng = np.random.default_rng(0)
digits = load_digits()
x = np.tile(digits.data, (4, 1)) + rng.normal(size=(4 * 1797, 64)) * 6
y = np.tile(digits.target, 4)
order = rng.permutation(len(x))
fit, calibrate, test = np.split(order, [2000, 4600])
model = LogisticRegression(max_iter=200).fit(x[fit], y[fit])


def answers(rows):
    probabilities = model.predict_proba(x[rows])
    return probabilities.max(1), probabilities.argmax(1) == y[rows]


confidence, right = answers(calibrate)
test_confidence, test_right = answers(test)
print("accuracy without abstaining:", test_right.mean().round(3))

# %%
target = 0.05
for method in (
    selective.calibrate.plug_in(confidence, ~right, target, kind="joint"),
    selective.calibrate.learn_then_test(confidence, ~right, target, kind="joint", delta=0.1),
    selective.calibrate.conformal_risk_control(confidence, ~right, target),
):
    accepted = test_confidence >= method.value
    wrong = (accepted & ~test_right).mean()
    print(f"{method.method}: answers {accepted.mean():.2f}, wrong answers {wrong:.4f}")
    print("   ", method.guarantee)

# %% [markdown]
# Error of the accepted against the share accepted, with the threshold that keeps its promise:

# %%
order = np.argsort(-test_confidence)
coverage = np.arange(1, len(test) + 1) / len(test)
risk = np.cumsum(~test_right[order]) / np.arange(1, len(test) + 1)
chosen = selective.calibrate.learn_then_test(confidence, ~right, target, kind="joint", delta=0.1)
plt.plot(coverage[50:], risk[50:])
plt.axvline((test_confidence >= chosen.value).mean(), color="k", linestyle=":", label="learn then test")
plt.xlabel("share answered")
plt.ylabel("error of these")
plt.legend()
plt.show()
