"""Compares ways to distil into tiny students, at equal passes of the student over the data.

Writes ``results/distill_accuracy.json``; lines that are there already and current are kept:

    python benchmarks/distill_accuracy.py digits           # minutes: all seeds of a line at once
    python benchmarks/distill_accuracy.py fashion          # three trainings a line, one teacher
    python benchmarks/distill_accuracy.py --shard=0/2      # every second line; 1/2 beside it

Digits are scikit-learn's, shuffled once, 1000 to train and 797 to test; students are
tanh networks of 2 or 3 hidden units, the teacher has 64. A line trains for 4000 student steps of
batch 100 from a random start, or from 4000 steps on the labels ("pretrained"), and has the test
accuracy of the last step: nothing is selected.
"""

from __future__ import annotations

import functools
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from record_files import locked_record, read, stamp
from record_keys import of_code
from recorded import HERE, asked, is_current, run

OUT = HERE / "results" / "distill_accuracy.json"
COMMAND = "python benchmarks/distill_accuracy.py digits"
SEEDS, STEPS, BATCH, TRAIN = 6, 4000, 100, 1000
WIDE = {
    "start": 0.6,
    "end": 0.4,
    "period": 20,
    "decay": 0.9,
}  # the authors' budget, and a tight one
TIGHT = {"start": 0.15, "end": 0.05, "period": 20, "decay": 0.9}
TURNS = {"gate_epochs": 10}


def selective(variant: str, budget: Any, **fields: Any) -> dict[str, Any]:
    disk = {"variant": variant, "weight": 0.9, "budget": budget}
    common = {"gate": {"name": "logits"}, "label_weight": 0.1, "student_epochs": 10}
    return {"disk": disk, **common, **fields}


#: Fields of the algorithm, by method.
METHODS: dict[str, dict[str, Any]] = {
    "ce": {},
    "kd": {"losses": {"kd": {"weight": 0.9}}, "label_weight": 0.1},
    "dkd": {"losses": {"dkd": {}}, "label_weight": 1.0},
    "cifar50": selective("cifar50", WIDE, **TURNS),
    "cifar42": selective("cifar42", WIDE, **TURNS),
    "normalised in turns": selective("normalised", WIDE, **TURNS),
    "normalised": selective("normalised", WIDE),
    "normalised tight": selective("normalised", TIGHT),
    "closed form": selective("normalised", WIDE, gate={"name": "closed_form"}),
    "closed form tight": selective("normalised", TIGHT, gate={"name": "closed_form"}),
}
FASHION = ("ce", "kd", "disk", "closed_form", "cifar50")
STUDENTS = ("xxxs", "xxs")  # the smallest


def digits_lines() -> dict[str, tuple[int, str, str]]:
    """Returns hidden units, start and method of every line on digits."""
    return {
        f"digits, {units} units, {start}, {method}": (units, start, method)
        for units in (2, 3)
        for start in ("pretrained", "scratch")
        for method in METHODS
    }


def fashion_lines() -> dict[str, tuple[str, list[str], str]]:
    return {
        f"fashion, {student}, {method}": (f"fashion,student={student},method={method}", [], "disk")
        for student in STUDENTS
        for method in FASHION
    }


@functools.cache
def digits():
    import jax.numpy as jnp
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    inputs = jnp.asarray(bunch.images[order, ..., None] / 16, jnp.float32)
    return inputs, jnp.asarray(bunch.target[order], jnp.int32)


