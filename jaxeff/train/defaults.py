"""The fields that every experiment's config has, with their meaning and neutral values."""

from __future__ import annotations

import ml_collections
from ml_collections import config_dict

from jaxeff.errors import ConfigError
from jaxeff.registry import closest


def base_config() -> ml_collections.ConfigDict:
    """Returns the config that each file in ``configs/`` starts from.

    Sections ``data``, ``model``, ``algorithm``, ``objective`` and ``optim`` take any field that
    what their ``name`` builds takes, as do the members of ``analyses``; the other sections have
    exactly the fields below.
    """
    return ml_collections.ConfigDict(
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
            "search": {"name": ""},  # for the model, see jaxeff.train.searches.SEARCHES
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
            "analyses": [],  # of the trained model: sections, see jaxeff.train.analyses.ANALYSES
            "checkpoint": {
                "every": 200,  # steps
                "keep": 2,
            },
            "parallel": "shard_map",  # or pmap
            "devices": {
                "cpu": 0,  # CPU devices to make; 0 is one per core
                "coordinator": config_dict.placeholder(str),  # host:port, for several processes
                "num_processes": 1,
                "process_id": 0,
            },
        }
    )


def split_argument(
    arg: str, settings: list[str], default: str, options: list[str]
) -> tuple[str, dict[str, str]]:
    """Splits the argument of a config file, ``configs/file.py:ARGUMENT``.

    Args:
      arg: comma-separated items: at most one setting, and options ``name`` or ``name=value``.
      settings: the settings that the file knows.
      default: the setting if none is given.
      options: the option names that it knows.

    Returns:
      the setting, and the options with their values ("" where none was given).

    Raises:
      ConfigError: an item is neither.
    """
    setting, found = default, {}
    for item in filter(None, arg.split(",")):
        name, _, value = item.partition("=")
        if name in options:
            found[name] = value
        elif item in settings:
            setting = item
        else:
            known = [*settings, *options]
            raise ConfigError(f"the config's argument '{item}' is unknown{closest(name, known)}")
    return setting, found


def whole_number(options: dict[str, str], name: str, default: int, least: int = 0) -> int:
    """Returns an option of a config file's argument that is a whole number.

    Raises:
      ConfigError: it is something else, or below ``least``.
    """
    text = options.get(name) or str(default)
    if not text.isdigit() or int(text) < least:
        kind = f"a whole number of at least {least}" if least else "a whole number"
        raise ConfigError(f"{name} in the config's argument must be {kind}, not '{text}'")
    return int(text)
