"""Hybrid models on Fashion-MNIST against networks alone, by accuracy and measured time.

Three seeds of ``configs/hybrid.py:fashion`` at a size that one core trains in an hour: the expert
is a ResNet of depth 8. Networks between base and expert in size are trained on the same examples as
those. Writes ``results/hybrid_accuracy.json``; lines that are there already are kept:

    python benchmarks/hybrid_accuracy.py
    python benchmarks/hybrid_accuracy.py static       # lines whose name contains the words
"""

from __future__ import annotations

import json
import sys
from statistics import mean, stdev
from typing import Any

from recorded import HERE, SEEDS, config_of, folder_of_required, locked_record, train

from jaxeff import bench

OUT = HERE / "results" / "hybrid_accuracy.json"
PARTS = ("base", "expert")
WIDTHS = {"static 8-16-32": (8, 16, 32), "static 12-24-48": (12, 24, 48)}  # in between
HYBRID = {
    "hybrid": "",
    "hybrid, router alone": ",train=router",
    "hybrid, released router": ",router=released",
}
EPOCHS = 2  # of base, expert and networks alone; the last training has half of the config's steps


def config(name: str, seed: int) -> Any:
    """Returns the config of a line."""
    made = config_of(f"fashion,expert=resnet20{HYBRID.get(name, '')}", [], "hybrid")
    parts = made.prerequisites
    parts.expert.model.depth = made.model.expert.depth = 8
    for part in parts.values():
        part.train.num_steps *= EPOCHS
    made.train.num_steps //= 2
    if name not in HYBRID:
        made = parts[name if name in PARTS else "base"]
        made.model.widths = WIDTHS.get(name, made.model.widths)
    for each in (made, *made.prerequisites.values()):
        each.seed, each.devices.cpu = seed, 1
    return made


def line(name: str) -> dict[str, Any]:
    """Returns accuracies, times and tables of all seeds."""
    reports = []
    for seed in SEEDS:
        made = config(name, seed)
        folder = HERE.parent / "runs" / "hybrid_accuracy" / name.replace(", ", "-") / str(seed)
        reports.append(train(made, folder_of_required(made) if name in PARTS else folder))
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
    names = [n for n in (*PARTS, *WIDTHS, *HYBRID) if all(word in n for word in sys.argv[1:])]
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
