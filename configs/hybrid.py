"""A small network that asks a large one, and a network with exits.

    python -m jaxeff.main --config=configs/hybrid.py                      # digits, 3 minutes
    python -m jaxeff.main --config=configs/hybrid.py:fashion,router=released
    python -m jaxeff.main --config=configs/hybrid.py:cifar10,train=base
    python -m jaxeff.main --config=configs/hybrid.py:digits,early_exit

The argument is a setting, ``expert=NAME`` of a model in ``configs/images.py``, ``router`` (slim or
released), ``train`` (router, base or all: which parts learn after base and expert have been trained
by themselves, as prerequisites), ``early_exit`` for the expert with exits in their place, and
``quick``. A fifth of the training examples is left to the router, which would see a base that is
nearly always right on those that it has learned.

CIFAR's last training has the hyper-parameters of the authors' code for Kag et al., "Efficient Edge
Inference by Selective Query", ICLR 2023: AdamW at 5e-4 with weight decay 5e-4, batches of 256, a
cosine to zero over 100 epochs with 5 of warm-up, smoothed labels, and coverage 0.7; there they
belong to ImageNet. The numbers of steps of the parts are this package's.
"""

import runpy
from pathlib import Path
from typing import Any

from jaxeff.config import Config, chosen, follow, share_of_steps
from jaxeff.errors import ConfigError

IMAGES = runpy.run_path(str(Path(__file__).with_name("images.py")))
FOLDS = 5
CIFAR_EXAMPLES, CIFAR_EPOCHS, CIFAR_WARMUP = 40_000, 100, 5

#: The base, a ResNet, and the expert. Where images allow it the base is small in pixels rather than
#: in channels, whose time falls less than their multiply-adds do.
PAIRS: dict[str, tuple[dict[str, Any], str]] = {
    "digits": ({"blocks": (1, 1), "widths": (4, 8)}, "resnet20"),
    "fashion": ({"blocks": (1, 1), "widths": (16, 32), "stem": "large"}, "resnet32"),
    "cifar10": ({"blocks": (1, 1, 1), "widths": (8, 16, 32)}, "wrn_40_4"),
    "cifar100": ({"blocks": (1, 1, 1), "widths": (16, 32, 64)}, "wrn_40_4"),
}
SETTINGS = {name: IMAGES["SETTINGS"][name] for name in PAIRS}
#: Steps of the last training, where it is not CIFAR's.
STEPS = {"digits": 600, "fashion": 1200}
#: Steps of each part in a cycle.
PHASES = {
    "router": {"router": 1, "base": 0, "expert": 0},
    "base": {"router": 40, "base": 10, "expert": 0},
    "all": {"router": 40, "base": 10, "expert": 10},
}
ROUTERS = ("slim", "released")


def get_config(arg: str = "") -> Config:
    """Returns the config of a setting; see the file's docstring for the argument."""
    options, rest = IMAGES["take"](arg, ("expert", "router", "train"), ("early_exit",))
    if "imagenet" in rest.split(","):
        raise ConfigError(f"there is no recipe for imagenet here; choose {', '.join(SETTINGS)}")
    if "model=" in rest:
        raise ConfigError("name the large network by expert=NAME in the argument, not by model")
    setting = IMAGES["get_config"](rest).name.partition("_")[2]
    small, large = PAIRS[setting]
    large = chosen(options, "expert", IMAGES["MODELS"], large)
    quick = "quick" in rest.split(",")

    def of(model: str) -> Config:
        config: Config = IMAGES["get_config"](f"{rest},model={model}")
        config.data.calibration_fraction = 0.1
        return config

    expert = of(large)
    if "early_exit" in options:
        expert.name = f"early_exit_{expert.name}"
        backbone = {k: v for k, v in expert.model.to_dict().items() if k != "axis_name"}
        model = {"name": "early_exit", "backbone": backbone, "axis_name": "data"}
        expert.model = {**model, "exits": (0, 1)}
        expert.algorithm = {"name": "early_exits"}
        expert.analyses = [{"name": "early_exits"}]
        return expert

    base, config = of("resnet20"), of("resnet20")
    with base.unlocked():
        del base.model.depth
    base.name = f"small_{setting}"
    base.model = {**base.model.to_dict(), **small}
    for prerequisite in (base, expert):
        prerequisite.algorithm = {"name": "bptt_without_fold", "folds": FOLDS}
    config.name = f"hybrid_{setting}"
    config.prerequisites = {"base": base, "expert": expert}
    config.model = {
        "name": "hybrid",
        "base": base.model.to_dict(),
        "expert": expert.model.to_dict(),
        "router": {"name": chosen(options, "router", ROUTERS, "slim")},
        "coverage": 0.75,
    }
    config.algorithm = {
        "name": "hybrid",
        "phases": PHASES[chosen(options, "train", PHASES, "all")],
        "rates": {"base": 0.1, "expert": 0.1},
        "router_folds": FOLDS,
    }
    for prerequisite in (base, expert):
        prerequisite.algorithm.folds = config.algorithm.get_ref("router_folds").identity()
    config.optim = {
        "name": "adamw",
        "learning_rate": 2e-3,
        "weight_decay": 5e-4,
        "schedule_name": "cosine",
        "warmup_steps": 0,
        "clip_norm": 0.0,
    }
    config.train.batch_size = 256
    if setting in STEPS:
        config.train.num_steps = STEPS[setting]
    else:
        epoch = CIFAR_EXAMPLES // 256
        config.model.coverage = 0.7
        config.objective = {"name": "cross_entropy", "label_smoothing": 0.1}
        config.optim.learning_rate = 5e-4
        config.train.num_steps = CIFAR_EPOCHS * epoch
        config.optim.warmup_steps = share_of_steps(config, CIFAR_WARMUP, CIFAR_EPOCHS)
    if quick:
        config.train.num_steps = 60
    config.eval.select = "last"
    config.analyses = [{"name": "hybrid"}]
    return follow(config)
