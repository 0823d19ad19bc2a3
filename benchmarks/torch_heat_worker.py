"""PyTorch's side of ``rnn_heat.py``; runs in an environment with torch alone."""

from __future__ import annotations

import sys

import torch
from torch_worker import LOOPS, loop, module
from workers import MadeOnRequest, serve

INPUTS = 1


def make(name: str):
    """Returns the call of a setting, ``CELL/TASK/BATCH/TIME/WIDTH``."""
    cell, task, *sizes = name.split("/")
    batch, time, width = map(int, sizes)
    torch.manual_seed(0)
    xs = torch.randn(time, batch, INPUTS)
    if task == "step":
        return (loop if cell in LOOPS else module)(cell, width, INPUTS, xs)
    if cell in LOOPS:
        draw, sequence = LOOPS[cell]
        parameters = draw(width, INPUTS)

        def forward():
            return sequence(parameters, xs, torch.zeros(batch, width))
    else:
        layer = getattr(torch.nn, cell)(INPUTS, width).eval()

        def forward():
            return layer(xs)[0][-1]

    def call():
        with torch.inference_mode():
            forward()

    return call


def main():
    torch.set_num_threads(int(sys.argv[1]))
    serve(MadeOnRequest(make))


if __name__ == "__main__":
    main()
