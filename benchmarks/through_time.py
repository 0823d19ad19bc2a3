"""Compares ways of training through time: every cell with every algorithm on every task.

Writes ``results/through_time.json``. Lines that are there already and current are kept,
so an interrupted run goes on where it stopped, and several may run side by side:

    python benchmarks/through_time.py                 # all lines
    python benchmarks/through_time.py pixels lstm     # lines whose name contains the words
    python benchmarks/through_time.py --shard=0/2     # every second line; 1/2 beside it
"""

from __future__ import annotations

from recorded import run

MAIN_CELLS = ("irnn", "tarnn", "lstm", "gru")
OTHERS = ("rnn", "fastrnn", "fastgrnn", "antisymmetric", "cornn", "dual_ode")
ALGORITHMS = ("bptt", "tbptt", "fptt")
ABLATIONS = ("fptt_no_regularizer", "fptt_no_auxiliary", "bptt_repeated")


def lines() -> dict[str, tuple[str, list[str], str]]:
    """Returns argument, overrides and config file of every line, by ``task, cell, algorithm``."""
    arguments: dict[str, tuple[str, list[str], str]] = {}

    def add(task: str, cells, algorithms, overrides=()):
        for cell in cells:
            for algorithm in algorithms:
                name = f"{task}, {cell}, {algorithm}"
                arguments[name] = (
                    f"{task},cell={cell},algorithm={algorithm}",
                    list(overrides),
                    "fptt",
                )

    add("pixels", MAIN_CELLS, ALGORITHMS)
    for task in ("vowels", "motions", "text"):
        add(task, MAIN_CELLS[:3], ALGORITHMS)
    add("pixels", ("lstm", "tarnn"), ABLATIONS)
    add("adding", ("lstm", "tarnn"), ("fptt", "bptt", "tbptt"))
    # A subset: 80 batches of 128 images. Batches of 16 make as many updates in as many epochs.
    short = ["train.num_steps=80", "train.eval_every=40", "data.validation_fraction=0.02"]
    small = ["train.batch_size=16", "train.num_steps=640", "train.eval_every=320", short[2]]
    add("fashion_pixels", ("tarnn", "lstm"), ("fptt", "bptt"), short)
    for cell in ("tarnn", "lstm"):
        name = f"fashion_pixels, {cell}, bptt_small_batches"
        arguments[name] = (f"fashion_pixels,cell={cell},algorithm=bptt", small, "fptt")
    add("pixels", OTHERS, ("bptt", "fptt"))
    add("permuted", MAIN_CELLS[:3], ALGORITHMS)
    return arguments


if __name__ == "__main__":
    run(lines(), "through_time")
