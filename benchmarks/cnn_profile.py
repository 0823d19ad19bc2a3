"""Where ResNet-32 spends its time on a CPU: convolutions, sums, element-wise passes, copies.

Every part is compiled by itself at the shapes that it has in the network, and timed in turns with
the others; a part's time is multiplied by how often it occurs. What the whole takes beyond the sum
is the rest. Writes ``results/cnn_profile.json``, one entry per version of JAX:

    python benchmarks/cnn_profile.py
    JAXEFF_NATIVE=never python benchmarks/cnn_profile.py    # without the compiled library
"""

from __future__ import annotations

import collections
import math
import re
import sys
from collections.abc import Callable
from typing import Any

import cnn_speed
import jax
import jax.numpy as jnp
import numpy as np
from record_files import RESULTS, locked_record, stamp

from jaxeff import bench
from jaxeff.ops import normalisation
from jaxeff.ops.convolution import conv
from jaxeff.ops.cpu import native
from jaxeff.train.runtime import keep_freed_memory

BLOCKS = 5  # of each of the three stages
#: Operations of a compiled program that only move values.
MOVES = {"bitcast", "broadcast", "copy", "pad", "reverse", "slice", "transpose"}


def layers() -> list[tuple[int, int, int, int, int, bool]]:
    """Returns input side, channels in and out, kernel's side, strides and whether a skip is added.

    One line for every convolution of the network.
    """
    lines = [(32, 3, 16, 3, 1, False)]
    side, before = 32, 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range(BLOCKS):
            strides = 2 if stage and not block else 1
            if strides == 2:
                lines.append((side, before, width, 1, 2, False))
            lines.append((side, before, width, 3, strides, False))
            side, before = side // strides, width
            lines.append((side, width, width, 3, 1, True))
    return lines


def parts_of(line: tuple[int, int, int, int, int, bool], batch: int) -> dict[str, Any]:
    """Returns the parts of inference and of a training step that a convolution stands for."""
    side, inputs, outputs, k, strides, has_skip = line
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, side, side, inputs)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(k, k, inputs, outputs)), jnp.float32)
    y = conv(x, kernel, strides)
    skip, vector = y if has_skip else None, jnp.ones(outputs)

    def norm(y, mean, scale, bias, skip):
        return normalisation.normalise(y, mean, scale, bias, skip, relu=True)

    def backward(y, mean, scale, bias, skip, g):
        return jax.vjp(norm, y, mean, scale, bias, skip)[1](g)

    def folded(x, kernel, bias, skip):
        return conv(x, kernel, strides, bias, skip, "relu")

    def plain(x, kernel):
        return conv(x, kernel, strides)

    def of_inputs(x, kernel, g):
        return jax.vjp(lambda x: plain(x, kernel), x)[1](g)

    def of_kernels(x, kernel, g):
        return jax.vjp(lambda kernel: plain(x, kernel), kernel)[1](g)

    return {
        "inference: convolution, bias, skip, ReLU": (folded, (x, kernel, vector, skip)),
        "step: convolution": (plain, (x, kernel)),
        "step: gradient of inputs": (of_inputs, (x, kernel, y)),
        "step: gradient of kernels": (of_kernels, (x, kernel, y)),
        "step: statistics": (normalisation.channel_moments, (y,)),
        "step: normalisation, skip, ReLU": (norm, (y, vector, vector, vector, skip)),
        "step: backward of these": (backward, (y, vector, vector, vector, skip, y)),
    }


def profile(batch: int, kind: str) -> dict[str, float]:
    """Returns the milliseconds of every part of inference or of a step, over the network."""
    counts = collections.Counter(layers())
    totals: dict[str, float] = collections.defaultdict(float)
    for line, count in counts.items():
        calls: dict[str, Callable[[], Any]] = {}
        for name, (function, args) in parts_of(line, batch).items():
            if name.startswith(kind):
                program = jax.jit(function).lower(*args).compile()
                calls[name] = lambda program=program, args=args: program(*args)
        for name, time in bench.interleaved(calls, 5, 1, warmup=1).items():
            totals[name.partition(": ")[2]] += count * time.min_ms
    return dict(totals)


def moved_megabytes(text: str) -> float:
    """Returns the size of all maps that a compiled program writes by moving values alone."""
    entry = text[text.index("ENTRY") :]
    size = 0
    for name, shape in re.findall(r"%(\S+) = f32\[(\d+,\d+,\d+,\d+)\]", entry):
        words = set(re.split(r"[_.\d]+", name)) - {"wrapped", "fusion", ""}
        if words and words <= MOVES:
            size += 4 * math.prod(map(int, shape.split(",")))
    return size / 2**20


def main() -> None:
    keep_freed_memory()
    spec = cnn_speed.cifar()["ResNet32"]
    whole = {
        "inference": cnn_speed.forward(spec, 256, 32, 10, 3)[0],
        "step": cnn_speed.step(spec, 128, 32, 10),
    }
    times = bench.interleaved(whole, 5, 1, warmup=1)
    tables = {}
    for kind, batch in (("inference", 256), ("step", 128)):
        parts = profile(batch, kind)
        total = times[kind].min_ms
        parts["the rest"] = total - sum(parts.values())
        moved = moved_megabytes(whole[kind].func.as_text())
        tables[f"{kind}, batch {batch}"] = {
            "milliseconds": total,
            "parts": parts,
            "moved_megabytes": moved,
        }
        sys.stdout.write(f"{kind}, batch {batch}: {total:.0f} ms\n")
        for name, part in parts.items():
            sys.stdout.write(f"  {name:36s} {part:7.1f} ms\n")
        sys.stdout.write(f"  moved by copies and padding          {moved:7.0f} MB\n")
    form = "compiled library" if native.is_available() else "XLA alone"
    with locked_record(RESULTS / "cnn_profile.json") as record:
        record["command"] = "python benchmarks/cnn_profile.py"
        record.setdefault("lines", {})[f"jax {jax.__version__}, {form}"] = {
            **tables,
            **stamp("python benchmarks/cnn_profile.py"),
        }


if __name__ == "__main__":
    main()
