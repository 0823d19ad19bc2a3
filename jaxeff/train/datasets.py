"""A cache of the data sets of a run and its prerequisites."""

from __future__ import annotations

import json

import ml_collections

from jaxeff import data
from jaxeff.config import plain


class DatasetCache:
    """Loads each distinct ``config.data`` once."""

    def __init__(self) -> None:
        self._datasets: dict[str, data.Dataset] = {}

    def load(self, fields: ml_collections.ConfigDict) -> data.Dataset:
        """Returns the data set of a section ``data``, see `jaxeff.data.load`."""
        key = json.dumps(plain(fields), sort_keys=True)
        if key not in self._datasets:
            options = fields.to_dict()
            self._datasets[key] = data.load(options.pop("name"), **options)
        return self._datasets[key]
