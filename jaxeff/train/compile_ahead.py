"""The job that compiles the training step for devices that need not be there."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections

from jaxeff import bench
from jaxeff.bench import topologies
from jaxeff.bench.chips import CHIPS
from jaxeff.errors import ConfigError, TrainingError, explained
from jaxeff.eval.console import say
from jaxeff.ops import platform
from jaxeff.train import announce, prerequisites, run_report
from jaxeff.train.experiment import Experiment
from jaxeff.train.parallel import DeviceMap

FOLDER = "compile"
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def prepare(config: ml_collections.ConfigDict, mode: str) -> int:
    """Sets up the process for ``config.devices.topology`` before JAX starts.

    Returns:
      the number of CPU devices that JAX must have; 0 where there is no topology.

    Raises:
      ConfigError: the topology does not fit the mode, or is none.
      UserError: a package is missing.
    """
    name = config.devices.topology
    if mode != "compile":
        if name:
            raise ConfigError(
                f"config.devices.topology={name} is what --mode=compile compiles for; leave it out "
                f"with --mode={mode}, which runs on the devices of this machine"
            )
        return 0
    if not name:
        raise ConfigError(
            "config.devices.topology is empty; --mode=compile needs the devices to compile for, "
            f"such as {topologies.EXAMPLES}"
        )
    return topologies.prepare(name)


def compile_step(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Compiles the training step for a topology, and reports into ``workdir/compile``.

    The step is the one that training maps, with its prerequisites' weights as zeros, and the state
    and the batch are shapes: nothing is run.

    Raises:
      ConfigError: the topology is none, or does not divide the batch.
      TrainingError: the step needs more memory than a device has.
    """
    target = bench.topology(config.devices.topology)
    devices = DeviceMap(config.parallel, target.devices, target.memory_bytes)
    # Shapes too are traced for the topology, whatever device this machine has.
    with platform(devices.platform):
        return _compile_for(target, devices, config, workdir)


def _compile_for(
    target: bench.Topology, devices: DeviceMap, config: ml_collections.ConfigDict, workdir: Path
) -> dict[str, Any]:
    built = prerequisites.build_untrained(config, workdir, devices)
    announce.job(built, workdir / FOLDER, f"compiling for {target.name}:")
    program, seconds = compiled(built, target)
    memory = bench.compiled_memory(program)
    summary = summarise(built, target, program, memory["step_bytes"])
    report = run_report.write(
        built,
        workdir / FOLDER,
        metrics={},
        cost={
            "step_memory_bytes": run_report.memory_section(memory),
            "compile_seconds": seconds,
        },
        training={"steps": 0, "seconds": 0.0},
        params=built.state_shapes().params,
        extras=summary,
        curve=False,
    )
    _tell(summary, seconds)
    say(f"report     {workdir / FOLDER / 'report.md'}")
    if not summary["topology"]["fits"]:
        raise _too_large(built, target, memory["step_bytes"], target.memory_bytes)
    return report


def arguments(built: Experiment) -> tuple[Any, Any]:
    """Returns the shapes of the training step's state and batch, as its devices have them."""
    return built.devices.shapes(built.state_shapes(), next(built.train_batches()))