def trained(fields: dict[str, Any], hidden: int, starts: Any = None, teacher: Any = None) -> Any:
    """Returns the parameters ``[seeds, ...]`` and test accuracies of a line."""
    import jax
    import jax.numpy as jnp

    from jaxeff.models import MODELS
    from jaxeff.models.trained import Trained
    from jaxeff.train import objectives, optim
    from jaxeff.train.algorithms import ALGORITHMS, Task

    inputs, labels = digits()
    turns = fields.get("gate_epochs", 0) / fields.get("student_epochs", 1)
    steps = round(STEPS * (1 + turns))
    model = MODELS.build({"name": "mlp", "hidden": (hidden,)}, "model", num_outputs=10)
    common = {
        "model": model,
        "objective": objectives.build({"name": "auto"}, "classification"),
        "optimizer": optim.build(
            "adam", num_steps=steps, learning_rate=1e-2, schedule_name="cosine"
        ),
        "task": Task("classification", 10, steps_per_epoch=TRAIN // BATCH),
    }
    spec: dict[str, Any] = {"name": "bptt"}
    if fields:
        spec = {"name": "distill", **fields}
        common["trained"] = {"teacher": Trained(model.clone(hidden=(64,)), teacher)}
    algorithm = ALGORITHMS.build(spec, "algorithm", **common)
    state = jax.vmap(lambda key: algorithm.init_state(key, inputs[:1]))(
        jax.random.split(jax.random.key(0), SEEDS)
    )
    if starts is not None:
        state = state.replace(params=starts)
    state = state.replace(step=jnp.zeros((), jnp.int32))
    axes = state.replace(
        **dict.fromkeys(("params", "opt_state", "algo_state", "model_state", "key"), 0),
        step=None,
    )
    update = jax.vmap(algorithm.update, in_axes=(axes, 0), out_axes=(axes, 0))

    def epoch(state, number):
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), number))
        orders = jax.vmap(lambda key: jax.random.permutation(key, TRAIN))(keys(jnp.arange(SEEDS)))
        rows = jnp.moveaxis(orders.reshape(SEEDS, -1, BATCH), 1, 0)

        def step(state, rows):
            weight = jnp.ones(rows.shape)
            batch = {"inputs": inputs[rows], "labels": labels[rows], "weight": weight}
            return update(state, batch)[0], ()

        return jax.lax.scan(step, state, rows)

    epochs = jnp.arange(steps * BATCH // TRAIN)
    final, _ = jax.jit(lambda state: jax.lax.scan(epoch, state, epochs))(state)
    outputs = jax.vmap(lambda params: model.apply({"params": params}, inputs[TRAIN:]))(final.params)
    hits = (outputs.argmax(-1) == labels[None, TRAIN:]).mean(1)
    return final.params, [float(hit) for hit in hits]


@functools.cache
def teacher_and_accuracy() -> Any:
    import jax

    params, hits = trained({}, 64)
    return {"params": jax.tree.map(lambda a: a[0], params)}, hits[0]


@functools.cache
def pretrained(units: int) -> Any:
    return trained({}, units)[0]


def digits_line(units: int, start: str, method: str) -> dict[str, Any]:
    teacher, reached = teacher_and_accuracy()
    starts = pretrained(units) if start == "pretrained" else None
    _, test = trained(METHODS[method], units, starts, teacher)
    return {
        "algorithm": METHODS[method],
        "student_steps": STEPS,
        "teacher": reached,
        "seeds": list(range(SEEDS)),
        "test": test,
        "test_mean": mean(test),
        "test_error": stdev(test) / SEEDS**0.5,
    }


@functools.cache
def digits_key() -> str:
    """Returns what the lines on digits depend on beside their algorithm: code and machine."""
    settings = {"seeds": SEEDS, "steps": STEPS, "batch": BATCH, "train": TRAIN}
    return of_code(Path(__file__), settings)


def run_digits() -> None:
    lines = digits_lines()
    for name in asked(lines):
        line = read(OUT).get("lines", {}).get(name, {})
        same = line.get("algorithm") == METHODS[lines[name][2]]
        if not same or not is_current(line, COMMAND, digits_key):
            line = {**digits_line(*lines[name]), **stamp(COMMAND), "key": digits_key()}
            with locked_record(OUT) as record:
                record.setdefault("lines", {})[name] = line
        print(f"{name:40s} {line['test_mean']:.2%} +- {line['test_error']:.2%}", flush=True)


if __name__ == "__main__":
    run_digits()
    run(fashion_lines(), "distill_accuracy")
