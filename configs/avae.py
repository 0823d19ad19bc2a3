"""Affine variational autoencoders of rotated images, and what they are compared with.

    python -m jaxeff.main --config=configs/avae.py                          # digits, 2 minutes
    python -m jaxeff.main --config=configs/avae.py:digits,model=vae
    python -m jaxeff.main --config=configs/avae.py:mnist_5k,model=semi_amortised

The argument is a comma-separated list of a setting, ``model=NAME`` of `MODELS`, ``latents=L``,
``full`` and ``quick``. ``full`` searches longer. Models of one setting have codes of one length:
the AVAE's L numbers and its pose against the VAE's L + 1. ``mnist_2020`` is the published training
of Bidart's code (commit of the final plots): 40 epochs, 32 starts of which 8 are refined by 15
steps of Adam.
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

SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {
        "data": {"base": "digits", "size": 24, "scale": 2.0},
        "latents": 6,
        "steps": 300,
        "batch": 64,
    },
    "digits_shifted": {
        "data": {"base": "digits", "size": 24, "scale": 2.0, "translation": 0.15},
        "latents": 6,
        "steps": 300,
        "batch": 64,
    },
    "mnist_5k": {
        "data": {"base": "mnist_5k", "size": 40, "scale": 1.0},
        "latents": 6,
        "steps": 1500,
        "batch": 64,
    },
    "fashion": {
        "data": {"base": "fashion_mnist", "size": 40, "scale": 1.0, "test_examples": 1000},
        "latents": 6,
        "steps": 3000,
        "batch": 64,
    },
    "mnist_2020": {
        "data": {"base": "mnist", "size": 40, "scale": 1.0},
        "latents": 6,
        "steps": 40 * 54_000 // 128,
        "batch": 128,
    },
}

#: The search in training: few drawn starts and the pose found last time, or the head's proposals.
#: The best one's drawing is moved onto the image, which costs a pass, not two for every step.
FEW = {"starts": 4, "keep": 1, "method": "align", "steps": 3}
#: The search at evaluation.
THOROUGH = {"starts": 24, "spread": True, "keep": 2, "method": "gauss_newton", "steps": 2}
#: What ``full`` changes in them.
FULL: dict[str, dict[str, Any]] = {
    "search": {"method": "gauss_newton", "steps": 2},
    "evaluation": {"starts": 36, "keep": 3, "steps": 4},
}

MODELS: dict[str, dict[str, Any]] = {
    # Drawn starts alone, training examples in a new pose every time.
    "avae": {"search": {**FEW, "starts": 8}},
    # Training examples stay in their pose, and what was found for them is a start the next time.
    "avae_cached": {"search": FEW, "cache": True, "redraw": False},
    # A head proposes poses; two that are apart are aligned with their codes, the whole inference.
    "semi_amortised": {
        "search": {**FEW, "starts": 6, "proposals": 2},
        "evaluation": {
            **{"starts": 0, "proposals": 2, "apart": 0.5, "keep": 2},
            **{"method": "align", "steps": 2, "reuse_code": True},
        },
        "proposals": 8,
    },
    # A decoder of coordinates paints in place: no second resampling.
    "coordinates": {"search": {**FEW, "starts": 8}, "decoder": "coordinates"},
    "vae": {},  # with a code as long as the AVAE's with its pose
    "vae_upright": {"rotation": 0.0},  # trained and tested without rotation
    "stn": {"proposals": 1},  # one pose, amortised and trained through the loss
}


def _search(config: Config, chosen: dict[str, Any], published: bool, full: bool) -> None:
    config.algorithm.name = "avae"
    if published:
        config.algorithm.search = {"like": "2020"}
        config.algorithm.evaluation = {"like": "2020"}
        return
    more: dict[str, dict[str, Any]] = FULL if full else {"search": {}, "evaluation": {}}
    config.algorithm.search = chosen["search"] | more["search"]
    config.algorithm.evaluation = chosen.get("evaluation", THOROUGH | more["evaluation"])
    config.algorithm.cache = chosen.get("cache", False)


def get_config(arg: str = "") -> Config:
    """Returns the config of a setting; see the file's docstring for the argument."""
    switches = ("quick", "full")
    options = [*switches, "model", "latents"]
    setting, choices = split_argument(arg, list(SETTINGS), "digits", options, switches)
    model = chosen(choices, "model", MODELS, "avae")
    fields, values = MODELS[model], SETTINGS[setting]
    translation = values["data"].get("translation", 0.0)
    freedom = 3 if translation else 1
    latents = whole_number(choices, "latents", values["latents"], least=1)

    config = base_config()
    config.name = f"{model}_{setting}"
    config.data.name = "posed_images"
    config.data.update({"translation": 0.0, "test_examples": 0, **values["data"]})
    config.data.rotation = fields.get("rotation", 180.0)
    config.data.redraw = fields.get("redraw", True)
    config.model.name = "autoencoder"
    config.model.axis_name = "data"
    config.model.size = values["data"]["size"]
    config.model.latents = latents
    if model.startswith("vae"):
        config.model.latents += freedom
    else:
        config.model.pose = {"name": "rotation", "translation": translation}
        config.model.proposals = fields.get("proposals", 0)
        config.model.decoder = fields.get("decoder", "convolutional")
    if "search" in fields:
        _search(config, fields, setting == "mnist_2020", "full" in choices)
    config.optim.weight_decay = 5e-4 if setting == "mnist_2020" else 0.0
    config.optim.decayed = "all"
    if setting == "mnist_2020":
        config.model.sampled = False
        config.optim.schedule_name = "step"
        config.optim.boundaries = (1 / 3, 2 / 3)
        config.optim.decay_factor = 0.2
    else:
        config.optim.learning_rate = 2e-3
        config.optim.warmup_steps = 20
    config.train.batch_size = values["batch"]
    config.train.num_steps = values["steps"]
    config.train.log_every = 50
    evaluate_at_shares(config, 1, 2)
    config.eval.batch_size = 128
    config.analyses = [{"name": "reconstructions"}, {"name": "loss_by_angle", "images": 64}]
    if not model.startswith("vae"):
        config.analyses.append({"name": "recovered_angles", "images": 300})
    if "quick" in choices:
        config.train.num_steps = 40
        evaluate_at_shares(config, 1, 1)
    return config
