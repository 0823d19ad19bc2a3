# %% [markdown]
# # Poses: an autoencoder that turns its inputs
#
# The affine autoencoder searches, for every image, the pose in which it is explained best.

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

import jaxeff
from jaxeff.config_files import load

# %% [markdown]
# Rotations of a picture, as the search tries them:

# %%
from sklearn.datasets import load_digits

from jaxeff import affine

image = jnp.asarray(load_digits().images[3] / 16, jnp.float32)
image = jax.image.resize(image, (24, 24), "cubic")[..., None]
rotation = affine.POSES.build({"name": "rotation"})
angles = np.linspace(-2.5, 2.5, 5)
transforms = jax.vmap(rotation.transform)(jnp.asarray(angles)[:, None])
turned = affine.resample(jnp.repeat(image[None], len(angles), 0), transforms)
_, axes = plt.subplots(1, 6, figsize=(10, 2))
for axis, picture, title in zip(axes, [image, *turned], ["upright", *map("{:.2f}".format, angles)]):
    axis.imshow(picture[..., 0], cmap="gray")
    axis.set_title(title)
    axis.axis("off")
plt.show()

# %% [markdown]
# A quick training on turned digits; the run draws reconstructions and poses.

# %%
config = load("configs/avae.py:quick")
report = jaxeff.train.run(config, "runs/notebook-poses")
report["metrics"]["test"]

# %%
from pathlib import Path

for path in sorted(Path("runs/notebook-poses").rglob("*.png"))[:3]:
    plt.figure(figsize=(8, 5))
    plt.imshow(plt.imread(path))
    plt.title(path.stem)
    plt.axis("off")
    plt.show()
