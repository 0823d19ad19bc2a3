"""Convolutional networks on images; the other convolutional configs build on this one.

    python -m jaxeff.main --config=configs/images.py                        # ResNet-20 on digits
    python -m jaxeff.main --config=configs/images.py:fashion,model=resnet32
    python -m jaxeff.main --config=configs/images.py:cifar10,model=wrn_40_4
    python -m jaxeff.main --config=configs/images.py:imagenet,model=efficientnet_b0

The argument is a comma-separated list of a setting, ``model=NAME`` of a host in `MODELS`, and
``quick`` for a run of a few seconds. CIFAR's recipe is that of Kag, Saligrama, "Condensing CNNs
with Partial Differential Equations", CVPR 2022, as their code has it: 300 epochs of SGD with
Nesterov momentum, crops and flips, weight decay of all parameters. Unlike theirs a tenth of the
training images is held out to select by. Digits and Fashion-MNIST have short recipes of this
package. ImageNet's are those of the same code for inverted residuals (RMSprop, a rate that falls
every 2.4 epochs, averaged weights, RandAugment by the extra ``augment``) and 90 epochs of SGD for
the rest; it is read from folders of images (`jaxeff.data.image_folder`), of which 2 % are held out.
"""

from collections.abc import Sequence
from typing import Any

from jaxeff.config import (
    Config,
    argument_items,
    base_config,
    chosen,
    share_of_steps,
    split_argument,
)

SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"batch": 64, "steps": 600, "every": 200},
    "fashion": {"batch": 128, "steps": 420, "every": 210},
    "cifar10": {},
    "cifar100": {},
    "imagenet": {},
}
DATA = {"fashion": "fashion_mnist", "imagenet": "image_folder"}  # the others go by their own name
CIFAR_EXAMPLES, CIFAR_EPOCHS = 45_000, 300
IMAGENET_EXAMPLES = 1_255_544  # of 1,281,167, less what is held out

# Inverted residuals were laid out for 224 x 224; small images are halved four times less.
_SMALL = {"strides": (1, 1, 1, 2, 2, 1, 2, 1)}
_SMALL_V3 = {"strides": (1, 1, 1, 2, 2, 1, 2)}
MODELS: dict[str, dict[str, Any]] = {
    "resnet20": {"name": "resnet", "depth": 20, "widths": ()},
    "resnet32": {"name": "resnet", "depth": 32, "widths": ()},
    "resnet56": {"name": "resnet", "depth": 56, "widths": ()},
    "resnet18": {"name": "resnet", "depth": 18, "widths": ()},
    "resnet50": {"name": "resnet", "depth": 50, "widths": ()},
    "wrn_40_4": {"name": "wide_resnet", "depth": 40, "width": 4},
    "densenet_bc": {"name": "densenet"},
    "mobilenet_v2": {"name": "mobilenet_v2", **_SMALL},
    "mobilenet_v3": {"name": "mobilenet_v3", **_SMALL_V3},
    "efficientnet_b0": {"name": "efficientnet_b0", **_SMALL},
    "xception": {"name": "xception"},
}
#: Batch, epochs, rate, its factor every 2.4 epochs, and probability of erasing, on ImageNet.
IMAGENET: dict[str, tuple[int, int, float, float, float]] = {
    "mobilenet_v2": (1024, 200, 0.4, 0.97, 0.05),
    "mobilenet_v3": (2048, 600, 0.192, 0.973, 0.2),
    "efficientnet_b0": (2048, 450, 0.192, 0.97, 0.2),
}
#: Batch and weight decay of CIFAR's recipe where they are not 128 and 5e-5.
CIFAR = {"wrn_40_4": (32, 1e-4), "densenet_bc": (64, 1e-4)}


