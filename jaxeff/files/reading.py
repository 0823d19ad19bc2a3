"""Files as they lie in real folders: which to pass over, and safe reading and replacing."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxeff.errors import DataError

#: Companions that operating systems, archives and disks put beside a user's own files.
COMPANIONS = frozenset(
    ("__MACOSX", "@eaDir", "lost+found", "#recycle", "$RECYCLE.BIN", "System Volume Information")
)
#: Bytes that a text or JSON file may have; larger ones are no files of the kind that is asked for.
MAX_TEXT_BYTES = 1 << 31
MAX_JSON_BYTES = 1 << 28


def memory_bytes() -> int:
    """Returns the memory of the machine, in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return 1 << 40


def is_companion(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or a companion of others."""
    return name.startswith(".") or name in COMPANIONS


def walk(folder: Path) -> Iterator[Path]:
    """Yields the files in a folder and below it in the order of their paths, without companions.

    Linked folders are entered, each folder once.

    Raises:
      DataError: a folder that is there cannot be listed.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from None

    files, seen = [], {os.path.realpath(folder)}
    for place, inside, names in os.walk(folder, onerror=refuse, followlinks=True):
        entered = []
        for name in sorted(inside):
            target = os.path.realpath(os.path.join(place, name))
            if not is_companion(name) and target not in seen:
                seen.add(target)
                entered.append(name)
        inside[:] = entered
        files += [Path(place, name) for name in names if not is_companion(name)]
    yield from sorted(files)


def read_text(path: Path, errors: str = "strict", limit: int = MAX_TEXT_BYTES) -> str:
    """Reads a UTF-8 text file; line ends become newlines, and a byte order mark is dropped.

    Args:
      path: the file.
      errors: what to do with other bytes, see `bytes.decode`.
      limit: bytes that it may have.

    Raises:
      DataError: the file cannot be read, is not UTF-8, or is too large.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise DataError(f"{path}: {size} bytes are more than the {limit} that are read")
        return path.read_text("utf-8-sig", errors=errors)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def gunzipped(path: Path, limit: int) -> bytes:
    """Returns what a gzip file holds, never taking much more memory than ``limit`` bytes.

    Raises:
      DataError: it is damaged, or holds more.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(limit + 1)
    except EOFError:
        raise DataError(f"{path}: the compressed file is truncated; fetch it again") from None
    except (OSError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch it again") from None
    if len(content) > limit:
        raise DataError(f"{path}: too long, it holds more than the {limit} bytes it should")
    return content


def read_npz(path: Path, limit: int) -> dict[str, np.ndarray]:
    """Returns the arrays of an npz file, whose headers are read before any memory is taken.

    Args:
      path: the file.
      limit: bytes that all arrays together may have.

    Raises:
      DataError: it is damaged, holds objects, or an array is larger than it should or than what is
        stored.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays, total = {}, 0
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    shape, dtype = _npy_header(file)
                size = math.prod(map(int, shape)) * dtype.itemsize
                total += size
                if size > entry.file_size or total > limit:
                    raise ValueError(
                        f"{entry.filename} claims {size} bytes, of {entry.file_size} stored and "
                        f"{limit} expected"
                    )
                with archive.open(entry) as file:
                    value = np.lib.format.read_array(file, allow_pickle=False)
                arrays[entry.filename.removesuffix(".npy")] = value
            return arrays
    except Exception as error:  # whatever a damaged archive makes its readers raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason})") from None


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    reader: Any = {(1, 0): np.lib.format.read_array_header_1_0}.get(
        version, np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = reader(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, dtype


def replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file under another name and renames it, so that it is seen whole or not at all.

    Raises:
      OSError: it cannot be written; nothing is left behind.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # Temporary files are private; this one is to be as readable as any other.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def replace_all(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes files into a folder, made if need be; none takes its place before all are written.

    Args:
      folder: the folder.
      contents: by name.

    Raises:
      OSError: they cannot be written; files that were there are as before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as private:
        for name, content in contents.items():
            with (Path(private) / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name in contents:
            os.replace(Path(private) / name, folder / name)


def npz_bytes(**arrays: np.ndarray) -> bytes:
    """Returns arrays as the content of a compressed npz file."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()
