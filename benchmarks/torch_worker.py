"""PyTorch's side of ``rnn_speed.py``; runs in an environment with torch alone."""

from __future__ import annotations

import sys

import torch
from workers import serve


def loop(features: int, inputs: int, xs: torch.Tensor):
    """The incremental RNN cell as a Python loop over time, K = 1."""
    u = torch.nn.Parameter(torch.randn(features, features) / features**0.5)
    w = torch.nn.Parameter(torch.randn(inputs, features) / features**0.5)
    b = torch.nn.Parameter(torch.zeros(features))
    eta = torch.nn.Parameter(torch.tensor(0.01))

    def call():
        for p in (u, w, b, eta):
            p.grad = None
        h = torch.zeros(xs.shape[1], features)
        for x in torch.unbind(xs):
            s = h + h
            h = h + eta * (torch.tanh(s @ u + x @ w + b) - s)
        h.square().mean().backward()

    return call


def module(kind: str, features: int, inputs: int, xs: torch.Tensor):
    """One of PyTorch's own recurrent layers."""
    layer = getattr(torch.nn, kind)(inputs, features)

    def call():
        layer.zero_grad(set_to_none=True)
        ys, _ = layer(xs)
        ys[-1].square().mean().backward()

    return call


def main():
    batch, time, inputs, features, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    xs = torch.randn(time, batch, inputs)
    variants = {kind: module(kind, features, inputs, xs) for kind in ("RNN", "LSTM", "GRU")}
    serve({"irnn_loop": loop(features, inputs, xs), **variants})


if __name__ == "__main__":
    main()
