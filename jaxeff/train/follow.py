"""Prerequisites that take over what is set for the run: its seed and its data."""

from __future__ import annotations

import ml_collections


def follow(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
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
