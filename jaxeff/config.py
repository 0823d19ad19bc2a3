"""What a config is: the fields that every experiment has, with their meaning and neutral values.

Nothing here imports JAX, so reading a config file and reporting mistakes in it is fast.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import ml_collections
from ml_collections import config_dict

from jaxeff.errors import ConfigError
from jaxeff.registry import closest

AnyConfig = TypeVar("AnyConfig", bound=ml_collections.ConfigDict)


def native(value: Any) -> Any:
    """Returns a value with NumPy's scalars, at any depth, as plain numbers of Python."""
    if isinstance(value, ml_collections.ConfigDict):
        return value
    if isinstance(value, Mapping):
        return {name: native(item) for name, item in value.items()}
    if isinstance(value, list):
        return [native(item) for item in value]
    if type(value) is tuple:
        return tuple(native(item) for item in value)
    if type(value).__module__ == "numpy" and hasattr(value, "item") and not value.shape:
        return value.item()
    return value


#: Sections that configs of older runs lack, with fields that came later still.
LATER_SECTIONS: dict[str, tuple[str, ...]] = {"quantize": ("activation_bits",)}


class Config(ml_collections.ConfigDict):  # type: ignore[misc]  # ml_collections has no types
    """A ``ConfigDict`` that takes NumPy's scalars for the numbers that they are.

    A locked section with a ``name`` still takes new fields, since what is registered under that
    name may take more than the config file sets; its registry refuses the others.
    """

    def __init__(self, initial: Mapping[str, Any] | None = None, *args: Any, **options: Any):
        super().__init__(None, *args, **options)
        if isinstance(initial, ml_collections.ConfigDict):
            fields: Iterable[tuple[str, Any]] = initial.items(preserve_field_references=True)
        else:
            fields = (initial or {}).items()
        for name, value in fields:
            self[name] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        value = native(value)
        if type(value) in (dict, ml_collections.ConfigDict):
            value = Config(value)
        if self.is_locked and key not in self and self.takes_new_fields:
            with self.unlocked():
                super().__setitem__(key, value)
        else:
            super().__setitem__(key, value)

    @property
    def takes_new_fields(self) -> bool:
        """Whether this is a section that a registered factory builds, and no whole config."""
        return bool(self.get("name")) and "prerequisites" not in self


def base_config() -> Config:
    """Returns the config that each file in ``configs/`` starts from.

    Sections ``data``, ``model``, ``algorithm``, ``objective`` and ``optim`` take any field that
    what their ``name`` builds takes, as do the members of ``analyses``; the other sections have
    exactly the fields below.
    """
    return Config(
        {
            "name": "",  # of the experiment, for its report
            "seed": 0,  # of the parameters, the order of the data and every random draw
            "data": {
                "name": "",  # see jaxeff.data.DATASETS
                "dir": "",  # folder of the original files; the data cache if empty
                "view": "",  # how images become sequences, see jaxeff.data.VIEWS
                "validation_fraction": 0.1,  # of the training data
                "calibration_fraction": 0.0,  # of the training data, to choose thresholds on
                "split_seed": 0,  # of these splits; the same for every seed
                "download": False,  # let tensorflow-datasets fetch and prepare the data
            },
            "prerequisites": {},  # by name, configs of trainings that come before this one
            "model": {"name": ""},  # see jaxeff.models.MODELS
            "search": {"name": ""},  # for the model, see jaxeff.search.searches.SEARCHES
            "algorithm": {"name": "bptt"},  # see jaxeff.train.algorithms.ALGORITHMS
            "objective": {"name": "auto"},  # see jaxeff.train.objectives.OBJECTIVES
            "optim": {
                "name": "adam",  # see jaxeff.train.optim.OPTIMIZERS
                "learning_rate": 1e-3,
                "schedule_name": "cosine",  # constant, cosine or step
                "warmup_steps": 0,
                "clip_norm": 0.0,  # 0 does not clip
                "weight_decay": 0.0,  # of kernels only
            },
            "quantize": {  # training that rounds as integers will, see jaxeff.quantize
                "weight_bits": 0,  # of kernels, 2 to 8; 0 does not round
                "state_bits": 0,  # of recurrent states, 8 or 16; 0 does not round
                "activation_bits": 0,  # of what kernels multiply, 8 or 16; 0 does not round
                "state_bound": 1.0,  # a power of two that states stay below
                "per_channel": True,  # a scale for every output of a kernel
            },
            "train": {
                "batch_size": 128,  # examples per step over all devices
                "num_steps": 1000,
                "log_every": 50,  # steps
                "eval_every": 200,  # steps
            },
            "eval": {
                "batch_size": 256,
                "select": "best",  # parameters for the test: best on validation, or last
            },
            "analyses": [],  # of the trained model: sections, see jaxeff.analyses.ANALYSES
            "checkpoint": {
                "every": 200,  # steps
                "keep": 2,
            },
            "export": {  # of a trained run, see jaxeff.exporting.export.Options
                "to": "stablehlo",  # formats, with commas; see jaxeff.exporting.FORMATS
                "precision": "float32",  # or another one of the formats
                "batch_sizes": [1, 64],
                "threads": 1,
                "rounds": 10,  # timed turns; 0 times nothing
            },
            "parallel": "shard_map",  # or pmap
            "devices": {
                "cpu": 0,  # CPU devices to make; 0 is one per core
                "topology": "",  # that --mode=compile compiles for: v5e:2x4, h100:8, cpu:8
                "coordinator": config_dict.placeholder(str),  # host:port or auto, of processes
                "num_processes": 1,
                "process_id": 0,
            },
        }
    )


