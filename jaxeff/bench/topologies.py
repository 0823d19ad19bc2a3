"""Devices that programs are compiled for without being there: ``v5e:2x4``, ``h100:8``, ``cpu:8``.

XLA compiles for a description of a TPU slice or of GPUs on any machine. For TPUs it needs the
package ``libtpu``, for GPUs the CUDA plugin of JAX and ``ptxas``; the CPU devices are JAX's own.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from jaxeff.bench.chips import CHIPS, GPUS_PER_HOST
from jaxeff.errors import ConfigError, UserError, explained
from jaxeff.registry import closest

FIELD = "config.devices.topology"
EXAMPLES = "v5e:2x4, v6e:2x2, v5p:2x2x1, h100:8, h200:8 or cpu:8"
#: What libtpu asks the metadata server of a TPU machine for, where there is none.
_NO_TPU_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is run, so that nothing is shared
}
_TARGETS = Path(__file__).parent / "targets"
_DIMENSIONS = {"v5e": 2, "v6e": 2, "v5p": 3}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of one kind that a program can be compiled for.

    Attributes:
      name: as it was asked for.
      kind: "cpu", or a name in `jaxeff.bench.chips.CHIPS`.
      sizes: of the grid of devices.
      devices: handles that a mesh takes; only CPU devices can hold arrays.
      compiler_options: for ``lowered.compile(compiler_options=...)``.
    """

    name: str
    kind: str
    sizes: tuple[int, ...]
    devices: list[Any]
    compiler_options: dict[str, Any]

    @property
    def memory_bytes(self) -> int | None:
        """Memory of one device that a program may use; None for CPUs, which share theirs."""
        return CHIPS[self.kind].memory_bytes if self.kind in CHIPS else None

    @property
    def num_hosts(self) -> int:
        """Number of machines that hold the devices."""
        return len({device.process_index for device in self.devices})


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """Returns the kind and the sizes that a topology's name says; loads nothing.

    Raises:
      ConfigError: it is no name of a topology.
    """
    kind, colon, layout = name.partition(":")
    known = [*CHIPS, "cpu"]
    if kind not in known:
        raise ConfigError(f"{FIELD}: unknown kind of device '{kind}'{closest(kind, known)}")
    if not colon or not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})*", layout):
        raise ConfigError(f"{FIELD} must be a kind and a size such as {EXAMPLES}, not {name!r}")
    sizes = tuple(map(int, layout.split("x")))
    if len(sizes) != _DIMENSIONS.get(kind, 1):
        grid = "x".join("2" for _ in range(_DIMENSIONS.get(kind, 1)))
        form = f"a grid such as {kind}:{grid}" if kind in _DIMENSIONS else "a number of devices"
        raise ConfigError(f"{FIELD}: '{kind}' takes {form}, not {name!r}")
    if kind in CHIPS and CHIPS[kind].platform == "gpu":
        (number,) = sizes
        if number > GPUS_PER_HOST and number % GPUS_PER_HOST:
            raise ConfigError(
                f"{FIELD}: hosts have {GPUS_PER_HOST} GPUs, so that {number} of them are no number "
                f"of whole hosts; give at most {GPUS_PER_HOST}, or a multiple"
            )
    return kind, sizes


def prepare(name: str) -> int:
    """Sets up the process for a topology, before JAX starts its devices.

    Args:
      name: of the topology.

    Returns:
      the number of CPU devices that JAX must have.

    Raises:
      ConfigError: it is no name of a topology.
      UserError: the environment's ``XLA_FLAGS`` are not this version's, a package is missing.
    """
    kind, sizes = parse(name)
    _check_flags()
    jax.config.update("jax_platforms", "cpu")  # the accelerators of this machine are not asked
    if kind == "cpu":
        return math.prod(sizes)
    if CHIPS[kind].platform == "tpu":
        _require("libtpu", name, "aot-tpu")
        for variable, value in _NO_TPU_MACHINE.items():
            os.environ.setdefault(variable, value)
    else:
        _require("jax_plugins", name, "aot-gpu")
        _cuda_folder(name)
    return 1


def topology(name: str) -> Topology:
    """Returns the devices of a name, after `prepare`.

    Raises:
      ConfigError: there is no such topology, or JAX started with fewer CPU devices.
      UserError: a package is missing.
    """
    kind, sizes = parse(name)
    number = math.prod(sizes)
    if kind == "cpu":
        devices = jax.devices("cpu")
        if len(devices) < number:
            raise ConfigError(
                f"{FIELD}: JAX has started with {len(devices)} CPU devices, fewer than {name} has; "
                "start a new process"
            )
        return Topology(name, kind, sizes, devices[:number], {})
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    try:
        if CHIPS[kind].platform == "tpu":
            devices = topologies.get_topology_desc(name, platform="tpu").devices
        else:
            # No device is there to time kernels on, which is what this flag would ask for.
            options = {"xla_gpu_autotune_level": 0, "xla_gpu_cuda_data_dir": _cuda_folder(name)}
            inside = min(number, GPUS_PER_HOST)
            devices = topologies.get_topology_desc(
                "",
                platform="cuda",
                target_config=(_TARGETS / f"{kind}.txtpb").read_text(encoding="ascii"),
                topology=f"1x{number // inside}x{inside}",
            ).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"{FIELD}: there is no topology {name} ({explained(error)})") from error
    return Topology(name, kind, sizes, list(devices), options)


def _require(module: str, name: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"{FIELD}={name} needs a package that is not installed; give a new virtual environment "
            f"pip install 'jaxeff[{extra}]'"
        )


def _cuda_folder(name: str) -> str:
    """Returns the folder whose ``bin`` has ``ptxas``: of a package, else of a CUDA toolkit."""
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        for folder in sorted(Path(root).glob("cu*")):
            if (folder / "bin" / "ptxas").exists():
                return str(folder)
    program = shutil.which("ptxas")
    if program is None:
        raise UserError(
            f"{FIELD}={name} needs ptxas; pip install 'jaxeff[aot-gpu]', or add the bin folder of "
            "a CUDA toolkit to PATH"
        )
    return str(Path(program).resolve().parents[1])


def _check_flags() -> None:
    """Raises `UserError` for flags that XLA would end the process for."""
    if not os.environ.get("XLA_FLAGS"):
        return
    program = "from jaxlib.xla_client import CompileOptions; CompileOptions()"
    tried = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    unknown = re.search(r"Unknown flags? in XLA_FLAGS: (.*)", tried.stderr)
    if unknown:
        raise UserError(
            f"XLA_FLAGS has flags that this version of XLA does not know: {unknown[1].strip()}; "
            "take them out of the environment"
        )
