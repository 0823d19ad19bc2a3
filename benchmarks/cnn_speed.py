"""Time of convolutional networks: Global variants and SI against their hosts, beside PyTorch.

Writes ``results/cnn_speed.json``. Run it with nothing else on the machine:

    python benchmarks/cnn_speed.py
    python benchmarks/cnn_speed.py 224x224      # the parts whose names contain the word
    python benchmarks/cnn_speed.py --quick      # two rounds, nothing is written
    TORCH_PYTHON=/path/to/python/with/torch python benchmarks/cnn_speed.py

The allocator keeps freed memory, as in training. PyTorch's ResNet32 takes its turns between the
others', in two processes: with the default allocator, and with one that keeps freed memory too.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cnn_accuracy
import jax
import jax.numpy as jnp
import numpy as np
from record_files import locked_record, stamp
from recorded import config_of
from rnn_speed import KEEP_PAGES
from workers import Worker

from jaxeff import bench
from jaxeff.models import MODELS
from jaxeff.ops import convolution
from jaxeff.train.runtime import keep_freed_memory

HERE = Path(__file__).parent
WITHOUT = "ResNet32-Global without its layers"
TORCH = {
    "contiguous": "ResNet32 in PyTorch",
    "channels_last": "ResNet32 in PyTorch, channels last",
}
ALLOCATORS: dict[str, dict[str, str]] = {"": {}, ", allocator tuned": KEEP_PAGES}
OUT = HERE / "results" / "cnn_speed.json"


def network(file: str, argument: str, **changes: Any) -> dict[str, Any]:
    """Returns the model of a config, without the axis that training maps over."""
    return {**config_of(argument, [], file).model.to_dict(), "axis_name": "", **changes}


def cifar() -> dict[str, dict[str, Any]]:
    """Returns ResNet-32 and what stands in its place."""
    host = "cifar10,model=resnet32"
    return {
        "ResNet32": network("images", host),
        "ResNet32-Global, K=1": network("global_cnn", host),
        "ResNet32-Global, K=5": network("global_cnn", f"{host},steps=5"),
        WITHOUT: network("global_cnn", host, design={"name": "plain"}),
        "ResNet32-SI": network("si_cnn", host),
    }


def imagenet() -> dict[str, dict[str, Any]]:
    """Returns networks for 224 x 224 pixels, and with interpolated blocks."""
    networks = {}
    for model, name in (("efficientnet_b0", "EfficientNet-B0"), ("mobilenet_v3", "MobileNetV3-L")):
        for file, suffix in (("images", ""), ("si_cnn", "-SI")):
            argument = f"cifar10,model={model}"
            networks[name + suffix] = network(file, argument, strides=())
    return networks


def compared() -> dict[str, dict[str, Any]]:
    """Returns the networks whose accuracy `cnn_accuracy.py` compares."""
    specs = {}
    for name, (argument, overrides, file) in cnn_accuracy.lines().items():
        data, _, label = name.partition(", ")
        if data == "fashion":
            spec = config_of(argument, overrides, file).model.to_dict()
            specs[label] = {**spec, "axis_name": ""}
    return specs


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
    return (
        functools.partial(program, variables, x),
        cost.macs,
        bench.count_parameters(variables["params"]),
    )


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
    return functools.partial(program, variables["params"], variables, x)


class Rival:
    """A variant of a worker as a call; it keeps the times that the worker itself measures."""

    def __init__(self, worker: Worker, name: str):
        self._worker, self._name = worker, name
        self.milliseconds: list[float] = []

    def __call__(self) -> None:
        """Runs it once."""
        self.milliseconds += self._worker.time(self._name, 1)


@contextlib.contextmanager
def rivals(kind: str, batch: int) -> Iterator[dict[str, Rival]]:
    """Starts PyTorch's workers for the context, where ``TORCH_PYTHON`` names an interpreter."""
    python = os.environ.get("TORCH_PYTHON")
    with contextlib.ExitStack() as stack:
        calls = {}
        for suffix, environment in ALLOCATORS.items() if python else ():
            command = [python, str(HERE / "torch_cnn_worker.py"), kind, str(batch)]
            worker = Worker(command, environment)
            stack.callback(worker.close)
            calls |= {title + suffix: Rival(worker, name) for name, title in TORCH.items()}
        yield calls


def in_turns(
    calls: dict[str, Any], rounds: int, others: dict[str, Rival], in_turn: int = 1
) -> dict[str, Any]:
    """Returns the times of programs of this process and of rivals, in turns.

    PyTorch's threads look for work for some milliseconds after its calls, at the cost of whoever
    comes next: a turn of short calls beside it has several, of which most are not disturbed.
    """
    times = bench.interleaved({**calls, **others}, rounds, in_turn, warmup=1)
    lines = {n: {"median_ms": times[n].median_ms, "min_ms": times[n].min_ms} for n in calls}
    for name, rival in others.items():
        timed = rival.milliseconds[1:]  # without the warm-up
        lines[name] = {"median_ms": statistics.median(timed), "min_ms": min(timed)}
    return lines