def compiled(built: Experiment, target: bench.Topology) -> tuple[Any, float]:
    """Returns the compiled training step and the seconds that tracing and compiling took.

    Args:
      built: an experiment on the devices of the topology.
      target: the topology.

    Raises:
      TrainingError: the compiler finds no place in a device's memory for it.
    """
    began = time.monotonic()
    lowered = built.train_step().lower(*arguments(built))
    try:
        program = lowered.compile(compiler_options=target.compiler_options or None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = [
            int(float(number) * _UNITS[unit])
            for number, unit in re.findall(r"\b(\d+(?:\.\d+)?)([KMGT])\b", str(error))
        ]
        if len(sizes) < 2:
            raise TrainingError(
                f"the step does not fit into the memory of {target.name} ({explained(error)}); "
                "lower config.train.batch_size or the sizes in config.model"
            ) from error
        raise _too_large(built, target, *sizes[:2]) from error
    return program, time.monotonic() - began


def summarise(
    built: Experiment, target: bench.Topology, program: Any, step_bytes: int | None
) -> dict[str, Any]:
    """Returns what a compiled step needs of its topology, as the report's extras.

    A collective in a loop over updates runs once for each of them. FLOPs are counted on the traced
    step (`bench.count`), every pass of a loop once. The compiler's own count and its estimate of
    the time take the body of a loop once, however often it runs.
    """
    exchanged = bench.collectives(program.as_text())
    updates = built.algorithm.updates_per_batch
    times = [updates if each.loops else 1 for each in exchanged]
    flops = bench.count(built.train_step(), *arguments(built)).flops
    limit = target.memory_bytes
    analysis = _analysis(program)
    return {
        "topology": {
            "name": target.name,
            "device_kind": target.devices[0].device_kind,
            "devices": len(target.devices),
            "hosts": target.num_hosts,
            "memory_bytes_per_device": limit,
            "fits": limit is None or step_bytes is None or step_bytes <= limit,
        },
        "arithmetic": {
            "flops_per_step": flops,
            "flops_per_device": flops // len(target.devices),
            "compiler_flops": bench.compiled_flops(program),
            "compiler_seconds": analysis.get("optimal_seconds"),
        },
        "exchanged": {
            "collectives": len(exchanged),
            "in_loops": sum(each.loops > 0 for each in exchanged),
            "in_loops_over_time": sum(each.loops > (updates > 1) for each in exchanged),
            "per_step": sum(times),
            "bytes": sum(each.bytes for each in exchanged),
            "bytes_per_step": sum(n * each.bytes for n, each in zip(times, exchanged, strict=True)),
            "estimated_seconds": estimated_seconds(target, exchanged, times),
            "updates_per_batch": updates,
        },
        "collectives": [each._asdict() for each in exchanged],
        "cpu_forms": cpu_forms(program.as_text()),
    }


def estimated_seconds(
    target: bench.Topology, exchanged: Sequence[bench.Collective], times: Sequence[int]
) -> float | None:
    """Estimates the time of a step's collectives, one after another; None for CPUs.

    Args:
      target: the topology.
      exchanged: the collectives, each of which is taken for an all-reduce.
      times: how often each of them runs in a step.
    """
    if target.kind not in CHIPS:
        return None
    return sum(
        number * bench.all_reduce_seconds(target.kind, target.sizes, each.bytes)
        for number, each in zip(times, exchanged, strict=True)
    )


def cpu_forms(text: str) -> list[str]:
    """Returns the modules of `jaxeff.ops.cpu` that a program's text says it was traced from."""
    return sorted(set(re.findall(r"jaxeff[/\\]ops[/\\]cpu[/\\](\w+)\.py", text)))


def _analysis(program: Any) -> dict[str, float]:
    try:
        return program.cost_analysis() or {}
    except NotImplementedError:
        return {}


def _too_large(
    built: Experiment, target: bench.Topology, needed: int | None, limit: int | None
) -> TrainingError:
    size = built.config.train.batch_size
    return TrainingError(
        f"a training step needs {needed:,} bytes on each device, and one of {target.name} has "
        f"{limit:,}; lower config.train.batch_size (now {size}, {size // built.devices.size} per "
        "device), raise config.algorithm.accumulate, take more devices or a smaller config.model"
    )


def _tell(summary: dict[str, Any], seconds: float) -> None:
    exchanged, estimate = summary["exchanged"], summary["exchanged"]["estimated_seconds"]
    say(f"compiled   in {seconds:.1f} s")
    line = (
        f"exchanges  {exchanged['collectives']} collectives, {exchanged['bytes']:,} bytes, "
        f"{exchanged['in_loops_over_time']} in loops over time"
    )
    say(line if estimate is None else f"{line}, about {1e6 * estimate:.0f} microseconds")
