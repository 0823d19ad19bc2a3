"""What integers cost a recurrent classifier: test accuracy by bits of weights and of state.

Trains five seeds of each line, makes integer programs of them with ranges from training data, and
runs these over the test data in the simulator that generated C equals to the bit. Writes
``results/integer_accuracy.json``; trainings that are done and lines that are current are kept:

    python benchmarks/integer_accuracy.py                # all lines
    python benchmarks/integer_accuracy.py motions gru    # lines whose name contains the words

A finished training is used again whatever has changed in the package since; to train anew, delete
its folder in ``runs/integer_accuracy``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import record_keys
from record_files import RESULTS, locked_record, read
from recorded import RUNS, asked, command, config_of, is_current, keep_compiled, known_report

OUT = RESULTS / "integer_accuracy.json"
SEEDS = (0, 1, 2, 3, 4)
CALIBRATION = 256
#: Bits of the weights, of the state.
FORMATS = ((8, 16), (6, 16), (4, 16), (8, 8), (4, 8))
CELLS = ("irnn", "tarnn", "fastgrnn", "gru", "lstm")
#: Lines with this in their names are trained with weights of 4 bits; of them there are fewer seeds.
ROUNDED = "4 bits"
REGULARISED = ['optim.name="adamw"', "optim.weight_decay=0.1", "model.dropout=0.2"]


def lines() -> dict[str, tuple[str, list[str], str]]:
    """Returns argument, overrides and file of the config of every line."""
    arguments = {}
    for cell in CELLS:
        width = ["model.cell.features=80"] if cell == "gru" else []  # about 20,900 parameters
        steps = f"train.num_steps={2000 if cell == 'irnn' else 1000}"
        pixels = [steps, *REGULARISED, *width]
        arguments[f"pixels, {cell}"] = (f"pixels,cell={cell},algorithm=bptt", pixels, "fptt")
        arguments[f"pixels, {cell}, {ROUNDED}"] = (
            f"pixels,cell={cell},algorithm=bptt",
            [*pixels, "quantize.weight_bits=4"],
            "fptt",
        )
        arguments[f"motions, {cell}"] = (f"motions,cell={cell},algorithm=fptt", width, "fptt")
    return arguments


def trained(name: str, spec: tuple[str, list[str], str], seed: int) -> tuple[Any, Path]:
    """Returns the report of a training and its folder; it is run unless that is done."""
    from jaxeff.train import launch

    folder = RUNS / "integer_accuracy" / name.replace(", ", "-") / str(seed)
    known = known_report(folder)
    if known is None:
        config = config_of(*spec)
        config.seed, config.devices.cpu = seed, 1
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            known = launch.run(config, folder)
    if known is None:
        raise KeyboardInterrupt(f"the training in {folder} was stopped; the same command goes on")
    return known, folder


def arrays(loaded: Any, split: str, limit: int | None = None) -> tuple[Any, Any, Any]:
    """Returns inputs, labels and (or None) mask of a split."""
    part = loaded.dataset.splits[split]
    batch = part.take(np.arange(min(len(part), limit or len(part))))
    return batch["inputs"], batch["labels"], batch.get("mask")


def measured(folder: Path, formats: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Returns the accuracies of one trained model, and its errors over time."""
    import jaxeff
    from jaxeff import programs, quantize

    loaded = jaxeff.load(folder, data=True)
    calibration, _, seen = arrays(loaded, "train", CALIBRATION)
    inputs, labels, mask = arrays(loaded, "test")
    program = programs.trace_step(loaded.model, loaded.variables, inputs.shape[-1])
    ranges = quantize.ranges(program, calibration, seen)
    batch = {"inputs": inputs} if mask is None else {"inputs": inputs, "mask": mask}
    logits = np.asarray(loaded.forward(loaded.variables, batch))
    result: dict[str, Any] = {"float": accuracy(logits, labels)}
    for weights, state in formats:
        options = quantize.QuantizeOptions(weight_bits=weights, state_bits=state)
        integers = quantize.to_integer_program(program, ranges, options)
        outputs = np.asarray(quantize.run(integers, inputs, mask))[:, -1]
        result[f"{weights}/{state}"] = accuracy(outputs, labels)
        if (weights, state) == formats[0]:
            errors = quantize.errors(program, integers, inputs, mask)
            place = errors.sources.index(program.next_state[0])
            quarters = np.linspace(0, inputs.shape[1], 5).astype(int)[1:] - 1
            result["state_rms_error"] = [float(errors.rms[place, t]) for t in quarters]
            result["constant_bytes"], result["state_bytes"] = (
                integers.constant_bytes,
                integers.state_bytes,
            )
    return result


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(logits.argmax(-1) == labels))


def key_of_line() -> str:
    return record_keys.of_code(Path(__file__), {"seeds": SEEDS})


def line(name: str, spec: tuple[str, list[str], str]) -> dict[str, Any]:
    """Returns one line over all seeds."""
    reports, results = [], []
    seeds, formats = (SEEDS[:3], [(4, 16)]) if ROUNDED in name else (SEEDS, FORMATS)
    for seed in seeds:
        report, folder = trained(name, spec, seed)
        reports.append(report)
        results.append(measured(folder, formats))
    names = ["float", *(f"{weights}/{state}" for weights, state in formats)]
    test = {each: [result[each] for result in results] for each in names}
    return {
        "command": command(*spec),
        "environment": reports[0]["environment"],
        "key": key_of_line(),
        "seeds": list(seeds),
        "data": reports[0]["data"]["description"],
        "parameters": reports[0]["cost"]["parameters"],
        "test": test,
        "test_mean": {each: mean(values) for each, values in test.items()},
        "test_deviation": {each: stdev(values) for each, values in test.items()},
        "state_rms_error": [result["state_rms_error"] for result in results],
        "constant_bytes": results[0]["constant_bytes"],
        "state_bytes": results[0]["state_bytes"],
    }


def main() -> None:
    record_keys.machine()  # prepares the process as all benchmarks are
    keep_compiled()
    all_lines = lines()
    for name in asked(all_lines):
        spec = all_lines[name]
        known = read(OUT).get("lines", {}).get(name, {})
        if not is_current(known, command(*spec), key_of_line):
            known = line(name, spec)
            with locked_record(OUT) as record:
                record["command"] = "python benchmarks/integer_accuracy.py"
                record.setdefault("lines", {})[name] = known
        shown = (
            f"{each} {100 * known['test_mean'][each]:.2f}±{100 * known['test_deviation'][each]:.2f}"
            for each in known["test_mean"]
        )
        print(f"{name:18s} {'  '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
