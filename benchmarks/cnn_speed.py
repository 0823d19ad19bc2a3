"""Time of convolutional networks: Global variants and SI against their hosts, beside PyTorch.

Writes ``results/cnn_speed.json``. Run it with nothing else on the machine:

    python benchmarks/cnn_speed.py
    python benchmarks/cnn_speed.py 224x224      # the parts whose names contain the word
    TORCH_PYTHON=/path/to/python/with/torch python benchmarks/cnn_speed.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cnn_accuracy
import jax
import jax.numpy as jnp
import numpy as np
from recorded import config_of

from jaxeff import bench
from jaxeff.models import MODELS

HERE = Path(__file__).parent
OUT = HERE / "results" / "cnn_speed.json"
WIDTHS = (16, 32, 64, 64)

CIFAR: dict[str, dict[str, Any]] = {
    "ResNet32": {"name": "resnet", "depth": 32},
    "ResNet32-Global, K=1": {
        "name": "resnet",
        "blocks": (1,) * 4,
        "widths": WIDTHS,
        "design": {"name": "global"},
    },
    "ResNet32-Global, K=5": {
        "name": "resnet",
        "blocks": (1,) * 4,
        "widths": WIDTHS,
        "design": {"name": "global", "num_steps": 5},
    },
    "ResNet32-Global without its layers": {"name": "resnet", "blocks": (1,) * 4, "widths": WIDTHS},
    "ResNet32-SI": {"name": "resnet", "depth": 32, "design": {"name": "interpolated"}},
}
IMAGENET: dict[str, dict[str, Any]] = {
    "EfficientNet-B0": {"name": "efficientnet_b0"},
    "EfficientNet-B0-SI": {"name": "efficientnet_b0", "design": {"name": "interpolated"}},
    "MobileNetV3-L": {"name": "mobilenet_v3"},
    "MobileNetV3-L-SI": {"name": "mobilenet_v3", "design": {"name": "interpolated"}},
}


def compared() -> dict[str, dict[str, Any]]:
    """Returns the networks whose accuracy `cnn_accuracy.py` compares."""
    found = {}
    for name, (argument, overrides, file) in cnn_accuracy.lines().items():
        data, _, network = name.partition(", ")
        if data == "fashion":
            spec = config_of(argument, overrides, file).model.to_dict()
            found[network] = {**spec, "axis_name": ""}
    return found


def drawn(model: Any, x: Any) -> Any:
    """Returns positive variables of ordinary size, without compiling the initialisers."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x)
    return jax.tree.map(lambda s: jnp.asarray(0.1 * rng.random(s.shape), s.dtype), shapes)


def forward(spec: dict[str, Any], batch: int, size: int, outputs: int, channels: int) -> Any:
    """Returns a compiled call of a fresh network in evaluation, and its multiply-adds."""
    model = MODELS.build(spec, "model", num_outputs=outputs)
    x = jax.random.normal(jax.random.key(0), (batch, size, size, channels))
    variables = drawn(model, x[:1])
    program = jax.jit(lambda v, x: model.apply(v, x)).lower(variables, x).compile()
    cost = bench.cost_per_example(model.apply, variables, x[:1])
    return lambda: program(variables, x), cost.macs, bench.count_parameters(variables["params"])


def step(spec: dict[str, Any], batch: int, size: int, outputs: int) -> Any:
    """Returns a compiled gradient of a fresh network in training."""
    model = MODELS.build(spec, "model", num_outputs=outputs)
    x = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
    variables = drawn(model, x[:1])

    def loss(params, variables, x):
        logits, state = model.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return -jax.nn.log_softmax(logits)[:, 0].mean(), state

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    program = gradient.lower(variables["params"], variables, x).compile()
    return lambda: program(variables["params"], variables, x)


def table(
    specs: dict[str, Any], batch: int, size: int, outputs: int, rounds: int, channels: int = 3
) -> dict[str, Any]:
    """Returns the times of all networks, in turns within this process."""
    built = {name: forward(s, batch, size, outputs, channels) for name, s in specs.items()}
    times = bench.interleaved({n: b[0] for n, b in built.items()}, rounds, 1, warmup=1)
    return {
        name: {
            "median_ms": times[name].median_ms,
            "min_ms": times[name].min_ms,
            "macs_per_example": macs,
            "parameters": parameters,
        }
        for name, (_, macs, parameters) in built.items()
    }


def training(specs: dict[str, Any]) -> dict[str, Any]:
    """Returns the times of a training step."""
    steps = {name: step(spec, 128, 32, 10) for name, spec in specs.items()}
    times = bench.interleaved(steps, 3, 1, warmup=1)
    return {name: {"median_ms": t.median_ms, "min_ms": t.min_ms} for name, t in times.items()}


def parts() -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns every table to measure, by name."""
    first = dict(list(CIFAR.items())[:3])
    return {
        "32x32, batch 256": lambda: table(CIFAR, 256, 32, 10, 5),
        "28x28, batch 1": lambda: table(compared(), 1, 28, 10, 20, channels=1),
        "224x224, batch 1": lambda: table(IMAGENET, 1, 224, 1000, 10),
        "training step, 32x32, batch 128": lambda: training(first),
        "32x32, batch 1": lambda: table(CIFAR, 1, 32, 10, 20),
        "224x224, batch 64": lambda: table(IMAGENET, 64, 224, 1000, 2),
    }


def main() -> None:
    """Measures the parts that the command line names, or all, and writes each as it is done."""
    asked = [part for part in parts() if all(word in part for word in sys.argv[1:])]
    record = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {"tables": {}}
    python = os.environ.get("TORCH_PYTHON")
    theirs: dict[str, Any] = {}
    if python:
        worker = [python, str(HERE / "torch_cnn_worker.py")]
        output = subprocess.run(worker, check=True, capture_output=True, text=True).stdout
        theirs = json.loads(output)
    for part in asked:
        lines = {**parts()[part](), **theirs.get(part, {})}
        record |= {"command": "python benchmarks/cnn_speed.py", "environment": bench.environment()}
        record["tables"][part] = lines
        OUT.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        sys.stdout.write(f"{part}\n")
        for name, line in lines.items():
            sys.stdout.write(f"  {name:40s} {line['median_ms']:9.2f} ms\n")
        sys.stdout.flush()


if __name__ == "__main__":
    jnp.zeros(1).block_until_ready()
    main()
