"""ResNet32 in PyTorch, beside ``cnn_speed.py``, which starts it with an interpreter of its own.

python torch_cnn_worker.py inference 256
python torch_cnn_worker.py training 128
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import nn
from workers import serve


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


def inference(model, layout, batch):
    """Returns a call of the network in evaluation."""
    x = torch.randn(batch, 3, 32, 32).to(memory_format=layout)
    model.eval()

    def call():
        with torch.no_grad():
            model(x)

    return call


def training(model, layout, batch):
    """Returns a call of the network's gradient in training."""
    x = torch.randn(batch, 3, 32, 32).to(memory_format=layout)
    labels = torch.zeros(batch, dtype=torch.long)
    model.train()

    def call():
        model.zero_grad()
        F.cross_entropy(model(x), labels).backward()

    return call


def main():
    kind, batch = sys.argv[1], int(sys.argv[2])
    made = inference if kind == "inference" else training
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    serve(
        {
            name: made(resnet32().to(memory_format=layout), layout, batch)
            for name, layout in layouts.items()
        }
    )


if __name__ == "__main__":
    main()
