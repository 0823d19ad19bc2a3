"""Compiles every config's training step for slices of TPUs and for GPUs that are not there.

Writes ``results/compile_matrix.json``, a line per config and topology, which
``docs/accelerators.md`` shows. Nothing is trained. It needs the packages of ``jaxeff[aot-tpu]`` and
``jaxeff[aot-gpu]``, which ``make compile-matrix`` installs into an environment of its own:

    python benchmarks/compile_matrix.py               # all, half an hour on two cores
    python benchmarks/compile_matrix.py --quick       # the recurrent ones, a minute
    python benchmarks/compile_matrix.py irnn avae     # lines of these configs alone
    python benchmarks/compile_matrix.py --missing     # what an interrupted run has not done

A line that does not compile keeps the sentence of its error, and makes the exit status 1, as does
a collective in a loop over time, more than three all-reduces for a gradient where no
batch statistics are synchronised, or a form for CPUs in the program.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX looks for the devices that are not there

from record_files import RESULTS, locked_record, read, stamp

ROOT = Path(__file__).parents[1]
OUT = RESULTS / "compile_matrix.json"
TOPOLOGIES = ("v5e:2x4", "v6e:2x2", "h100:8")
RECURRENT = ("irnn", "tarnn", "fptt")
#: Networks whose batch statistics are synchronised over the devices unless ``LOCAL`` is given.
SYNCHRONISED = ("images", "global_cnn", "si_cnn", "shared_conv", "selective", "dcl")
LOCAL = "--config.model.axis_name="
CONFIGS = (*RECURRENT, *SYNCHRONISED, "hybrid", "disk", "bottleneck", "avae", "avae3d")
#: What a config cannot have at the number of devices, or without a run before it.
OVERRIDES: dict[str, list[str]] = {
    "disk": [
        "--config.train.batch_size=96",
        "--config.prerequisites.teacher.train.batch_size=96",
        "--config.prerequisites.student.train.batch_size=96",
    ],
    "bottleneck": ["--config.search.name="],
}
#: These also for a whole slice, an example per chip.
LARGE, SLICE = (*RECURRENT, "images"), "v5e:16x16"
LARGE_BATCH = "--config.train.batch_size=256"
#: And these for the other kinds of device.
EVERYWHERE, OTHERS = ("irnn", "tarnn", "images"), ("v5p:2x2x1", "h200:8")
MOST_ALL_REDUCES = 3  # for a gradient
GRADIENTS = {"dcl": 2}  # in a step that looks for sharpness
EXCHANGED = ("in_loops_over_time", "per_step", "bytes_per_step", "estimated_seconds")


def jobs(names: list[str], topologies: list[str]) -> dict[str, tuple[str, str, list[str]]]:
    """Returns config, topology and overrides by the name of a line."""
    lines = {}
    for name in names:
        more = OVERRIDES.get(name, [])
        every = topologies == list(TOPOLOGIES)
        for topology in [*topologies, *(OTHERS if every and name in EVERYWHERE else ())]:
            lines[f"{name}, {topology}"] = (name, topology, more)
            if name in SYNCHRONISED and topology != TOPOLOGIES[1]:  # one kind of TPU is enough
                local = (name, topology, [*more, LOCAL])
                lines[f"{name}, {topology}, local statistics"] = local
        if name in LARGE and every:
            lines[f"{name}, {SLICE}"] = (name, SLICE, [*more, LARGE_BATCH])
    return lines


def compile_one(name: str, topology: str, overrides: list[str]) -> dict[str, Any]:
    """Compiles in a process of its own and returns the line."""
    options = [f"--config=configs/{name}.py", f"--config.devices.topology={topology}", *overrides]
    shown = " ".join(["python -m jaxeff.main --mode=compile", *options])
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "jaxeff.main",
                "--mode=compile",
                *options,
                f"--workdir={folder}",
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        path = Path(folder) / "compile" / "report.json"
        line = {**stamp(shown), "compiled": done.returncode == 0}
        if done.returncode != 0:
            line["error"] = (done.stderr.strip().splitlines() or ["no message"])[-1]
        if path.exists():
            report = json.loads(path.read_text(encoding="utf-8"))
            line |= figures(report)
    return line


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """Returns what the table shows of a report."""
    extras, cost = report["extras"], report["cost"]
    reduced = [c for c in extras["collectives"] if c["operation"] == "all-reduce"]
    return {
        "batch_size": report["config"]["train"]["batch_size"],
        "parameters": report["model"]["parameters"],
        "compile_seconds": cost["compile_seconds"],
        "step_bytes": cost["step_memory_bytes"]["step"],
        "all_reduces": len(reduced),
        "other_collectives": len(extras["collectives"]) - len(reduced),
        **{k: extras["exchanged"][k] for k in EXCHANGED},
        **{k: extras["arithmetic"][k] for k in ("flops_per_step", "flops_per_device")},
        **{k: extras["topology"][k] for k in ("devices", "device_kind", "fits")},
        "cpu_forms": extras["cpu_forms"],
    }


def complaints(name: str, line: dict[str, Any]) -> list[str]:
    """Returns what is wrong with a line."""
    if not line["compiled"]:
        return [line["error"]]
    wrong = []
    if line["in_loops_over_time"]:
        wrong.append(f"{line['in_loops_over_time']} collectives stand in loops over time")
    if line["cpu_forms"]:
        wrong.append(f"forms for CPUs are in the program: {', '.join(line['cpu_forms'])}")
    config = name.partition(",")[0]
    local = name.endswith("local statistics") or config in RECURRENT
    most = MOST_ALL_REDUCES * GRADIENTS.get(config, 1)
    if local and line["all_reduces"] > most:
        wrong.append(f"{line['all_reduces']} all-reduces, more than {most}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", choices=[*CONFIGS, []], help="all if none is given")
    parser.add_argument("--topologies", default=",".join(TOPOLOGIES), help="comma-separated")
    parser.add_argument("--quick", action="store_true", help="the recurrent configs; no record")
    parser.add_argument("--missing", action="store_true", help="lines that the record lacks alone")
    arguments = parser.parse_args()
    names = list(arguments.configs or (RECURRENT if arguments.quick else CONFIGS))
    failed = 0
    known = read(OUT).get("lines", {}) if arguments.missing else {}
    for name, job in jobs(names, arguments.topologies.split(",")).items():
        if name in known:
            continue
        line = compile_one(*job)
        wrong = complaints(name, line)
        failed += bool(wrong)
        seconds = line.get("compile_seconds")
        told = "; ".join(wrong) or f"{line['all_reduces']} all-reduces, {seconds:.0f} s"
        print(f"{name}: {told}", flush=True)
        if not arguments.quick:
            with locked_record(OUT) as record:
                record["command"] = "python benchmarks/compile_matrix.py"
                record.setdefault("lines", {})[name] = line
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
