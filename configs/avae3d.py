"""Affine variational autoencoders of voxels in random orientation, and what they are compared with.

    python -m jaxeff.main --config=configs/avae3d.py                        # extruded digits
    python -m jaxeff.main --config=configs/avae3d.py:full                   # five times as long
    python -m jaxeff.main --config=configs/avae3d.py:digits,model=vae
    python -m jaxeff.main --config=configs/avae3d.py:sofa --config.data.dir=/path/to/ModelNet10

The argument is a comma-separated list of a setting, ``model=NAME`` of `MODELS`, ``latents=L``,
``full`` and ``quick``. ``full`` is of the digits: three times the steps and longer searches. The
plain VAE has a code of L + 3 numbers, as many as the AVAE's with its pose. ``sofa`` and
``modelnet10`` are the published training on ModelNet10: voxels of 32 in a cube of 48, the loss of
the code with variance 1, Adam at 5e-4, 100 epochs, 32 starts of which 8 are refined.
"""

from typing import Any

from jaxeff.config import (
    Config,
    base_config,
    chosen,
    evaluate_at_shares,
    split_argument,
    whole_number,
)

OBJECTS = {"sofa": 612, "modelnet10": 3592}  # training examples left by the validation split
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"latents": 8, "steps": 400, "batch": 16, "every": 200},
    "sofa": {"latents": 16, "steps": 100 * OBJECTS["sofa"] // 14, "batch": 14, "every": 400},
    "modelnet10": {
        "latents": 16,
        "steps": 100 * OBJECTS["modelnet10"] // 14,
        "batch": 14,
        "every": 2500,
    },
}

#: The search in training, which also starts from the pose found last time.
FEW = {"starts": 2, "keep": 1, "method": "align", "steps": 2}
#: The search at evaluation. An alignment differentiates the placing alone, not the network.
THOROUGH = {"starts": 16, "keep": 3, "method": "align", "steps": 3}
#: What ``full`` changes.
FULL = {
    "search": {"starts": 4},
    "evaluation": {"starts": 24, "keep": 2, "method": "gauss_newton", "steps": 2},
    "steps": 1200,
    "every": 400,
}
EXHAUSTIVE = {"like": "exhaustive"}
QUATERNION, CUBE = {"name": "quaternion"}, {"name": "cube_rotations"}

MODELS: dict[str, dict[str, Any]] = {
    "avae": {"pose": QUATERNION, "search": FEW, "evaluation": THOROUGH, "cache": True},
    # Data turned by the 24 rotations of the cube, all of which are tried.
    "avae_cube": {
        "pose": CUBE,
        "search": EXHAUSTIVE,
        "evaluation": EXHAUSTIVE,
        "rotation": "cube",
    },
    "vae": {},
    "vae_cube": {"rotation": "cube"},
}
FREEDOM = 3


def _full(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns a model's fields with longer searches, where it has some."""
    searches = ("search", "evaluation") if fields.get("search") == FEW else ()
    return fields | {name: fields[name] | FULL[name] for name in searches}


def get_config(arg: str = "") -> Config:
    """Returns the config of a setting; see the file's docstring for the argument."""
    switches = ("quick", "full")
    options = [*switches, "model", "latents"]
    setting, choices = split_argument(arg, list(SETTINGS), "digits", options, switches)
    model = chosen(choices, "model", MODELS, "avae")
    fields, values = MODELS[model], SETTINGS[setting]
    if "full" in choices and setting == "digits":
        fields, values = _full(fields), values | {name: FULL[name] for name in ("steps", "every")}
    latents = whole_number(choices, "latents", values["latents"], least=1)

    config = base_config()
    config.name = f"{model}_{setting}_voxels"
    published = setting != "digits"
    config.data.name = "modelnet10" if published else "digit_voxels"
    if setting == "sofa":
        config.data.classes = ("sofa",)
    config.data.size = 48 if published else 16
    config.data.rotation = fields.get("rotation", "euler" if published else "uniform")
    config.data.redraw = published
    config.model.name = "voxel_autoencoder"
    config.model.axis_name = "data"
    config.model.size = config.data.size
    config.model.latents = latents
    if "pose" in fields:
        config.model.pose = {"name": "euler"} if published and model == "avae" else fields["pose"]
        config.algorithm.name = "avae"
        searched = published and model == "avae"
        config.algorithm.search = {"like": "2020"} if searched else fields["search"]
        config.algorithm.evaluation = {"like": "2020"} if searched else fields["evaluation"]
        config.algorithm.cache = fields.get("cache", False) and not published
    else:
        config.model.latents += FREEDOM
    config.objective.name = "elbo"
    config.objective.reconstruction = "cross_entropy"
    config.optim.learning_rate = 5e-4 if published else 2e-3
    if published:
        config.optim.schedule_name = "step"
        config.optim.boundaries = (1 / 3, 2 / 3)
        config.optim.decay_factor = 0.2
    config.train.batch_size = values["batch"]
    config.train.num_steps = values["steps"]
    config.train.log_every = 50
    config.train.eval_every = config.checkpoint.every = values["every"]
    config.eval.batch_size = 64
    config.analyses = [{"name": "reconstructions", "images": 8}]
    if "quick" in choices:
        config.train.num_steps = 20
        evaluate_at_shares(config, 1, 1)
    return config
