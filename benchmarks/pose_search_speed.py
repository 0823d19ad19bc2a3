"""Time of the pose search, of its ways and of a loop over starts in PyTorch, in turns in one run.

Forty starts of twenty steps for 128 images, on a trained model, and the losses that each
way reaches. PyTorch's time is that of one start, times forty. What schedules of successive halving
would find is told from the course of every start for images of validation and training
(`pose_schedules`), and how many poses of test images are those of every start is counted for each
way. Writes ``results/pose_search_speed.json``:

    python -m jaxeff.main --config=configs/avae.py:digits,model=avae --workdir=runs/avae
    python -m jaxeff.main --config=configs/avae.py:digits,model=semi_amortised \
        --config.train.num_steps=1000 --workdir=runs/heads
    TORCH_PYTHON=.venv-torch/bin/python python benchmarks/pose_search_speed.py --run=runs/avae \
        --amortised=runs/heads

``--run`` and ``--amortised`` are the folders of finished trainings; without the latter nothing is
said of inference, and without ``TORCH_PYTHON`` nothing of PyTorch.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pose_schedules
from record_files import read, write
from recorded import config_of
from workers import Worker

from jaxeff import bench
from jaxeff.affine import Search, search
from jaxeff.train import experiment
from jaxeff.train.loop import Training

HERE = Path(__file__).parent
OUT = HERE / "results" / "pose_search_speed.json"

STARTS, STEPS = 40, 20
LITERAL, HALVED = "every start by Adam", "the worse starts dropped, by Adam"
WAYS = {
    LITERAL: Search(starts=STARTS, steps=STEPS),
    HALVED: Search.build({"like": "2019_rotation_halving"}, "search"),
    "best 4 by Adam": Search(starts=STARTS, keep=4, steps=STEPS),
    "best 4 by Gauss-Newton": Search(starts=STARTS, keep=4, steps=4, method="gauss_newton"),
    "best 2 of spread ones by Gauss-Newton": Search(
        starts=STARTS, spread=True, keep=2, steps=3, method="gauss_newton"
    ),
}


def trained(workdir: Path) -> tuple[Any, Any]:
    """Returns the experiment of a finished run and its selected variables."""
    fields = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    fields["devices"]["cpu"] = 1
    built = experiment.build(ml_collections.ConfigDict(fields))
    training = Training(built, workdir)
    try:
        chosen = training.selection().chosen
    finally:
        training.close()
    return built, {"params": chosen["params"], **chosen["model_state"]}


def some_images(
    built: Any, count: int, splits: tuple[str, ...] = ("test", "validation", "train")
) -> jnp.ndarray:
    """Returns so many images, those of the first split first."""
    parts: list[np.ndarray] = []
    for name in splits:
        split, left = built.dataset.splits[name], count - sum(map(len, parts))
        if left:
            rows = np.arange(min(left, len(split)))
            parts.append(split.take(rows, np.random.default_rng(0))["inputs"])
    return jnp.asarray(np.concatenate(parts))


def on_a_grid(built: Any, variables: Any, images: Any) -> np.ndarray:
    """Returns the least losses over poses of a degree."""
    problem = built.algorithm.problem(variables)
    degrees = jnp.deg2rad(jnp.arange(360.0))[None, :, None]
    starts = jnp.broadcast_to(degrees, (len(images), 360, 1))
    settings = Search(method="screen")
    find = jax.jit(lambda images: search(problem, {"inputs": images}, starts, settings))
    return np.asarray(find(images).loss)


def _find(built: Any, variables: Any, settings: Search, images: Any, starts: Any) -> Any:
    return search(built.algorithm.problem(variables), {"inputs": images}, starts, settings)


def searches(
    built: Any, variables: Any, images: Any, ways: dict[str, Search] = WAYS
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns compiled searches, and what they find."""
    calls, found = {}, {}
    for name, settings in ways.items():
        starts = built.algorithm.starts(variables, images, settings, None)
        find = functools.partial(_find, built, variables, settings)
        program = jax.jit(find).lower(images, starts).compile()
        calls[name] = lambda program=program, starts=starts: program(images, starts)
        found[name] = jax.tree.map(np.asarray, calls[name]())
    return calls, found


def schedules(built: Any, variables: Any, count: int) -> dict[str, Any]:
    """Returns what schedules of halving would find on images that are not of the test."""
    images = some_images(built, count, ("validation", "train"))
    literal, schedule = WAYS[LITERAL], WAYS[HALVED].halving
    angles, losses = pose_schedules.courses(built, variables, images, literal)
    every, one = (pose_schedules.outcome(angles, losses, s) for s in ((), schedule))
    return {
        "images": len(images),
        "degrees": pose_schedules.DEGREES,
        "relative_loss": pose_schedules.RELATIVE,
        "schedule": schedule,
        "passes": pose_schedules.passes(literal, schedule),
        "passes_of_all": pose_schedules.passes(literal, ()),
        "same": float(pose_schedules.same(one, every).mean()),
        "curve": pose_schedules.curve(angles, losses, literal),
    }


