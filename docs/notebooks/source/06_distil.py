# %% [markdown]
# # Distillation: classic and selective
#
# A small student learns from a large teacher's answers, where there are few labels. Then a student that is
# too small for its task is helped by a gate while it trains.

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

import jaxeff
from jaxeff import distill

# %% [markdown]
# ## Classic: answers instead of labels
#
# The teacher comes with the package and knows the digits. Of the 1,350 training images only 50 have labels, but
# the teacher can be asked about all of them.

# %%
teacher = jaxeff.load("digits-resnet").with_examples()


def examples(split):
    part = teacher.dataset.splits[split]
    batch = part.take(np.arange(len(part)))
    return batch["inputs"], batch["labels"]


x, y = examples("train")
x_test, y_test = examples("test")
answers = np.array(teacher.model.apply(teacher.variables, x))  # logits, made once
is_labelled = np.arange(len(x)) < 50
right = teacher.model.apply(teacher.variables, x_test).argmax(-1) == y_test
print(f"{len(x):,} training images, {is_labelled.sum()} with labels")
print(f"test accuracy of the teacher {right.mean():.3f}")

# %%
class Student(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        return nn.Dense(10)(nn.relu(nn.Dense(16)(x.reshape(len(x), -1))))


student, optimizer = Student(), optax.adam(3e-3)


def cross_entropy(logits, row):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, row["label"])
    return jnp.sum(losses * row["is_labelled"]) / jnp.maximum(
        row["is_labelled"].sum(), 1
    )


def from_teacher(logits, row):
    return distill.kd(logits, row["answers"], temperature=4.0).mean()


def fit(loss, rows, steps=400):
    params = student.init(jax.random.key(0), x[:1])["params"]
    state = optimizer.init(params)
    data = {"x": x, "label": y, "is_labelled": is_labelled, "answers": answers}

    @jax.jit
    def step(params, state, row):
        gradient = jax.grad(
            lambda p: loss(student.apply({"params": p}, row["x"]), row)
        )(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    accuracy = jax.jit(
        lambda p: (student.apply({"params": p}, x_test).argmax(-1) == y_test).mean()
    )
    rng, curve = np.random.default_rng(0), []
    for number in range(1, steps + 1):
        chosen = rng.choice(rows, 64)
        params, state = step(
            params, state, {name: part[chosen] for name, part in data.items()}
        )
        if number % 25 == 0:
            curve.append((number, float(accuracy(params))))
    return np.array(curve)


everything = np.arange(len(x))
curves = {
    "50 labels": fit(cross_entropy, np.flatnonzero(is_labelled)),
    "the teacher's answers": fit(from_teacher, everything),
    "50 labels and answers": fit(
        lambda z, row: cross_entropy(z, row) + from_teacher(z, row), everything
    ),
}
for name, curve in curves.items():
    print(f"{name}: test accuracy {curve[-1, 1]:.3f}")
    plt.plot(*curve.T, label=name)
plt.xlabel("update")
plt.ylabel("test accuracy of the student")
plt.legend()
plt.show()

# %% [markdown]
# The teacher's answers stand in for the labels that are missing. With labels for all images there is little to
# gain from them here, as the results pages say.
#
# ## Selective: a gate for what is too hard
#
# DiSK lifts the student's answer on the teacher's top classes by a gate, so that examples beyond the
# student's capacity do not dominate its training. Two examples: one that the student has right already, and one
# that it has wrong. The gate raises the loss of the first a little and lowers that of the second.

# %%
hard_and_easy = jnp.array([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]])  # the student's logits
sure = jnp.array([[4.0, 0.0, 0.0], [5.0, 0.0, 0.0]])  # the teacher's
labels = jnp.array([0, 0])
gates = np.linspace(0, 2, 50)
disk = distill.Disk()
losses = np.array(
    [disk.loss(hard_and_easy, sure, labels, jnp.full(2, gate)) for gate in gates]
)
plt.plot(gates, losses, label=["answered rightly", "answered wrongly"])
plt.xlabel("gate")
plt.ylabel("loss of the student with help")
plt.legend()
plt.show()

# %% [markdown]
# In training the gate has a budget, so it goes where help is needed most. One run trains a teacher, a first student of
# three hidden units on the labels, and then that student with its gate:

# %%
%%capture
from jaxeff.config_files import load

config = load("configs/disk.py:digits,method=disk")
for each in (config, *config.prerequisites.values()):
    each.train.num_steps, each.train.eval_every = 260, 130
report = jaxeff.train.run(config, "runs/disk")

# %%
for name, folder in {
    "teacher, 64 units": "runs/disk/teacher",
    "student on labels, 3 units": "runs/disk/student",
    "the same, then with its gate": "runs/disk",
}.items():
    accuracy = jaxeff.load(folder).report["metrics"]["test"]["accuracy"]
    print(f"{name:28s} test accuracy {accuracy:.3f}")

# %% [markdown]
# The last line has had twice as many passes over the data as the one before, so this is no comparison of methods; the
# results pages give all methods the same passes, with several seeds, and find them close together here.
