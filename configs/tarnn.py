"""Time-adaptive RNN (TARNN) on images that are read as sequences; by default digits, by pixel.

Kag, Saligrama, "Time Adaptive Recurrent Neural Network", CVPR 2021. The settings are this package's
own, chosen on validation data; the paper's are not known in full.

    python -m jaxeff.main --config=configs/tarnn.py                  # 64 steps of 1, a minute
    python -m jaxeff.main --config=configs/tarnn.py:rows             # 8 steps of 8
    python -m jaxeff.main --config=configs/tarnn.py:vowels           # speech, 7 to 29 steps of 12
    python -m jaxeff.main --config=configs/tarnn.py:fashion_pixels   # 784 steps of 1
    python -m jaxeff.main --config=configs/tarnn.py:pixels,variant=outside,quick

The argument is a comma-separated list of a setting, ``variant=inside|outside`` (where the gate
stands) and ``quick`` for a run of a few seconds. The report shows the time constants over a test
example: where the network listens, and where it holds its state. To train by forward propagation
through time see ``configs/fptt.py``.
"""

from typing import Any

from jaxeff.config import Config, base_config, split_argument

SETTINGS: dict[str, dict[str, Any]] = {
    "rows": {
        "data": {"name": "digits", "view": "rows"},
        "features": 64,
        "step_size": 0.5,
        "train": {"batch_size": 64, "num_steps": 1500, "eval_every": 100},
    },
    "pixels": {
        "data": {"name": "digits", "view": "pixels"},
        "features": 64,
        "step_size": 0.3,
        "train": {"batch_size": 64, "num_steps": 2000, "eval_every": 100},
    },
    "vowels": {
        "data": {"name": "japanese_vowels"},
        "features": 64,
        "step_size": 0.3,
        "train": {"batch_size": 32, "num_steps": 400, "eval_every": 50},
    },
    "fashion_pixels": {
        "data": {"name": "fashion_mnist", "view": "pixels"},
        "features": 128,
        "step_size": 0.1,
        "train": {"batch_size": 128, "num_steps": 8000, "eval_every": 500},
    },
}


def get_config(arg: str = "") -> Config:
    """Returns the config of a setting; see the file's docstring for the argument."""
    setting, options = split_argument(arg, list(SETTINGS), "pixels", ["quick", "variant"])
    chosen = SETTINGS[setting]

    config = base_config()
    config.name = "tarnn" if setting == "pixels" else f"tarnn_{setting}"
    config.data.update(chosen["data"])
    config.model = {
        "name": "sequence",
        "cell": {
            "name": "tarnn",
            "features": chosen["features"],
            "variant": options.get("variant", "inside"),
            "num_inner_steps": 1,
            "activation": "tanh",
            "step_size": chosen["step_size"],
            "step_size_mode": "per_inner_step",
            "gate_bias": 0.0,
        },
        "num_layers": 1,
        "driver": "scan",
        "dropout": 0.2,
    }
    config.optim.update(
        {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.1, "clip_norm": 1.0}
    )
    config.train.update({**chosen["train"], "log_every": 50})
    if "quick" in options:
        config.train.update({"num_steps": 200, "eval_every": 100})
    config.checkpoint.every = 500
    return config
