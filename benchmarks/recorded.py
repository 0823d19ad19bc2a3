"""Tables of trainings: lines of a config and its overrides, several seeds each, kept as JSON."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)


def config_of(argument: str, overrides: list[str], file: str) -> Any:
    """Returns the config of ``configs/FILE.py`` with ``section.field=value`` overrides."""
    path = HERE.parent / "configs" / f"{file}.py"
    spec = importlib.util.spec_from_file_location(f"{file}_config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument)
    for override in overrides:
        field, _, value = override.partition("=")
        config.update_from_flattened_dict({field: json.loads(value)})
    return config


def folder_of_required(config: Any) -> Path:
    """Returns where a training that others require is done once."""
    from jaxeff.main import default_workdir

    return HERE.parent / "runs" / "required" / Path(default_workdir(config)).name


def provide(config: Any, workdir: Path) -> None:
    """Trains what a config requires unless that is done, and links it into the folder of a run."""
    workdir.mkdir(parents=True, exist_ok=True)
    for name, required in config.prerequisites.items():
        known = folder_of_required(required)
        train(required, known)
        if not (workdir / name).exists():
            (workdir / name).symlink_to(known.resolve())


def train(config: Any, workdir: Path) -> dict[str, Any]:
    """Runs one training in this process, quietly, and returns its report.

    What several lines of a table require is trained once.
    """
    from jaxeff.eval import read_report
    from jaxeff.train import jobs

    if (workdir / "report.json").exists():  # of a run that an interruption found finished
        return read_report(workdir)
    provide(config, workdir)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return jobs.run(config, workdir)


def line(
    table: str,
    name: str,
    argument: str,
    overrides: list[str],
    file: str,
    more: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Returns one line over all seeds, with what ``more`` has to say of their reports."""
    reports, curves = [], []
    for seed in SEEDS:
        config = config_of(argument, overrides, file)
        config.seed, config.devices.cpu = seed, 1
        for part, required in config.prerequisites.items():
            # One teacher for all, as is usual; whatever else a seed may change follows it.
            required.seed = 0 if part == "teacher" else seed
            required.devices.cpu = 1
        folder = HERE.parent / "runs" / table / name.replace(", ", "-") / str(seed)
        reports.append(train(config, folder))
        curves.append(curve(folder))
    first = reports[0]
    by_loss = first["config"]["data"]["name"] in ("adding", "text")
    metric = "loss" if by_loss or "accuracy" not in first["metrics"]["test"] else "accuracy"
    test = [report["metrics"]["test"][metric] for report in reports]
    return {
        "command": command(argument, overrides, file),
        "seeds": list(SEEDS),
        "data": first["data"]["description"],
        "metric": metric,
        "test": test,
        "validation_curves": curves,
        "test_mean": mean(test),
        "test_deviation": stdev(test),
        "validation_mean": mean(r["metrics"]["validation"][metric] for r in reports),
        "weights": [report["training"]["weights"] for report in reports],
        "parameters": first["cost"]["parameters"],
        "macs_per_example": first["cost"]["macs_per_example"],
        "step_temp_bytes": max(
            # A run that was found finished did not compile its step again.
            report["cost"].get("step_memory_bytes", {"temp": 0})["temp"]
            for report in reports
        ),
        "epochs": first["training"]["epochs"],
        "steps": first["training"]["steps"],
        "updates": first["training"]["updates"],
        "seconds_per_epoch": mean(
            r["training"]["seconds"] / r["training"]["epochs"] for r in reports
        ),
        "training_seconds": mean(report["training"]["seconds"] for report in reports),
        **(more(reports) if more else {}),
    }


def curve(folder: Path) -> list[list[float]]:
    """Returns step, loss and (or None) accuracy of every validation of a run."""
    from jaxeff.eval import read_history

    return [
        [row["step"], row["validation/loss"], row.get("validation/accuracy")]
        for row in read_history(folder)
        if "validation/loss" in row
    ]


def command(argument: str, overrides: list[str], file: str) -> str:
    plain = [re.sub(r"[\[\] ]", "", override) for override in overrides]  # as a shell takes it
    options = " ".join(f"--config.{override}" for override in plain)
    return f"python -m jaxeff.main --config=configs/{file}.py:{argument} {options}".rstrip()


@contextlib.contextmanager
def locked_record(out: Path):
    """Gives the record to change while no other process does."""
    out.parent.mkdir(exist_ok=True)
    with (out.with_suffix(".lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = json.loads(out.read_text()) if out.exists() else {"lines": {}}
        yield record
        out.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def asked(all_lines: dict[str, Any]) -> list[str]:
    """Returns the names that have the command line's words, or its shard of them."""
    shards = [a.partition("=")[2] for a in sys.argv[1:] if a.startswith("--shard=")]
    words = [a for a in sys.argv[1:] if not a.startswith("--")]
    number, count = map(int, (shards or ["0/1"])[0].split("/"))
    chosen = [n for n in all_lines if all(word in n.split(", ") for word in words)]
    return chosen[number::count]


def run(
    all_lines: dict[str, tuple[str, list[str], str]],
    table: str,
    more: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
) -> None:
    """Runs the lines that the command line asks for and that are not in the record yet.

    Args:
      all_lines: argument, overrides and file of the config, by name.
      table: name of the script and of its record.
      more: further entries of a line, from the reports of its seeds.
    """
    import jax

    from jaxeff import bench

    out = HERE / "results" / f"{table}.json"
    cache = HERE.parent / "runs" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    for name in asked(all_lines):
        argument, overrides, file = all_lines[name]
        known = json.loads(out.read_text())["lines"].get(name, {}) if out.exists() else {}
        if known.get("command") != command(argument, overrides, file):
            found = line(table, name, argument, overrides, file, more)
            with locked_record(out) as record:
                record["command"] = f"python benchmarks/{table}.py"
                record["environment"] = bench.environment()
                record["lines"][name] = known = found
        print(
            f"{name:40s} {known['metric']} {known['test_mean']:.4f} +- "
            f"{known['test_deviation']:.4f}  {known['training_seconds']:.0f} s",
            flush=True,
        )
