"""Tables of autoencoders of images in random poses."""

from __future__ import annotations

import numpy as np
from records import read, score, table

LABELS = {
    "vae, short": "VAE",
    "vae": "VAE, code of equal length",
    "vae, longer": "VAE, code of equal length, 1,200 steps",
    "vae_cube": "VAE, code of equal length, rotations of the cube",
    "vae_upright": "VAE, trained upright",
    "stn": "amortised pose (STN)",
    "semi_amortised": "AVAE, poses proposed and aligned",
    "avae_cached": "AVAE, poses cached",
    "coordinates": "AVAE, decoder of coordinates",
    "avae": "AVAE",
    "avae_cube": "AVAE, rotations of the cube",
    "avae_upright": "AVAE, trained upright",
}
#: Numbers of a pose.
FREEDOM = {"digits": 1, "digits_shifted": 3, "voxels": 3}
PARTS = {"reconstruction": "of which squared error", "reducible": "of which above the floor"}
UPRIGHT = ("vae_upright", "avae_upright")


def lines_of(data: str, *, upright: bool = False) -> list[tuple[str, dict]]:
    """Returns labels and lines of what was trained on the data."""
    lines = read("avae_results")["lines"]
    return [
        (label, lines[f"{data}, {name}"])
        for name, label in LABELS.items()
        if f"{data}, {name}" in lines and (upright or name not in UPRIGHT)
    ]


def autoencoders(data: str, part: str = "reconstruction") -> str:
    """Returns code, test loss, a part of it, and cost of every model."""
    rows = []
    for label, line in lines_of(data):
        pose = "" if label.startswith("VAE") else f" + {FREEDOM[data]}"
        share = f"{np.mean(line[f'test_{part}']):.2f}"
        cells = [label, f"{line['latents']}{pose}", score(line), share, f"{line['parameters']:,}"]
        million = f"{line['macs_per_example'] / 1e6:.1f}"
        rows.append([*cells, million, f"{line['training_seconds']:.0f}"])
    header = ["model", "code length", "test loss", PARTS[part], "parameters", "million MACs"]
    return table([*header, "seconds"], rows)


def by_angle(data: str) -> str:
    """Returns the mean loss of test images at fixed rotations, and what resampling alone costs."""
    rows, degrees = [], []
    for label, line in lines_of(data, upright=True):
        seeds = line["loss_by_angle"]
        degrees = seeds[0]["degrees"]
        named = {label: "loss"}
        if label == "AVAE":
            named["AVAE, part due to resampling"] = "resampling_floor"
        for name, key in named.items():
            mean = np.mean([of_seed[key] for of_seed in seeds], 0)
            rows.append([name, *(f"{v:.2f}" for v in mean), f"{mean.mean():.2f}"])
    return table(["rotation", *(f"{d}°" for d in degrees), "mean"], rows)


def by_length(data: str) -> str:
    """Returns test losses of both models by all the numbers of a code, those of a pose included."""
    known = read("avae_results")["lines"]
    rows = []
    for rest in ("", *(f", latents {n}" for n in range(1, 65))):
        plain, affine = (known.get(f"{data}, {model}{rest}") for model in ("vae", "avae"))
        if plain and affine:
            lower = 1 - affine["test_mean"] / plain["test_mean"]
            cells = [score(plain), score(affine), f"{100 * lower:.0f}"]
            rows.append((plain["latents"], [str(plain["latents"]), *cells]))
    header = ["code length", "VAE", "AVAE", "AVAE lower by, %"]
    return table(header, [cells for _, cells in sorted(rows)])


def search_times() -> str:
    """Returns times of searches for a batch, the losses found, and how good they are."""
    record = read("pose_search_speed")
    shares = {
        "within 1 % of a grid of degrees, %": "within_a_percent_of_a_grid_of_degrees",
        "poses of every start, %": "same_as_every_start_by_adam_on_test",
    }
    shares = {title: record[key] for title, key in shares.items() if key in record}
    rows = []
    for name, times in record["ms"].items():
        loss = record["mean_loss"].get(name)
        cells = [name, f"{times['median'] / 1e3:.2f}", "–" if loss is None else f"{loss:.3f}"]
        shown = [f"{100 * share[name]:.1f}" if name in share else "–" for share in shares.values()]
        rows.append([*cells, *shown])
    return table(["search", "seconds", "mean loss", *shares], rows)


def inference() -> str:
    """Returns what a batch costs by proposals, by a search and without poses."""
    record = read("pose_search_speed")["inference"]
    names = {"plain": "plain pass", "amortised": "proposed and aligned", "search": "searched"}
    rows = []
    for key, label in names.items():
        ms, loss = record["ms"][key], record["mean_loss"].get(key)
        shown = "–" if loss is None else f"{loss:.3f}"
        rows.append([label, f"{ms:.1f}", f"{ms / record['ms']['plain']:.1f}", shown])
    return table(["inference", "ms", "over a plain pass", "mean loss"], rows)
