"""Every inference model of the package in every format: sizes, differences, latencies.

Each artifact is compared with the model in its own runtime and timed there beside the jitted model,
in turns. Weights are fresh and batch statistics those of random inputs: what is measured here does
not depend on them. The second part times convolutional hosts beside their Global and SI forms in
LiteRT, on one thread at batch 1. Writes ``results/export_table.json``. Run it with nothing else on
the machine:

    python benchmarks/export_table.py
    python benchmarks/export_table.py irnn resnet32     # some of the lines
    python benchmarks/export_table.py --missing         # those that the record lacks
    python benchmarks/export_table.py --quick           # few rounds, small networks only; no record
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from record_files import RESULTS, locked_record, read, stamp, words

import jaxeff
from jaxeff import bench
from jaxeff.exporting import FORMATS, Exportable, Options, entries, write_entries
from jaxeff.models import MODELS
from jaxeff.train import objectives
from jaxeff.train.algorithms.affine import AffineVAE

OUT = RESULTS / "export_table.json"
FORMS = ("stablehlo", "litert", "onnx")
#: Formats of recurrent steps alone.
RECURRENT = ("c",)
CELLS = ("irnn", "tarnn", "fastgrnn", "gru", "lstm")
IMAGES = ("resnet32", "resnet32_global", "resnet32_interpolated", "resnet32_shared")
ENCODER = {"layers": 4, "width": 128, "heads": 2, "hidden": 512, "vocabulary": 1000}
SMALL = {"name": "resnet", "depth": 8}
POSE_SEARCH = {"starts": 8, "spread": True, "keep": 1, "method": "align", "steps": 2}
#: Hosts, and the sides of the images at which they are timed beside their forms.
HOSTS = ("efficientnet_b0", "mobilenet_v2", "resnet32")
FORMS_OF_HOSTS = ("", "_global", "_interpolated")
SIDES = (32, 224)


@dataclasses.dataclass(frozen=True)
class System:
    """A model and the shape of its inputs; ``steps`` are recurrent."""

    build: Callable[[], Any]
    shape: tuple[int, ...]
    kind: str = "float32"
    search: bool = False


def _sequence(name: str) -> System:
    return System(
        lambda: jaxeff.create_model(name, num_classes=10, cell={"features": 128}), (20, 32)
    )


def _images(name: str) -> System:
    return System(lambda: jaxeff.create_model(name, num_classes=10), (32, 32, 3))


def _spec(
    inputs: tuple[int, ...], outputs: int = 10, kind: str = "float32", /, **spec: Any
) -> System:
    search = bool(spec.pop("search", False))
    return System(lambda: MODELS.build(spec, num_outputs=outputs), inputs, kind, search)


SYSTEMS: dict[str, System] = {
    **{name: _sequence(name) for name in CELLS},
    **{name: _images(name) for name in IMAGES},
    "selective, DCL (resnet8, 21 outputs)": _spec((32, 32, 3), 21, **SMALL),
    "early exits (resnet20)": _spec(
        (32, 32, 3), name="early_exit", backbone={"name": "resnet", "depth": 20}
    ),
    "hybrid (resnet8, resnet32)": _spec(
        (32, 32, 3), name="hybrid", base=SMALL, expert={"name": "resnet", "depth": 32}
    ),
    "DiSK student (resnet8)": _spec((32, 32, 3), **SMALL),
    "AVAE 2D": _spec(
        (28, 28, 1), name="autoencoder", size=28, pose={"name": "rotation"}, search=True
    ),
    "AVAE 3D": _spec((24, 24, 24, 1), name="voxel_autoencoder", size=24, pose={"name": "euler"}),
    "text encoder": _spec((32,), 2, "int32", name="encoder", shape=ENCODER),
    "text encoder, shortened": _spec(
        (32,), 2, "int32", name="encoder", shape=ENCODER, cuts=((1, 2), (2, 2)), depth=3
    ),
    "efficientnet_b0": _images("efficientnet_b0"),
    "efficientnet_b0_interpolated": _images("efficientnet_b0_interpolated"),
}
QUICK = ("irnn", "resnet32_global", "hybrid (resnet8, resnet32)")


def exportable(system: System) -> tuple[Any, Exportable]:
    """Returns a model with variables and random inputs."""
    rng, model = np.random.default_rng(0), system.build()
    shape = (8, *system.shape)
    if system.kind == "int32":
        inputs = rng.integers(0, ENCODER["vocabulary"], shape).astype(np.int32)
    else:
        inputs = rng.random(shape, np.float32)
    shapes: Any = jax.eval_shape(model.init, jax.random.key(0), inputs[:1])
    if system.kind == "float32" and len(system.shape) > 2:
        variables: Any = jax.tree_util.tree_map_with_path(drawn, shapes)
    else:  # cells have parameters that only their initialisers know
        variables = jax.jit(model.init)(jax.random.key(0), inputs[:1])
    if "batch_stats" in variables and system.shape[-1] == 3 and not hasattr(model, "expert"):
        variables = settled(model, variables, inputs)
    find = None
    if system.search:
        objective = objectives.build({"name": "elbo"}, "reconstruction", "avae")
        find = AffineVAE(model, objective, optax.sgd(0.1), evaluation=POSE_SEARCH).searched
    return model, Exportable(variables, inputs, find_pose=find)


def settled(model: Any, variables: Any, inputs: np.ndarray) -> Any:
    """Returns variables whose batch statistics are those of the inputs, so that nothing grows."""

    @jax.jit
    def step(statistics):
        rngs = {"dropout": jax.random.key(1)}
        others = {**variables, "batch_stats": statistics}
        return model.apply(others, inputs, train=True, mutable=["batch_stats"], rngs=rngs)[1]

    statistics = variables["batch_stats"]
    for _ in range(60):
        statistics = step(statistics)["batch_stats"]
    return {**variables, "batch_stats": statistics}


def measure(system: System, folder: Path, rounds: int, to: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns the rows of a system's artifacts in some formats."""
    model, source = exportable(system)
    report = write_entries(entries(model, source), folder, Options(to=to, rounds=rounds))
    return [dataclasses.asdict(row) for row in report.rows]


