"""Tables of shortened text encoders: accuracy against time, and what the search is worth."""

from __future__ import annotations

import math
import re
from statistics import mean

from hardness import spread
from records import read, table

SETTING = "rotten_tomatoes_short"
PADDED, ALONE = "batch 32, length 128", "batch 1, length 32"


def part(name: str, setting: str = SETTING) -> dict:
    """Returns the lines of a part of the record."""
    lines = read("bottleneck_results")[setting].get(name, {})
    return {key: line for key, line in lines.items() if key not in ("command", "environment")}


def found_networks(line: dict) -> str:
    """Returns depth and cuts of every seed's network, as depth: place/factor."""
    plans = [
        f"{model['depth'] or 6}: " + ", ".join(f"{at}/{by}" for at, by in model["cuts"])
        for model in line["models"]
    ]
    return "; ".join(dict.fromkeys(plan.removesuffix(": ") for plan in plans))


def by_size(shape: str) -> tuple[int, ...]:
    """Returns the numbers of "batch 1, length 32", to sort by."""
    return tuple(int(number) for number in re.findall(r"\d+", shape))


def milliseconds(name: str, shape: str) -> float:
    """Returns the median time of a network, the mean over the seeds' networks; NaN if unknown."""
    line = part("latency")[shape].get(name)
    return mean(line["median_ms"]) if line else math.nan


def accuracy() -> str:
    """Returns accuracy, multiply-adds and times of every network, and what the search found."""
    rows = []
    whole = milliseconds("full", PADDED)
    for name, line in part("accuracy").items():
        million = mean(line["macs_per_example"]) / 1e6
        cells = [name, found_networks(line), spread(line["test"], 100), f"{million:.0f}"]
        alone, padded = milliseconds(name, ALONE), milliseconds(name, PADDED)
        times = [f"{alone:.1f}", f"{padded:.1f}", f"{padded / whole:.2f}"]
        known = not math.isnan(padded)
        rows.append((padded if known else 0.0, [*cells, *(times if known else "–––")]))
    header = ["network", "layers: cut after layer/factor", "test accuracy, %", "million MACs"]
    header += [f"ms, {ALONE}", f"ms, {PADDED}", "over full"]
    return table(header, [cells for _, cells in sorted(rows, reverse=True)])


def searches(single: bool = False) -> str:
    """Returns what every search found under its requirement, and its cost.

    Args:
      single: those for single texts in a runtime, in place of those for batches in JAX.
    """
    rows = []
    for name, line in part("accuracy").items():
        if ("single" in name) != single:
            continue
        for search, model in zip(line["searches"], line["models"], strict=False):
            plan = found_networks({"models": [model]})
            ms = [search["found"]["predicted_ms"], search["found"]["measured_ms"]]
            ms = [f"{t:.{2 * single}f}" for t in (*ms, search["full"]["measured_ms"])]
            scores = [f"{100 * search[which]['accuracy']:.1f}" for which in ("found", "full")]
            spent = [f"{search['seconds'][what]:.0f}" for what in ("measuring", "all")]
            asked = search["requirement"]
            rows.append([asked, plan, *ms, *scores, str(search["evaluations"]), *spent])
    header = ["requirement", "network", "predicted, ms", "measured, ms", "full, ms", "accuracy, %"]
    header += ["full, %", "networks evaluated", "seconds of timing", "seconds in all"]
    return table(header, rows)


def times() -> str:
    """Returns medians of every network for all batches and lengths."""
    known = part("latency")
    shapes = sorted(known, key=by_size)
    names = sorted(known[PADDED], key=lambda name: -milliseconds(name, PADDED))
    rows = [[n, *(f"{milliseconds(n, shape):.1f}" for shape in shapes)] for n in names]
    return table(["ms", *shapes], rows)


def serving() -> str:
    """Returns texts a second, and the time over the full one's, padded in two ways."""
    known, rows = part("serving"), []
    for name in dict.fromkeys(name.rpartition(", ")[0] for name in known):
        cells = [name]
        for way in ("one length", "next length"):
            rate, full = (known[f"{n}, {way}"]["texts_per_second"] for n in (name, "full"))
            cells += [f"{rate:.0f}", f"{full / rate:.2f}"]
        rows.append((rate, cells))
    header = ["network", "texts per second, padded to 128", "time over full"]
    header += ["texts per second, grouped by length", "time over full"]
    return table(header, [cells for _, cells in sorted(rows)])


