"""Incremental RNN on images that are read as sequences; by default digits, row by row.

Kag, Zhang, Saligrama, "RNNs Incrementally Evolving on an Equilibrium Manifold", ICLR 2020. The
settings are this package's own, chosen on validation data; the paper's are not known in full.

    python -m jaxeff.main --config=configs/irnn.py                 # 8 steps of 8, 10 s
    python -m jaxeff.main --config=configs/irnn.py:pixels          # 64 steps of 1
    python -m jaxeff.main --config=configs/irnn.py:fashion_rows    # 28 steps of 28
    python -m jaxeff.main --config=configs/irnn.py:fashion_pixels  # 784 steps of 1
    python -m jaxeff.main --config=configs/irnn.py:fashion_rows,cell=lstm,quick

The argument is a comma-separated list of a setting, ``cell=NAME`` for a baseline of the same width
with the same training, and ``quick`` for a run of a few seconds. The digits are scikit-learn's and
need no network; for Fashion-MNIST see the message that its absence gives.
"""

from jaxeff.config import Config, base_config, split_argument

_DIGITS = {"data": "digits", "features": 64, "batch": 64, "learning_rate": 1e-2}
_FASHION = {"data": "fashion_mnist", "features": 128, "batch": 128, "learning_rate": 3e-3}
SETTINGS = {
    "rows": {**_DIGITS, "view": "rows", "steps": 2000},
    "pixels": {**_DIGITS, "view": "pixels", "steps": 4000},
    "fashion_rows": {**_FASHION, "view": "rows", "steps": 4000},
    "fashion_pixels": {**_FASHION, "view": "pixels", "steps": 8000},
}

# K * step_size * decay stays below 0.35, where gradients through time keep most of their size.
STEPPING = {
    "rows": {"step_size": 0.7, "decay": 0.3},
    "pixels": {"step_size": 0.3, "decay": 1.0},
    "fashion_rows": {"step_size": 0.3, "decay": 1.0},
    "fashion_pixels": {"step_size": 0.1, "decay": 1.0},
}


def get_config(arg: str = "") -> Config:
    """Returns the config of a setting; see the file's docstring for the argument."""
    setting, options = split_argument(arg, list(SETTINGS), "rows", ["quick", "cell"])
    chosen = SETTINGS[setting]
    cell = options.get("cell", "irnn")

    config = base_config()
    config.name = f"{cell}_{setting}" if setting != "rows" else cell
    config.data.name = chosen["data"]
    config.data.view = chosen["view"]
    config.model = {
        "name": "sequence",
        "cell": {"name": cell, "features": chosen["features"]},
        "num_layers": 1,
        "dropout": 0.2,
        "backward": "auto",
        "driver": "scan",
        "dtype": "float32",
    }
    if cell == "irnn":
        config.model.cell.update(
            num_inner_steps=1,
            activation="tanh",
            step_size_mode="per_inner_step",
            learn_step_size=True,
            rank=0,
            solver="euler",
            **STEPPING[setting],
        )
    config.optim.name = "adamw"
    config.optim.learning_rate = chosen["learning_rate"]
    config.optim.weight_decay = 0.1
    config.optim.clip_norm = 1.0
    config.train.batch_size = chosen["batch"]
    config.train.num_steps = 200 if "quick" in options else chosen["steps"]
    config.train.log_every = 50
    config.train.eval_every = 200
    config.checkpoint.every = 500
    return config
