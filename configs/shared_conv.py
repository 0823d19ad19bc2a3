"""Hosts whose convolutions share kernels over channels.

Recipes and settings are those of ``configs/images.py``; modes are in
`jaxeff.layers.shared_conv`.

    python -m jaxeff.main --config=configs/shared_conv.py                       # output tiles
    python -m jaxeff.main --config=configs/shared_conv.py:fashion,mode=blueprint_low
    python -m jaxeff.main --config=configs/shared_conv.py:cifar10,model=resnet18,factor=4,modulate

The argument is that of ``configs/images.py``, ``mode`` and ``factor`` of the sharing, ``modulate``
for learned scales and shifts of the tied channels, and ``share_shortcut``.
"""

import runpy
from pathlib import Path

from jaxeff.config import Config, whole_number

IMAGES = runpy.run_path(str(Path(__file__).with_name("images.py")))
SETTINGS, MODELS = IMAGES["SETTINGS"], IMAGES["MODELS"]
FIELDS, SWITCHES = ("mode", "factor"), ("modulate", "share_shortcut")

# The stages that share. Plain stems and first stages hold few of the parameters.
STAGES = {
    "resnet18": (1, 2, 3),
    "resnet50": (1, 2, 3),
    "xception": (1,),
    "mobilenet_v2": tuple(range(7)),
}


def get_config(arg: str = "") -> Config:
    """Returns the config of a setting; see the file's docstring for the argument."""
    options, rest = IMAGES["take"](arg, FIELDS, SWITCHES)
    model = IMAGES["take"](rest, ("model",))[0].get("model", "resnet20")
    config: Config = IMAGES["get_config"](rest)
    config.name = f"shared_{config.name}"
    separable = model in ("mobilenet_v2", "xception")
    with config.model.unlocked():
        config.model.design = {
            "name": "shared",
            "mode": options.get("mode") or ("depthwise_tile" if separable else "out_tile"),
            "factor": whole_number(options, "factor", 2),
            "stages": STAGES.get(model, (1, 2)),
            "modulate": "modulate" in options,
            "share_shortcut": "share_shortcut" in options,
        }
    return config