def drawn(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
    """Returns weights that keep the size of what passes, without compiling the initialisers."""
    name, rng = str(path[-1].key), np.random.default_rng(list(str(path).encode()))
    if len(shape.shape) > 1:
        values = rng.normal(size=shape.shape) / np.sqrt(np.prod(shape.shape[:-1]))
    else:
        values = rng.uniform(0.9, 1.1, shape.shape) - (0.0 if name in ("scale", "var") else 1.0)
    return values.astype(shape.dtype)


def speed(host: str, side: int, folder: Path, rounds: int) -> dict[str, float]:
    """Returns milliseconds in LiteRT of a host and its forms, on one thread at batch 1."""
    litert: Any = FORMATS["litert"]()
    calls = {}
    for form in FORMS_OF_HOSTS:
        large = {"stem": "large"} if host.startswith("resnet") else {"strides": ()}
        fields = large if side > 100 else {}
        model = jaxeff.create_model(host + form, num_classes=10, **fields)
        inputs = np.ones((1, side, side, 3), np.float32)
        shapes: Any = jax.eval_shape(model.init, jax.random.key(0), inputs)
        variables = jax.tree_util.tree_map_with_path(drawn, shapes)
        (entry,) = entries(model, Exportable(variables, inputs))
        target = folder / f"{host}{form}{side}"
        target.mkdir()
        runtime = litert.open(litert.write(entry, target, batch=1), entry, 1)
        calls[host + form] = litert.bind(runtime, [inputs])
    times = bench.interleaved(calls, rounds, 3)
    return {name: time.median_ms for name, time in times.items()}


def chosen() -> list[tuple[str, str]]:
    """Returns parts of the record and names of their lines, as the command line asks for."""
    names = words("--quick", "--missing")
    if unknown := [name for name in names if name not in (*SYSTEMS, *HOSTS)]:
        raise SystemExit(f"there is no line {unknown[0]!r}; choose {', '.join((*SYSTEMS, *HOSTS))}")
    names = names or list(QUICK if "--quick" in sys.argv else (*SYSTEMS, *HOSTS))
    lines = [("lines", name) for name in names if name in SYSTEMS]
    lines += [("speed", name) for name in HOSTS if name in names]
    known = read(OUT) if "--missing" in sys.argv else {}
    return [(part, name) for part, name in lines if name not in known.get(part, {})]


def measured(part: str, name: str, folder: Path, quick: bool) -> dict[str, Any]:
    """Returns one line of the record."""
    rounds = 3 if quick else 20
    if part == "lines":
        return {"rows": measure(SYSTEMS[name], folder, rounds, FORMS + RECURRENT * (name in CELLS))}
    return {"ms": {str(n): speed(name, n, folder, rounds) for n in SIDES[: 1 if quick else None]}}


def main() -> None:
    """Measures lines of the record, and writes each as it is done."""
    quick, lines = "--quick" in sys.argv, chosen()
    for number, (part, name) in enumerate(lines, 1):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            line = measured(part, name, Path(folder), quick)
        seconds = time.perf_counter() - start
        sys.stdout.write(f"{told(name, line)}{number}/{len(lines)} {name}: {seconds:.0f} s\n")
        sys.stdout.flush()
        if not quick:
            provenance = stamp(f"python benchmarks/export_table.py '{name}'")
            with locked_record(OUT) as record:
                record["command"] = "python benchmarks/export_table.py"
                record.setdefault(part, {})[name] = {**line, **provenance}


def told(name: str, line: dict[str, Any]) -> str:
    """Returns a line's numbers for the terminal."""
    texts = []
    for row in line.get("rows", ()):
        times = ", ".join(f"{ms['artifact']:.4g} ms" for ms in row["latency_ms"].values())
        texts.append(
            f"{name}: {row['entry']} {row['format']} {row['bytes']} B, off by "
            f"{row['difference']:.1e} of {row['scale']:.2g}, {times} {row['failure']}"
        )
    for side, ms in line.get("ms", {}).items():
        pairs = ", ".join(f"{form} {time:.3g} ms" for form, time in ms.items())
        texts.append(f"{name} at {side}: {pairs}")
    return "".join(f"{text}\n" for text in texts)


if __name__ == "__main__":
    main()
