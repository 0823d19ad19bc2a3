"""Checks of a config that need neither data nor devices; each error is one sentence."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from jaxeff.config import base_config, distinctive, first_difference, plain
from jaxeff.errors import CheckpointError, ConfigError
from jaxeff.files.atomic import write_text_atomically
from jaxeff.registry import closest
from jaxeff.train import values

OPEN_SECTIONS = ("data", "prerequisites", "model", "search", "algorithm", "objective", "optim")
POSITIVE = (
    "train.batch_size",
    "train.num_steps",
    "train.log_every",
    "train.eval_every",
    "eval.batch_size",
    "checkpoint.every",
    "checkpoint.keep",
    "devices.num_processes",
)
MAX_CPU_DEVICES = 512
SELECTIONS = ("best", "last")
CONFIG_FILE = "config.json"
#: Folders of a run.
RESERVED = ("checkpoints", "eval", "bench", "compile", "export", "model", "search")


def check(config: ml_collections.ConfigDict) -> None:
    """Raises `ConfigError` for an unknown field, a wrong type or an impossible number."""
    fields = config.to_dict()
    values.check_values({name: v for name, v in fields.items() if name != "prerequisites"})
    _check_fields(fields, base_config().to_dict(), "config", is_open=False)
    values.check_model(fields["model"])
    values.check_name(config.name)
    values.check_seed(config.seed)
    for field in POSITIVE:
        section, name = field.split(".")
        if config[section][name] < 1:
            raise ConfigError(f"config.{field} must be at least 1, not {config[section][name]}")
    values.check_processes(config.devices)
    if "num_steps" in fields["optim"]:
        raise ConfigError("config.optim.num_steps cannot be set: it is config.train.num_steps")
    if config.devices.cpu < 0:
        raise ConfigError(f"config.devices.cpu must not be negative, not {config.devices.cpu}")
    if config.devices.cpu > MAX_CPU_DEVICES:
        raise ConfigError(
            f"config.devices.cpu must be at most {MAX_CPU_DEVICES}, not {config.devices.cpu}"
        )
    if config.eval.select not in SELECTIONS:
        raise ConfigError(
            f"config.eval.select: unknown choice '{config.eval.select}'"
            f"{closest(config.eval.select, list(SELECTIONS))}"
        )
    for name, required in config.prerequisites.items():
        _check_prerequisite(name, required)


def training_batch(config: ml_collections.ConfigDict) -> int:
    """Returns the greatest common divisor of all training batch sizes.

    These are the config's and those of its prerequisites, per process.
    """
    sizes = [training_batch(required) for required in config.prerequisites.values()]
    common = math.gcd(config.train.batch_size, *sizes)
    processes = config.devices.num_processes
    return common // processes if common % processes == 0 else common


def _check_prerequisite(name: str, config: Any) -> None:
    field = f"config.prerequisites.{name}"
    if not name.isidentifier() or name in RESERVED:
        raise ConfigError(
            f"{field}: its name becomes a folder of the run; use letters, digits and underscores"
        )
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"{field} must be a whole config, not {config!r}")
    with of_prerequisite(name):
        check(config)


@contextlib.contextmanager
def of_prerequisite(name: str) -> Iterator[None]:
    """Adds the prerequisite's name to the field in error messages raised within."""
    try:
        yield
    except ConfigError as error:
        field = f"config.prerequisites.{name}."
        raise ConfigError(str(error).replace("config.", field, 1)) from error


def _check_fields(
    fields: Mapping[str, Any], known: Mapping[str, Any], where: str, is_open: bool
) -> None:
    for name in known:
        if name not in fields:
            raise ConfigError(
                f"{where}.{name} is missing; build the config from jaxeff.train.base_config()"
            )
    for name, value in fields.items():
        field = f"{where}.{name}"
        if name not in known:
            if is_open:
                continue
            raise ConfigError(f"{field} is not a field of a config{closest(name, list(known))}")
        if isinstance(known[name], Mapping):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{field} must be a section of fields, not {value!r}")
            _check_fields(value, known[name], field, is_open=name in OPEN_SECTIONS)
        elif not _fits(value, known[name]):
            expected = type(known[name]).__name__ if known[name] is not None else "text"
            raise ConfigError(f"{field} must be of type {expected}, not {value!r}")


def _fits(value: Any, like: Any) -> bool:
    if like is None:
        return value is None or isinstance(value, str)
    if isinstance(like, bool) or isinstance(value, (bool, np.bool_)):
        return isinstance(like, bool) and isinstance(value, (bool, np.bool_))
    kinds = {
        int: (int, np.integer),
        float: (int, float, np.integer, np.floating),
        tuple: (tuple, list),  # JSON, in which configs are kept, has lists alone
    }
    return isinstance(value, kinds.get(type(like), type(like)))


def identity(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the fields of a config that a run must keep to be continued."""
    return distinctive(plain(config))


def claim_workdir(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Writes the config to the working directory, or checks that it is the one stored there.

    A finished run can be extended: with a constant learning rate, a larger ``train.num_steps`` is
    accepted and stored.

    Raises:
      CheckpointError: the stored config differs; the message names the first field that differs.
    """
    before = _recorded(workdir)
    if before is not None:
        now = identity(config)
        if first_difference(before, now) is None:
            return
        _check_longer(workdir, before, now)
    text = json.dumps(plain(config), indent=2, sort_keys=True)
    write_text_atomically(workdir / CONFIG_FILE, text)


def check_workdir(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Raises `CheckpointError` if the working directory has another config; writes nothing."""
    before = _recorded(workdir)
    difference = first_difference(before, identity(config)) if before is not None else None
    if difference:
        raise CheckpointError(
            f"{workdir} was written by another config ({difference}); "
            "give another --workdir, or the settings that it was trained with"
        )


def _recorded(workdir: Path) -> dict[str, Any] | None:
    """Returns the config stored in the working directory, or None.

    Raises:
      CheckpointError: it is damaged, and checkpoints depend on it.
    """
    path = workdir / CONFIG_FILE
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(before, dict):
            return distinctive(before)
    except FileNotFoundError:
        return None
    except ValueError:
        pass
    folder = workdir / "checkpoints"
    if folder.is_dir() and any(folder.iterdir()):
        raise CheckpointError(
            f"{path} is damaged; bring it back from a copy, or delete that file: the same command "
            "then goes on from the checkpoints beside it, if they are of its config"
        )
    return None  # no checkpoints depend on it


def _check_longer(workdir: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises `CheckpointError` unless the only change is a valid increase of the steps."""
    difference = first_difference(before, now)
    old, new = before.get("train"), now["train"]
    steps = old.get("num_steps") if isinstance(old, dict) else None
    if isinstance(steps, int) and steps < new["num_steps"]:
        rest = first_difference(before, {**now, "train": {**new, "num_steps": steps}})
        schedule = now["optim"].get("schedule_name", "constant")
        if rest is None and schedule == "constant":
            return
        if rest is None:
            raise CheckpointError(
                f"{workdir} was trained for {steps} steps, over which its learning rate follows "
                f"the schedule '{schedule}', so that it cannot go on to {new['num_steps']}; train "
                "those from the start in another --workdir, or give --config.optim.schedule_name="
                "constant to a run that shall be made longer"
            )
    raise CheckpointError(
        f"{workdir} was written by another config ({difference}); "
        "give another --workdir, or delete that one"
    )
