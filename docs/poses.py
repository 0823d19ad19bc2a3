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
    "vae_cube": "VAE, code as long, rotations of the cube",
    "avae_cube": "AVAE, rotations of the cube",
}
#: Numbers of a pose.
FREEDOM = {"digits": 1, "mnist_5k": 1, "digits_shifted": 3, "voxels": 3}


def _lines(data: str) -> list[tuple[str, dict]]:
    lines = read("avae_results")["lines"]
    found = ((label, lines.get(f"{data}, {name}")) for name, label in LABELS.items())
    return [(label, line) for label, line in found if line]


def autoencoders(data: str) -> str:
    """Returns code, test loss, its reconstruction part and cost of every model."""
    rows = []
    for label, line in _lines(data):
        pose = "" if label.startswith("VAE") else f" + {FREEDOM[data]}"
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


def by_length(data: str) -> str:
    """Returns test losses of both models by all the numbers of a code, those of a pose included."""
    known = read("avae_results")["lines"]
    rows = []
    for name, line in known.items():
        given = name.removeprefix(f"{data}, avae, latents ")
        if given != name and f"{data}, vae, latents {given}" in known:
            length = line["latents"] + FREEDOM[data]
            plain = known[f"{data}, vae, latents {given}"]
            lower = 1 - line["test_mean"] / plain["test_mean"]
            rows.append([length, score(plain), score(line), f"{100 * lower:.0f}"])
    found = [[str(length), *cells] for length, *cells in sorted(rows)]
    return table(["numbers", "VAE", "AVAE", "AVAE below, %"], found)


def inference(data: str) -> str:
    """Returns what a batch costs at the evaluation, beside the plain autoencoder."""
    rows = []
    for label, line in _lines(data):
        times = line["latency_ms"]
        batches = [f"{times[key]['median']:.1f}" for key in sorted(times)]
        macs = f"{line['macs_per_example'] / 1e6:.1f}"
        rows.append([label, score(line), macs, *batches])
    keys = sorted(_lines(data)[0][1]["latency_ms"])
    return table(["model", "test loss", "million MACs", *(f"ms, {k}" for k in keys)], rows)
