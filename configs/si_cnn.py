"""Hosts whose residual bodies run on anchor pixels only, interpolated between them (SI-CNN).

A reconstruction, see `jaxeff.layers.Interpolated`. Recipes and settings are those of
``configs/images.py``.

    python -m jaxeff.main --config=configs/si_cnn.py
    python -m jaxeff.main --config=configs/si_cnn.py:fashion,model=mobilenet_v2
    python -m jaxeff.main --config=configs/si_cnn.py:cifar10,model=resnet56,cheap=separable

The argument is that of ``configs/images.py``, and any of ``stride``, ``cheap``, ``mixing``,
``interpolation`` and ``sampling``, fields of the layer.
"""

import runpy
from pathlib import Path

from jaxeff.config import Config, whole_number

IMAGES = runpy.run_path(str(Path(__file__).with_name("images.py")))
SETTINGS, MODELS = IMAGES["SETTINGS"], IMAGES["MODELS"]
FIELDS = ("stride", "cheap", "mixing", "interpolation", "sampling")


def get_config(arg: str = "") -> Config:
    """Returns the config of a setting; see the file's docstring for the argument."""
    options, rest = IMAGES["take"](arg, FIELDS)
    config: Config = IMAGES["get_config"](rest)
    config.name = f"si_{config.name}"
    stride = whole_number(options, "stride", 2)
    with config.model.unlocked():
        config.model.design = {"name": "interpolated", **options, "stride": stride}
    return config
