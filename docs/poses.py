"""Tables of autoencoders of images in random poses."""

from __future__ import annotations

import numpy as np
from records import read, score, table

LABELS = {
    "vae, short": "VAE",
    "vae": "VAE, code as long",
    "stn": "amortised pose (STN)",
    "semi_amortised": "AVAE, poses proposed and aligned",
    "avae_cached": "AVAE, poses remembered",
    "coordinates": "AVAE, decoder of coordinates",
    "avae": "AVAE",
}


def _lines(data: str) -> list[tuple[str, dict]]:
    lines = read("avae_results")["lines"]
    found = ((label, lines.get(f"{data}, {name}")) for name, label in LABELS.items())
    return [(label, line) for label, line in found if line]


def autoencoders(data: str) -> str:
    """Returns code, test loss, its reconstruction part and cost of every model."""
    rows = []
    for label, line in _lines(data):
        pose = "" if label.startswith("VAE") else " + 1"
        reconstruction = np.mean(line["test_reconstruction"])
        cells = [label, f"{line['latents']}{pose}", score(line), f"{reconstruction:.3f}"]
        rows.append([*cells, f"{line['parameters']:,}", f"{line['training_seconds']:.0f}"])
    header = ["model", "code", "test loss", "of which squared error", "parameters", "seconds"]
    return table(header, rows)


def by_angle(data: str) -> str:
    """Returns the mean loss of test images at fixed rotations, and what resampling alone costs."""
    rows, degrees = [], []
    for label, line in _lines(data):
        seeds = line["loss_by_angle"]
        degrees = seeds[0]["degrees"]
        for name, key in ((label, "loss"), (f"{label}: resampling alone", "resampling_floor")):
            values = np.array([found[key] for found in seeds])
            if values.size:
                mean = values.mean(0)
                rows.append([name, *(f"{v:.2f}" for v in mean), f"{mean.mean():.2f}"])
    return table(["rotation", *(f"{d}°" for d in degrees), "mean"], rows)
