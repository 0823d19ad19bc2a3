"""Affine autoencoders against plain ones of the same code length, three seeds each.

Writes ``results/avae_results.json``: test losses, loss by angle with what no such model can avoid,
loss by length of the code, and what inference costs.

    python benchmarks/avae_results.py                # all lines
    python benchmarks/avae_results.py digits avae    # the lines that have these words
"""

from __future__ import annotations

from typing import Any

import recorded

PLANE = ("avae", "avae_cached", "semi_amortised", "coordinates", "stn", "vae")
LENGTHS = (2, 4, 12)  # beside the usual


def lines() -> dict[str, tuple[str, list[str], str]]:
    """Returns argument, overrides and file of the config of every line."""
    lines_by_name = {}
    for data in ("digits", "mnist_5k"):
        for model in PLANE:
            lines_by_name[f"{data}, {model}"] = (f"{data},model={model},full", [], "avae")
        # Without the numbers that make up for the pose.
        lines_by_name[f"{data}, vae, short"] = (f"{data},model=vae", ["model.latents=6"], "avae")
    for model in ("avae", "vae"):
        lines_by_name[f"digits_shifted, {model}"] = (
            f"digits_shifted,model={model},full",
            [],
            "avae",
        )
        for latents in LENGTHS:
            argument = f"digits,model={model},latents={latents},full"
            lines_by_name[f"digits, {model}, latents {latents}"] = (argument, [], "avae")
    # As many seconds of training as an affine one.
    lines_by_name["digits, vae, longer"] = ("digits,model=vae", ["train.num_steps=1200"], "avae")
    # Trained upright, tested upright and, by the analysis, in every rotation.
    lines_by_name["digits, vae_upright"] = ("digits,model=vae_upright", [], "avae")
    lines_by_name["digits, avae_upright"] = (
        "digits,model=avae,full",
        ["data.rotation=0.0"],
        "avae",
    )
    for model in ("avae", "vae", "avae_cube", "vae_cube"):
        lines_by_name[f"voxels, {model}"] = (f"digits,model={model},full", [], "avae3d")
    return lines_by_name


def more(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns length of the code, parts of the loss, cost of inference and what analyses found."""
    first = reports[0]
    extras = {
        "latents": first["config"]["model"]["latents"],
        "test_reconstruction": [r["metrics"]["test"]["reconstruction"] for r in reports],
        # Above what the best possible outputs would leave.
        "test_reducible": [r["metrics"]["test"]["reducible"] for r in reports],
        "latency_ms": first["cost"]["latency_ms"],
    }
    for analysis in ("loss_by_angle", "recovered_angles"):
        if analysis in first["extras"]:
            extras[analysis] = [report["extras"][analysis] for report in reports]
    return extras


if __name__ == "__main__":
    recorded.run(lines(), "avae_results", more)
