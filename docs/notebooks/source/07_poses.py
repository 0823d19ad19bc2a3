# %% [markdown]
# # Poses: an autoencoder that turns its inputs
#
# The affine autoencoder searches for every image the pose in which it is explained best. What is seen and how
# it is turned then are two separate parts of its code.

# %%
# Where the package is missing: from the checkout that holds this notebook, otherwise from PyPI.
import importlib.util
from pathlib import Path

if importlib.util.find_spec("jaxeff") is None:
    source = "../.." if Path("../../pyproject.toml").exists() else "jaxeff"
    %pip install -q {source}

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxeff
from jaxeff import affine


def show(rows, size=0.7):
    """Draws rows of images, each with its name."""
    count = max(len(images) for images in rows.values())
    _, axes = plt.subplots(
        len(rows), count, figsize=(count * size, len(rows) * size), squeeze=False
    )
    for line, (name, images) in zip(axes, rows.items()):
        for axis in line:
            axis.set(xticks=[], yticks=[])
        for axis, image in zip(line, images):
            axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    plt.show()

# %% [markdown]
# ## One digit in many poses
#
# A digit, turned by known angles:

# %%
trained = jaxeff.load("digits-avae").with_examples()
size = trained.dataset.input_shape[0]
from sklearn.datasets import load_digits

image = jax.image.resize(jnp.asarray(load_digits().images[3] / 16), (16, 16), "linear")
image = jnp.pad(image, (size - 16) // 2)[..., None]
rotation = affine.POSES.build({"name": "rotation"})
angles = np.linspace(-np.pi, np.pi, 9)[:-1]
turned = affine.resample(
    jnp.repeat(image[None], len(angles), 0),
    rotation.transform(jnp.asarray(angles)[:, None]),
)
show({"turned": turned})

# %% [markdown]
# ## The search
#
# The trained model comes with the package. Its algorithm tries 24 angles for each image, refines the best two, and
# keeps the one whose reconstruction is closest. Turned by the angle that was found, all copies look alike.

# %%
algorithm = trained.saved.algorithm
result = jax.jit(algorithm.searched)(trained.variables, turned)
upright = affine.resample(turned, rotation.transform(result.pose))
outputs = trained.model.apply(trained.variables, turned, result.pose)
show(
    {
        "input": turned,
        "in the pose found": upright,
        "reconstruction": outputs.reconstruction,
    }
)

# %% [markdown]
# The angle that was found undoes the one that was applied, up to a constant (the orientation in which the model
# keeps this digit):

# %%
total = (np.asarray(result.pose[:, 0]) + angles) % (2 * np.pi)
mean = np.angle(np.exp(1j * total).mean())
spread = np.degrees(np.angle(np.exp(1j * (total - mean))))
print(f"deviation from one orientation: at most {np.abs(spread).max():.0f} degrees")
plt.figure(figsize=(6, 3))
plt.bar(np.degrees(angles).round(), spread, 20)
plt.xlabel("applied angle in degrees")
plt.ylabel("found + applied angle,\ndeviation from its mean in degrees")
plt.show()

# %% [markdown]
# ## Test images
#
# Each was turned at random; the model has not seen them.

# %%
test = trained.dataset.splits["test"].take(np.arange(8))["inputs"]
result = jax.jit(algorithm.searched)(trained.variables, test)
outputs = trained.model.apply(trained.variables, test, result.pose)
upright = affine.resample(test, rotation.transform(result.pose))
show(
    {
        "input": test,
        "in the pose found": upright,
        "reconstruction": outputs.reconstruction,
    }
)

# %% [markdown]
# ## The loss over the angle
#
# Why a search, and not a step downhill from upright? The loss of one image over the angle has several minima:

# %%
grid = np.linspace(-np.pi, np.pi, 91)


def loss(angle, images):
    outputs = trained.model.apply(
        trained.variables, images, jnp.full((len(images), 1), angle)
    )
    return algorithm.objective(outputs, {"inputs": images})["loss"]


plt.figure(figsize=(6, 3))
losses = jax.jit(jax.vmap(loss, (0, None)))(jnp.asarray(grid), test[:3])
plt.plot(np.degrees(grid), losses, label=["image 0", "image 1", "image 2"])
plt.xlabel("angle in degrees")
plt.ylabel("loss (reconstruction and code)")
plt.legend()
plt.show()

# %% [markdown]
# ## Training your own
#
# `python -m jaxeff.main --config=configs/avae.py` trains such a model on turned digits in some minutes and draws
# pictures like these; `configs/avae3d.py` does it for volumes.