def argument_items(arg: str, switches: Sequence[str] = ("quick",)) -> list[tuple[str, str]]:
    """Splits the argument of a config file at its commas into words and ``name=value``.

    Args:
      arg: the argument.
      switches: options that take no value.

    Returns:
      names in order, with their values ("" where none was given).

    Raises:
      ConfigError: an item stands there twice, has no value after ``=``, or is a switch with one.
    """
    values: dict[str, str] = {}
    for item in filter(None, (item.strip() for item in arg.split(","))):
        name, equals, value = item.partition("=")
        if name in values:
            raise ConfigError(f"'{name}' stands twice in the config's argument '{arg}'")
        if equals and (not value or name in switches):
            form = f"'{name}' alone" if name in switches else f"a value after '{name}='"
            raise ConfigError(f"the config's argument '{item}' must have {form}")
        values[name] = value
    return list(values.items())


def split_argument(
    arg: str,
    settings: Sequence[str],
    default: str,
    options: Sequence[str],
    switches: Sequence[str] = ("quick",),
) -> tuple[str, dict[str, str]]:
    """Splits the argument of a config file, ``configs/file.py:ARGUMENT``.

    Args:
      arg: comma-separated items: at most one setting, and options ``name`` or ``name=value``.
      settings: the settings that the file knows.
      default: the setting if none is given.
      options: the option names that it knows.
      switches: those of them that take no value.

    Returns:
      the setting, and the options with their values ("" for switches).

    Raises:
      ConfigError: an item is neither, is given twice, or misses its value.
    """
    named: list[str] = []
    values: dict[str, str] = {}
    for name, value in argument_items(arg, switches):
        if name in options:
            if not value and name not in switches:
                raise ConfigError(f"the config's argument '{name}' needs a value: {name}=VALUE")
            values[name] = value
        elif name in settings and not value:
            named.append(name)
        else:
            item = f"{name}={value}" if value else name
            known = [*settings, *options]
            raise ConfigError(f"the config's argument '{item}' is unknown{closest(name, known)}")
    if len(named) > 1:
        raise ConfigError(
            f"the config's argument '{arg}' has the settings {' and '.join(named)}; give one"
        )
    return named[0] if named else default, values


def chosen(
    options: Mapping[str, str], name: str, known: Mapping[str, Any] | Sequence[str], default: str
) -> str:
    """Returns an option of a config file's argument that is one of a few words.

    Raises:
      ConfigError: it is another.
    """
    value = options.get(name) or default
    if value not in known:
        raise ConfigError(
            f"the config's argument {name}={value} is unknown{closest(value, list(known))}"
        )
    return value


def whole_number(options: Mapping[str, str], name: str, default: int, least: int = 0) -> int:
    """Returns an option of a config file's argument that is a whole number.

    Raises:
      ConfigError: it is something else, or below ``least``.
    """
    text = options.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        kind = f"a whole number of at least {least}" if least else "a whole number"
        raise ConfigError(f"{name} in the config's argument must be {kind}, not '{text}'")
    return int(text)


