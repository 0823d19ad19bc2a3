"""Affine autoencoders against plain ones of the same code length, three seeds each.

Writes ``results/avae_results.json``: test losses, loss by angle with what no such model can avoid,
loss by length of the code, and what inference costs.

    python benchmarks/avae_results.py                # all lines
    python benchmarks/avae_results.py digits avae    # the lines that have these words
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import recorded

OUT = Path(__file__).parent / "results" / "avae_results.json"

PLANE = ("avae", "avae_cached", "semi_amortised", "coordinates", "stn", "vae")
LENGTHS = (2, 4, 8, 12)


def lines() -> dict[str, tuple[str, list[str], str]]:
    """Returns argument, overrides and file of the config of every line."""
    found = {}
    for data in ("digits", "mnist_5k"):
        for model in PLANE:
            found[f"{data}, {model}"] = (f"{data},model={model}", [], "avae")
        # Without the numbers that make up for the pose.
        found[f"{data}, vae, short"] = (f"{data},model=vae", ["model.latents=6"], "avae")
    for model in ("avae", "vae"):
        found[f"digits_shifted, {model}"] = (f"digits_shifted,model={model}", [], "avae")
        for latents in LENGTHS:
            argument = f"digits,model={model},latents={latents}"
            found[f"digits, {model}, latents {latents}"] = (argument, [], "avae")
    # Trained upright, tested upright and, by the analysis, in every rotation.
    found["digits, vae_upright"] = ("digits,model=vae_upright", [], "avae")
    found["digits, avae_upright"] = ("digits,model=avae", ["data.rotation=0.0"], "avae")
    for model in ("avae", "vae", "avae_cube", "vae_cube"):
        found[f"voxels, {model}"] = (f"digits,model={model}", [], "avae3d")
    return found


def line(name: str, argument: str, overrides: list[str], file: str) -> dict[str, Any]:
    """Returns one line over all seeds."""
    reports = []
    for seed in recorded.SEEDS:
        config = recorded.config_of(argument, overrides, file)
        config.seed, config.devices.cpu = seed, 1
        folder = recorded.HERE.parent / "runs" / "avae" / name.replace(", ", "-") / str(seed)
        reports.append(recorded.train(config, folder))
    first = reports[0]
    test = [report["metrics"]["test"]["loss"] for report in reports]
    config = first["config"]["model"]
    found = {
        "command": recorded.command(argument, overrides, file),
        "seeds": list(recorded.SEEDS),
        "data": first["data"]["description"],
        "latents": config["latents"],
        "test_loss": test,
        "test_loss_mean": mean(test),
        "test_loss_deviation": stdev(test),
        "test_reconstruction": [r["metrics"]["test"]["reconstruction"] for r in reports],
        "parameters": first["cost"]["parameters"],
        "macs_per_example": first["cost"]["macs_per_example"],
        "latency_ms": first["cost"]["latency_ms"],
        "training_seconds": mean(report["training"]["seconds"] for report in reports),
    }
    for analysis in ("loss_by_angle", "recovered_angles"):
        if analysis in first["extras"]:
            found[analysis] = [report["extras"][analysis] for report in reports]
    return found


def main() -> None:
    """Trains the lines that the command line asks for and that are not in the record yet."""
    from jaxeff import bench

    words = sys.argv[1:]
    for name, (argument, overrides, file) in lines().items():
        if not all(word in name.split(", ") for word in words):
            continue
        known = json.loads(OUT.read_text())["lines"].get(name, {}) if OUT.exists() else {}
        if known.get("command") != recorded.command(argument, overrides, file):
            known = line(name, argument, overrides, file)
            with recorded.locked_record(OUT) as record:
                record["command"] = "python benchmarks/avae_results.py"
                record["environment"] = bench.environment()
                record["lines"][name] = known
        print(
            f"{name:36s} loss {known['test_loss_mean']:.3f} +- {known['test_loss_deviation']:.3f}"
            f"  {known['training_seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
