"""Hybrid models on Fashion-MNIST against networks alone, by accuracy and measured time.

Three seeds of ``configs/hybrid.py:fashion`` at a size that one core trains in an hour: the expert
is a ResNet of depth 8. Narrower ones are trained on the same examples as base and expert. Writes
``results/hybrid_accuracy.json``; lines that are there already and current are kept:

    python benchmarks/hybrid_accuracy.py
    python benchmarks/hybrid_accuracy.py static       # lines whose name contains the words
    python benchmarks/hybrid_accuracy.py times        # times the networks anew, on a quiet machine
"""

from __future__ import annotations

import shlex
from statistics import mean, stdev
from typing import Any

from record_files import locked_record, read, stamp, words
from recorded import (
    HERE,
    SEEDS,
    base_of,
    config_of,
    folder_of,
    folder_of_required,
    is_current,
    key_of,
    train_in,
)

from jaxeff import bench

OUT = HERE / "results" / "hybrid_accuracy.json"
PARTS = ("base", "expert")
WIDTHS = {"static 8-16-32": (8, 16, 32), "static 12-24-48": (12, 24, 48)}
NARROW = "4-8-16"  # as many multiply-adds as the base has, which is small in pixels; only timed
HYBRID = {
    "hybrid": "",
    "hybrid, router alone": ",train=router",
    "hybrid, released router": ",router=released",
}
LOSSES = (0.0, 0.002, 0.005)  # below the expert's accuracy
EXITS = "early exits"  # the expert with exits, which may learn from all training examples
EPOCHS = 2  # of base, expert and networks alone; the last training has half of the config's steps


def config(name: str, seed: int) -> Any:
    """Returns the config of a line."""
    if name == EXITS:
        experiment = config_of("fashion,expert=resnet20,early_exit", [], "hybrid")
        experiment.model.backbone.depth = 8
        experiment.train.num_steps *= EPOCHS
        experiment.seed, experiment.devices.cpu = seed, 1
        return experiment
    experiment = config_of(f"fashion,expert=resnet20{HYBRID.get(name, '')}", [], "hybrid")
    parts = experiment.prerequisites
    parts.expert.model.depth = experiment.model.expert.depth = 8
    for part in parts.values():
        part.train.num_steps *= EPOCHS
    experiment.train.num_steps //= 2
    experiment.analyses = [{"name": "hybrid", "accuracy_losses": LOSSES}]
    if name not in HYBRID:
        experiment = parts[name if name in PARTS else "expert"]
        experiment.model.widths = {**WIDTHS, NARROW: (4, 8, 16)}.get(name, experiment.model.widths)
    for each in (experiment, *experiment.prerequisites.values()):
        each.seed, each.devices.cpu = seed, 1
    return experiment


def times() -> dict[str, float]:
    """Returns milliseconds per image of the networks alone, timed in turns."""
    import jax

    from jaxeff.models import MODELS

    calls, batch = {}, config("base", 0).eval.batch_size
    inputs = jax.random.normal(jax.random.key(0), (batch, 28, 28, 1))
    for name in (*PARTS, *WIDTHS, NARROW):
        spec = {**config(name, 0).model.to_dict(), "axis_name": None}
        model = MODELS.build(spec, "model", num_outputs=10)
        variables = jax.jit(model.init)(jax.random.key(0), inputs[:1])
        call = jax.jit(model.apply)
        calls[name] = lambda call=call, variables=variables: call(variables, inputs)
    timings = bench.interleaved(calls, 10, 2)
    return {name: time.median_ms / batch for name, time in timings.items()}


def command(name: str) -> str:
    return f"python benchmarks/hybrid_accuracy.py {shlex.quote(name)}"


def key_of_line(name: str) -> str:
    return key_of(config(name, seed) for seed in SEEDS)


def line(name: str) -> dict[str, Any]:
    """Returns accuracies, times and tables of all seeds."""
    reports = []
    for seed in SEEDS:
        experiment = config(name, seed)
        folder = folder_of(experiment, base_of("hybrid_accuracy", name, seed))
        reports.append(
            train_in(experiment, folder_of_required(experiment) if name in PARTS else folder)
        )
    test = [report["metrics"]["test"]["accuracy"] for report in reports]
    return {
        "command": command(name),
        "environment": reports[0]["environment"],
        "key": key_of_line(name),
        "test": test,
        "test_mean": mean(test),
        "test_deviation": stdev(test),
        "macs_per_example": reports[0]["cost"]["macs_per_example"],
        "analyses": [report.get("extras", {}) for report in reports],
    }


def main() -> None:
    """Runs the lines that the command line asks for and that are not in the record yet."""
    chosen = words("--again")
    if chosen == ["times"]:
        timings = times()
        with locked_record(OUT) as record:
            record["times"] = timings
            record.setdefault("made", {})["times"] = stamp(
                "python benchmarks/hybrid_accuracy.py times"
            )
        return
    for name in (*PARTS, *WIDTHS, EXITS, *HYBRID):
        if not all(word in name for word in chosen):
            continue
        timings = read(OUT).get("lines", {}).get(name, {})
        if not is_current(timings, command(name), lambda name=name: key_of_line(name)):
            timings = line(name)
            with locked_record(OUT) as record:
                record["command"] = "python benchmarks/hybrid_accuracy.py"
                record.setdefault("lines", {})[name] = timings
        print(
            f"{name:26s} {timings['test_mean']:.4f} +- {timings['test_deviation']:.4f}", flush=True
        )


if __name__ == "__main__":
    main()
