"""Prints the times of ResNet32 in PyTorch as JSON; `cnn_speed.py` starts it with its own Python."""

from __future__ import annotations

import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Two 3x3 convolutions and a skip."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.skip = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


def resnet32():
    layers, before = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
    for stage, width in enumerate((16, 32, 64)):
        for index in range(5):
            layers.append(Block(before, width, 2 if stage and not index else 1))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def timed(call, repeats):
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return {"median_ms": statistics.median(times), "min_ms": min(times)}


def main():
    times = {}
    for layout, name in (
        (torch.contiguous_format, "ResNet32 in PyTorch"),
        (torch.channels_last, "ResNet32 in PyTorch, channels last"),
    ):
        model = resnet32().to(memory_format=layout)

        def infer(batch, model=model, layout=layout):
            x = torch.randn(batch, 3, 32, 32).to(memory_format=layout)
            model.eval()

            def call():
                with torch.no_grad():
                    model(x)

            return call

        def train(batch, model=model, layout=layout):
            x = torch.randn(batch, 3, 32, 32).to(memory_format=layout)
            labels = torch.zeros(batch, dtype=torch.long)

            def call():
                model.train()
                F.cross_entropy(model(x), labels).backward()

            return call

        times.setdefault("32x32, batch 256", {})[name] = timed(infer(256), 10)
        times.setdefault("32x32, batch 1", {})[name] = timed(infer(1), 50)
        part = "training step, 32x32, batch 128"
        times.setdefault(part, {})[name] = timed(train(128), 6)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
