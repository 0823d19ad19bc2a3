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
            cell = line.get(method)
            shown = f"{100 * cell['violated']:.1f} / {cell['coverage']:.3f}" if cell else "–"
            cells.append(shown)
        rows.append([*cells, f"{line['ideal_coverage']:.3f}"])
    methods = ["plug-in", "learn then test", "conformal risk control"]
    return table(["target error, examples", *methods, "ideal coverage"], rows)


def spread(values: list[float], scale: float = 1.0, digits: int = 1) -> str:
    """Returns mean and deviation."""
    scaled = [scale * value for value in values]
    return f"{mean(scaled):.{digits}f} ± {stdev(scaled):.{digits}f}"


DISTILLED = {
    "ce": "cross entropy",
    "kd": "KD",
    "dkd": "DKD",
    "cifar50": "DiSK as released",
    "normalised in turns": "DiSK normalised, in turns",
    "normalised": "DiSK normalised",
    "normalised tight": "DiSK normalised, small budget",
    "closed form": "DiSK, gate in closed form",
    "closed form tight": "DiSK, gate in closed form, small budget",
}


def distilled() -> str:
    lines = read("distill_accuracy")["lines"]
    starts = [(units, start) for start in ("pretrained", "scratch") for units in (2, 3)]
    rows = []
    for method, label in DISTILLED.items():
        chosen = [lines[f"digits, {units} units, {start}, {method}"] for units, start in starts]
        shown = [f"{100 * li['test_mean']:.1f} ± {100 * li['test_error']:.1f}" for li in chosen]
        rows.append([label, *shown])
    return table(["test accuracy, %", *(f"{u} units, {s}" for u, s in starts)], rows)


#: Methods on images, and what they are on digits.
OF_IMAGES = {
    "ce": "ce",
    "kd": "kd",
    "disk": "normalised",
    "closed_form": "closed form",
    "cifar50": "cifar50",
}


def distilled_images() -> str:
    lines = read("distill_accuracy")["lines"]
    students = [s for s in ("xxxs", "xxs") if f"fashion, {s}, ce" in lines]
    rows = []
    for method, like in OF_IMAGES.items():
        chosen = [lines.get(f"fashion, {student}, {method}") for student in students]
        if any(chosen):
            shown = (spread(li["test"], 100) if li else "–" for li in chosen)
            rows.append([DISTILLED[like], *shown])
    sizes = [f"{s}, {lines[f'fashion, {s}, ce']['parameters']:,} parameters" for s in students]
    return table(["test accuracy, %", *sizes], rows)


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
    header = ["pair", "share to the expert", "routed, ms", "both on all, ms"]
    header += ["routed / ideal", "routed / both"]
    return table(header, rows)


#: Of the hybrid models' tables: what is shown of a rule, by the part and the key of its record.
THRESHOLDS = {
    "10 % to the expert": ("at_coverage", "0.9"),
    "cheapest within 0.2 points": ("cheapest_within", "0.002"),
}


def routed() -> str:
    """Returns networks alone and together by accuracy and measured share of the expert's time."""
    record = read("hybrid_accuracy")
    lines, times = record["lines"], record["times"]
    rows = []
    for name, ms in times.items():
        alone = f"{ms / times['expert']:.2f}"
        accuracy = spread(lines[name]["test"], 100, 2) if name in lines else "–"
        rows.append([f"{name}, alone", accuracy, alone, "–"])
    for name, line in lines.items():
        per_run = [analyses["hybrid"] for analyses in line["analyses"] if "hybrid" in analyses]
        if per_run:
            experts = [analyses["static"]["expert"]["accuracy"] for analyses in per_run]
            rows.append([f"{name}: expert alone", spread(experts, 100, 2), "1.00", "100"])
        for rule in ("learned router", "margin", "negative entropy") if per_run else ():
            for label, (part, key) in THRESHOLDS.items():
                cells = [analyses["rules"][rule][part][key] for analyses in per_run]
                rows.append([f"{name}: {rule}, {label}", *_routed(cells, per_run)])
    rows += _exits(lines)
    return table(["network", "accuracy, %", "time over the expert's", "to the expert, %"], rows)


def _routed(cells: list[dict], per_run: list[dict]) -> list[str]:
    if any("unreachable" in cell for cell in cells):
        return ["not reached by every seed", "–", "–"]
    shares = [
        cell["milliseconds"] / analysis["static"]["expert"]["milliseconds"]
        for cell, analysis in zip(cells, per_run, strict=True)
    ]
    asked = [100 * (1 - cell["coverage"]) for cell in cells]
    accuracy = spread([cell["accuracy"] for cell in cells], 100, 2)
    return [accuracy, spread(shares, 1, 2), spread(asked)]


