"""Convolutional networks on images; the other convolutional configs build on this one.

    python -m jaxeff.main --config=configs/images.py                        # ResNet-20 on digits
    python -m jaxeff.main --config=configs/images.py:fashion,model=resnet32
    python -m jaxeff.main --config=configs/images.py:cifar10,model=wrn_40_4

The argument is a comma-separated list of a setting, ``model=NAME`` of a host in `MODELS`, and
``quick`` for a run of a few seconds. CIFAR's recipe is that of Kag, Saligrama, "Condensing CNNs
with Partial Differential Equations", CVPR 2022: 300 epochs of SGD with Nesterov momentum, crops and
flips, weight decay of all parameters. Digits and Fashion-MNIST have short recipes of this package.
"""

from jaxeff.train.defaults import base_config, split_argument

SETTINGS: dict[str, dict] = {
    "digits": {"batch": 64, "steps": 600, "every": 200, "schedule": "cosine", "rate": 0.1},
    "fashion": {"batch": 128, "steps": 420, "every": 210, "schedule": "cosine", "rate": 0.1},
    "cifar10": {"batch": 128, "steps": 117_300, "every": 391, "schedule": "step", "rate": 0.1},
    "cifar100": {"batch": 128, "steps": 117_300, "every": 391, "schedule": "step", "rate": 0.1},
}
DATA = {
    "digits": "digits",
    "fashion": "fashion_mnist",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
}

# Inverted residuals were laid out for 224 x 224; small images are halved four times less.
_SMALL = {"strides": (1, 1, 1, 2, 2, 1, 2, 1)}
_SMALL_V3 = {"strides": (1, 1, 1, 2, 2, 1, 2)}
MODELS: dict[str, dict] = {
    "resnet20": {"name": "resnet", "depth": 20},
    "resnet32": {"name": "resnet", "depth": 32},
    "resnet56": {"name": "resnet", "depth": 56},
    "resnet18": {"name": "resnet", "depth": 18},
    "resnet50": {"name": "resnet", "depth": 50},
    "wrn_40_4": {"name": "wide_resnet", "depth": 40, "width": 4},
    "densenet_bc": {"name": "densenet"},
    "mobilenet_v2": {"name": "mobilenet_v2", **_SMALL},
    "mobilenet_v3": {"name": "mobilenet_v3", **_SMALL_V3},
    "efficientnet_b0": {"name": "efficientnet_b0", **_SMALL},
    "xception": {"name": "xception"},
}


def get_config(arg: str = ""):
    """Returns the config of a setting; see the file's docstring for the argument."""
    setting, options = split_argument(arg, list(SETTINGS), "digits", ["quick", "model"])
    chosen = SETTINGS[setting]
    model = options.get("model", "resnet20")

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
    config.optim.learning_rate = chosen["rate"]
    config.optim.schedule_name = chosen["schedule"]
    config.optim.weight_decay = 5e-4
    if setting.startswith("cifar"):
        config.optim.boundaries = (0.5, 0.75)
        config.optim.weight_decay = 5e-5
        config.optim.decayed = "all"
        config.data.augment = {"crop": 4, "flip": True}
    config.train.batch_size = chosen["batch"]
    config.train.num_steps = 60 if "quick" in options else chosen["steps"]
    config.train.log_every = 20
    config.train.eval_every = chosen["every"]
    config.checkpoint.every = chosen["every"]
    return config
