"""Tables of what copes with hard inputs: calibration, abstention, routing, distillation."""

from __future__ import annotations

from statistics import mean, stdev

from records import read, score, table


def calibration() -> str:
    rows = []
    for name, line in read("calibration")["lines"].items():
        kind, target, _, examples = name.replace(",", " ,").split(" ")[:4]
        cells = [f"{kind} {target}, {examples}"]
        for method in ("plug-in", "learn then test", "conformal risk control"):
            found = line.get(method)
            shown = f"{100 * found['violated']:.1f} / {found['coverage']:.3f}" if found else "–"
            cells.append(shown)
        rows.append([*cells, f"{line['ideal_coverage']:.3f}"])
    methods = ["plug-in", "learn then test", "conformal risk control"]
    return table(["error kept to, examples", *methods, "ideal coverage"], rows)


DISTILLED = {
    "ce": "cross entropy",
    "kd": "KD",
    "dkd": "DKD",
    "cifar50": "DiSK as released",
    "normalised in turns": "DiSK normalised, in turns",
    "normalised": "DiSK normalised",
    "normalised tight": "DiSK normalised, small budget",
    "closed form": "DiSK, gate in closed form",
    "closed form tight": "the same, small budget",
}


def distilled() -> str:
    lines = read("distill_accuracy")["lines"]
    starts = [(units, start) for start in ("pretrained", "scratch") for units in (2, 3)]
    rows = []
    for method, label in DISTILLED.items():
        found = [lines[f"digits, {units} units, {start}, {method}"] for units, start in starts]
        shown = [f"{100 * li['test_mean']:.1f} ± {100 * li['test_error']:.1f}" for li in found]
        rows.append([label, *shown])
    return table(["test accuracy, %", *(f"{u} units, {s}" for u, s in starts)], rows)


def routing_toy() -> str:
    record = read("routing_toy")
    rows = []
    for rule in record["noisy, no penalty"]:
        cells = []
        for variant in ("noisy", "clean"):
            for key in ("0.75", "area"):
                values = record[f"{variant}, no penalty"][rule][key]
                cells.append(f"{mean(values):.2f} ± {stdev(values):.2f}")
        rows.append([rule, *cells])
    header = ["rule", "noisy, accuracy at 0.75", "noisy, area", "clean, at 0.75", "clean, area"]
    return table(header, rows)


def routing_speed() -> str:
    rows = []
    for name, pair in read("routing_speed")["pairs"].items():
        for share, line in pair["shares"].items():
            rows.append(
                [
                    name,
                    share,
                    f"{line['routed_ms']:.1f}",
                    f"{pair['both_ms']:.1f}",
                    f"{line['over_ideal']:.2f}",
                    f"{line['over_both']:.2f}",
                ]
            )
    header = ["pair", "share asked", "routed, ms", "both on all, ms", "over the ideal", "over both"]
    return table(header, rows)


TARGETS = ("0.005", "0.01", "0.02")
OF_ANY = ("softmax response", "max-logit p-norm")  # confidences of any classifier


def selective(data: str) -> str:
    """Returns coverage at target errors and errors at target coverages, by method."""
    rows, record = [], read("selective_accuracy")
    for name, line in record["lines"].items():
        if not name.startswith(f"{data}, ") or "selective" not in line:
            continue
        trained = [c for c in line["selective"] if c not in OF_ANY]
        own = trained[0] if trained else OF_ANY[0]
        found = line["selective"][own]
        cells = [f"{name.partition(', ')[2]}, {own}", score(line)]
        for target in TARGETS:
            cells.append(accepted(found["rows"][f"at_joint_error {target} (plug-in)"]))
        for target in ("0.95", "0.9"):
            row = found["rows"][f"at_coverage {target} (quantile)"]
            cells.append(f"{100 * row['joint_error']:.2f}" if "joint_error" in row else "–")
        rows.append([*cells, f"{1000 * found['areas']['aurc']:.2f}"])
    chosen = record.get("chosen_trade_off", {}).get(data)
    if chosen:
        found = [chosen.get(f"at_joint_error {target} (plug-in)", {}) for target in TARGETS]
        cells = [accepted(row) if row else "–" for row in found]
        rows.append(["osp, mu by calibrated coverage", "–", *cells, "–", "–", "–"])
    header = ["method, confidence", "accuracy, %"]
    header += [f"coverage at {t} %, error" for t in ("0.5", "1", "2")]
    header += ["error at 95 %", "error at 90 %", "AURC x 1000"]
    return table(header, rows)


def accepted(row: dict) -> str:
    if "coverage" not in row:
        return f"reached by {row['seeds_reached']} seeds"
    return f"{100 * row['coverage']:.1f}, {100 * row['joint_error']:.2f}"
