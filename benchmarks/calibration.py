"""How often a calibrated threshold breaks its promise, and what coverage the promise costs.

Confidences u ~ U(0, 1) are right with probability (1 + u) / 2, so that a threshold t has the true
selective risk (1 - t) / 4 and the true joint error (1 - t)^2 / 4. Writes
``results/calibration.json``:

    python benchmarks/calibration.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from record_files import write

from jaxeff import bench
from jaxeff.errors import DataError
from jaxeff.selective import calibrate

OUT = Path(__file__).parent / "results" / "calibration.json"
REPEATS, DELTA = 500, 0.1
#: Target and calibration examples.
SETTINGS = {
    "selective": ((0.1, 1000), (0.05, 2000), (0.02, 5000), (0.1, 5000)),
    "joint": ((0.02, 1000), (0.01, 2000), (0.005, 5000)),
}
TRUE = {"selective": lambda t: (1 - t) / 4, "joint": lambda t: (1 - t) ** 2 / 4}
IDEAL = {"selective": lambda target: 4 * target, "joint": lambda target: 2 * target**0.5}


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    u = rng.uniform(size=n)
    return u, rng.random(n) > (1 + u) / 2


def simulate(method: str, kind: str, target: float, n: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    thresholds = np.ones(REPEATS)  # accept nothing
    options = {"delta": DELTA} if method == "learn then test" else {}
    for repeat in range(REPEATS):
        try:
            choice = calibrate.METHODS[method](*draw(rng, n), target, kind, **options)
        except DataError:
            continue
        thresholds[repeat] = choice.value
    errors = TRUE[kind](thresholds)
    return {
        "violated": float(np.mean(errors > target)),
        "mean_error": float(errors.mean()),
        "coverage": float(np.mean(1 - thresholds)),
        "accepted_nothing": float(np.mean(thresholds == 1)),
    }


def main():
    lines = {}
    for kind, settings in SETTINGS.items():
        for target, n in settings:
            name = f"{kind} {target:g}, {n} examples"
            methods = [m for m in calibrate.METHODS if kind == "joint" or "conformal" not in m]
            lines[name] = {method: simulate(method, kind, target, n) for method in methods}
            lines[name]["ideal_coverage"] = IDEAL[kind](target)
            for method in methods:
                shown = "  ".join(f"{k} {v:.4f}" for k, v in lines[name][method].items())
                print(f"{name:30s} {method:24s} {shown}", flush=True)
    record = {
        "command": "python benchmarks/calibration.py",
        "environment": bench.environment(),
        "repeats": REPEATS,
        "delta": DELTA,
        "lines": lines,
    }
    write(OUT, record)


if __name__ == "__main__":
    main()
