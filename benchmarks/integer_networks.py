"""What integers cost a convolutional or dense network: test accuracy by bits.

Makes integer networks, with ranges from training data, of the networks that come with the package
and of three trained seeds of each other line, and runs these over the test data; LiteRT's integers
of the same networks stand beside. Writes ``results/integer_networks.json``; trainings that are done
and lines that are current are kept:

    python benchmarks/integer_networks.py                # all lines
    python benchmarks/integer_networks.py digits-global  # lines whose name contains the words

A finished training is used again whatever has changed in the package since; to train anew, delete
its folder in ``runs/integer_networks``.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import record_keys
from record_files import RESULTS, locked_record, read, stamp
from recorded import (
    RUNS,
    SEEDS,
    asked,
    command,
    config_of,
    is_current,
    keep_compiled,
    known_report,
)

OUT = RESULTS / "integer_networks.json"
CALIBRATION = 256
#: Bits of the weights, of the activations.
FORMATS = ((8, 8), (6, 8), (4, 8), (8, 16))
#: LiteRT's integers, by the format that has the same bits.
LITERT = {(8, 8): "int8", (8, 16): "int16x8"}
#: Networks that come with the package, one training each.
SHIPPED = tuple(
    f"digits-{name}" for name in ("resnet", "global", "si", "shared", "dcl", "selective", "disk")
)
#: Lines with this in their names are trained with these roundings.
ROUNDED = "trained in 4/8"
SMALL = ["model.widths=[8, 16, 32]"]
ROUNDING = ["quantize.weight_bits=4", "quantize.activation_bits=8"]


def lines() -> dict[str, tuple[str, list[str], str]]:
    """Returns argument, overrides and file of the config of every line that is trained."""
    plain: dict[str, tuple[str, list[str], str]] = {
        "resnet": ("digits", SMALL, "images"),
        "global": ("digits", ["model.widths=[8, 16, 32, 32]"], "global_cnn"),
        "interpolated": ("digits", SMALL, "si_cnn"),
        "shared": ("digits", SMALL, "shared_conv"),
        "disk student": ("digits", [], "disk"),
        "3 units": ("digits,method=ce", [], "disk"),
    }
    rounded = {
        f"{name}, {ROUNDED}": (argument, [*overrides, *ROUNDING], file)
        for name, (argument, overrides, file) in plain.items()
        if name in ("resnet", "3 units")
    }
    return plain | rounded


def trained(name: str, spec: tuple[str, list[str], str], seed: int) -> tuple[Any, Path]:
    """Returns the report of a training and its folder; it is run unless that is done."""
    from jaxeff.train import launch

    folder = RUNS / "integer_networks" / name.replace(", ", "-").replace("/", "-") / str(seed)
    known = known_report(folder)
    if known is None:
        config = config_of(*spec)
        config.seed, config.devices.cpu = seed, 1
        for required in config.prerequisites.values():
            required.devices.cpu = 1
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            known = launch.run(config, folder)
    if known is None:
        raise KeyboardInterrupt(f"the training in {folder} was stopped; the same command goes on")
    return known, folder


def measured(loaded: Any, formats: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """Returns the accuracies of one trained network, by the name of the format."""
    from jaxeff import quantize

    train, test = (loaded.dataset.splits[name] for name in ("train", "test"))
    calibration = train.take(np.arange(CALIBRATION))["inputs"]
    batch = test.take(np.arange(len(test)))
    inputs, labels = batch["inputs"], batch["labels"]

    def accuracy(outputs: Any) -> float:
        logits = np.asarray(loaded.class_logits(outputs))
        return float(np.mean(logits.argmax(-1) == labels))

    test_scores = {"float": accuracy(loaded.forward(loaded.variables, {"inputs": inputs}))}
    result: dict[str, Any] = {"test": test_scores}
    for weights, activations in formats:
        options = quantize.QuantizeOptions(weight_bits=weights, activation_bits=activations)
        network = quantize.quantize_network(loaded.model, loaded.variables, calibration, options)
        test_scores[f"{weights}/{activations}"] = accuracy(network(inputs))
        if (weights, activations) in LITERT:
            outputs = in_litert(loaded, calibration, inputs, LITERT[weights, activations])
            test_scores[f"LiteRT {weights}/{activations}"] = accuracy(outputs)
        if (weights, activations) == formats[0]:
            errors = network.errors(inputs)
            result["largest_relative_error"] = float((errors.rms / errors.size).max())
            result["constant_bytes"] = network.constant_bytes
    return result


def in_litert(loaded: Any, calibration: Any, inputs: Any, precision: str) -> np.ndarray:
    """Returns what LiteRT's integers of a network answer."""
    from jaxeff.exporting import FORMATS as FILES
    from jaxeff.exporting import Exportable, entries

    (entry,) = entries(loaded.model, Exportable(loaded.variables, calibration))
    litert: Any = FILES["litert"]()
    batch = 32
    with tempfile.TemporaryDirectory() as folder:
        artifact = litert.write(entry, Path(folder), batch=batch, precision=precision)
        run = litert.open(artifact, entry, 1)
        rows = np.arange(-(-len(inputs) // batch) * batch).clip(max=len(inputs) - 1)
        parts = [run(inputs[each])[0] for each in rows.reshape(-1, batch)]
    return np.concatenate(parts)[: len(inputs)]


def key_of_line() -> str:
    return record_keys.of_code(Path(__file__), {"seeds": SEEDS})


def line(name: str, spec: tuple[str, list[str], str] | None) -> dict[str, Any]:
    """Returns one line over all seeds; without a config, of a network of the package."""
    import jaxeff

    formats, seeds = ((4, 8),) if ROUNDED in name else FORMATS, SEEDS if spec else ()
    folders = [trained(name, spec, seed)[1] for seed in seeds] if spec else [name]
    networks = [jaxeff.load(folder, data=True) for folder in folders]
    results = [measured(network, formats) for network in networks]
    test = {each: [result["test"][each] for result in results] for each in results[0]["test"]}
    report: Any = networks[0].report
    return {
        **stamp(command_of(name, spec)),
        "key": key_of_line(),
        "seeds": list(seeds),
        "data": report["data"]["description"],
        "parameters": report["cost"]["parameters"],
        "test": test,
        "test_mean": {each: mean(values) for each, values in test.items()},
        "largest_relative_error": [result["largest_relative_error"] for result in results],
        "constant_bytes": results[0]["constant_bytes"],
    }


def command_of(name: str, spec: tuple[str, list[str], str] | None) -> str:
    """Returns what makes a line: the training, or this script for a network of the package."""
    return command(*spec) if spec else f"python benchmarks/integer_networks.py {name}"


def main() -> None:
    record_keys.machine()  # prepares the process as all benchmarks are
    keep_compiled()
    all_lines = {**dict.fromkeys(SHIPPED), **lines()}
    for name in asked(all_lines):
        spec = all_lines[name]
        known = read(OUT).get("lines", {}).get(name, {})
        if not is_current(known, command_of(name, spec), key_of_line):
            known = line(name, spec)
            with locked_record(OUT) as record:
                record["command"] = "python benchmarks/integer_networks.py"
                record.setdefault("lines", {})[name] = known
        shown = (f"{each} {100 * value:.2f}" for each, value in known["test_mean"].items())
        print(f"{name:30s} {'  '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