def real_number(
    options: Mapping[str, str], name: str, default: float, *, positive: bool = False
) -> float:
    """Returns an option of a config file's argument that is a finite number, not negative.

    Raises:
      ConfigError: it is something else, or 0 where it is to be ``positive``.
    """
    text = options.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (math.isfinite(value) and value >= 0 and (value or not positive)):
        kind = "a positive number" if positive else "a number that is not negative"
        raise ConfigError(f"{name} in the config's argument must be {kind}, not '{text}'")
    return value


def share_of_steps(config: Config, part: int, whole: int) -> config_dict.FieldReference:
    """Returns ``part / whole`` of ``config.train.num_steps``, rounded down, whatever it becomes.

    A field with it follows when the number of steps is set on the command line.
    """
    return config.train.get_ref("num_steps") * part // whole


def evaluate_at_shares(config: Config, part: int, whole: int) -> None:
    """Validates and saves after every ``part / whole`` of the run's steps, rounded up.

    Both intervals follow when the number of steps is set on the command line, and each can be set
    there alone.
    """
    for section, field in (("train", "eval_every"), ("checkpoint", "every")):
        steps = config.train.get_ref("num_steps")
        config[section][field] = (steps * part + (whole - 1)) // whole


def follow(config: AnyConfig) -> AnyConfig:
    """Ties the prerequisites' seed and data to the config's, where they say the same.

    A field that is then overridden in the config, such as ``--config.seed=1`` or
    ``--config.data.dir=DIR``, changes in its prerequisites too. One that differs, or that is set in
    a prerequisite, ``--config.prerequisites.base.seed=2``, stays as it is there.

    Args:
      config: with its prerequisites.

    Returns:
      the same config.
    """
    for required in config.prerequisites.values():
        _tie(config, required, "seed")
        _tie_section(config.data, required.data)
        follow(required)
    return config


def _tie_section(one: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> None:
    for name in other:
        if isinstance(other[name], ml_collections.ConfigDict):
            if isinstance(one.get(name), ml_collections.ConfigDict):
                _tie_section(one[name], other[name])
        else:
            _tie(one, other, name)


def _tie(one: ml_collections.ConfigDict, other: ml_collections.ConfigDict, name: str) -> None:
    if name in one and one[name] == other[name] and type(one[name]) is type(other[name]):
        other[name] = one.get_ref(name).identity()


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config as plain dicts, lists, numbers and strings."""
    fields: dict[str, Any] = json.loads(json.dumps(native(config.to_dict())))
    return fields


def distinctive(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a plain config that identify a run.

    Devices and exports do not. Sections that older versions lack do so only if they are used, so
    that a config keeps its name.
    """
    return {name: value for name, value in _identifying(fields).items() if name != "devices"}


def _identifying(fields: Mapping[str, Any]) -> dict[str, Any]:
    neutral = plain(base_config())
    rest = {name: _of_before(name, value, neutral) for name, value in fields.items()}
    for name in ("export", *LATER_SECTIONS):
        if name == "export" or rest.get(name) == _of_before(name, neutral[name], neutral):
            rest.pop(name, None)
    if isinstance(rest.get("devices"), Mapping):
        rest["devices"] = {n: v for n, v in rest["devices"].items() if n != "topology"}
    if isinstance(rest.get("prerequisites"), Mapping):
        required = rest["prerequisites"].items()
        rest["prerequisites"] = {
            name: _identifying(one) if isinstance(one, Mapping) else one for name, one in required
        }
    return rest


def _of_before(name: str, value: Any, neutral: Mapping[str, Any]) -> Any:
    """Returns a section without the later fields that it does not use."""
    later = LATER_SECTIONS.get(name, ())
    if not later or not isinstance(value, Mapping):
        return value
    return {n: v for n, v in value.items() if n not in later or v != neutral[name][n]}


def first_difference(before: Any, now: Any, where: str = "config") -> str | None:
    """Returns a phrase that names the first field that differs between two plain configs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}):
            phrase = first_difference(before.get(name), now.get(name), f"{where}.{name}")
            if phrase:
                return phrase
        return None
    return None if before == now else f"{where} was {before!r} and is now {now!r}"
