"""The compiled library: built once for a machine, kept in ``~/.cache/jaxeff``, and loaded."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from jaxeff.errors import ConfigError, UserError
from jaxeff.typing import Array

try:
    import fcntl
except ImportError:  # no POSIX system: nothing to lock with
    fcntl = None  # type: ignore[assignment]

HERE = Path(__file__).parent
TARGETS = (
    "jaxeff_conv",
    "jaxeff_conv_input_gradient",
    "jaxeff_conv_kernel_gradient",
    "jaxeff_conv_to_channel",
    "jaxeff_winograd",
    "jaxeff_depthwise_conv",
    "jaxeff_expanded_depthwise",
    "jaxeff_fields",
    "jaxeff_mixed_anchors",
    "jaxeff_sampled_anchors",
    "jaxeff_fields_input_gradient",
    "jaxeff_fields_kernel_gradient",
    "jaxeff_transport",
    "jaxeff_transport_gradient",
    "jaxeff_channel_sums",
    "jaxeff_masked_channel_sums",
    "jaxeff_pixel_sums",
    "jaxeff_products",
    "jaxeff_sum_of_products",
    "jaxeff_outer_product",
    "jaxeff_row_scan",
    "jaxeff_memory",
    "jaxeff_transposed",
)
COMPILERS = ("c++", "g++", "clang++")
OPTIONS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-pthread")

#: "auto" takes the library if it can be built, "never" does not, "always" is an error without it.
VARIABLE, CHOICES = "JAXEFF_NATIVE", ("auto", "never", "always")


class NativeError(UserError):
    """The compiled library was asked for and cannot be had."""


@functools.cache
def is_available() -> bool:
    """Returns whether the library is loaded and its functions can be called.

    Raises:
      ConfigError: the environment variable ``JAXEFF_NATIVE`` is not auto, never or always.
      NativeError: it is "always", and there is no library.
    """
    choice = os.environ.get(VARIABLE, "") or "auto"
    if choice not in CHOICES:
        raise ConfigError(f"{VARIABLE} must be one of {', '.join(CHOICES)}, not {choice!r}")
    if choice == "never":
        return False
    try:
        _register(ctypes.CDLL(str(build())))
    except (NativeError, OSError) as error:
        if choice == "always":
            raise NativeError(f"{VARIABLE}=always, but {error}; or set {VARIABLE}=auto") from error
        return False
    return True


def is_computable(*arrays: Array) -> bool:
    """Returns whether the library computes with such arrays: float32, of known and whole shapes."""
    known = all(isinstance(size, int) and size for a in arrays for size in a.shape)
    return known and all(a.dtype == jnp.float32 for a in arrays) and is_available()


def call(
    name: str, shapes: Sequence[tuple[int, ...]], args: tuple[Array, ...], **attributes: Any
) -> Sequence[Array]:
    """Calls a function of the library.

    Args:
      name: in `TARGETS`.
      shapes: of its float32 results.
      args: arrays.
      **attributes: further static arguments.
    """
    return call_in_place(name, shapes, args, {}, **attributes)


def call_in_place(
    name: str,
    shapes: Sequence[tuple[int, ...]],
    args: tuple[Array, ...],
    aliases: dict[int, int],
    **attributes: Any,
) -> Sequence[Array]:
    """Calls a function whose results, by number, are written in place of the arrays ``aliases``."""
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    function = jax.ffi.ffi_call(
        name, results, vmap_method="sequential", input_output_aliases=aliases
    )
    return function(*args, threads=np.int64(threads()), **attributes)


def threads() -> int:
    """Returns the cores for a call: all, or a device's share where a program runs on several."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    mesh = jax.sharding.get_abstract_mesh()
    devices: int = math.prod(mesh.shape[axis] for axis in mesh.manual_axes)
    local: int = jax.local_device_count("cpu")
    return max(1, (cores or 1) // min(devices, local))


def build() -> Path:
    """Returns the library of this machine, after compiling it if it is not there.

    Raises:
      NativeError: there is no compiler, or it fails.
    """
    compiler = _compiler()
    folder, key = _cache() / "jaxeff" / "native", _key(compiler)
    try:
        if library := _built(folder, key):
            return library
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / "lock"):
            # A process that was first may have compiled it.
            return _built(folder, key) or _compile(compiler, folder, key)
    except OSError as error:
        raise NativeError(
            f"the library cannot be kept in {folder} ({error.strerror}): set XDG_CACHE_HOME to "
            "another folder"
        ) from error


def _cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError as error:  # neither $HOME nor an entry of the user
        raise NativeError("there is no home directory: set XDG_CACHE_HOME to a folder") from error


def _built(folder: Path, key: str) -> Path | None:
    """Returns a library whose content has the hash in its name: to load a part is a crash."""
    files = folder.glob(f"{key}-*.so")
    return next((f for f in files if f.stem == f"{key}-{_hash(f.read_bytes())}"), None)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits until no other process is in here, where the system can lock files."""
    with path.open("a") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(compiler: list[str], folder: Path, key: str) -> Path:
    """Compiles the sources side by side and puts the library in its place, which is returned."""
    logging.getLogger("jaxeff").warning(
        "compiling the C++ functions of jaxeff for this processor, once, some 20 seconds "
        f"({VARIABLE}=never does without them)"
    )
    # Moved to its place as a whole: processes that cannot lock files may compile it at once.
    with tempfile.TemporaryDirectory(dir=folder) as name:
        output = Path(name) / f"{key}.so"
        options = [*compiler, *OPTIONS, "-isystem", jax.ffi.include_dir()]

        def compiled(source: Path) -> str:
            target = str(Path(name) / f"{source.stem}.o")
            _run([*options, "-c", str(source), "-o", target])
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, sorted(HERE.glob("*.cc"))))
        _run([*compiler, *OPTIONS, "-shared", *objects, "-o", str(output)])
        return output.replace(folder / f"{key}-{_hash(output.read_bytes())}.so")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), "no words")
        raise NativeError(
            f"{command[0]} could not compile the library ({first.strip()}): install a C++ "
            "compiler, such as g++, or name one in CXX"
        )


def _compiler() -> list[str]:
    named = os.environ.get("CXX", "")
    try:
        command = shlex.split(named)
    except ValueError:  # half a quotation
        command = [named]
    if command and not shutil.which(command[0]):
        raise NativeError(f"CXX is {named!r}, which is no command: correct it")
    if command:
        return command
    for name in COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise NativeError("no C++ compiler was found: install one, such as g++")


def _key(compiler: list[str]) -> str:
    """Returns a hash of everything that the library depends on, the processor included."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
    parts = [
        *compiler,
        version,
        *OPTIONS,
        jaxlib.version.__version__,
        platform.machine(),
        _processor(),
    ]
    sources = (path.read_text() for path in sorted(HERE.glob("*.cc")) + sorted(HERE.glob("*.h")))
    return _hash("\0".join((*parts, *sources)).encode())


def _processor() -> str:
    """Returns the instructions that the processor has, as far as the system says."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next(iter(re.findall(r"^(?:flags|Features)\s*:.*$", text, re.MULTILINE)), "")


def _register(library: ctypes.CDLL) -> None:
    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
