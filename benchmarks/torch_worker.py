"""PyTorch's side of ``rnn_speed.py``; runs in an environment with torch alone."""

from __future__ import annotations

import sys

import torch
from workers import serve


def irnn_parameters(features: int, inputs: int) -> dict[str, torch.nn.Parameter]:
    """The incremental cell's parameters."""
    shapes = {"u": (features, features), "w": (inputs, features)}
    drawn = {n: torch.nn.Parameter(torch.randn(s) / features**0.5) for n, s in shapes.items()}
    b, eta = torch.zeros(features), torch.tensor(0.01)
    return {**drawn, "b": torch.nn.Parameter(b), "eta": torch.nn.Parameter(eta)}


def irnn_sequence(p, xs: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """Runs the incremental RNN cell, K = 1, as a Python loop over time-major inputs."""
    u, w, b, eta = p.values()
    for x in torch.unbind(xs):
        s = h + h
        h = h + eta * (torch.tanh(s @ u + x @ w + b) - s)
    return h


def tarnn_parameters(features: int, inputs: int) -> dict[str, torch.nn.Parameter]:
    """The time-adaptive cell's parameters, drawn as the authors do."""
    shapes = dict.fromkeys(("W1", "W2", "B1", "Wg"), (inputs, features))
    shapes |= dict.fromkeys(("U1", "U2", "B2", "Ug"), (features, features))
    drawn = {name: torch.nn.Parameter(0.1 * torch.randn(shape)) for name, shape in shapes.items()}
    zeros = {name: torch.nn.Parameter(torch.zeros(features)) for name in ("b1", "bg")}
    return {**drawn, **zeros, "eta": torch.nn.Parameter(torch.tensor(0.01))}


def tarnn_sequence(p, xs: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """Runs the time-adaptive cell, K = 1 and the gate inside, over time-major inputs."""
    before = None
    for x in torch.unbind(xs):
        before = x if before is None else before
        gate = torch.sigmoid(h @ p["Ug"] + x @ p["Wg"] + p["bg"])
        shared = h @ p["U2"] + x @ p["W1"] + before @ p["W2"] + p["b1"]
        slope = torch.relu(h @ p["U1"] + shared) - h - h + x @ p["B1"] + h @ p["B2"]
        h = h + p["eta"] * gate * slope
        before = x
    return h


LOOPS = {"irnn": (irnn_parameters, irnn_sequence), "tarnn": (tarnn_parameters, tarnn_sequence)}


def loop(kind: str, features: int, inputs: int, xs: torch.Tensor):
    """A cell as a Python loop over time, forward and backward."""
    draw, sequence = LOOPS[kind]
    p = draw(features, inputs)

    def call():
        for parameter in p.values():
            parameter.grad = None
        h = torch.zeros(xs.shape[1], features)
        sequence(p, xs, h).square().mean().backward()

    return call


def fptt(kind: str, features: int, inputs: int, xs: torch.Tensor, parts: int = 10):
    """Forward propagation through time on one batch: 10 parts and the remainder, Adam, clipping.

    The updates of the authors' code: the regulariser is a part of the loss, multipliers and running
    weights are kept per parameter.
    """
    alpha, beta, classes, batch = 0.1, 0.5, 10, xs.shape[1]
    head = torch.nn.Linear(features, classes)
    labels = torch.arange(batch) % classes
    if kind == "LSTM":
        layer = torch.nn.LSTM(inputs, features)
        parameters = [*layer.parameters(), *head.parameters()]
    else:
        p = tarnn_parameters(features, inputs)
        parameters = [*p.values(), *head.parameters()]
    running = [parameter.detach().clone() for parameter in parameters]
    multiplier = [torch.zeros_like(parameter) for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    size = xs.shape[0] // parts
    pieces = torch.split(xs, size)

    def call():
        h = torch.zeros(batch, features)
        state = (h[None], torch.zeros(1, batch, features))
        for number, piece in enumerate(pieces):
            if kind == "LSTM":
                _, state = layer(piece, tuple(s.detach() for s in state))
                last = state[0][0]
            else:
                h = last = tarnn_sequence(p, piece, h.detach())
            log_p = torch.log_softmax(head(last), -1)
            share = (number + 1) / len(pieces)
            loss = share * torch.nn.functional.nll_loss(log_p, labels)
            loss = loss - (1 - share) * (log_p / classes).mean()
            for w, mean, lam in zip(parameters, running, multiplier, strict=True):
                loss = loss - (w * lam).sum() + 0.5 * alpha * (w - mean).square().sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            with torch.no_grad():
                for w, mean, lam in zip(parameters, running, multiplier, strict=True):
                    lam -= alpha * (w - mean)
                    mean.mul_(1 - beta).add_(w, alpha=beta).sub_(lam, alpha=beta / alpha)

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
    loops = {
        "irnn_loop": loop("irnn", features, inputs, xs),
        "tarnn_loop": loop("tarnn", features, inputs, xs),
        "fptt_lstm": fptt("LSTM", features, inputs, xs),
        "fptt_tarnn": fptt("TARNN", features, inputs, xs),
    }
    serve(loops | variants)


if __name__ == "__main__":
    main()
