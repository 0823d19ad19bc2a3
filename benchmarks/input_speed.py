"""Rates of the input pipeline beside PyTorch's DataLoader, in turns, on one core and on two.

Writes ``results/input_speed.json``: images a second from JPEG files with augmentation, texts that
become tokens, clips that become log-mel features, and examples of the configs' own data. PyTorch
has an environment of its own, which is made on first use. Run it on an idle machine, a few minutes:

    python benchmarks/input_speed.py
    python benchmarks/input_speed.py --quick     # a tenth of the images, two rounds; no record
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import input_cases as cases
import PIL
from record_files import RESULTS, stamp, write
from workers import Worker, take_turns

HERE = Path(__file__).parent
TORCH = "2.13.0"


def torch_python(folder: Path) -> str:
    """Returns the interpreter of an environment with PyTorch and this Pillow, made if missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    needed = [f"torch=={TORCH}", "numpy", f"pillow=={PIL.__version__}"]
    subprocess.run([str(python), "-m", "pip", "install", "-q", *needed], check=True)
    return str(python)


def commands(python: str, folder: str, images: int) -> dict[str, list[str]]:
    """Returns the workers' commands by what is said of each; cores are set from outside."""
    ours = [sys.executable, str(HERE / "input_worker.py"), folder, str(images)]
    theirs = [python, str(HERE / "torch_input_worker.py"), folder, str(images)]
    one, two = ["taskset", "-c", "0"], ["taskset", "-c", "0,1"]
    return {
        "jaxeff, 1 core": [*one, *ours],
        "DataLoader in the process, 1 core": [*one, *theirs, "0"],
        "DataLoader with 1 worker, 1 core": [*one, *theirs, "1"],
        "jaxeff, 2 cores": [*two, *ours],
        "DataLoader with 2 workers, 2 cores": [*two, *theirs, "2"],
    }


def rates(times: dict[str, dict[str, float]], images: int) -> dict[str, dict[str, float]]:
    """Returns examples a second for each worker and kind of data."""
    examples = {"jpeg": images, "tokens": cases.TEXTS, "features": cases.CLIPS}
    found: dict[str, dict[str, float]] = {}
    for name, time in times.items():
        who, _, what = name.partition("/")
        number = examples.get(what, cases.SYSTEM_BATCH * cases.SYSTEM_BATCHES)
        found.setdefault(who, {})[what] = 1e3 * number / time["ms"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--torch-env", type=Path, default=HERE.parent / ".venv-torch")
    args = parser.parse_args()
    images, rounds = (cases.IMAGES // 10, 2) if args.quick else (cases.IMAGES, 5)
    python = torch_python(args.torch_env)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        cases.write_images(Path(folder), images)
        workers = {}
        for name, command in commands(python, folder, images).items():
            workers[name] = Worker(command)
            stack.callback(workers[name].close)
        times = take_turns(workers, rounds, 1)
    found = rates(times, images)
    for who, values in found.items():
        told = ", ".join(f"{what} {rate:,.0f}" for what, rate in values.items())
        print(f"{who}: {told} a second")
    if args.quick:
        return
    record = stamp("python benchmarks/input_speed.py")
    record["environment"] |= {"torch": TORCH, "pillow": PIL.__version__}
    record |= {
        "task": (
            f"{cases.IMAGES} JPEG files of {cases.SIDES[0]} to {cases.SIDES[1] - 1} pixels, a "
            f"random part resized to {cases.SIZE}, mirrored and normalised; texts of "
            f"{cases.WORDS[0]} to {cases.WORDS[1] - 1} words; clips of a second"
        ),
        "method": f"median over {rounds} interleaved rounds of a pass, batches of {cases.BATCH}",
        "examples_per_second": found,
        "milliseconds": times,
    }
    write(RESULTS / "input_speed.json", record)


if __name__ == "__main__":
    main()
