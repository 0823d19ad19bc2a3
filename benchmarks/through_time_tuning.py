"""Chooses the settings of ``fashion_pixels`` in ``configs/fptt.py``, on validation data alone.

Every cell and algorithm gets the same search: four learning rates times two starts of the cell's
gate, with a seed that the comparison does not use. Rates at which FPTT was best are tried
again with a warm-up and two seeds, and for the TARNN, where the best rate then diverged, without
one and at a lower rate. Writes ``results/through_time_tuning.json``:

    python benchmarks/through_time_tuning.py               # all of it
    python benchmarks/through_time_tuning.py --shard=0/2   # every second line; 1/2 beside it
"""

from __future__ import annotations

import itertools
from typing import Any

from record_files import locked_record, read, stamp
from recorded import HERE, asked, command, config_of, is_current, key_of, train

from jaxeff.errors import TrainingError

OUT = HERE / "results" / "through_time_tuning.json"
SEED = 100
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
STARTS: dict[str, tuple[dict[str, float], ...]] = {
    "lstm": ({"forget_bias": 1.0}, {"forget_bias": 3.0}),
    "tarnn": ({"gate_bias": 0.0}, {"gate_bias": -2.0}),
}
# A second look at FPTT: cell, start of the gate, rate, updates of warm-up, seed.
AGAIN = (
    ("lstm", ("forget_bias", 3.0), 3e-3, 64, 100),
    ("lstm", ("forget_bias", 3.0), 3e-3, 64, 101),
    ("lstm", ("forget_bias", 3.0), 1e-2, 64, 100),
    ("lstm", ("forget_bias", 3.0), 1e-2, 64, 101),
    ("tarnn", ("gate_bias", 0.0), 1e-2, 64, 100),
    ("tarnn", ("gate_bias", 0.0), 1e-2, 64, 101),
    ("tarnn", ("gate_bias", 0.0), 3e-2, 64, 100),
    ("tarnn", ("gate_bias", 0.0), 3e-2, 64, 101),
    ("tarnn", ("gate_bias", 0.0), 3e-2, 0, 101),
    ("tarnn", ("gate_bias", 0.0), 2e-2, 0, 100),
)
# 80 batches of 128 images, as the comparison's shortest subset.
SHORT = ("train.num_steps=80", "train.eval_every=40", "data.validation_fraction=0.02")


def lines() -> dict[str, tuple[str, list[str]]]:
    """Returns config argument and overrides of every run, by its name."""
    arguments = {}
    for cell, (field, start), rate, warmup, seed in AGAIN:
        name = f"{cell}, fptt, {field} {start:g}, rate {rate:g}, warm-up {warmup}, seed {seed}"
        options = [f"model.cell.{field}={start}", f"optim.learning_rate={rate}", f"seed={seed}"]
        arguments[name] = (
            f"fashion_pixels,cell={cell},algorithm=fptt",
            [*SHORT, *options, f"optim.warmup_steps={warmup}"],
        )
    for cell, algorithm in itertools.product(STARTS, ("fptt", "bptt")):
        for rate, start in itertools.product(RATES, STARTS[cell]):
            options = [f"model.cell.{key}={value}" for key, value in start.items()]
            name = ", ".join([cell, algorithm, *(f"{k} {v:g}" for k, v in start.items())])
            arguments[f"{name}, rate {rate:g}"] = (
                f"fashion_pixels,cell={cell},algorithm={algorithm}",
                [*SHORT, f"optim.learning_rate={rate}", *options, f"seed={SEED}"],
            )
    return arguments


def tuned(argument: str, overrides: list[str]) -> Any:
    config = config_of(argument, overrides, "fptt")
    config.devices.cpu = 1
    return config


def outcome(name: str, argument: str, overrides: list[str]) -> dict[str, Any]:
    """Returns the validation accuracy of one run; one that diverged has none."""
    config = tuned(argument, overrides)
    line: dict[str, Any] = stamp(command(argument, overrides, "fptt"))
    line["key"] = key_of([config])
    folder = HERE.parent / "runs" / "through_time_tuning" / name.replace(", ", "-")
    try:
        report = train(config, folder)
    except TrainingError as error:
        return {**line, "accuracy": None, "diverged": str(error)}
    return {**line, "accuracy": report["metrics"]["validation"]["accuracy"]}


def main():
    all_lines = lines()
    for name in asked(all_lines):
        argument, overrides = all_lines[name]
        known = read(OUT).get("lines", {}).get(name, {})

        def key(argument=argument, overrides=overrides):
            return key_of([tuned(argument, overrides)])

        if not is_current(known, command(argument, overrides, "fptt"), key):
            known = outcome(name, argument, overrides)
            with locked_record(OUT) as record:
                record["command"] = "python benchmarks/through_time_tuning.py"
                record.setdefault("lines", {})[name] = known
        print(f"{name:60s} {known['accuracy']}", flush=True)


if __name__ == "__main__":
    main()
