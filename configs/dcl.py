"""Distributionally constrained learning, and what it is compared with.

A reconstruction, see `jaxeff.constraints.library`. Networks, data and recipes are those of
``configs/images.py``.

    python -m jaxeff.main --config=configs/dcl.py                       # ResNet-20 on digits
    python -m jaxeff.main --config=configs/dcl.py:fashion,method=sam
    python -m jaxeff.main --config=configs/dcl.py:cifar100,model=resnet56,constraints=entropy+width
    python -m jaxeff.main --config=configs/dcl.py:digits,method=penalty,weight=0.3

The argument is that of ``configs/images.py``, and

* ``method``: ``dcl`` (constraints that are enforced and then relaxed over the first half of the
  run), ``penalty`` (the same statistics with a constant ``weight``), ``smoothing`` of the labels,
  ``sam`` (sharpness-aware minimisation), ``cvar`` (conditional value at risk) or ``plain``.
* ``constraints``: of ``dcl`` and ``penalty``, names in `CONSTRAINTS` joined by ``+``.

A discount has no multiplier that a penalty could hold constant: ``penalty`` leaves it out.
"""

import runpy
from pathlib import Path
from typing import Any

from jaxeff.config import Config, chosen, real_number
from jaxeff.errors import ConfigError
from jaxeff.registry import closest

IMAGES = runpy.run_path(str(Path(__file__).with_name("images.py")))
SETTINGS, MODELS = IMAGES["SETTINGS"], IMAGES["MODELS"]
METHODS = ("dcl", "plain", "smoothing", "penalty", "sam", "cvar")
OPTIONS = ("method", "constraints", "weight")

#: Level at the start and, after half of the run, at the end, and other fields. An entropy is a
#: share of its maximum, costs and widths are nats.
CONSTRAINTS: dict[str, dict[str, Any]] = {
    "discount": {"start": 0.2, "end": 0.0},
    "entropy": {"start": 0.3, "end": 0.0},
    "width": {"start": 0.02, "end": 0.1, "radius": 0.05},
    "input_lipschitz": {"start": 0.3, "end": 0.6, "step": 0.01},
    "margin": {"start": 0.05, "end": 0.1, "gamma": 1.0},
    "class_loss": {"slack": 0.2},
}
BUNDLE = "discount+entropy+width"
#: Training images, of which an epoch of the schedules has as many.
EXAMPLES = {
    "digits": 1350,
    "fashion": 54_000,
    "cifar10": IMAGES["CIFAR_EXAMPLES"],
    "cifar100": IMAGES["CIFAR_EXAMPLES"],
    "imagenet": IMAGES["IMAGENET_EXAMPLES"],
}


def sections(names: str) -> tuple[dict[str, Any], ...]:
    """Returns the sections of constraints."""
    constraints = []
    for name in names.split("+"):
        if name not in CONSTRAINTS:
            hint = closest(name, CONSTRAINTS)
            raise ConfigError(f"the config's argument constraints={names}: no '{name}'{hint}")
        constraints.append({"name": name, **CONSTRAINTS[name]})
    return tuple(constraints)


def get_config(arg: str = "") -> Config:
    """Returns the config of a setting; see the file's docstring for the argument."""
    options, rest = IMAGES["take"](arg, OPTIONS)
    method = chosen(options, "method", METHODS, "dcl")
    config: Config = IMAGES["get_config"](rest)
    config.name = f"{method}_{config.name}"
    setting = next((item for item in rest.split(",") if item in SETTINGS), "digits")
    fields: dict[str, Any] = {"dual": {"name": "fixed"}}
    # Measured alone, where nothing else is asked: what the outputs say costs nothing to know.
    constraints: tuple[dict[str, Any], ...] = ({"name": "entropy", "start": 0.0},)
    if method in ("dcl", "penalty"):
        constraints = sections(options.get("constraints") or BUNDLE)
    if method == "dcl":
        # Violations are in parts of their statistic, and a width is a small part of a loss: a
        # multiplier of 0.02 weighs it as sharpness-aware minimisation does. With one of 0.5 the
        # flattest network wins, which tells no class from another.
        fields["dual"] = {"name": "nupi", "rate": 0.001, "gain": 0.01, "smoothing": 0.9}
        fields["rho"] = 0.05
        # Short runs cannot wait for means over hundreds of batches.
        fields["decay"] = 0.9 if setting in ("digits", "fashion") else 0.99
    elif method == "penalty":
        constraints = tuple(c for c in constraints if c["name"] != "discount")
        fields["initial_multiplier"] = real_number(options, "weight", 0.1)
    elif method == "smoothing":
        config.objective = {"name": "cross_entropy", "label_smoothing": 0.1}
    elif method == "sam":
        fields["sharpness_radius"] = 0.05
    elif method == "cvar":
        constraints = (*constraints, {"name": "cvar", "start": 0.7})
    recipe = {**config.algorithm, "name": "constrained"}  # its average of the weights, if any
    config.algorithm = {**recipe, "constraints": constraints, **fields}
    if method in ("dcl", "penalty"):
        # Follows what the command line makes of them.
        steps, batch = (config.train.get_ref(name) for name in ("num_steps", "batch_size"))
        with config.algorithm.unlocked():
            config.algorithm.period = steps * batch / EXAMPLES[setting] / 2
    return config
