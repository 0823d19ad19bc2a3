"""All that is to be learned of a GPU or TPU in one run of under ten minutes.

Parity with the CPU, speed and memory, on whatever device JAX finds; what fails is written down and
the rest goes on. Writes ``results/accelerator.json`` after every section. On a machine without an
accelerator only ``--quick`` runs, to try the script:

    python benchmarks/accelerator.py
    python benchmarks/accelerator.py --sections recurrent_speed kernel_parity
    python benchmarks/accelerator.py --quick
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax
from accelerator_sections import SECTIONS, Clock, explained
from record_files import RESULTS, stamp, write

SHARES = {"recurrent_speed": 0.25, "system_parity": 0.3, "parallel_in_time": 0.2}


def main() -> None:
    """Runs the sections that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=9.0, help="no setting begins after them")
    parser.add_argument("--quick", action="store_true", help="one small setting of each section")
    parser.add_argument("--out", type=Path, default=RESULTS / "accelerator.json")
    args = parser.parse_args()
    if jax.default_backend() == "cpu" and not args.quick:
        parser.error("JAX finds no GPU or TPU here; --quick tries the script on the CPU")
    if args.quick:  # programs that run once or twice need not be fast
        jax.config.update("jax_disable_most_optimizations", True)
    record: dict[str, Any] = stamp(
        shlex.join(["python", "benchmarks/accelerator.py", *sys.argv[1:]])
    )
    total = 60 * args.minutes
    everything = Clock(total)
    for name in args.sections:
        began = time.perf_counter()
        share = min(everything.left, total * SHARES.get(name, 0.15))
        try:
            measured = SECTIONS[name](args.quick, Clock(share))
        except Exception as error:  # the other sections are worth having
            measured = {"error": explained(error)}
        seconds = round(time.perf_counter() - began, 1)
        record[name] = {"seconds": seconds, "measured": measured}
        print(f"{name}, {seconds} s: {json.dumps(measured, indent=1)}", flush=True)
        if not args.quick:
            write(args.out, record)


if __name__ == "__main__":
    main()