def inference(built: Any, variables: Any, images: Any) -> dict[str, Any]:
    """Returns compiled inference by the algorithm, and by the plain model's one pass."""

    settings = config_of("digits,model=semi_amortised", [], "avae").algorithm.evaluation
    built.algorithm.evaluation = Search.build(settings, "algorithm.evaluation")

    def amortised(images: Any) -> Any:
        return built.algorithm.forward(variables, {"inputs": images}, train=False)[0]

    def plain(images: Any) -> Any:
        pose = jnp.tile(built.model.family.identity(), (len(images), 1))
        codes = built.algorithm.problem(variables).code({"inputs": images}, pose)
        return codes[0]  # without any resampling that matters

    def full(images: Any) -> Any:
        settings = WAYS["best 4 by Gauss-Newton"]
        pose = built.algorithm.find(variables, images, settings)
        return built.model.apply(variables, images, pose)

    return {
        name: jax.jit(call).lower(images).compile()
        for name, call in (("amortised", amortised), ("plain", plain), ("search", full))
    }


def measured_inference(asked: argparse.Namespace) -> dict[str, Any]:
    """Returns times and losses of inference by a model whose head proposes poses."""
    built, variables = trained(asked.amortised)
    images = some_images(built, asked.batch)
    programs = inference(built, variables, images)
    variants = {n: (lambda p=program: p(images)) for n, program in programs.items()}
    times = bench.interleaved(variants, asked.rounds, 1, warmup=1)
    objective = built.algorithm.objective
    return {
        "ms": {name: timing.median_ms for name, timing in times.items()},
        "mean_loss": {
            name: float(objective(programs[name](images), {"inputs": images})["loss"].mean())
            for name in ("amortised", "search")
        },
    }


def main() -> None:
    """Measures and writes the record; without ``--run`` the part of inference alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path)
    parser.add_argument("--amortised", type=Path)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--quality", type=int, default=300)
    parser.add_argument("--chosen-on", type=int, default=256, help="images for schedules")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    if asked.run is None:
        write(asked.out, {**read(asked.out), "inference": measured_inference(asked)})
        return
    built, variables = trained(asked.run)
    images = some_images(built, asked.batch)
    halving = schedules(built, variables, asked.chosen_on) if asked.chosen_on else {}
    calls, found = searches(built, variables, images)
    python, worker = os.environ.get("TORCH_PYTHON"), None
    if python:
        size = [asked.batch, STEPS, built.model.latents, built.model.shape[0], os.cpu_count() or 1]
        worker = Worker([python, str(HERE / "torch_pose_worker.py"), *map(str, size)])
    times: dict[str, list[float]] = {}
    for _ in range(asked.rounds):
        for name, call in calls.items():
            began = time.perf_counter()  # each was called before, when its losses were found
            jax.block_until_ready(call())
            times.setdefault(name, []).append((time.perf_counter() - began) * 1e3)
        for name in worker.names if worker else ():
            (one,) = worker.time(name, 1)
            times.setdefault(f"PyTorch, {name.replace('_', ' ')}", []).append(STARTS * one)
    if worker:
        worker.close()
    record: dict[str, Any] = {
        "command": "python benchmarks/pose_search_speed.py --run=runs/avae --amortised=runs/heads"
        f" --rounds={asked.rounds}",
        "environment": bench.environment(),
        "batch": asked.batch,
        "starts": STARTS,
        "steps": STEPS,
        "ms": {name: {"median": float(np.median(t)), "all": t} for name, t in times.items()},
        "mean_loss": {name: float(of_one.loss.mean()) for name, of_one in found.items()},
        "halving": halving,
    }
    some = some_images(built, asked.quality)
    best = on_a_grid(built, variables, some)
    found = searches(built, variables, some)[1]
    record["within_a_percent_of_a_grid_of_degrees"] = {
        name: float((of_one.loss <= 1.01 * best).mean()) for name, of_one in found.items()
    }
    test = len(built.dataset.splits["test"])
    record["same_as_every_start_by_adam_on_test"] = {
        name: pose_schedules.share(found[LITERAL], of_one, test) for name, of_one in found.items()
    }
    if asked.amortised:
        record["inference"] = measured_inference(asked)
    write(asked.out, record)
    json.dump({k: v for k, v in record.items() if k != "environment"}, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
