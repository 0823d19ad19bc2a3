"""Recurrent classifiers from training to a microcontroller: accuracy, memory, instructions, times.

Trains the seeds of each line, makes integer programs of them with ranges from training data, writes
these as C, compiles it and runs it over the test data; beside it the step in LiteRT's integers. The
first seed's C is compared with the simulator, and its memory and instructions are those of a
Cortex-M4. Writes ``results/integer_accuracy.json``; trainings that are done and lines that are
current are kept:

    python benchmarks/integer_accuracy.py                # all lines
    python benchmarks/integer_accuracy.py motions gru    # lines whose name contains the words
    python benchmarks/integer_accuracy.py --times        # times alone, with the machine quiet
    python benchmarks/integer_accuracy.py --times --quick   # shown, not written

A finished training is used again whatever has changed in the package since; to train anew, delete
its folder in ``runs/integer_accuracy``.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import on_device
import record_keys
from record_files import RESULTS, locked_record, read, stamp
from recorded import RUNS, asked, command, config_of, is_current, keep_compiled, known_report

OUT = RESULTS / "integer_accuracy.json"
SEEDS = (0, 1, 2, 3, 4)
CALIBRATION = 256
#: Test examples at most, and those of them that the simulator runs beside C.
TEST, SIMULATED = 2000, 300
#: Bits of the weights, of the state.
FORMATS = ((8, 16), (6, 16), (4, 16), (8, 8), (4, 8))
#: Of long sequences, which take their time.
FEW_FORMATS = FORMATS[0], FORMATS[3]
CELLS = ("irnn", "tarnn", "fastgrnn", "gru", "lstm")
#: Lines with this in their names are trained with weights of 4 bits; of them there are fewer seeds.
ROUNDED = "4 bits"
LITERT = "LiteRT int8"
#: Of Fashion-MNIST, 120 batches of 128 images, each of 784 steps and with eight updates.
SHORT = ["train.num_steps=120", "train.eval_every=60", "data.validation_fraction=0.02"]
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
        short = [*SHORT, *(width or ["model.cell.features=64"])]
        if cell == "irnn":  # as configs/irnn.py:fashion_pixels has them
            short += ["model.cell.step_size=0.1", "optim.learning_rate=0.003"]
        arguments[f"fashion, {cell}"] = (
            f"fashion_pixels,cell={cell},algorithm=fptt",
            short,
            "fptt",
        )
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


def measured(folder: Path, formats: Sequence[tuple[int, int]], litert: bool) -> dict[str, Any]:
    """Returns the accuracies of one trained model, its agreement with itself, and its errors.

    Args:
      folder: of the run.
      formats: bits of weights and state.
      litert: whether the step is run in LiteRT too.
    """
    from jaxeff import programs, quantize

    loaded, entry, seen = exportable(folder)
    calibration = entry.examples["inputs"]
    inputs, labels, mask = arrays(loaded, "test", TEST)
    program = programs.trace_step(loaded.model, loaded.variables, inputs.shape[-1])
    ranges = quantize.ranges(program, calibration, seen)
    moments = quantize.moments(program, calibration, seen)
    batch = {"inputs": inputs} if mask is None else {"inputs": inputs, "mask": mask}
    outputs = {"float": np.asarray(loaded.forward(loaded.variables, batch))}
    if litert:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of progress
            outputs[LITERT] = on_device.litert_outputs(entry, inputs, "int8")
    result: dict[str, Any] = {"device": {}}
    for weights, state in formats:
        options = quantize.QuantizeOptions(weight_bits=weights, state_bits=state)
        integers = quantize.to_integer_program(program, ranges, options, moments)
        outputs[f"{weights}/{state}"] = on_device.c_outputs(integers, inputs, mask)
        if (weights, state) == formats[0]:
            errors = quantize.errors(program, integers, inputs[:SIMULATED], part(mask))
            place = errors.sources.index(program.next_state[0])
            quarters = np.linspace(0, inputs.shape[1], 5).astype(int)[1:] - 1
            result["state_rms_error"] = [float(errors.rms[place, t]) for t in quarters]
            result["constant_bytes"], result["state_bytes"] = (
                integers.constant_bytes,
                integers.state_bytes,
            )
        if folder.name == "0" and weights == 8:
            simulated = quantize.run(integers, inputs[:SIMULATED], part(mask))[:, -1]
            fraction = integers.fractions[integers.outputs[0]]
            in_c = outputs[f"{weights}/{state}"][:SIMULATED] * 2.0**-fraction
            np.testing.assert_array_equal(in_c, np.asarray(simulated))
            result["simulated"] = len(in_c)
            figures = on_device.device_figures(integers, inputs[0])
            result["device"][f"{weights}/{state}"] = figures
    if folder.name == "0":
        result["device"]["float"] = on_device.device_figures(program, inputs[0])
    classes = outputs["float"].argmax(-1)
    result["test"] = {name: accuracy(each, labels) for name, each in outputs.items()}
    result["agreement"] = {name: accuracy(each, classes) for name, each in outputs.items()}
    return result


def part(mask: np.ndarray | None) -> np.ndarray | None:
    """Returns the mask of the examples that are simulated."""
    return None if mask is None else mask[:SIMULATED]


def exportable(folder: Path, examples: int = CALIBRATION) -> tuple[Any, Any, Any]:
    """Returns a trained model, its step with examples of the training data, and their mask."""
    import jaxeff
    from jaxeff.exporting.recurrent import recurrent_step
    from jaxeff.exporting.systems import Exportable

    loaded = jaxeff.load(folder, data=True)
    calibration, _, seen = arrays(loaded, "train", examples)
    return loaded, recurrent_step(loaded.model, Exportable(loaded.variables, calibration)), seen


def times(name: str, spec: tuple[str, list[str], str], rounds: int) -> dict[str, float]:
    """Returns microseconds of a step of the first seed on this machine, in every form."""
    from jaxeff import quantize

    _, entry, seen = exportable(trained(name, spec, SEEDS[0])[1], examples=4)
    program, x = entry.program(), entry.examples["inputs"]
    ranges = quantize.ranges(program, x, seen)
    integers = quantize.to_integer_program(program, ranges, quantize.QuantizeOptions())
    return {
        "c float32": on_device.c_us(program, rounds),
        "c int8": on_device.c_us(integers, rounds),
        **on_device.runtimes_us(entry, x[:1, 0], ("float32", "int8"), rounds),
    }


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(logits.argmax(-1) == labels))


def key_of_line() -> str:
    return record_keys.of_code(Path(__file__), {"seeds": SEEDS})


def line(name: str, spec: tuple[str, list[str], str]) -> dict[str, Any]:
    """Returns one line over all seeds."""
    reports, results = [], []
    short = ROUNDED in name or name.startswith("fashion")
    formats = FEW_FORMATS if name.startswith("fashion") else FORMATS
    formats = ((4, 16),) if ROUNDED in name else formats
    seeds = SEEDS[:3] if short else SEEDS
    for seed in seeds:
        report, folder = trained(name, spec, seed)
        reports.append(report)
        results.append(measured(folder, formats, ROUNDED not in name))
    test, agreement = (
        {each: [result[part][each] for result in results] for each in results[0][part]}
        for part in ("test", "agreement")
    )
    return {
        "command": command(*spec),
        "environment": reports[0]["environment"],
        "key": key_of_line(),
        "seeds": list(seeds),
        "data": reports[0]["data"]["description"],
        "parameters": reports[0]["cost"]["parameters"],
        "test": test,
        "agreement": agreement,
        "agreement_mean": {each: mean(values) for each, values in agreement.items()},
        "device": results[0]["device"],
        "simulated": results[0].get("simulated", 0),
        "test_mean": {each: mean(values) for each, values in test.items()},
        "test_deviation": {each: stdev(values) for each, values in test.items()},
        "state_rms_error": [result["state_rms_error"] for result in results],
        "constant_bytes": results[0]["constant_bytes"],
        "state_bytes": results[0]["state_bytes"],
    }


def measure_times(name: str, spec: tuple[str, list[str], str]) -> None:
    """Adds the times of a line to the record, or only shows a few rounds of them."""
    quick = "--quick" in sys.argv
    us = times(name, spec, 3 if quick else on_device.ROUNDS)
    print(name, {each: round(value, 2) for each, value in us.items()}, flush=True)
    if not quick:
        with locked_record(OUT) as record:
            command = f"python benchmarks/integer_accuracy.py --times {name}"
            record.setdefault("step_times", {})[name] = {
                "us": us,
                **stamp(command.replace(",", "")),
            }


def main() -> None:
    record_keys.machine()  # prepares the process as all benchmarks are
    keep_compiled()
    all_lines = lines()
    for name in asked(all_lines):
        spec = all_lines[name]
        if "--times" in sys.argv:
            # The steps of the others are those of digits.
            if ROUNDED not in name and not name.startswith("fashion"):
                measure_times(name, spec)
            continue
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
