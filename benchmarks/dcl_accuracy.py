"""Compares constrained training with plain training and with what else is said to generalise.

Writes ``results/dcl_accuracy.json``. Lines that are there already and current are kept:

    python benchmarks/dcl_accuracy.py                     # all lines
    python benchmarks/dcl_accuracy.py fashion dcl         # lines whose name contains the words
    python benchmarks/dcl_accuracy.py summary             # the table of what is recorded
    python benchmarks/dcl_accuracy.py times               # times updates anew, on a quiet machine

The fixed penalty has five weights; the one to be compared with is the best on validation.
"""

from __future__ import annotations

import sys
from statistics import mean
from typing import Any

from record_files import locked_record, read, stamp
from recorded import HERE, config_of, run

TABLE = "dcl_accuracy"
WEIGHTS = (0.01, 0.03, 0.1, 0.3, 1.0)
#: What one core trains on Fashion-MNIST in an hour; ``configs/dcl.py:fashion`` has a ResNet-20.
SMALL = {"fashion": ["model.depth=8", "model.widths=[8, 16, 32]"]}
CONSTRAINTS = {
    "": "",
    ", discount": ",constraints=discount",
    ", entropy and width": ",constraints=entropy+width",
}


def lines() -> dict[str, tuple[str, list[str], str]]:
    """Returns argument, overrides and config file of every line, by ``data, method``."""
    arguments: dict[str, tuple[str, list[str], str]] = {}
    for data in ("digits", "fashion"):
        small = SMALL.get(data, [])
        for method in ("plain", "smoothing", "sam", "cvar"):
            arguments[f"{data}, {method}"] = (f"{data},method={method}", small, "dcl")
        for name, argument in CONSTRAINTS.items():
            arguments[f"{data}, dcl{name}"] = (f"{data},method=dcl{argument}", small, "dcl")
        for weight in WEIGHTS:
            argument = f"{data},method=penalty,weight={weight}"
            arguments[f"{data}, penalty, {weight}"] = (argument, small, "dcl")
    return arguments


def about_constraints(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns generalisation gaps, and how the constraints and their multipliers ended."""
    ends = {
        name: [report["metrics"]["train"][name] for report in reports]
        for name in reports[0]["metrics"]["train"]
        if name not in ("loss", "accuracy")
    }
    gaps = {
        metric: [
            sign * (report["metrics"]["train"][metric] - report["metrics"]["test"][metric])
            for report in reports
        ]
        for metric, sign in (("accuracy", 1), ("loss", -1))
    }
    return {"generalisation_gap": gaps, "constraints_at_end": ends}


def times() -> None:
    """Times an update by every method on Fashion-MNIST, in turns, and records milliseconds."""
    import jax

    from jaxeff import bench
    from jaxeff.train import experiment

    calls = {}
    for name, (argument, overrides, file) in lines().items():
        of_another_weight = "penalty" in name and not name.endswith(str(WEIGHTS[0]))
        if not name.startswith("fashion, ") or of_another_weight:
            continue
        config = config_of(argument, overrides, file)
        config.devices.cpu = 1
        with config.unlocked():
            config.model.axis_name = None
        built = experiment.build(config)
        batch = built.dataset.splits["train"].take(range(config.train.batch_size))
        batch = {**batch, "weight": jax.numpy.ones(config.train.batch_size)}
        state = built.algorithm.init_state(jax.random.key(0), batch["inputs"][:1])
        update = jax.jit(built.algorithm.update)
        calls[name] = lambda update=update, state=state, batch=batch: update(state, batch)[0]
    timings = bench.interleaved(calls, 5, 2)
    with locked_record(HERE / "results" / f"{TABLE}.json") as record:
        record["update_ms"] = {name: time.median_ms for name, time in timings.items()}
        provenance = stamp("python benchmarks/dcl_accuracy.py times")
        record.setdefault("made", {})["update_ms"] = provenance


def summary() -> None:
    """Prints the table of the record, with the best penalty on validation alone."""
    record = read(HERE / "results" / f"{TABLE}.json")["lines"]
    for data in ("digits", "fashion"):
        known = {name: line for name, line in record.items() if name.startswith(f"{data}, ")}
        penalties = [name for name in known if "penalty" in name]
        best = max(penalties, key=lambda name: known[name]["validation_mean"], default=None)
        seconds = known.get(f"{data}, plain", {}).get("training_seconds")
        for name, line in known.items():
            if name in penalties and name != best:
                continue
            ends = {
                key: round(mean(values), 4)
                for key, values in line["constraints_at_end"].items()
                if key.endswith(("_violation", "_multiplier"))
            }
            gap = mean(line["generalisation_gap"]["accuracy"])
            cost = line["training_seconds"] / seconds if seconds else float("nan")
            print(
                f"{name:32s} {line['test_mean']:.4f} +- {line['test_deviation']:.4f}  "
                f"gap {gap:.4f}  time x{cost:.2f}  {ends}"
            )


if __name__ == "__main__":
    if "summary" in sys.argv[1:]:
        summary()
    elif "times" in sys.argv[1:]:
        times()
    else:
        run(lines(), TABLE, more=about_constraints)
