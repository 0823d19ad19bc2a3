"""Text encoders in 8-bit integers: shortened ones by the exports, MiniLM in ONNX Runtime.

MiniLM is written as ONNX Runtime's optimiser would write it (`onnx_encoder.py`) and quantised by
ONNX Runtime. The package's networks, full, of three layers, and as the search found them, are
exported to ONNX and quantised by the same function, and exported to LiteRT with integer weights;
so are those that were searched for single texts in integers, where the record has them.
Weights are random: the time does not depend on them. All take turns, on one thread and on two;
writes ``results/encoder_integers.json``. Run it with nothing else on the machine:

    python benchmarks/encoder_integers.py
    python benchmarks/encoder_integers.py --quick     # one shape and thread, no LiteRT; no record
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx_encoder
from record_files import RESULTS, locked_record, read, stamp

from jaxeff import bench
from jaxeff.exporting import FORMATS, Exportable, entries
from jaxeff.models import MODELS

OUT = RESULTS / "encoder_integers.json"
SHAPE = {"vocabulary": 30522, "width": 384, "layers": 6, "heads": 12, "hidden": 1536}
FULL, OPPONENT = "full", "MiniLM in ONNX Runtime"
LENGTHS, BATCHES, THREADS = (8, 16, 32, 64, 128), (1, 32), (1, 2)
RUNTIMES = ("onnxruntime", "ai-edge-litert", "litert-quantizer", "jax2onnx")
#: Lines of the record by what their networks are called here.
SEARCHES = {
    "searched": "evolution, 0.4 of the time",
    "searched for single texts": "evolution, single texts in integers",
}


def networks() -> dict[str, dict[str, Any]]:
    """Returns depth and cuts of the networks to compare; those of every seed of the searches."""
    lines = read(RESULTS / "bottleneck_results.json")["rotten_tomatoes_short"]["accuracy"]
    searched = {
        f"{name}, seed {seed}": {"depth": m["depth"], "cuts": tuple(map(tuple, m["cuts"]))}
        for name, line in SEARCHES.items()
        for seed, m in enumerate(lines.get(line, {}).get("models", ()))
    }
    return {FULL: {}, "depth 3": {"depth": 3}, **searched}


def entry_of(plan: dict[str, Any], length: int) -> Any:
    """Returns what is exported of a network for texts of one length."""
    model = MODELS.build({"name": "encoder", "shape": SHAPE, **plan}, num_outputs=2)
    tokens = np.ones((1, length), np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.normal(0, 0.02, s.shape).astype(s.dtype), shapes)
    return entries(model, Exportable(variables, tokens))[-1]  # those of shorter texts before


def _arrays(batch: int, length: int) -> list[np.ndarray]:
    return [np.ones((batch, length), np.int32), np.ones((batch, length), np.float32)]


def in_onnx(folder: Path, plan: dict[str, Any], length: int) -> Callable[[int, int, bool], Any]:
    """Exports a network; returns what binds it for batch, threads, and floats or integers."""
    form: Any = FORMATS["onnx"]()
    entry = entry_of(plan, length)
    written = form.write(entry, folder, batch=max(BATCHES))
    integers = dataclasses.replace(written, files=(onnx_encoder.quantised(written.files[0]),))

    def bind(batch: int, threads: int, integer: bool) -> Any:
        runtime = form.open(integers if integer else written, entry, threads)
        return form.bind(runtime, _arrays(batch, length))

    return bind


def in_litert(folder: Path, plan: dict[str, Any], batch: int, length: int) -> Callable[[int], Any]:
    """Exports a network with integer weights; returns what binds it for threads."""
    form: Any = FORMATS["litert"]()
    entry = entry_of(plan, length)
    written = form.write(entry, folder, batch=batch, precision="int8_dynamic")
    return lambda threads: form.bind(form.open(written, entry, threads), _arrays(batch, length))


def opponents(folder: Path) -> Callable[[int, int, int, bool], Any]:
    """Writes MiniLM; returns what binds it for batch, length, threads, and floats or integers."""
    from jaxeff.exporting.onnx import Session

    path = onnx_encoder.write(folder / "minilm.onnx", **SHAPE)
    integers = onnx_encoder.quantised(path)

    def bind(batch: int, length: int, threads: int, integer: bool) -> Any:
        session = Session(integers if integer else path, ("tokens", "mask"), ("outputs",), threads)
        tokens, mask = _arrays(batch, length)
        return session.bound([tokens, mask.astype(np.int32)])

    return bind


def calls(length: int, asked: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the calls of every batch and number of threads, by what they compute."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        other = opponents(folder)
        written = {}
        for network, plan in asked.networks.items():
            place = folder / network
            place.mkdir()
            written[network] = in_onnx(place, plan, length)
        for batch in asked.batches:
            lite = {}
            for network, plan in asked.networks.items() if asked.litert else ():
                lite[network] = in_litert(folder / network, plan, batch, length)
            for threads in asked.threads:
                made = {}
                for kind, integer in (("float32", False), ("int8", True)):
                    made[f"{OPPONENT}, {kind}"] = other(batch, length, threads, integer)
                    for network, bind in written.items():
                        made[f"{network}, ONNX {kind}"] = bind(batch, threads, integer)
                for network, opened in lite.items():
                    made[f"{network}, LiteRT int8"] = opened(threads)
                yield f"batch {batch}, length {length}, {threads} thread(s)", made


def main() -> None:
    """Measures all shapes, and writes each length as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--threads", nargs="+", type=int, default=list(THREADS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--litert", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    asked.networks = networks()
    if asked.quick:
        asked.lengths, asked.batches, asked.threads, asked.rounds = [16], [1], [1], 3
        asked.litert, asked.networks = False, dict(list(asked.networks.items())[:3])
    provenance = stamp("python benchmarks/encoder_integers.py")
    versions = {name: importlib.metadata.version(name) for name in RUNTIMES}
    provenance["environment"] |= versions
    for length in asked.lengths:
        for shape, made in calls(length, asked):
            # The first calls of a turn find the caches full of the network before.
            times = bench.interleaved(made, asked.rounds, 5 if length < 64 else 2, warmup=1)
            ms = {name: {"median": t.median_ms, "min": t.min_ms} for name, t in times.items()}
            sys.stdout.write(f"{shape}\n")
            for name, line in ms.items():
                sys.stdout.write(f"  {name:40s} {line['median']:9.2f} ms\n")
            sys.stdout.flush()
            if not asked.quick:
                with locked_record(OUT) as record:
                    record["command"] = "python benchmarks/encoder_integers.py"
                    record.setdefault("lines", {})[shape] = {"ms": ms, **provenance}


if __name__ == "__main__":
    main()
