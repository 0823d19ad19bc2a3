"""Hybrid models on Fashion-MNIST against networks alone, by accuracy and measured time.

Three seeds of ``configs/hybrid.py:fashion`` and of networks between base and expert in size, which
are trained on the same examples as those. Writes ``results/hybrid_accuracy.json``; lines that are
there already are kept. Needs Fashion-MNIST, and hours on two cores:

    python benchmarks/hybrid_accuracy.py
    python benchmarks/hybrid_accuracy.py static       # lines whose name contains the words
"""

from __future__ import annotations

import json
import sys
from statistics import mean, stdev
from typing import Any

from recorded import HERE, SEEDS, config_of, locked_record, train

from jaxeff import bench

OUT = HERE / "results" / "hybrid_accuracy.json"
#: Blocks and widths of networks in between.
STATIC = {
    "static 4-8-16": ((1, 1, 1), (4, 8, 16)),
    "static 8-16-32": ((1, 1, 1), (8, 16, 32)),
    "static 16-32-64": ((1, 1, 1), (16, 32, 64)),
    "static ResNet20": ((3, 3, 3), (16, 32, 64)),
    "static ResNet32": ((5, 5, 5), (16, 32, 64)),
}
HYBRID = {
    "hybrid": "fashion",
    "hybrid, router alone": "fashion,train=router",
    "hybrid, released router": "fashion,router=released",
    "early exits": "fashion,early_exit",
}


def config(name: str, seed: int) -> Any:
    """Returns the config of a line."""
    if name in HYBRID:
        made = config_of(HYBRID[name], [], "hybrid")
        parts = [made, *made.prerequisites.values()]
    else:
        made = config_of("fashion", [], "hybrid").prerequisites.base
        blocks, widths = STATIC[name]
        made.model.update({"blocks": blocks, "widths": widths})
        parts = [made]
    for each in parts:
        each.seed, each.devices.cpu = seed, 1
    return made


def line(name: str) -> dict[str, Any]:
    """Returns accuracies, times and tables of all seeds."""
    reports = []
    for seed in SEEDS:
        folder = HERE.parent / "runs" / "hybrid_accuracy" / name.replace(", ", "-") / str(seed)
        reports.append(train(config(name, seed), folder))
    test = [report["metrics"]["test"]["accuracy"] for report in reports]
    batch = reports[0]["config"]["eval"]["batch_size"]
    return {
        "test": test,
        "test_mean": mean(test),
        "test_deviation": stdev(test),
        "macs_per_example": reports[0]["cost"]["macs_per_example"],
        "milliseconds": [
            r["cost"]["latency_ms"][f"batch_{batch}"]["median"] / batch for r in reports
        ],
        "analyses": [report.get("extras", {}) for report in reports],
    }


def main() -> None:
    """Runs the lines that the command line asks for and that are not in the record yet."""
    names = [n for n in (*STATIC, *HYBRID) if all(word in n for word in sys.argv[1:])]
    for name in names:
        known = json.loads(OUT.read_text())["lines"] if OUT.exists() else {}
        if name not in known:
            found = line(name)
            with locked_record(OUT) as record:
                record["command"] = "python benchmarks/hybrid_accuracy.py"
                record["environment"] = bench.environment()
                record["lines"][name] = known[name] = found
        found = known[name]
        times = " ".join(f"{1000 * time:.0f}" for time in found["milliseconds"])
        sys.stdout.write(
            f"{name:26s} {found['test_mean']:.4f} +- {found['test_deviation']:.4f}  {times} us\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
