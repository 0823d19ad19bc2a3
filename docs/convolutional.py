"""Tables of convolutional networks: their accuracy and their speed."""

from __future__ import annotations

import math

from records import read, score, table


def networks(data: str) -> dict[str, dict]:
    """Returns the lines of the convolutional comparison on a data set, by network."""
    lines = read("cnn_accuracy")["lines"]
    order = ("host", "global", "global 5 steps", "interpolated")
    names = [n.partition(", ")[2] for n in lines if n.startswith(f"{data}, ")]
    ranked = sorted(names, key=lambda n: (order.index(n) if n in order else len(order), n))
    return {name: lines[f"{data}, {name}"] for name in ranked}


def cnn(data: str) -> str:
    rows = []
    speed = read("cnn_speed")["tables"]
    for name, line in networks(data).items():
        ms = speed["28x28, batch 1"].get(name, {}).get("median_ms", math.nan)
        rows.append(
            [
                name,
                score(line),
                f"{line['parameters']:,}",
                f"{line['macs_per_example'] / 1e6:.2f}",
                *([f"{ms:.2f}"] if data == "fashion" else []),
                f"{line['epochs']:.1f}",
                f"{line['training_seconds']:.0f}",
                f"`{line['command'].removeprefix('python -m jaxeff.main ')}`",
            ]
        )
    header = ["network", "test accuracy, %", "parameters", "million MACs"]
    header += ["ms, batch 1"] if data == "fashion" else []
    return table([*header, "epochs", "seconds", "command"], rows)


def cnn_speed() -> str:
    rows = []
    for part, lines in read("cnn_speed")["tables"].items():
        if part.startswith("28x28") or part == "convolutions":
            continue
        for name, line in lines.items():
            size = f"{line['parameters']:,}" if "parameters" in line else "–"
            macs = f"{line['macs_per_example'] / 1e6:.1f}" if "parameters" in line else "–"
            rows.append([part, name, f"{line['median_ms']:.1f}", size, macs])
    return table(["input", "network", "ms", "parameters", "million MACs"], rows)


def cnn_ratios() -> str:
    """Returns what the times of the table above say about each other."""
    tables = read("cnn_speed")["tables"]
    large = tables["32x32, batch 256"]
    host, global_1, global_5, bare = (
        large[name]["median_ms"]
        for name in (
            "ResNet32",
            "ResNet32-Global, K=1",
            "ResNet32-Global, K=5",
            "ResNet32-Global without its layers",
        )
    )
    rows = [
        ["ResNet32 over its Global network, K = 1, batch 256", f"{host / global_1:.2f}"],
        ["ResNet32 over its Global network, K = 5, batch 256", f"{host / global_5:.2f}"],
        ["share of the Global layers, K = 1", f"{1 - bare / global_1:.2f}"],
    ]
    for model in ("EfficientNet-B0", "MobileNetV3-L"):
        for batch in (1, 64):
            times = tables[f"224x224, batch {batch}"]
            ratio = times[model]["median_ms"] / times[f"{model}-SI"]["median_ms"]
            rows.append([f"{model} over {model}-SI, batch {batch}", f"{ratio:.2f}"])
    return table(["time", "ratio"], rows)


def convolutions() -> str:
    times = read("cnn_speed")["tables"]["convolutions"]
    rows = []
    for name in dict.fromkeys(n.rpartition(", ")[0] for n in times):
        ours, theirs = (times[f"{name}, {who}"]["median_ms"] for who in ("jaxeff", "XLA"))
        rows.append([name, f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.1f}"])
    return table(["convolution", "jaxeff, ms", "XLA, ms", "ratio"], rows)


def profile() -> str:
    """Returns the share of every part of ResNet-32, a table for each version of JAX."""
    told = []
    for version, line in read("cnn_profile")["lines"].items():
        for kind in (k for k in line if k.startswith(("inference", "step"))):
            whole, rows = line[kind]["milliseconds"], []
            for name, ms in line[kind]["parts"].items():
                rows.append([name, f"{ms:.1f}", f"{100 * ms / whole:.0f}"])
            rows.append(["all", f"{whole:.1f}", "100"])
            header = [f"{version}: {kind}", "ms", "%"]
            moved = f"Copies and padding write {line[kind]['moved_megabytes']:.0f} MiB."
            told.append(f"{table(header, rows)}\n\n{moved}")
    return "\n\n".join(told)
