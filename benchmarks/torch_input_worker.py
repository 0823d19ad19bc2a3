"""Times PyTorch's DataLoader on the same files and arrays; `input_speed.py` starts it.

    TORCH_PYTHON benchmarks/torch_input_worker.py FOLDER IMAGES WORKERS

A user's own data sets, as torchvision and torchaudio would be: an example at a time, in ``WORKERS``
processes that stay, which pass batches on through shared memory; 0 reads in the calling process.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import input_cases as cases
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from workers import serve

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Images(Dataset):
    """Random parts of image files, mirrored and normalised, float32 [3, size, size]."""

    def __init__(self, folder: Path, number: int):
        self.files = sorted(map(str, folder.glob("train/*/*.jpg")))[:number]
        self.mean = torch.tensor(MEAN)[:, None, None]
        self.deviation = torch.tensor(DEVIATION)[:, None, None]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[i]) as file:
            image = file.convert("RGB")
        box = random_part(*image.size)
        image = image.resize((cases.SIZE, cases.SIZE), Image.Resampling.BICUBIC, box)
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        # As torchvision's ToTensor and Normalize do it.
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        scaled = pixels.to(torch.float32).div_(255)
        return scaled.sub_(self.mean).div_(self.deviation), i % cases.CLASSES


def random_part(width: int, height: int) -> tuple[float, float, float, float]:
    """Returns the box of a random part, as torchvision's RandomResizedCrop draws it."""
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(cases.SMALLEST, 1).item()
        ratio = math.exp(torch.empty(1).uniform_(low, high).item())
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            x, y = torch.rand(2).tolist()
            left, top = x * (width - w), y * (height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


class Texts(Dataset):
    """Words of texts as numbers, int64 [length]."""

    def __init__(self):
        self.texts = cases.texts()
        words = sorted({word for text in self.texts[:1000] for word in self.split(text)})
        self.numbers = {word: i + 2 for i, word in enumerate(words)}

    @staticmethod
    def split(text: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]+", text.lower())

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        codes = [self.numbers.get(word, 1) for word in self.split(self.texts[i])[: cases.LENGTH]]
        padded = torch.zeros(cases.LENGTH, dtype=torch.int64)
        padded[: len(codes)] = torch.tensor(codes)
        return padded, len(codes)


class Clips(Dataset):
    """Log-mel features of clips, float32 [frames, filters], by torch.stft."""

    def __init__(self):
        self.clips = torch.from_numpy(cases.clips())
        self.window = torch.hann_window(400)
        edges = torch.linspace(mel(20.0), mel(4000.0), 34)
        bins = torch.tensor([mel(16_000 * i / 512) for i in range(257)])[:, None]
        self.filters = (1 - (bins - edges[1:-1]).abs() / (edges[1] - edges[0])).clamp(min=0)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> torch.Tensor:
        audio = self.clips[i].to(torch.float32) / 2**15
        spectrum = torch.stft(audio, 512, 160, 400, self.window, center=False, return_complex=True)
        power = spectrum.real**2 + spectrum.imag**2
        return torch.log(power.T @ self.filters + 1e-6)


def mel(frequency: float) -> float:
    return 2595 * math.log10(1 + frequency / 700)


def main() -> None:
    folder, number, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(max(1, workers))
    data_sets = {"jpeg": Images(folder, number), "tokens": Texts(), "features": Clips()}
    loaders = {
        name: DataLoader(
            data_set,
            cases.BATCH,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        for name, data_set in data_sets.items()
    }

    def passes(loader: DataLoader):
        return lambda: [None for _ in loader]

    serve({name: passes(loader) for name, loader in loaders.items()}, warmup=1)


if __name__ == "__main__":
    main()
