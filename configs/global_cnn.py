"""Hosts whose repeated residual blocks are Global layers, short solves of a PDE.

Kag, Saligrama, "Condensing CNNs with Partial Differential Equations", CVPR 2022; networks as in the
authors' code. Recipes and settings are those of ``configs/images.py``.

    python -m jaxeff.main --config=configs/global_cnn.py                       # digits, 1 minute
    python -m jaxeff.main --config=configs/global_cnn.py:fashion
    python -m jaxeff.main --config=configs/global_cnn.py:cifar10,model=densenet_bc
    python -m jaxeff.main --config=configs/global_cnn.py:cifar100,steps=5

The argument is that of ``configs/images.py``, with ``model`` a host in `MODELS` and ``steps`` the
number K of time steps.
"""

import runpy
from pathlib import Path
from typing import Any

from jaxeff.config import Config, whole_number
from jaxeff.errors import ConfigError

IMAGES = runpy.run_path(str(Path(__file__).with_name("images.py")))
SETTINGS = IMAGES["SETTINGS"]

_MOBILE: dict[str, Any] = {
    "stages": (1, 2, 3, 4, 5),
    "kept": 1,
    "initial": "next",
    "diffusivity": (1.0, 1.0),
    "coefficient_epsilon": 1e-5,
}
#: The host as the authors lay it out, and its Global layers.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # One more stage than the host: it holds most of the parameters.
    "resnet32": ({"blocks": (1,) * 4, "widths": (16, 32, 64, 64), "depth": 0}, {}),
    "resnet56": ({"blocks": (2,) * 4, "widths": (16, 32, 64, 64), "depth": 0}, {}),
    "wrn_40_4": ({"depth": 10}, {"initial": "block"}),
    "densenet_bc": ({"blocks": (8, 8, 8)}, {"stages": (0, 1), "initial": "block"}),
    "mobilenet_v2": ({}, _MOBILE),
    "mobilenet_v3": ({"name": "mobilenet_v3_global"}, {**_MOBILE, "kept": (1, 1, 1, 1, 0)}),
    "efficientnet_b0": (
        {},
        {
            **_MOBILE,
            "product": True,
            "per_stage": {
                "1": {"dt": 0.1, "diffusivity": (2.0, 2.0)},
                "2": {"dt": 0.1, "diffusivity": (2.0, 2.0), "spacing": (2, 2)},
            },
        },
    ),
}


#: Batch and weight decay of CIFAR's recipe where they are not 32 and 5e-5.
CIFAR = {"resnet32": (32, 6e-5), "resnet56": (32, 8e-5), "densenet_bc": (64, 1e-4)}


def get_config(arg: str = "") -> Config:
    """Returns the config of a setting; see the file's docstring for the argument."""
    options, rest = IMAGES["take"](arg, ("model", "steps"))
    model = options.get("model", "resnet32")
    if model not in MODELS:
        raise ConfigError(f"there is no Global variant of '{model}'; choose {', '.join(MODELS)}")
    config: Config = IMAGES["get_config"](f"{rest},model={model}")
    if config.data.name.startswith("cifar"):
        quick = config.train.num_steps
        IMAGES["set_cifar_recipe"](config, *CIFAR.get(model, (32,)))
        if "quick" in rest.split(","):
            config.train.num_steps = quick
    host, layer = MODELS[model]
    steps = whole_number(options, "steps", 1)
    config.name = f"global_{config.name}"
    with config.model.unlocked():
        config.model.update(host)
        config.model.design = {"name": "global", "num_steps": steps, **layer}
    return config
