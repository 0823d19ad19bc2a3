"""Classifiers that may abstain, with thresholds calibrated on data of their own.

    python -m jaxeff.main --config=configs/selective.py                       # digits, 1 minute
    python -m jaxeff.main --config=configs/selective.py:fashion,method=sat
    python -m jaxeff.main --config=configs/selective.py:cifar10,method=osp,mu=1.67

The argument is that of ``configs/images.py``, ``method`` (a name in `METHODS`), and for
``method=osp`` the trade-off ``mu``. CIFAR's recipe is that of Gangrade, Kag, Saligrama, "Selective
Classification via One-Sided Prediction", AISTATS 2021, in their PyTorch code: 200 epochs of AdamW
at 0.01 with weight decay 5e-4, a cosine to zero, batches of 128, crops, flips and cut-outs of 16
pixels; their AutoAugment is not part of this package. Digits and Fashion-MNIST have the same
optimiser and short trainings. All methods have one recipe and backbone, the weights of the last
step, and no example of the calibration split in training.
"""

import runpy
from pathlib import Path
from typing import Any

from jaxeff.config import Config, chosen, real_number, share_of_steps
from jaxeff.errors import ConfigError

IMAGES = runpy.run_path(str(Path(__file__).with_name("images.py")))
MODELS = IMAGES["MODELS"]
SETTINGS = {name: of for name, of in IMAGES["SETTINGS"].items() if name != "imagenet"}
CIFAR_EXAMPLES, CIFAR_EPOCHS = 44_000, 200

#: Objective and algorithm of a method; see `jaxeff.train.selective_objectives` for the numbers.
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "osp": ({"name": "one_sided", "alpha": 0.9}, {"name": "bptt"}),
    "softmax": ({"name": "cross_entropy"}, {"name": "bptt"}),
    "selectivenet": (
        {"name": "selective_net", "coverage": 0.8, "penalty": 32.0, "alpha": 0.5},
        {"name": "bptt"},
    ),
    "gamblers": ({"name": "deep_gamblers", "payoff": 2.2}, {"name": "pretrained"}),
    "sat": ({"name": "self_adaptive", "momentum": 0.9}, {"name": "self_adaptive"}),
}
#: Share of the training in which bets are not yet taken, as the authors of Deep Gamblers have it.
PRETRAINED = (1, 3)
#: Trade-offs that the authors of one-sided prediction ran.
MUS = (0.49, 1.67)


def get_config(arg: str = "") -> Config:
    """Returns the config of a setting; see the file's docstring for the argument."""
    options, rest = IMAGES["take"](arg, ("method", "mu"))
    method = chosen(options, "method", METHODS, "osp")
    if "mu" in options and method != "osp":
        raise ConfigError(f"mu in the config's argument is of method=osp, not of method={method}")
    if "imagenet" in rest.split(","):
        raise ConfigError(f"there is no recipe for imagenet here; choose {', '.join(SETTINGS)}")
    config: Config = IMAGES["get_config"](rest)
    config.name = f"{method}_{config.name}"
    # The losses differ in scale, which this optimiser does not see.
    config.optim = {
        "name": "adamw",
        "learning_rate": 0.01,
        "weight_decay": 5e-4,
        "schedule_name": "cosine",
        "warmup_steps": 0,
        "clip_norm": 0.0,
    }
    config.data.validation_fraction, config.data.calibration_fraction = 0.1, 0.2
    if config.data.name.startswith("cifar"):
        config.data.validation_fraction, config.data.calibration_fraction = 0.02, 0.1
        config.data.augment = {"crop": 4, "flip": True, "cutout": 16}
        if "quick" not in rest.split(","):
            config.train.num_steps = CIFAR_EPOCHS * CIFAR_EXAMPLES // config.train.batch_size
    objective, algorithm = METHODS[method]
    config.objective = dict(objective)
    config.algorithm = dict(algorithm)
    with config.unlocked():
        if method == "selectivenet":
            config.model = {"name": "selecting", "backbone": config.model, "axis_name": "data"}
        if method == "osp":
            config.objective.mu = real_number(options, "mu", MUS[0], positive=True)
        if method == "gamblers":
            config.algorithm.pretrain_steps = share_of_steps(config, *PRETRAINED)
    config.eval.select = "last"
    config.analyses = [{"name": "selective"}]
    return config
