"""Digests of a checkpoint's arrays, which detect corrupted files."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_RECORD, _DIGEST = "record", "digest"


# A part of a path as old checkpoints have it: ['name'], [3] or .name.
_OLD_PART = re.compile(r"\['([^']*)'\]|\[(?:<flat index )?(\d+)>?\]|\.(\w+)")


def _part(match: re.Match[str]) -> str:
    return "/" + next(group for group in match.groups() if group is not None)


class DamageError(ValueError):
    """The content of a checkpoint differs from what was saved."""


def types(tree: Any) -> dict[str, str]:
    """Returns shape and type of every array by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): f"{leaf.shape} {leaf.dtype}" for path, leaf in leaves}


def _name(path: Any) -> str:
    """Returns a path as text, with equal names for dataclass fields and dict entries."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def digests(tree: Any) -> dict[str, str]:
    """Returns a digest of the bytes of every array by its path.

    Arrays that are not fully addressable by this process are left out.
    """
    by_name = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            content = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
            by_name[_name(path)] = _digest(content.data)
    return by_name


def _digest(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def pack(tree: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the JSON part of a checkpoint: plain values, and the arrays' types and digests."""
    record = {"values": values, "types": types(tree), "digests": digests(tree)}
    text = json.dumps(record).encode()
    return {_RECORD: np.frombuffer(text, np.uint8), _DIGEST: _digest(text)}


def unpack(packed: dict[str, Any]) -> dict[str, Any]:
    """Returns ``values``, ``types`` and ``digests``; the last is empty in old checkpoints.

    Raises:
      DamageError: the record is not a result of `pack`.
    """
    if _RECORD not in packed:
        named = {_OLD_PART.sub(_part, old)[1:]: kind for old, kind in packed["types"].items()}
        return {"values": packed["values"], "types": named, "digests": {}}
    text = np.asarray(packed[_RECORD]).tobytes()
    if _digest(text) != packed.get(_DIGEST):
        raise DamageError("its plain values are not those that were saved")
    values: dict[str, Any] = json.loads(text)
    return values


def check(tree: Any, known: dict[str, str]) -> None:
    """Raises `DamageError` if an array's digest differs from the saved one."""
    for path, digest in digests(tree).items() if known else ():
        if digest != known.get(path, digest):
            raise DamageError(f"the array {path} is not the one that was saved")
