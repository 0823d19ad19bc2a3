"""Kills trainings at random moments, goes on by the same command, and compares to the last bit.

Every trial is a run of one of `CASES` that is killed (SIGKILL) a few times: while it starts, while
a prerequisite is trained, during a save, between saves, at any time at all, and between the last
step and the report. The same command then finishes it, and final checkpoint, history and report are
compared with those of a run that was left alone. Of several processes either all are killed, or one
of them, and then the others must end by themselves within a minute. Writes ``results/kills.json``:

    python benchmarks/kills.py                                   # 100 kills, about 20 minutes
    python benchmarks/kills.py --kills=6 --configs irnn disk --seed=1
    python benchmarks/kills.py --out=trial.json --folder=/tmp/kills

The exit status is 1 unless every killed run ended as the one that was left alone. Folders of runs
that did not are kept.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from run_outcomes import difference, last_step, outcome, saves, unfinished
from run_processes import POLL_SECONDS, RUN_SECONDS, Case, Run

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "kills.json"
PEER_SECONDS = 60.0  # in which the other processes must follow one that was killed

_DIGITS = (
    "train.num_steps=80",
    "train.log_every=7",
    "train.eval_every=25",
    "checkpoint.every=10",
)
_IMAGES = (
    "model.depth=8",
    "model.widths=(4,4,8)",
    "train.num_steps=30",
    "train.log_every=7",
    "train.eval_every=15",
    "checkpoint.every=5",
)


CASES = {
    # Dropout, and epochs that are no multiple of the saves.
    "irnn": Case("irnn.py:quick", ("model.cell.features=8", *_DIGITS)),
    # Updates within sequences, targets that are renewed, lengths of every kind.
    "fptt": Case(
        "fptt.py:vowels,cell=tarnn,quick",
        ("model.cell.features=8", *_DIGITS, "train.num_steps=60"),
    ),
    # Two prerequisites, and a gate beside the student.
    "disk": Case(
        "disk.py:digits,quick",
        (
            "train.num_steps=120",
            "checkpoint.every=10",
            *(
                f"prerequisites.{name}.{setting}"
                for name in ("teacher", "student")
                for setting in ("train.num_steps=60", "checkpoint.every=10")
            ),
        ),
        ("teacher", "student"),
    ),
    # Multipliers, batch statistics and running means of constraints.
    "dcl": Case("dcl.py:digits,quick", _IMAGES),
    # A moving target for every example, and a calibration split.
    "selective": Case("selective.py:digits,quick,method=sat", _IMAGES),
    # Two processes that train as one.
    "pair": Case("irnn.py:quick", ("model.cell.features=8", *_DIGITS), processes=2),
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a run that was left alone has to show, and how long its parts took."""

    outcome: dict[str, Any]
    seconds: float
    first_save: float
    report: float
    steps: int


def reference(case: Case, workdir: Path, folder: Path) -> Reference:
    """Runs a case to its end, twice: the second time it compiles nothing, as the killed runs do."""
    for _ in range(2):
        shutil.rmtree(workdir, ignore_errors=True)
        began = time.monotonic()
        run, first, last = Run(case, workdir, folder), 0.0, 0.0
        count = -1
        while run.running:
            now = time.monotonic() - began
            first = first or (now if saves(workdir) else 0.0)
            if last_step(workdir) > count:
                count, last = last_step(workdir), now
            time.sleep(POLL_SECONDS)
        if run.wait(RUN_SECONDS) is None or any(p.returncode for p in run.processes):
            run.kill_all()
            raise RuntimeError(f"{case.command} does not end:\n{run.log.read_text()[-2000:]}")
        seconds = time.monotonic() - began
    finished = outcome(workdir, case.prerequisites)
    return Reference(finished, seconds, first, seconds - last, count)


