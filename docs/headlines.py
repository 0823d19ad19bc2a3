"""The table of README.md: what each part of the package gains, beside what it is compared with."""

from __future__ import annotations

from statistics import mean

from hardness import spread
from poses import lines_of
from records import mebibytes, read, score, table
from texts import PADDED, milliseconds, part


def headlines() -> str:
    """Returns a row per part: what was done, what it reached, what the other one did, the gain."""
    rows = [
        _global_layer(),
        _through_time(),
        _memory(),
        _speed("TARNN, forward and backward, 784 steps", "jaxeff/tarnn", "torch/tarnn_loop"),
        _speed("LSTM, forward and backward, 784 steps", "jaxeff/LSTM", "flax/LSTM"),
        _shortened(),
        _hybrid(),
        _poses(),
        _search(),
    ]
    return table(["task", "jaxeff", "compared with", "gain"], rows)


def _global_layer() -> list[str]:
    lines = {name: read("cnn_accuracy")["lines"][f"fashion, {name}"] for name in ("global", "host")}
    times = read("cnn_speed")["tables"]["28x28, batch 1"]
    million = {
        name: f"{line['macs_per_example'] / 1e6:.1f} million" for name, line in lines.items()
    }
    cells = [
        f"{label} {score(lines[name])} %, {million[name]} MACs, {times[name]['median_ms']:.2f} ms"
        for name, label in (("global", "Global layers:"), ("host", "unchanged:"))
    ]
    gain = lines["host"]["macs_per_example"] / lines["global"]["macs_per_example"]
    return ["ResNet-32, an epoch of Fashion-MNIST", *cells, f"{gain:.1f} times fewer MACs"]


def _through_time() -> list[str]:
    lines = read("through_time")["lines"]
    cells = [lines[f"pixels, {cell}, bptt"] for cell in ("tarnn", "lstm")]
    names = [
        f"{name} {score(line)} %, {line['parameters']:,} parameters"
        for name, line in zip(("TARNN:", "LSTM:"), cells, strict=True)
    ]
    gain = 100 * (cells[0]["test_mean"] - cells[1]["test_mean"])
    return ["digits pixel by pixel, 800 batches", *names, f"{gain:.1f} points"]


def _memory() -> list[str]:
    sizes = {
        entry["algorithm"]: entry["temp_bytes"]
        for entry in read("fptt_memory")["entries"]
        if (entry["cell"], entry["length"]) == ("lstm", 4096)
    }
    fptt, scan = sizes["fptt"], sizes["bptt, differentiated scan"]
    return [
        "memory of an LSTM's update, 4,096 steps",
        f"FPTT: {mebibytes(fptt, 0)} MiB",
        f"BPTT through a scan: {mebibytes(scan, 0)} MiB",
        f"{scan / fptt:.0f} times less",
    ]


def _speed(task: str, ours: str, theirs: str) -> list[str]:
    results = read("rnn_speed")["results"]
    one, other = (results[name]["ms"] for name in (ours, theirs))
    library = {"torch": "PyTorch", "flax": "Flax"}[theirs.partition("/")[0]]
    return [task, f"{one:.0f} ms", f"{library}: {other:.0f} ms", f"{other / one:.1f} times faster"]


def _shortened() -> list[str]:
    lines = part("accuracy")
    name = next(name for name in lines if name.startswith("evolution"))
    cells = [
        f"{label} {spread(lines[key]['test'], 100)} %, {milliseconds(key, PADDED):.0f} ms"
        for key, label in ((name, "shortened by search:"), ("full", "unchanged:"))
    ]
    gain = milliseconds("full", PADDED) / milliseconds(name, PADDED)
    return ["MiniLM on film reviews, a batch of 32 texts", *cells, f"{gain:.1f} times faster"]


def _hybrid() -> list[str]:
    record = read("hybrid_accuracy")
    runs = [analyses["hybrid"] for analyses in record["lines"]["hybrid"]["analyses"]]
    routed = [run["rules"]["learned router"]["at_coverage"]["0.9"] for run in runs]
    experts = [run["static"]["expert"] for run in runs]
    shares = [
        one["milliseconds"] / expert["milliseconds"]
        for one, expert in zip(routed, experts, strict=True)
    ]
    accuracies = [spread([cell["accuracy"] for cell in cells], 100) for cells in (routed, experts)]
    return [
        "Fashion-MNIST by a small and a large network",
        f"hybrid, a tenth sent to the large network: {accuracies[0]} %",
        f"large network alone: {accuracies[1]} %",
        f"{1 / mean(shares):.1f} times faster",
    ]


def _poses() -> list[str]:
    lines = dict(lines_of("digits"))
    searched, plain = lines["AVAE"], lines["VAE, code of equal length"]
    gain = 1 - searched["test_mean"] / plain["test_mean"]
    return [
        "autoencoder of turned digits, test loss",
        f"with a pose search: {searched['test_mean']:.2f}",
        f"plain, code of equal length: {plain['test_mean']:.2f}",
        f"{100 * gain:.0f} % less",
    ]


def _search() -> list[str]:
    times = {name: ms["median"] / 1e3 for name, ms in read("pose_search_speed")["ms"].items()}
    one, other = times["best 2 of spread ones by Gauss-Newton"], times["PyTorch, as published"]
    return [
        "search for the poses of 128 digits",
        f"Gauss-Newton: {one:.1f} s",
        f"published search, in PyTorch: {other:.1f} s",
        f"{other / one:.0f} times faster",
    ]
