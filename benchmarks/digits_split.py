"""How hard the two test splits of the digits are, by a support vector machine's accuracy.

Writes ``results/digits_split.json``:

    python benchmarks/digits_split.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from record_files import stamp, write
from sklearn.svm import SVC

from jaxeff import data

OUT = Path(__file__).parent / "results" / "digits_split.json"


def accuracy(name: str) -> float:
    splits = data.load(name, validation_fraction=0.0).splits
    train, test = (splits[part].take(np.arange(len(splits[part]))) for part in ("train", "test"))
    machine = SVC(kernel="rbf", gamma=0.25, C=10)
    machine.fit(train["inputs"].reshape(len(train["labels"]), -1), train["labels"])
    return machine.score(test["inputs"].reshape(len(test["labels"]), -1), test["labels"])


def main():
    record = {
        **stamp("python benchmarks/digits_split.py"),
        "method": "SVC(kernel='rbf', gamma=0.25, C=10), intensities in [0, 1]",
        "test_accuracy": {name: accuracy(name) for name in ("digits", "digits_file_order")},
    }
    write(OUT, record)
    print(record["test_accuracy"])


if __name__ == "__main__":
    main()
