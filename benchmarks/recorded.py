"""Tables of trainings: lines of a config and its overrides, several seeds each, kept as JSON."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from record_files import RESULTS, locked_record, read, words
from record_keys import key

HERE = Path(__file__).parent
RUNS = HERE.parent / "runs"
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


def folder_of(config: Any, base: Path) -> Path:
    """Returns where a training is done: a folder of its own for everything it depends on."""
    return base.with_name(f"{base.name}-{key(config)}")


def folder_of_required(config: Any) -> Path:
    """Returns where a training that others require is done once."""
    return folder_of(config, RUNS / "required" / (config.name or "run"))


def provide(config: Any, workdir: Path) -> None:
    """Trains what a config requires unless that is done, and links it into the folder of a run."""
    workdir.mkdir(parents=True, exist_ok=True)
    for name, required in config.prerequisites.items():
        known = folder_of_required(required)
        train_in(required, known)
        link = workdir / name
        if link.is_symlink() and link.resolve() != known.resolve():
            link.unlink()  # it leads to where this checkout was before
        if not link.exists():
            link.symlink_to(known.resolve())


def train(config: Any, base: Path) -> dict[str, Any]:
    """Runs one training in this process, quietly, and returns its report.

    A finished one of the same key (see `record_keys`) is not run again. What several lines of a
    table require is trained once.

    Args:
      config: of the training.
      base: path of its folder, to which the key is added.
    """
    return train_in(config, folder_of(config, base))


def train_in(config: Any, workdir: Path) -> dict[str, Any]:
    """Runs a training in the folder of its key."""
    from jaxeff.train import launch

    known = known_report(workdir)
    if known is not None:
        return known
    provide(config, workdir)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        report = launch.run(config, workdir)
    if report is None:
        raise KeyboardInterrupt(f"the training in {workdir} was stopped; the same command goes on")
    return report


def known_report(workdir: Path) -> dict[str, Any] | None:
    """Returns the report of a finished run, or None."""
    from jaxeff.errors import DataError
    from jaxeff.eval import read_report

    try:
        report = read_report(workdir)
    except DataError:  # there is none, or it is damaged: the run goes on, or makes it again
        return None
    return report if report["status"] == "completed" else None  # a stopped one goes on


def base_of(table: str, name: str, seed: int) -> Path:
    """Returns the path of a run of a line, without its key."""
    return RUNS / table / name.replace(", ", "-") / str(seed)


def configs_of(argument: str, overrides: list[str], file: str) -> dict[int, Any]:
    """Returns the configs of a line by their seeds."""
    configs = {}
    for seed in SEEDS:
        config = config_of(argument, overrides, file)
        config.seed, config.devices.cpu = seed, 1
        for part, required in config.prerequisites.items():
            # One teacher for all, as is usual; whatever else a seed may change follows it.
            required.seed = 0 if part == "teacher" else seed
            required.devices.cpu = 1
        configs[seed] = config
    return configs


def key_of(configs: Iterable[Any]) -> str:
    """Returns the key of a line, which is that of all its trainings."""
    return "-".join(key(config) for config in configs)


def line(
    table: str,
    name: str,
    argument: str,
    overrides: list[str],
    file: str,
    more: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Returns one line over all seeds, with what ``more`` has to say of their reports."""
    configs = configs_of(argument, overrides, file)
    reports, curves = [], []
    for seed, config in configs.items():
        folder = folder_of(config, base_of(table, name, seed))
        reports.append(train_in(config, folder))
        curves.append(curve(folder))
    first = reports[0]
    by_loss = first["config"]["data"]["name"] in ("adding", "text")
    metric = "loss" if by_loss or "accuracy" not in first["metrics"]["test"] else "accuracy"
    test = [report["metrics"]["test"][metric] for report in reports]
    memory = [report["cost"].get("step_memory_bytes", {}).get("temp") for report in reports]
    return {
        "command": command(argument, overrides, file),
        "environment": first["environment"],  # of the run; all seeds have one by their key
        "key": key_of(configs.values()),
        "seeds": list(configs),
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
        # A run that an interruption found finished did not compile its step again.
        "step_temp_bytes": max((size for size in memory if size), default=None),
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


def is_current(known: dict[str, Any], command: str, key: Callable[[], str]) -> bool:
    """Whether a line of a record is what its script would find again, so that it is kept.

    Lines of older records have no key: they stand by their command, and name the commit and the
    machine that they are from. ``--again`` on the command line keeps none.

    Args:
      known: the line.
      command: of the script now.
      key: gives the key of the line now; it reads all data.
    """
    if "--again" in sys.argv or known.get("command") != command:
        return False
    return "key" not in known or known["key"] == key()


def asked(all_lines: dict[str, Any]) -> list[str]:
    """Returns the names that have the command line's words, or its shard of them."""
    shards = [a.partition("=")[2] for a in sys.argv[1:] if a.startswith("--shard=")]
    asked_words = words("--shard=", "--again", "--quick", "--times")
    number, count = map(int, (shards or ["0/1"])[0].split("/"))
    chosen = [n for n in all_lines if all(word in n.split(", ") for word in asked_words)]
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
    out = RESULTS / f"{table}.json"
    keep_compiled()
    for name in asked(all_lines):
        spec = all_lines[name]
        known = read(out).get("lines", {}).get(name, {})
        if not is_current(known, command(*spec), lambda s=spec: key_of(configs_of(*s).values())):
            known = line(table, name, *spec, more)
            with locked_record(out) as record:
                record["command"] = f"python benchmarks/{table}.py"
                record.setdefault("lines", {})[name] = known
        print(
            f"{name:40s} {known['metric']} {known['test_mean']:.4f} +- "
            f"{known['test_deviation']:.4f}  {known['training_seconds']:.0f} s",
            flush=True,
        )


def keep_compiled() -> None:
    """Keeps what is compiled for the runs of other seeds, and for the next call of a script."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(RUNS / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
