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

IMAGES = runpy.run_path(str(Path(__file__).with_name("images.py")))
SETTINGS = IMAGES["SETTINGS"]

_MOBILE: dict = {
    "stages": (1, 2, 3, 4, 5),
    "kept": 1,
    "initial": "next",
    "diffusivity": (1.0, 1.0),
    "coefficient_epsilon": 1e-5,
}
#: The host as the authors lay it out, and its Global layers.
MODELS: dict[str, tuple[dict, dict]] = {
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


def get_config(arg: str = ""):
    """Returns the config of a setting; see the file's docstring for the argument."""
    parts = dict(item.partition("=")[::2] for item in arg.split(",") if item)
    model = parts.setdefault("model", "resnet32")
    steps = parts.pop("steps", "1")
    if model not in MODELS:
        from jaxeff.errors import ConfigError

        raise ConfigError(f"there is no Global variant of '{model}'; choose {', '.join(MODELS)}")
    items = [f"{key}={value}" if value else key for key, value in parts.items()]
    config = IMAGES["get_config"](",".join(items))
    host, layer = MODELS[model]
    config.name = f"global_{config.name}"
    with config.model.unlocked():
        config.model.update(host)
        config.model.design = {"name": "global", "num_steps": int(steps), **layer}
    return config
