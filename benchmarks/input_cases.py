"""What `input_speed.py` has both pipelines read; needs numpy and Pillow alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

#: Images of a pass, the side that they are resized to, and the least share of a random part.
IMAGES, SIZE, SMALLEST = 2000, 224, 0.08
SIDES = (224, 251)  # of the files, from and below
BATCH = 50
CLASSES = 10
#: Texts of a pass, their words, and the tokens that are kept of each.
TEXTS, WORDS, LENGTH, VOCABULARY = 5000, (10, 120), 64, 2000
#: Clips of a pass, a second each.
CLIPS, SAMPLES = 500, 16_000
#: Configs whose training data are read too, and the batches of a pass over them.
SYSTEMS = ("irnn", "tarnn", "fptt", "images", "bottleneck", "avae")
SYSTEM_BATCH, SYSTEM_BATCHES = 64, 20


def write_images(folder: Path, number: int) -> None:
    """Writes JPEG files ``FOLDER/train/CLASS/*.jpg`` with the detail of photographs."""
    rng = np.random.default_rng(0)
    for part, count in (("train", number), ("val", CLASSES)):
        for i in range(count):
            height, width = rng.integers(*SIDES, 2)
            coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
            smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
            pixels = smooth + rng.normal(0, 8, (height, width, 1))
            place = folder / part / f"class{i % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(place / f"{i}.jpg", quality=90)


def texts() -> list[str]:
    """Returns texts of words by Zipf's law, with punctuation."""
    rng = np.random.default_rng(0)
    names = np.array(["".join(rng.choice(list("etaoinshrdlu"), 5)) for _ in range(VOCABULARY)])
    lengths = rng.integers(*WORDS, TEXTS)
    return [" ".join(names[rng.zipf(1.3, n) % VOCABULARY]) + "." for n in lengths]


def clips() -> np.ndarray:
    """Returns clips of noise, int16 [CLIPS, SAMPLES]."""
    return np.random.default_rng(0).integers(-3000, 3000, (CLIPS, SAMPLES)).astype(np.int16)