class Trial:
    """One run that is killed again and again, and what came of it."""

    def __init__(self, case: Case, known: Reference, workdir: Path, folder: Path, seed: str):
        self.case, self.known, self.workdir, self.folder = case, known, workdir, folder
        self.draw = random.Random(seed)
        self.kills: list[str] = []
        self.missed = 0
        self.resumed = 0  # times that the training went on from a save
        self.peers: list[float] = []  # seconds in which the others followed a killed process
        self.stayed = 0  # processes that did not

    def plan(self) -> list[str]:
        """Returns moments in the order of a run, so that each can come after the one before."""
        first = ["prerequisite"] if self.case.prerequisites else []
        middle = ["save", "step", self.draw.choice(("save", "step", "any"))]
        self.draw.shuffle(middle)
        return ["start", *first, *middle, "report"]

    def wait_for(self, run: Run, moment: str) -> None:
        """Waits for a moment, or for the end of the run."""
        draw, known = self.draw, self.known
        if moment == "start":
            run.pause(draw.uniform(0, known.first_save))
        elif moment == "any":
            run.pause(draw.uniform(0, known.seconds))
        elif moment == "report":
            run.until(lambda: last_step(self.workdir) >= known.steps)
            run.pause(draw.uniform(0, known.report))
        elif moment == "prerequisite":
            parts = [self.workdir / name for name in self.case.prerequisites]
            waiting = [part for part in parts if not (part / "report.json").exists()]
            folder = draw.choice(waiting or parts)
            before = saves(folder)
            run.until(lambda: bool(saves(folder) - before))
            run.pause(draw.uniform(0, 0.5))
        else:
            self.wait_for_a_save(run, moment == "save")

    def wait_for_a_save(self, run: Run, within: bool) -> None:
        """Waits for a save, of those that are still to come; or for a step behind it."""
        done, steps = last_step(self.workdir), self.known.steps
        step = self.draw.randrange(done + 1, steps) if done + 1 < steps else steps
        run.until(lambda: last_step(self.workdir) >= step)
        if within:
            before = unfinished(self.workdir)
            run.until(lambda: bool(unfinished(self.workdir) - before))
        run.pause(self.draw.choice((0.0, self.draw.uniform(0, 0.03 if within else 0.3))))

    def go(self) -> list[str]:
        """Kills the run at every moment, finishes it, and returns what differs."""
        for moment in self.plan():
            run = Run(self.case, self.workdir, self.folder)
            try:
                self.wait_for(run, moment)
                alone = len(run.processes) > 1 and self.draw.random() < 0.4
                killed = self.kill_one(run) if alone else run.kill_all()
            finally:
                run.kill_all()
            if killed:
                self.kills.append(f"{moment}, one process" if alone else moment)
            else:  # the run came to its end before
                self.missed += 1
                break
        return self.finish()

    def kill_one(self, run: Run) -> bool:
        """Kills one of the processes, once they have met, and waits for the others to follow."""
        run.until(run.met)
        killed = run.kill(self.draw.choice(run.processes))
        seconds = run.wait(PEER_SECONDS)
        if seconds is None:
            self.stayed += 1
        elif killed:
            self.peers.append(seconds)
        return killed

    def finish(self) -> list[str]:
        """Lets the run end, and returns what differs from one that was left alone."""
        run = Run(self.case, self.workdir, self.folder)
        ended = run.wait(RUN_SECONDS)
        run.kill_all()
        if ended is None:
            return [f"it did not end in {RUN_SECONDS:.0f} s"]
        codes = [process.returncode for process in run.processes]
        if any(codes):
            last = run.log.read_text(errors="replace").strip().splitlines()[-1:]
            return [f"it ended with {codes}: {' '.join(last)}"]
        try:
            report = json.loads((self.workdir / "report.json").read_text(encoding="utf-8"))
            self.resumed = report["training"]["resumed"]
            return difference(self.known.outcome, outcome(self.workdir, self.case.prerequisites))
        except (OSError, ValueError, KeyError) as error:
            return [f"it cannot be compared: {error}"]


