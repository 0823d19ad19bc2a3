"""Checks of the values in a config, whatever fields they stand in, and between its fields."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxeff.errors import ConfigError
from jaxeff.registry import closest

MAX_LENGTH, MAX_NESTING = 100_000, 40
#: Fields of a model by which programs grow, and the most that they may say: more take minutes to
#: trace, and hours to compile.
MAX_DEPTH = 1000
DEPTHS = frozenset({"num_layers", "depth", "depths", "layers", "blocks", "num_steps"})
MAX_INNER_STEPS = 100_000
#: Fields of a model that are shares of what is dropped.
RATES = frozenset({"dropout", "drop_path"})
SEEDS = 2**32
AXIS = "data"  # of the devices, that `jaxeff.train.parallel` maps over
#: As ``config.devices.coordinator``, the address that the cluster gives.
AUTO = "auto"
#: Least and largest values of fields that several sections have.
RANGES: dict[str, tuple[float, float]] = {
    "crop": (0, 1000),
    "images": (1, 1e6),
    "label_weight": (0, 1e6),
    "starts": (0, 1e5),
    "steps": (0, 1e5),
    "temperature": (1e-6, 1e6),
    "test_examples": (0, 1e9),
    "weight": (0, 1e6),
}
DTYPES = ("bfloat16", "float16", "float32", "float64")


def check_values(value: Any, where: str = "config", nesting: int = 0) -> None:
    """Raises `ConfigError` for what no field of a config can hold.

    A config is made of sections, lists, text, truth values and finite numbers, so that it can be
    written down and read back.
    """
    if nesting > MAX_NESTING:
        raise ConfigError(f"{where[:80]}... is nested more than {MAX_NESTING} levels deep")
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ConfigError(f"{where} has a field {name!r}; names of fields must be text")
            check_values(item, f"{where}.{name}", nesting + 1)
            _check_range(name, item, f"{where}.{name}")
    elif isinstance(value, (list, tuple)):
        if len(value) > MAX_LENGTH:
            raise ConfigError(f"{where} has {len(value)} members; at most {MAX_LENGTH} are allowed")
        for number, item in enumerate(value):
            check_values(item, f"{where}[{number}]", nesting + 1)
    elif isinstance(value, str):
        if "\0" in value or (not value.isascii() and not _encodable(value)):
            raise ConfigError(f"{where} has a character that no text may have: {value!a}")
    elif isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            raise ConfigError(f"{where} must be a number that is finite, not {value}")
    elif isinstance(value, (int, np.integer)):
        if not -(2**63) <= int(value) < 2**63:
            raise ConfigError(f"{where} must fit into 64 bits, not {int(value).bit_length()}")
    elif value is not None and not isinstance(value, np.bool_):
        raise ConfigError(
            f"{where} must be text, a number, a list or a section, not of type "
            f"{type(value).__name__}"
        )


def _check_range(name: str, value: Any, where: str) -> None:
    if name == "axis_name" and value not in ("", AXIS, None):
        raise ConfigError(f"{where} must be '{AXIS}', or empty to leave it out, not {value!r}")
    number = isinstance(value, (int, float, np.integer, np.floating))
    if name in RANGES and number and not RANGES[name][0] <= float(value) <= RANGES[name][1]:
        least, most = RANGES[name]
        raise ConfigError(f"{where} must be in [{least:g}, {most:g}], not {value}")


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False
    return True


def check_model(value: Any, where: str = "config.model") -> None:
    """Raises `ConfigError` for so many layers that tracing would not end, no rate, or no type."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name in DEPTHS:
                _check_depth(item, f"{where}.{name}", MAX_DEPTH)
            elif name == "num_inner_steps":
                _check_depth(item, f"{where}.{name}", MAX_INNER_STEPS)
            elif name in ("dtype", "param_dtype") and isinstance(item, str):
                if item not in DTYPES:
                    hint = closest(item, list(DTYPES))
                    raise ConfigError(f"{where}.{name}: unknown type '{item}'{hint}")
            elif name in RATES:
                check_share(item, f"{where}.{name}")
            else:
                check_model(item, f"{where}.{name}")
    elif isinstance(value, (list, tuple)):
        if len(value) > MAX_DEPTH:
            raise ConfigError(f"{where} has {len(value)} members; at most {MAX_DEPTH} are allowed")
        for number, item in enumerate(value):
            check_model(item, f"{where}[{number}]")


def check_share(value: Any, where: str) -> None:
    """Raises `ConfigError` for what is no number in [0, 1)."""
    truth = isinstance(value, (bool, np.bool_))
    number = isinstance(value, (int, float, np.integer, np.floating)) and not truth
    if not number or not 0 <= float(value) < 1:
        raise ConfigError(f"{where} must be a number in [0, 1), not {value!r}")


def _check_depth(value: Any, where: str, most: int) -> None:
    items = value if isinstance(value, (list, tuple)) else [value]
    total = sum(item for item in items if isinstance(item, int))
    if total > most or len(items) > most:
        raise ConfigError(f"{where} must be at most {most}, not {max(total, len(items))}")


def check_seed(seed: int) -> None:
    """Raises `ConfigError` for a seed that JAX would take for another one."""
    if not 0 <= seed < SEEDS:
        rule = "must not be negative" if seed < 0 else "must be below 2**32"
        raise ConfigError(f"config.seed {rule}, not {seed}")


def check_name(name: str) -> None:
    """Raises `ConfigError` for a name that cannot be part of a folder's name."""
    if len(name) > 100 or re.search(r'[/\\:*?"<>|]|^\.', name) or not name.isprintable():
        raise ConfigError(
            "config.name becomes part of a folder's name: at most 100 characters, no leading dot "
            f'and none of / \\ : * ? " < > |, not {name[:100]!a}'
        )


def check_processes(devices: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for processes that could not find each other.

    Args:
      devices: section ``devices`` of a config, of the right types.
    """
    count, number, address = (
        devices[name] for name in ("num_processes", "process_id", "coordinator")
    )
    if not 0 <= number < count:
        raise ConfigError(
            f"config.devices.process_id must be in [0, {count}), the number of processes, "
            f"not {number}"
        )
    if count > 1 and not address:
        raise ConfigError(
            f"config.devices.num_processes is {count}, but config.devices.coordinator is not set; "
            "give all of them the first one's HOST:PORT"
        )
    if address == AUTO and (count, number) != (1, 0):
        raise ConfigError(
            "config.devices.coordinator=auto takes the number of processes from the cluster; leave "
            "devices.num_processes and devices.process_id out"
        )
    if address and address != AUTO:
        host, _, port = address.rpartition(":")
        if not re.fullmatch(r"\S+", host) or not re.fullmatch("[0-9]{1,5}", port):
            raise ConfigError(
                f"config.devices.coordinator must be HOST:PORT or auto, not {address!r}"
            )
        if not 0 < int(port) < 2**16:
            raise ConfigError(f"config.devices.coordinator: there is no port {port}")