def table(
    specs: dict[str, Any],
    batch: int,
    size: int,
    outputs: int,
    rounds: int,
    channels: int = 3,
    in_turn: int = 1,
) -> dict[str, Any]:
    """Returns the times of all networks, in turns; PyTorch's beside those for 32 x 32 pixels."""
    built = {name: forward(s, batch, size, outputs, channels) for name, s in specs.items()}
    calls = {name: call for name, (call, _, _) in built.items()}
    with rivals("inference", batch) if size == 32 else contextlib.nullcontext({}) as others:
        lines = in_turns(calls, rounds, others, in_turn)
    for name, (_, macs, parameters) in built.items():
        lines[name] |= {"macs_per_example": macs, "parameters": parameters}
    return lines


def training(specs: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Returns the times of a training step."""
    steps = {name: step(spec, 128, 32, 10) for name, spec in specs.items()}
    with rivals("training", 128) as others:
        return in_turns(steps, rounds, others)


def convolutions(rounds: int) -> dict[str, Any]:
    """Returns the times of the package's convolutions and gradients, and of XLA's own."""
    calls = {}
    for batch, size, channels, k in (
        (32, 32, 16, 3),
        (32, 16, 32, 3),
        (32, 8, 64, 3),
        (1, 28, 240, 5),
        (1, 14, 672, 5),
    ):
        x = jax.random.normal(jax.random.key(0), (batch, size, size, channels))
        kernel = jax.random.normal(jax.random.key(1), (k, k, 1, channels))
        name = f"depthwise {k}x{k}, {batch} x {size}x{size}x{channels}"
        ours, theirs = convolution.depthwise_conv, functools.partial(xla, groups=channels)
        calls |= both(name, ours, theirs, (x, kernel))
        calls |= both(f"{name}, gradients", gradients(ours), gradients(theirs), (x, kernel))
    for size, channels in ((28, 16), (14, 32), (7, 64), (2, 64)):
        x = jax.random.normal(jax.random.key(0), (128, size, size, channels))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, channels))
        name = f"dense 3x3, 128 x {size}x{size}x{channels}"
        if size == 2:  # at others it is XLA's
            calls |= both(name, convolution.conv, xla, (x, kernel))
        name = f"{name}, gradients"
        calls |= both(name, gradients(convolution.conv), gradients(xla), (x, kernel))
    return in_turns(calls, rounds, {})


def xla(x: Any, kernel: Any, groups: int = 1) -> Any:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.grad(lambda x, k: jnp.sum(jnp.sin(function(x, k))), (0, 1))


def both(name: str, ours: Any, theirs: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Returns calls of two functions, compiled."""
    programs = {}
    for who, function in (("jaxeff", ours), ("XLA", theirs)):
        program = jax.jit(function).lower(*args).compile()
        programs[f"{name}, {who}"] = functools.partial(program, *args)
    return programs


def parts(quick: bool = False) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns every table to measure, by name; two rounds of each if ``quick``."""

    def rounds(number: int) -> int:
        return 2 if quick else number

    small = cifar()
    trained = {name: small[name] for name in small if name != WITHOUT}
    return {
        "32x32, batch 256": lambda: table(small, 256, 32, 10, rounds(9)),
        "28x28, batch 1": lambda: table(compared(), 1, 28, 10, rounds(20), channels=1),
        "224x224, batch 1": lambda: table(imagenet(), 1, 224, 1000, rounds(40)),
        "training step, 32x32, batch 128": lambda: training(trained, rounds(7)),
        "32x32, batch 1": lambda: table(small, 1, 32, 10, rounds(20), in_turn=30),
        "224x224, batch 64": lambda: table(imagenet(), 64, 224, 1000, rounds(6)),
        "convolutions": lambda: convolutions(rounds(5)),
    }


def main() -> None:
    """Measures the parts that the command line names, or all, and writes each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="of the parts to measure; all of them must occur")
    parser.add_argument("--quick", action="store_true", help="two rounds, nothing is written")
    args = parser.parse_args()
    keep_freed_memory()
    known = parts(args.quick)
    chosen = [part for part in known if all(word in part for word in args.words)]
    if not chosen:
        parser.error(f"no part has the words {args.words}; the parts are {', '.join(known)}")
    for part in chosen:
        lines = known[part]()
        sys.stdout.write(f"{part}\n")
        for name, line in lines.items():
            sys.stdout.write(f"  {name:40s} {line['median_ms']:9.2f} ms\n")
        sys.stdout.flush()
        if args.quick:
            continue
        with locked_record(OUT) as record:
            record["command"] = "python benchmarks/cnn_speed.py"
            record.setdefault("tables", {})[part] = lines
            provenance = stamp(f"python benchmarks/cnn_speed.py {shlex.quote(part)}")
            record.setdefault("made", {})[part] = provenance


if __name__ == "__main__":
    main()