class Tally:
    """Kills of one case, and how its runs ended."""

    def __init__(self, case: Case):
        self.case, self.moments = case, collections.Counter()
        self.trials = self.kills = self.equal = self.missed = self.resumed = self.stayed = 0
        self.peers: list[float] = []
        self.differences: list[dict[str, Any]] = []

    def add(self, trial: Trial, differs: list[str], seed: str) -> None:
        self.trials += 1
        self.kills += len(trial.kills)
        self.equal += 0 if differs else len(trial.kills)
        self.missed += trial.missed
        self.resumed += trial.resumed
        self.stayed += trial.stayed
        self.peers += trial.peers
        self.moments.update(trial.kills)
        if differs:
            entry = {"seed": seed, "kills": trial.kills, "differs": differs[:20]}
            self.differences.append(entry)

    def line(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "command": self.case.command,
            "processes": self.case.processes,
            "trials": self.trials,
            "kills": self.kills,
            "bit_equal": self.equal,
            "moments": dict(sorted(self.moments.items())),
            "ended_before_the_moment": self.missed,
            "resumed": self.resumed,
            "differences": self.differences,
        }
        if self.case.processes > 1:
            fields["seconds_until_the_others_followed"] = [round(s, 2) for s in self.peers]
            fields["others_that_stayed"] = self.stayed
        return fields


def main() -> int:
    """Runs trials until there were so many kills; returns the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--configs", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs" / "kills")
    arguments = parser.parse_args()
    if arguments.kills < 1:
        parser.error(f"--kills must be at least 1, not {arguments.kills}")
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from jaxeff import bench
    from jaxeff.files.atomic import write_text_atomically

    began = time.monotonic()
    names = list(dict.fromkeys(arguments.configs))
    tallies = {name: Tally(CASES[name]) for name in names}
    known: dict[str, Reference] = {}
    number = 0
    while sum(tally.kills for tally in tallies.values()) < arguments.kills:
        name = names[number % len(names)]
        case, seed = CASES[name], f"{arguments.seed}-{name}-{number // len(names)}"
        number += 1
        if name not in known:
            known[name] = reference(case, folder / name, folder)
            print(f"{name:12s} left alone: {known[name].seconds:.1f} s", flush=True)
        workdir = folder / seed
        shutil.rmtree(workdir, ignore_errors=True)
        workdir.with_suffix(".txt").unlink(missing_ok=True)
        trial = Trial(case, known[name], workdir, folder, seed)
        differs = trial.go()
        tallies[name].add(trial, differs, seed)
        if not differs:
            shutil.rmtree(workdir)
            workdir.with_suffix(".txt").unlink()
        total = sum(tally.kills for tally in tallies.values())
        verdict = f"DIFFERS in {', '.join(differs[:3])}" if differs else "equal"
        print(f"{name:12s} {len(trial.kills)} kills, {verdict}; {total} in all", flush=True)
        if trial.missed and not trial.kills:
            raise RuntimeError(f"no kill of {name} came in time; see {workdir}")
    options = " ".join(f"--{key}={getattr(arguments, key)}" for key in ("kills", "seed"))
    provenance = {"environment": bench.environment()}
    lines = {
        name: {**tally.line(), **provenance} for name, tally in tallies.items() if tally.trials
    }
    record = {
        "command": f"python benchmarks/kills.py {options} --configs {' '.join(names)}",
        "kills": sum(line["kills"] for line in lines.values()),
        "bit_equal": sum(line["bit_equal"] for line in lines.values()),
        "configs": len(lines),
        "seconds": round(time.monotonic() - began, 1),
        "lines": lines,
    }
    write_text_atomically(arguments.out, json.dumps(record, indent=2, sort_keys=True) + "\n")
    stayed = sum(tally.stayed for tally in tallies.values())
    print(
        f"{record['bit_equal']} of {record['kills']} kills ended bit-equal; {stayed} peers stayed"
    )
    return int(record["bit_equal"] != record["kills"] or stayed > 0)


if __name__ == "__main__":
    sys.exit(main())