def take(
    arg: str, names: Sequence[str], switches: Sequence[str] = ()
) -> tuple[dict[str, str], str]:
    """Splits an argument into the options called so, with their values, and the rest."""
    items = dict(argument_items(arg, ("quick", *switches)))
    rest = {name: value for name, value in items.items() if name not in (*names, *switches)}
    taken_items = ",".join(f"{n}={v}" if v else n for n, v in items.items() if n not in rest)
    _, options = split_argument(taken_items, (), "", (*names, *switches), switches)
    return options, ",".join(f"{n}={v}" if v else n for n, v in rest.items())


def set_cifar_recipe(config: Config, batch: int = 128, weight_decay: float = 5e-5) -> None:
    """Sets the authors' training."""
    config.train.batch_size = batch
    config.train.num_steps = CIFAR_EPOCHS * CIFAR_EXAMPLES // batch
    config.train.eval_every = config.checkpoint.every = CIFAR_EXAMPLES // batch
    config.optim.schedule_name = "step"
    config.optim.boundaries = (0.5, 0.75)
    config.optim.weight_decay = weight_decay
    config.optim.decayed = "all"
    config.data.augment = {"crop": 4, "flip": True}


def set_imagenet_recipe(config: Config, model: str) -> None:
    """Sets the authors' training of inverted residuals, or the common one of the other hosts."""
    config.data.validation_fraction = 0.02
    augment = {"part": 0.08, "flip": True}
    config.objective = {"name": "cross_entropy", "label_smoothing": 0.1}
    if model in IMAGENET:
        batch, epochs, rate, factor, erase = IMAGENET[model]
        augment |= {"randaugment": 2, "magnitude": 9, "erase": erase}
        config.model.update({"strides": (), "dropout": 0.2, "drop_path": 0.2})
        config.algorithm.average_decay = 0.999
        config.optim = {
            "name": "rmsprop",
            "learning_rate": rate,
            "schedule_name": "step",
            "boundaries": tuple(2.4 * n / epochs for n in range(1, int(epochs / 2.4))),
            "decay_factor": factor,
            "clip_norm": 0.0,
            "weight_decay": 1e-5,
            "decay": 0.9,
            "eps": 1e-3,
            "eps_in_sqrt": True,
            "initial_scale": 1.0,
            "momentum": 0.9,
        }
        warmup = 3
    else:
        batch, epochs, warmup = 1024, 90, 5
        config.optim.learning_rate, config.optim.weight_decay = 0.4, 5e-5
        if config.model["name"] == "resnet":
            config.model.stem = "large"
    config.data.augment = augment
    each = IMAGENET_EXAMPLES // batch
    config.train.batch_size, config.train.num_steps = batch, epochs * each
    config.optim.warmup_steps = share_of_steps(config, warmup, epochs)
    config.train.eval_every = config.checkpoint.every = each


def get_config(arg: str = "") -> Config:
    """Returns the config of a setting; see the file's docstring for the argument."""
    setting, options = split_argument(arg, list(SETTINGS), "digits", ["quick", "model"])
    model = chosen(options, "model", MODELS, "resnet20")

    config = base_config()
    config.name = f"{model}_{setting}"
    config.data.name = DATA.get(setting, setting)
    config.data.normalize = "standard"
    config.data.augment = {"crop": 0, "flip": False}
    config.model = {**MODELS[model], "axis_name": "data", "dtype": "float32"}
    config.model.design = {"name": "plain"}
    config.optim.name = "sgd"
    config.optim.momentum = 0.9
    config.optim.nesterov = True
    config.optim.learning_rate = 0.1
    config.train.log_every = 20
    if setting.startswith("cifar"):
        set_cifar_recipe(config, *CIFAR.get(model, ()))
    elif setting == "imagenet":
        set_imagenet_recipe(config, model)
    else:
        values = SETTINGS[setting]
        config.optim.weight_decay = 5e-4
        config.train.batch_size = values["batch"]
        config.train.num_steps = values["steps"]
        config.train.eval_every = config.checkpoint.every = values["every"]
    if "quick" in options:
        config.train.num_steps = 60
    return config
