"""What a training's figures depend on, as one word: config, data, code and machine.

A finished run is used again only under the same key. All of the package counts as its code: configs
name parts by words in registries, so no smaller set of files is known to be enough. Comments,
docstrings and layout do not count, because no figure depends on them.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

import jaxeff
from jaxeff import data
from jaxeff.data.base import GeneratedSplit

#: Of the environment: what changes without a figure's changing, or follows from the config.
NO_MATTER = ("commit", "jaxeff", "device_count", "process_count")
BATCH = 512
LENGTH = 12


def key(config: Any) -> str:
    """Returns the key of a training, that of its prerequisites included."""
    from jaxeff.train import check

    parts = {
        "config": check.identity(config),
        "data": data_of(config),
        "code": code_digest(Path(jaxeff.__file__).parent),
        "environment": machine(),
    }
    return _digest(json.dumps(parts, sort_keys=True).encode())[:LENGTH]


def of_code(script: Path, settings: Any) -> str:
    """Returns the key of what a script does by itself, without a config."""
    parts = {
        "script": ast.dump(_without_docstrings(ast.parse(script.read_text(encoding="utf-8")))),
        "settings": settings,
        "code": code_digest(Path(jaxeff.__file__).parent),
        "environment": machine(),
    }
    return _digest(json.dumps(parts, sort_keys=True).encode())[:LENGTH]


@functools.cache
def machine() -> dict[str, Any]:
    """Returns the machine and the versions of the packages that compute."""
    from jaxeff import bench
    from jaxeff.train import runtime

    runtime.prepare(batch_size=1, cpu_devices=1)  # as all benchmarks train, before devices start
    return {k: v for k, v in bench.environment().items() if k not in NO_MATTER}


@functools.cache
def code_digest(package: Path) -> str:
    """Returns a digest of the code in a folder and below it."""
    hashed = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        tree = _without_docstrings(ast.parse(path.read_text(encoding="utf-8")))
        hashed.update(f"{path.relative_to(package)}\n{ast.dump(tree)}\n".encode())
    return hashed.hexdigest()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree


def data_of(config: Any) -> dict[str, str]:
    """Returns digests of all data that a training and its prerequisites read, by their fields."""
    fields = json.dumps(json.loads(config.data.to_json_best_effort()), sort_keys=True)
    digests = {fields: _data_digest(fields, config.data)}
    for required in config.prerequisites.values():
        digests |= data_of(required)
    return digests


_DIGESTS: dict[str, str] = {}


def _data_digest(fields: str, section: Any) -> str:
    """Returns the digest of a data set, which is computed once in a process."""
    if fields not in _DIGESTS:
        options = section.to_dict()
        _DIGESTS[fields] = digest(data.load(options.pop("name"), **options))
    return _DIGESTS[fields]


def digest(dataset: data.Dataset) -> str:
    """Returns a digest of the examples of all splits.

    Of examples that are computed on the fly only the first are read: the code that makes them
    counts anyway.
    """
    hashed = hashlib.sha256()
    for name, split in sorted(dataset.splits.items()):
        number = len(split)
        hashed.update(f"{name} {number}\n".encode())
        if isinstance(split, GeneratedSplit):
            number = min(number, BATCH)
        for first in range(0, number, BATCH):
            batch = split.take(np.arange(first, min(first + BATCH, number)))
            for part, array in sorted(batch.items()):
                array = np.ascontiguousarray(array)
                hashed.update(f"{part} {array.dtype} {array.shape}\n".encode())
                hashed.update(array.tobytes())
    return hashed.hexdigest()


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
