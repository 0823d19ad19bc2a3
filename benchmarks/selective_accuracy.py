"""Compares classifiers that may abstain, with one backbone and recipe, over three seeds.

Thresholds are chosen on the calibration split and judged once on the test split. Writes
``results/selective_accuracy.json``. Lines that are there already and current are kept:

    python benchmarks/selective_accuracy.py                     # digits and Fashion-MNIST
    python benchmarks/selective_accuracy.py fashion sat         # lines that have these words
    python benchmarks/selective_accuracy.py cifar10             # needs the data
    python benchmarks/selective_accuracy.py --shard=0/2         # every second line; 1/2 beside it
"""

from __future__ import annotations

import sys
from statistics import mean, stdev
from typing import Any

from record_files import locked_record
from recorded import HERE, SEEDS, asked, base_of, configs_of, folder_of, known_report, run

TABLE = "selective_accuracy"
#: Method of the config and its own confidence.
METHODS = {
    "osp mu=0.49": ("method=osp,mu=0.49", "one-sided score"),
    "osp mu=1.67": ("method=osp,mu=1.67", "one-sided score"),
    "softmax": ("method=softmax", "softmax response"),
    "selectivenet": ("method=selectivenet", "selection head"),
    "gamblers": ("method=gamblers", "not abstaining"),
    "sat": ("method=sat", "not abstaining"),
}
#: The backbone and the length of training that make 18 trainings on Fashion-MNIST an hour of one
#: core. The full setting is ``configs/selective.py:fashion,model=resnet32``.
SMALL = {"depth": "8", "widths": "[8, 16, 32]"}
STEPS, PRETRAIN_STEPS = 984, 328
PANELS = ("at_joint_error", "at_selective_risk", "at_coverage")


def smaller(method: str) -> list[str]:
    """Returns the overrides of a method's small setting."""
    model = "model.backbone" if method == "selectivenet" else "model"
    overrides = [f"{model}.{field}={value}" for field, value in SMALL.items()]
    overrides.append(f"train.num_steps={STEPS}")
    if method == "gamblers":
        overrides.append(f"algorithm.pretrain_steps={PRETRAIN_STEPS}")
    return overrides


def lines() -> dict[str, tuple[str, list[str], str]]:
    """Returns argument, overrides and config file of every line, by ``data, method``."""
    models = {"digits": "resnet20", "fashion": "resnet32"}
    if "cifar10" in sys.argv:
        models = {"cifar10": "resnet32"}
    arguments = {}
    for data, model in models.items():
        for name, (argument, _) in METHODS.items():
            overrides = smaller(name) if data == "fashion" else []
            arguments[f"{data}, {name}"] = (
                f"{data},model={model},{argument}",
                overrides,
                "selective",
            )
    return arguments


def tables(name: str) -> list[dict[str, Any]]:
    """Returns what the analysis found, for each seed of a line; [] unless all have been run."""
    configs = configs_of(*lines()[name])
    reports = [known_report(folder_of(c, base_of(TABLE, name, s))) for s, c in configs.items()]
    return [report["extras"]["selective"] for report in reports if report] if all(reports) else []


def flat(table: dict[str, Any], confidence: str) -> dict[str, dict[str, float] | str]:
    """Returns the rows of one confidence by ``panel target (method)``, with named columns."""
    rows = {}
    for panel in PANELS:
        for target, row in table["confidences"][confidence][panel].items():
            methods = row if isinstance(row, dict) else {"quantile": row}
            for method, values in methods.items():
                named = isinstance(values, list)
                rows[f"{panel} {target} ({method})"] = (
                    dict(zip(table["columns"], values, strict=True)) if named else values
                )
    return rows


def summary(per_run: list[dict[str, Any]], confidence: str) -> dict[str, Any]:
    """Returns means and deviations over the seeds; rows that a seed cannot reach say so."""
    per_seed = [flat(table, confidence) for table in per_run]
    rows: dict[str, Any] = {}
    for key in per_seed[0]:
        values = [rows_of[key] for rows_of in per_seed]
        reached = [v for v in values if isinstance(v, dict)]
        rows[key] = {"seeds_reached": len(reached)}
        if len(reached) == len(values):
            for column in ("coverage", "joint_error", "selective_risk"):
                numbers = [v[column] for v in reached]
                rows[key] |= {column: mean(numbers), f"{column}_deviation": stdev(numbers)}
    areas = {
        area: mean(table["confidences"][confidence][area] for table in per_run)
        for area in ("aurc", "aurc_of_prefixes", "augrc")
    }
    return {"areas": areas, "rows": rows}


def best_trade_off(data: str) -> dict[str, Any] | None:
    """Returns the rows of one-sided prediction with mu chosen for each target and seed.

    The choice is that of the largest coverage on the calibration split. None unless both have been
    run here.
    """
    names = [name for name in METHODS if name.startswith("osp")]
    by_name = {name: tables(f"{data}, {name}") for name in names}
    if not all(by_name.values()):
        return None
    rows = {}
    for key in flat(by_name[names[0]][0], "one-sided score"):
        if "(plug-in)" not in key:
            continue
        chosen = []
        for number in range(len(SEEDS)):
            options = [flat(by_name[name][number], "one-sided score")[key] for name in names]
            reached = [row for row in options if isinstance(row, dict)]
            if reached:
                chosen.append(max(reached, key=lambda row: row["calibrated_coverage"]))
        if len(chosen) == len(SEEDS):
            rows[key] = {
                column: mean(row[column] for row in chosen)
                for column in ("coverage", "joint_error", "selective_risk")
            }
    return rows


def main():
    all_lines = lines()
    run(all_lines, TABLE)
    done = asked(all_lines)
    with locked_record(HERE / "results" / f"{TABLE}.json") as record:
        for name in done:
            of_method = METHODS[name.split(", ")[1]][1]
            per_run = tables(name)
            if not per_run:  # a line of an older record, from elsewhere
                continue
            record["lines"][name]["selective"] = {
                confidence: summary(per_run, confidence)
                for confidence in dict.fromkeys((of_method, "softmax response", "max-logit p-norm"))
            }
        for data in {name.split(", ")[0] for name in done}:
            chosen = best_trade_off(data)
            if chosen:
                record.setdefault("chosen_trade_off", {})[data] = chosen
    for name in done:
        if "selective" not in record["lines"][name]:
            continue
        for key, row in record["lines"][name]["selective"][METHODS[name.split(", ")[1]][1]][
            "rows"
        ].items():
            if "(plug-in)" in key and "coverage" in row:
                print(
                    f"{name:24s} {key:34s} coverage {100 * row['coverage']:.1f} "
                    f"joint error {100 * row['joint_error']:.2f}"
                )


if __name__ == "__main__":
    main()
