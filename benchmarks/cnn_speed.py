"""Time of convolutional networks: Global variants and SI against their hosts, beside PyTorch.

Writes ``results/cnn_speed.json``. Run it with nothing else on the machine:

    python benchmarks/cnn_speed.py
    TORCH_PYTHON=/path/to/python/with/torch python benchmarks/cnn_speed.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cnn_accuracy
import jax
import jax.numpy as jnp
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


def forward(spec: dict[str, Any], batch: int, size: int, outputs: int, channels: int) -> Any:
    """Returns a compiled call of a fresh network in evaluation, and its multiply-adds."""
    model = MODELS.build(spec, "model", num_outputs=outputs)
    x = jax.random.normal(jax.random.key(0), (batch, size, size, channels))
    variables = jax.jit(model.init)(jax.random.key(1), x[:1])
    program = jax.jit(lambda v, x: model.apply(v, x)).lower(variables, x).compile()
    cost = bench.cost_per_example(model.apply, variables, x[:1])
    return lambda: program(variables, x), cost.macs, bench.count_parameters(variables["params"])


def step(spec: dict[str, Any], batch: int, size: int, outputs: int) -> Any:
    """Returns a compiled gradient of a fresh network in training."""
    model = MODELS.build(spec, "model", num_outputs=outputs)
    x = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
    variables = jax.jit(model.init)(jax.random.key(1), x[:1])

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
    times = bench.interleaved({n: b[0] for n, b in built.items()}, rounds, 2)
    return {
        name: {
            "median_ms": times[name].median_ms,
            "min_ms": times[name].min_ms,
            "macs_per_example": macs,
            "parameters": parameters,
        }
        for name, (_, macs, parameters) in built.items()
    }


def main() -> None:
    """Measures and writes everything."""
    found: dict[str, Any] = {}
    for batch, rounds in ((256, 5), (1, 25)):
        found[f"32x32, batch {batch}"] = table(CIFAR, batch, 32, 10, rounds)
    for batch, rounds in ((64, 2), (1, 10)):
        found[f"224x224, batch {batch}"] = table(IMAGENET, batch, 224, 1000, rounds)
    for batch, rounds in ((256, 3), (1, 25)):
        found[f"28x28, batch {batch}"] = table(compared(), batch, 28, 10, rounds, channels=1)
    names = list(CIFAR)[:3]
    steps = {name: step(CIFAR[name], 128, 32, 10) for name in names}
    times = bench.interleaved(steps, 3, 2)
    found["training step, 32x32, batch 128"] = {
        name: {"median_ms": t.median_ms, "min_ms": t.min_ms} for name, t in times.items()
    }
    python = os.environ.get("TORCH_PYTHON")
    if python:
        worker = [python, str(HERE / "torch_cnn_worker.py")]
        output = subprocess.run(worker, check=True, capture_output=True, text=True).stdout
        for part, lines in json.loads(output).items():
            found[part].update(lines)
    record = {
        "command": "python benchmarks/cnn_speed.py",
        "environment": bench.environment(),
        "tables": found,
    }
    OUT.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for part, lines in found.items():
        sys.stdout.write(f"{part}\n")
        for name, line in lines.items():
            sys.stdout.write(f"  {name:40s} {line['median_ms']:9.2f} ms\n")


if __name__ == "__main__":
    jnp.zeros(1).block_until_ready()
    main()