def _exits(lines: dict) -> list[list[str]]:
    """Returns what the network with exits reaches with parts of its multiply-adds."""
    per_run = [analyses["early_exits"] for analyses in lines["early exits"]["analyses"]]
    rows = []
    for budget in ("0.6", "0.8", "1"):
        plans = [analyses["budgets"][budget] for analyses in per_run]
        if all("accuracy" in plan for plan in plans):
            shares = [
                plan["milliseconds"] / whole(analyses["cost"])
                for plan, analyses in zip(plans, per_run, strict=True)
            ]
            label = f"early exits, {100 * float(budget):g} % of their multiply-adds"
            accuracy = spread([plan["accuracy"] for plan in plans], 100, 2)
            rows.append([label, accuracy, f"{spread(shares, 1, 2)} of its own", "–"])
    return rows


def whole(cost: dict) -> float:
    """Returns the milliseconds of an input that passes all stages of a cascade."""
    batch = cost["batch"]
    later = sum(line["fixed"] + line["per_row"] * batch for line in cost["later"])
    return (cost["base_ms"] + later) / batch


TARGETS = ("0.005", "0.01", "0.02")
OF_ANY = ("softmax response", "max-logit p-norm")  # confidences of any classifier


def selective(data: str) -> str:
    """Returns coverage at target errors and errors at target coverages, by method."""
    rows, record = [], read("selective_accuracy")
    for name, line in record["lines"].items():
        if not name.startswith(f"{data}, ") or "selective" not in line:
            continue
        trained = [c for c in line["selective"] if c not in OF_ANY]
        confidence = trained[0] if trained else OF_ANY[0]
        of_confidence = line["selective"][confidence]
        cells = [f"{name.partition(', ')[2]}, {confidence}", score(line)]
        for target in TARGETS:
            cells.append(accepted(of_confidence["rows"][f"at_joint_error {target} (plug-in)"]))
        for target in ("0.95", "0.9"):
            row = of_confidence["rows"][f"at_coverage {target} (quantile)"]
            cells.append(f"{100 * row['joint_error']:.2f}" if "joint_error" in row else "–")
        rows.append([*cells, f"{1000 * of_confidence['areas']['aurc']:.2f}"])
    chosen = record.get("chosen_trade_off", {}).get(data)
    if chosen:
        of_confidence = [chosen.get(f"at_joint_error {target} (plug-in)", {}) for target in TARGETS]
        cells = [accepted(row) if row else "–" for row in of_confidence]
        rows.append(["osp, mu by calibrated coverage", "–", *cells, "–", "–", "–"])
    header = ["method, confidence", "accuracy, %"]
    header += [f"coverage at {t} %, error" for t in ("0.5", "1", "2")]
    header += ["error at 95 %", "error at 90 %", "AURC x 1000"]
    return table(header, rows)


def accepted(row: dict) -> str:
    if "coverage" not in row:
        return f"reached by {row['seeds_reached']} seeds"
    return f"{100 * row['coverage']:.1f}, {100 * row['joint_error']:.2f}"


def constrained_lines(data: str) -> dict[str, dict]:
    """Returns lines of methods with constraints and of baselines; of the penalties the best one."""
    known = {
        name.partition(", ")[2]: line
        for name, line in read("dcl_accuracy")["lines"].items()
        if name.startswith(f"{data}, ")
    }
    penalties = {n: line for n, line in known.items() if n.startswith("penalty")}
    best = max(penalties, key=lambda n: penalties[n]["validation_mean"], default="")
    return {n: line for n, line in known.items() if n not in penalties or n == best}


def constrained(data: str) -> str:
    """Returns methods with constraints and their baselines; of the penalties the best one."""
    known = constrained_lines(data)
    update_ms = read("dcl_accuracy")["update_ms"]
    times = {name.partition(", ")[2]: ms for name, ms in update_ms.items()}
    times |= dict.fromkeys([n for n in known if n.startswith("penalty")], times["penalty, 0.01"])
    rows = []
    for name, line in known.items():
        ends = line["constraints_at_end"]
        rows.append(
            [
                name,
                score(line),
                spread(line["generalisation_gap"]["accuracy"], 100),
                f"{mean(ends['entropy']):.3f}" if "entropy" in ends else "–",
                f"{times[name] / times['plain']:.1f}",
            ]
        )
    header = ["training", "test accuracy, %", "gap to training, points", "entropy of training"]
    return table([*header, "time over plain training's"], rows)