def prediction() -> str:
    """Returns how far predicted times are from measured ones."""
    rows = []
    for shape, line in sorted(part("prediction").items(), key=lambda item: by_size(item[0])):
        for statistic, label in (("median_ms", "median"), ("min_ms", "fastest call")):
            cell = line[statistic]
            errors = (f"{100 * cell[f'{kind}_error']:.1f}" for kind in ("mean", "largest"))
            rank = f"{cell['rank_correlation']:.3f}"
            rows.append([shape, label, *errors, rank, f"{line['seconds']:.0f}"])
    header = ["input", "time", "mean error, %", "largest, %", "rank correlation", "seconds"]
    return table(header, rows)


def strategies() -> str:
    """Returns what every strategy finds of the front that all of them know together."""
    known = part("strategies")
    rows = []
    for name in ("evolution", "enumeration", "random"):
        shares = known[name]["share_of_all_known"]
        shown = spread(shares, 100) if len(shares) > 1 else f"{100 * shares[0]:.1f}"
        rows.append([name, str(known[name]["budget"]), shown])
    return table(["strategy", "networks evaluated", "share of the known front, %"], rows)


def against_torch() -> str:
    """Returns times of the full encoder here and in PyTorch."""
    known = part("torch")
    rows = []
    for shape in sorted({name.partition("/")[2] for name in known}, key=by_size):
        ours, theirs = (known[f"{side}/{shape}"]["ms"] for side in ("jaxeff", "torch"))
        rows.append([shape, f"{ours:.1f}", f"{theirs:.1f}", f"{theirs / ours:.2f}"])
    return table(["batch x length", "jaxeff, ms", "PyTorch, ms", "ratio"], rows)


OPPONENT = "MiniLM in ONNX Runtime"


def _integer_lines() -> dict[str, dict[str, float]]:
    """Returns the median times of every export by shape; searched networks as their mean."""
    found = {}
    for shape, line in sorted(
        read("encoder_integers")["lines"].items(), key=lambda i: by_size(i[0])
    ):
        times: dict[str, list[float]] = {}
        for name, ms in line["ms"].items():
            times.setdefault(re.sub(r", seed \d+", "", name), []).append(ms["median"])
        found[shape] = {name: mean(values) for name, values in times.items()}
    return found


def integers(batch: int) -> str:
    """Returns the times of networks in 32-bit floats and 8-bit integers, a row per network."""
    lines = {
        by_size(shape)[1:]: line
        for shape, line in _integer_lines().items()
        if by_size(shape)[0] == batch
    }
    names = list(dict.fromkeys(name for line in lines.values() for name in line))
    digits = 2 if batch == 1 else 1
    rows = [
        [name, *(f"{line[name]:.{digits}f}" if name in line else "–" for line in lines.values())]
        for name in sorted(names, key=lambda name: name.rpartition(" ")[2])
    ]
    header = [f"ms, batch {batch}"]
    header += [
        f"{length} tokens, {threads} thread{'s'[: threads - 1]}" for length, threads in lines
    ]
    return table(header, rows)


def _fastest(line: dict[str, float], network: str) -> tuple[float, str]:
    """Returns the least time of a network in integers and in what; NaN where there is none."""
    start = f"{network}, "
    known = [
        (ms, name.removeprefix(start))
        for name, ms in line.items()
        if name.startswith(start) and "int8" in name
    ]
    return min(known, default=(math.nan, "–"))


def integer_ratios() -> str:
    """Returns how many times faster the searched networks are than MiniLM and than 3 layers."""
    rows = []
    for shape, line in _integer_lines().items():
        (ours, best), (single, _), (shallow, _) = (
            _fastest(line, network)
            for network in ("searched", "searched for single texts", "depth 3")
        )
        others = [line[f"{OPPONENT}, int8"], line[f"{OPPONENT}, float32"], shallow]
        ratios = [*(ms / ours for ms in others), shallow / single]
        rows.append([shape, best, *("–" if math.isnan(r) else f"{r:.2f}" for r in ratios)])
    header = [
        "shape",
        "searched, best in",
        f"{OPPONENT}, int8",
        "float32",
        "depth 3, int8, its best",
        "depth 3 over searched for single texts",
    ]
    return table(header, rows)
