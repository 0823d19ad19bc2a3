"""Weights of models in files of the format safetensors, whole or in shards.

A file is the length of a header as eight bytes, the header in JSON, which says type, shape and
place of every tensor, and the tensors. Nothing in it is executed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxeff.errors import DataError
from jaxeff.files import reading
from jaxeff.hub.model_folder import INDEX, WEIGHTS

_TYPES: dict[str, Any] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": ml_dtypes.bfloat16,
    **{f"I{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    "BOOL": "?",
}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}
_ALIGNMENT = 8  # bytes, of the first tensor
#: Files of other formats, which are known to lie in such folders.
_OTHERS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


def parts(folder: Path) -> list[Path]:
    """Returns the files of a folder's weights.

    Raises:
      DataError: there are none, they are in another format, or one of the shards is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        other = next((name for name in _OTHERS if (folder / name).is_file()), "")
        if not other:
            raise DataError(f"{folder / WEIGHTS}: cannot be read (there is no such file)")
        raise DataError(
            f"{folder / other}: is not read, since such files can hold programs; convert it to "
            f"{WEIGHTS}, with PyTorch by safetensors.torch.save_file(torch.load('{other}', "
            "weights_only=True), ...) or with transformers by "
            "model.save_pretrained(..., safe_serialization=True)"
        )
    try:
        names = json.loads(reading.read_text(index, limit=reading.MAX_JSON_BYTES))["weight_map"]
        shards = sorted({str(name) for name in names.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{index}: is no index of shards ({error})") from None
    if not shards:
        raise DataError(f"{index}: names no shards; fetch it again")
    for name in shards:
        if Path(name).name != name or not (folder / name).is_file():
            raise DataError(f"{folder / name}: is named in {INDEX}, but is not there")
    return [folder / name for name in shards]


def to_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Returns the content of a file of some tensors, in the order of their names.

    Raises:
      DataError: a type that the format does not have; the tensor is named.
    """
    header: dict[str, Any] = {}
    contents, end = [], 0
    for name, value in sorted(tensors.items()):
        dtype = value.dtype.newbyteorder("<")
        if dtype not in _NAMES:
            raise DataError(f"{name} is of type {value.dtype}, which safetensors does not have")
        content = np.ascontiguousarray(value, dtype).tobytes()
        offsets = [end, end + len(content)]
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(value.shape),
            "data_offsets": offsets,
        }
        contents.append(content)
        end = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([len(text).to_bytes(8, "little"), text, *contents])


def read(paths: list[Path], *, half: bool = False) -> dict[str, np.ndarray]:
    """Returns the tensors of some files.

    Args:
      paths: the files.
      half: whether 16-bit floats stay what they are; otherwise they become float32.

    Raises:
      DataError: a file cannot be read or is damaged, or two have a tensor of one name.
    """
    tensors: dict[str, np.ndarray] = {}
    for path in paths:
        try:
            of_file = _read(path)
            if not half:
                of_file = {name: _widened(value) for name, value in of_file.items()}
        except Exception as error:  # whatever a damaged file makes the readers raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"{path}: cannot be read ({reason})") from None
        twice = next((name for name in of_file if name in tensors), None)
        if twice is not None:
            raise DataError(f"{path}: has {twice}, which another shard has too")
        tensors |= of_file
    return tensors


def _read(path: Path) -> dict[str, np.ndarray]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, reading.MAX_JSON_BYTES):
            raise ValueError(f"{size} bytes are too few for a header of {length}")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no table of tensors")
    stored = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return {name: _tensor(name, entry, stored[8 + length :]) for name, entry in entries.items()}


def _tensor(name: str, entry: Any, stored: np.ndarray) -> np.ndarray:
    kind, shape = entry["dtype"], tuple(int(n) for n in entry["shape"])
    begin, end = (int(n) for n in entry["data_offsets"])
    if kind not in _TYPES:
        raise ValueError(f"{name} is of type {kind}, which is not supported")
    dtype = np.dtype(_TYPES[kind])
    if not 0 <= begin <= end <= len(stored):
        raise ValueError(f"the file is truncated: {name} ends at {end} of {len(stored)} bytes")
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{name} of shape {shape} does not have {end - begin} bytes")
    tensor: np.ndarray = np.asarray(stored[begin:end]).view(dtype)
    return tensor.reshape(shape)


def _widened(values: np.ndarray) -> np.ndarray:
    half = values.dtype in (np.float16, ml_dtypes.bfloat16)
    return values.astype(np.float32) if half else values
