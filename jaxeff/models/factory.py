"""Models by name: an architecture and, after an underscore, a design of its blocks.

    create_model("resnet32_global", num_classes=10)
    create_model("irnn", num_classes=6, cell={"features": 32})

The architectures are those of ``configs/images.py``, for small images; for large images pass
``stem="large"`` to ResNets and ``strides=()`` to inverted residuals. Every registered recurrent
cell is an architecture too: one layer with a linear read-out of its last state.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from jaxeff.errors import ConfigError
from jaxeff.hub import shipped
from jaxeff.models.base import MODELS
from jaxeff.ode import CELLS

Spec = Mapping[str, Any]

#: Default width of a recurrent model; set by ``cell={"features": ...}``.
CELL_FEATURES = 128

# Inverted residuals were designed for 224 x 224; small images use fewer strided stages.
_SMALL = (1, 1, 1, 2, 2, 1, 2, 1)
ARCHITECTURES: dict[str, Spec] = {
    "mlp": {"name": "mlp"},
    **{f"resnet{n}": {"name": "resnet", "depth": n} for n in (18, 20, 32, 34, 50, 56, 101)},
    "wrn_40_4": {"name": "wide_resnet", "depth": 40, "width": 4},
    "densenet_bc": {"name": "densenet"},
    "mobilenet_v2": {"name": "mobilenet_v2", "strides": _SMALL},
    "mobilenet_v3": {"name": "mobilenet_v3", "strides": _SMALL[:-1]},
    "efficientnet_b0": {"name": "efficientnet_b0", "strides": _SMALL},
    "xception": {"name": "xception"},
    "xception_small": {"name": "xception", "small": True},
}

_CIFAR_RESNETS = ("resnet20", "resnet32", "resnet56")
_RESNETS = (*_CIFAR_RESNETS, "resnet18", "resnet34", "resnet50", "resnet101", "wrn_40_4")
_INVERTED = ("mobilenet_v2", "mobilenet_v3", "efficientnet_b0")
_SEPARABLE = ("xception", "xception_small", *_INVERTED)

_FOUR_STAGES = {"depth": 0, "widths": (16, 32, 64, 64)}
_INVERTED_GLOBAL = {
    "name": "global",
    "stages": (1, 2, 3, 4, 5),
    "kept": 1,
    "initial": "next",
    "diffusivity": (1.0, 1.0),
    "coefficient_epsilon": 1e-5,
}
_COARSE = {"dt": 0.1, "diffusivity": (2.0, 2.0)}


def _tiled(mode: str, stages: tuple[int, ...] | None = None) -> Spec:
    """Returns fields of a model whose convolutions are tied in tiles of two channels."""
    return {"design": {"name": "shared", "mode": mode, "factor": 2, "stages": stages}}


#: Additional fields by design and architecture. The Global variants follow their authors (Kag,
#: Saligrama, CVPR 2022).
DESIGNED: dict[str, dict[str, Spec]] = {
    "global": {
        "resnet32": {**_FOUR_STAGES, "blocks": (1,) * 4, "design": {"name": "global"}},
        "resnet56": {**_FOUR_STAGES, "blocks": (2,) * 4, "design": {"name": "global"}},
        "wrn_40_4": {"depth": 10, "design": {"name": "global", "initial": "block"}},
        "densenet_bc": {
            "blocks": (8, 8, 8),
            "design": {"name": "global", "stages": (0, 1), "initial": "block"},
        },
        "mobilenet_v2": {"design": _INVERTED_GLOBAL},
        "mobilenet_v3": {
            "name": "mobilenet_v3_global",
            "design": {**_INVERTED_GLOBAL, "kept": (1, 1, 1, 1, 0)},
        },
        "efficientnet_b0": {
            "design": {
                **_INVERTED_GLOBAL,
                "product": True,
                "per_stage": {"1": _COARSE, "2": {**_COARSE, "spacing": (2, 2)}},
            }
        },
    },
    "interpolated": {
        name: {"design": {"name": "interpolated", "stride": 2}}
        for name in (*_RESNETS, *_INVERTED, "xception")
    },
    "shared": {
        **{name: _tiled("out_tile") for name in _RESNETS},
        **{name: _tiled("depthwise_tile") for name in _SEPARABLE},
        "mobilenet_v2": _tiled("depthwise_tile", tuple(range(7))),
        "densenet_bc": {"design": {"name": "shared", "mode": "blueprint"}},
    },
    "looped": {
        name: {"design": {"name": "looped"}} for name in (*_RESNETS, *_INVERTED, "xception")
    },
}


def list_models(pattern: str = "*", *, trained: bool = False) -> list[str]:
    """Returns the sorted model names of `create_model` that match a pattern.

    Args:
      pattern: shell-style wildcards, such as ``"*global*"``.
      trained: True returns those of the trained models instead that `jaxeff.load` knows.
    """
    return sorted(fnmatch.filter(shipped.names() if trained else _specs(), pattern))


def create_model(name: str, *, num_classes: int, **fields: Any) -> nn.Module:
    """Builds a model without parameters; ``model.init(key, inputs)`` creates them.

    Args:
      name: one of `list_models`, or of the registry `MODELS`, which needs all fields.
      num_classes: width of the output.
      **fields: fields of the model that override those of its name. A mapping, such as
        ``design={"stride": 3}``, is merged with the existing one, unless its ``name`` differs.

    Returns:
      a Flax module called with ``(inputs, train=False)``, which returns ``[batch, num_classes]``.

    Raises:
      ConfigError: an unknown name, or a field that the model does not take.
    """
    spec = _specs().get(name)
    if spec is None and name not in MODELS:
        near = difflib.get_close_matches(name, list_models(), n=3)
        advice = f"did you mean {' or '.join(near)}?" if near else "jaxeff.list_models() has all"
        raise ConfigError(f"unknown model '{name}'; {advice}")
    try:
        spec = merged(spec or {"name": name}, fields)
        model: nn.Module = MODELS.build(spec, "model", num_outputs=num_classes)
    except ConfigError as error:
        said = str(error).removeprefix("config.model").lstrip(".: ")
        raise ConfigError(f"create_model('{name}'): {said}") from error
    return model


def merged(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields with changes; sections with the same ``name`` are merged, others replaced."""
    result = dict(fields)
    for name, value in changes.items():
        before = result.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            same = value.get("name", before.get("name")) == before.get("name")
            value = merged(before, value) if same else value
        result[name] = value
    return result


def _specs() -> dict[str, Spec]:
    """Returns the fields of every named model."""
    specs: dict[str, Spec] = {
        cell: {"name": "sequence", "cell": {"name": cell, "features": CELL_FEATURES}}
        for cell in CELLS
    }
    specs |= ARCHITECTURES
    for design, hosts in DESIGNED.items():
        specs |= {f"{host}_{design}": {**ARCHITECTURES[host], **f} for host, f in hosts.items()}
    return specs
