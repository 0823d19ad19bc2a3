"""Trains a small model on generated gestures and writes it as C into a folder.

    python examples/generate.py examples/cmake
    python examples/generate.py examples/arduino/gestures

A gesture is a hundredth of a second's acceleration in mg, three axes, sixty times: the board is
held still, shaken along its x axis, or turned over.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import optax

from jaxeff import quantize
from jaxeff.exporting.c import FrontEnd, write_c
from jaxeff.models import SequenceModel
from jaxeff.ode import CELLS

CLASSES = ("still", "shaken", "turned")
LENGTH = 60


def gestures(count, seed=0):
    """Returns acceleration in mg ``[count, LENGTH, 3]`` and the numbers of the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count)
    time = np.arange(LENGTH) / 100
    phase = rng.uniform(0, 2 * np.pi, (count, 1))
    shaking = 800 * np.sin(2 * np.pi * rng.uniform(3, 6, (count, 1)) * time + phase)
    angle = np.pi * time / time[-1]
    series = rng.normal(0, 30, (count, LENGTH, 3))
    series[..., 0] += np.where(labels[:, None] == 1, shaking, 0)
    series[..., 1] += np.where(labels[:, None] == 2, 1000 * np.sin(angle), 0)
    series[..., 2] += np.where(labels[:, None] == 2, 1000 * np.cos(angle), 1000)
    return series.round().astype(np.int16), labels


def train(inputs, labels, steps=200):
    """Returns a model and its variables."""
    model = SequenceModel(CELLS.build({"name": "tarnn", "features": 16}), len(CLASSES))
    variables = model.init(jax.random.key(0), inputs[:1])
    optimizer = optax.adam(1e-2)

    def loss(variables):
        logits = model.apply(variables, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def update(variables, state):
        gradients = jax.grad(loss)(variables)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(variables, updates), state

    state = optimizer.init(variables)
    for _ in range(steps):
        variables, state = update(variables, state)
    return model, variables


def main(folder, steps=200):
    """Trains and writes."""
    raw, labels = gestures(200)
    front_end = FrontEnd([0.001] * 3, [0.0] * 3, "acceleration in mg, x y z, 100 times a second")
    inputs = (0.001 * raw).astype(np.float32)
    model, variables = train(inputs, labels, steps)
    integers = quantize.quantize(model, variables, inputs)
    fresh, expected = gestures(100, seed=1)
    outputs = quantize.run(integers, (0.001 * fresh).astype(np.float32))[:, -1]
    print(f"accuracy in integers: {(np.argmax(outputs, -1) == expected).mean():.0%}")
    write_c(
        integers,
        Path(folder),
        "gestures",
        class_names=CLASSES,
        front_end=front_end,
        description="Tells whether a board is still, shaken or turned over.",
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/generate.py FOLDER")
    main(sys.argv[1])
