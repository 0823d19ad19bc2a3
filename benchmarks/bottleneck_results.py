"""Shortened text encoders: accuracy against measured time, and what the search is worth.

Writes ``results/bottleneck_results.json``, part by part; networks that are there already and
current are kept:

    python benchmarks/bottleneck_results.py accuracy     # trains every network; many hours
    python benchmarks/bottleneck_results.py latency      # of those, batches 1 and 32, 3 lengths
    python benchmarks/bottleneck_results.py serving      # texts a second, padded in two ways
    python benchmarks/bottleneck_results.py prediction   # the table against 20 other networks
    python benchmarks/bottleneck_results.py strategies   # evolution, enumeration, random
    TORCH_PYTHON=.venv-torch/bin/python python benchmarks/bottleneck_results.py torch

``--setting`` is one of ``configs/bottleneck.py``: by default MiniLM on reviews with an epoch of
each training, ``rotten_tomatoes`` with three and two, ``verses`` the small task. ``--lines`` names
some of the networks, and ``--quick`` is a trial in minutes, whose record goes to ``runs``. All
networks of a seed start from the same supernet and are trained alike, the full one too. Needs
``make text``, and the networks for single texts in integers ``make onnx``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jax
import numpy as np
import scipy.stats
from record_files import locked_record, read, stamp
from recorded import (
    HERE,
    command,
    config_of,
    folder_of,
    is_current,
    keep_compiled,
    key_of,
    provide,
    train,
)
from workers import Worker, take_turns

from jaxeff import bench, data
from jaxeff.models.encoder_space import stratified
from jaxeff.search import measure, strategies
from jaxeff.search import run as searching
from jaxeff.search.front import hypervolume
from jaxeff.search.strategies import Evaluations
from jaxeff.serving import TextModel
from jaxeff.train import prerequisites

SEEDS = (0, 1, 2)
NONE = "search=none"
MEAN, MERGE = 'model.kind="mean"', 'model.kind="merge"'  # the supernet stays the same
FIXED: dict[str, tuple[str, list[str]]] = {
    "full": (NONE, []),
    **{f"depth {d}": (NONE, [f"model.depth={d}"]) for d in (5, 4, 3, 2)},
    "mean after 2 and 4": (NONE, [MEAN, "model.cuts=[[2, 2], [4, 2]]"]),
    "Funnel: mean after 2 and 4, pooled queries": (
        NONE,
        [MEAN, "model.cuts=[[2, 2], [4, 2]]", "model.pooled_queries=true"],
    ),
    "linear after 2 and 4": (NONE, ["model.cuts=[[2, 2], [4, 2]]"]),
    "merging after 2 and 4": (NONE, [MERGE, "model.cuts=[[2, 2], [4, 2]]"]),
    "merging after 1, 2 and 3": (NONE, [MERGE, "model.cuts=[[1, 2], [2, 2], [3, 2]]"]),
}
SEARCHED: dict[str, tuple[str, list[str]]] = {
    f"{name}, {share} of the time": (f"search={name}", [f"search.max_latency_share={share}"])
    for share in (0.8, 0.6, 0.5, 0.4)
    for name in ("evolution", "gradient", "retention", "random")
}
#: Of networks that answer single short texts in 8-bit integers, in the time of three layers.
SINGLE: dict[str, tuple[str, list[str]]] = {
    "evolution, single texts in integers": (
        "search=evolution,runtime=onnx",
        ["search.max_latency_share=0.45", "search.length=16"],
    )
}
LINES = {**FIXED, **SEARCHED, **SINGLE}
BATCHES, LENGTHS = (1, 32), (32, 128, 512)
PADDED = 128  # to which texts are padded that are not brought together by length


class Record:
    """The record, and where runs go."""

    def __init__(self, arguments: argparse.Namespace):
        self.quick, self.setting = arguments.quick, arguments.setting
        self.lines = arguments.lines or list(LINES)
        name = "bottleneck_results"
        self.runs = HERE.parent / "runs" / f"{name}{'_quick' if self.quick else ''}" / self.setting
        self.runs.mkdir(parents=True, exist_ok=True)
        folder = self.runs if self.quick else HERE / "results"
        self.path = folder / f"{name}.json"
        self.seeds = SEEDS[:1] if self.quick else SEEDS

    def known(self, part: str) -> dict[str, Any]:
        return read(self.path).get(self.setting, {}).get(part, {})

    def write(self, part: str, results: dict[str, Any]) -> None:
        """Replaces a part, all of which is measured at one go."""
        provenance = stamp(
            f"python benchmarks/bottleneck_results.py {part} --setting={self.setting}"
        )
        with locked_record(self.path) as record:
            record["command"] = "python benchmarks/bottleneck_results.py"
            record.setdefault(self.setting, {})[part] = {**results, **provenance}

    def write_accuracy(self, name: str, line: dict[str, Any]) -> None:
        """Puts one line among those of the networks, which are trained one after the other."""
        with locked_record(self.path) as record:
            record["command"] = "python benchmarks/bottleneck_results.py"
            part = record.setdefault(self.setting, {}).setdefault("accuracy", {})
            part[name] = line

    def folder(self, name: str, seed: int) -> Path:
        """Returns where a network of a line is trained."""
        return folder_of(self.config(*LINES[name], seed), self._base(name, seed))

    def _base(self, name: str, seed: int) -> Path:
        return self.runs / name.replace(", ", "-").replace(": ", "-") / str(seed)

    def config(self, argument: str, overrides: list[str], seed: int) -> Any:
        """Returns a config; the seed is that of the supernet too."""
        quick = ["quick"] if self.quick else []
        full_config = config_of(",".join([self.setting, argument, *quick]), overrides, "bottleneck")
        for one in (full_config, *full_config.prerequisites.values()):
            one.seed, one.devices.cpu = seed, 1
        return full_config

    def network(self, name: str, seed: int) -> dict[str, Any]:
        """Trains the network of a line if need be, and returns its report."""
        return train(self.config(*LINES[name], seed), self._base(name, seed))


def accuracy(record: Record) -> None:
    """Trains every network that is asked for."""
    for name in record.lines:
        argument, overrides = LINES[name]
        told = command(f"{record.setting},{argument}", overrides, "bottleneck")

        def key(argument=argument, overrides=overrides):
            return key_of(record.config(argument, overrides, seed) for seed in record.seeds)

        if is_current(record.known("accuracy").get(name, {}), told, key):
            continue
        reports = [record.network(name, seed) for seed in record.seeds]
        test = [report["metrics"]["test"]["accuracy"] for report in reports]
        line = {
            "command": told,
            "environment": reports[0]["environment"],
            "key": key(),
            "test": test,
            "test_mean": mean(test),
            "test_deviation": stdev(test) if len(test) > 1 else None,
            "macs_per_example": [r["cost"]["macs_per_example"] for r in reports],
            "training_seconds": mean(r["training"]["seconds"] for r in reports),
            "models": [r["config"]["model"] for r in reports],
            "searches": [
                {k: summary[k] for k in ("requirement", "met", "found", "full", "seconds")}
                | {"evaluations": summary["evaluations"]}
                for r in reports
                if (summary := r["extras"].get("search"))
            ],
        }
        record.write_accuracy(name, line)
        print(f"{name:45s} {line['test_mean']:.4f}", flush=True)


def latency(record: Record) -> None:
    """Times the networks of all seeds, all of one shape in turns; no text is padded."""
    from jaxeff.models import MODELS

    lines = {n: line["models"] for n, line in record.known("accuracy").items() if n in LINES}
    networks = {
        json.dumps(model): MODELS.build(model, num_outputs=2)  # the same one for most seeds
        for models in lines.values()
        for model in models
    }
    longest = min(network.encoder.shape.max_length for network in networks.values())
    rows: dict[str, dict[str, Any]] = {}
    for batch in BATCHES:
        for length in LENGTHS[:1] if record.quick else LENGTHS:
            if length > longest:
                continue
            calls = {
                key: measure.network_call(one_network, batch, length)
                for key, one_network in networks.items()
            }
            rounds = 2 if record.quick else max(4, min(30, 30 * 32 * 32 // (batch * length)))
            times = bench.interleaved(calls, rounds, 2 if batch > 1 else 3, warmup=1)
            rows[f"batch {batch}, length {length}"] = {
                name: {
                    statistic: [getattr(times[json.dumps(model)], statistic) for model in models]
                    for statistic in ("median_ms", "min_ms")
                }
                for name, models in lines.items()
            }
            print(f"batch {batch}, length {length}", flush=True)
    record.write("latency", rows)


def prediction(record: Record) -> None:
    """Compares predicted with measured times of networks on which nothing was fitted."""
    network: Any = _supernet(record).model
    space, shape = network.space, network.encoder.shape
    rows = {}
    shapes = ((1, 32),) if record.quick else ((1, 32), (1, 128), (32, 32))
    for batch, length in shapes:
        began = time.perf_counter()

        def macs(plan: Any, length: int = length) -> float:
            return plan.macs(shape, length)

        fitted = list(
            dict.fromkeys([space.full, space.smallest, *stratified(space.plans, macs, 3, 1)])
        )
        others = [plan for plan in space.plans if plan not in fitted]
        held_out = stratified(others, macs, 4 if record.quick else 20, seed=2)
        rounds = 2 if record.quick else 20 if batch == 1 else 6
        times = measure.time_parts(
            network.subnetwork, space.plans, [*fitted, *held_out], batch, length, rounds
        )
        line: dict[str, Any] = {"seconds": time.perf_counter() - began, "parts": len(times)}
        for statistic in ("median_ms", "min_ms"):
            known = {key: ms for key, ms in times.items() if key not in held_out}
            predict = measure.table(known, batch, length, statistic)
            predicted = np.array([predict(plan) for plan in held_out])
            measured = np.array([getattr(times[plan], statistic) for plan in held_out])
            line[statistic] = {
                "mean_error": float(np.mean(np.abs(predicted / measured - 1))),
                "largest_error": float(np.max(np.abs(predicted / measured - 1))),
                "rank_correlation": float(scipy.stats.spearmanr(predicted, measured).statistic),
                "predicted": predicted.tolist(),
                "measured": measured.tolist(),
            }
            print(batch, length, statistic, line[statistic]["mean_error"], flush=True)
        rows[f"batch {batch}, length {length}"] = line
    record.write("prediction", rows)


def _supernet(record: Record) -> Any:
    """Returns the trained supernet of the first seed."""
    config = record.config(NONE, [], record.seeds[0])
    folder = folder_of(config, record.runs / "first")
    provide(config, folder)
    return prerequisites.trained(config, folder)["teacher"]


def _dataset(record: Record) -> data.Dataset:
    fields = record.config(NONE, [], record.seeds[0]).data.to_dict()
    return data.load(fields.pop("name"), **fields)


def strategies_compared(record: Record) -> None:
    """Spends equal budgets by every strategy, on one table and the same scores."""
    config = record.config(NONE, [], record.seeds[0])
    supernet = _supernet(record)
    network: Any = supernet.model
    space, shape = network.space, network.encoder.shape
    dataset = _dataset(record)
    score = searching.Scorer(supernet, dataset, config.eval.batch_size, config.search.examples)
    length, known = dataset.input_shape[0], {}
    times = measure.time_parts(
        network.subnetwork, space.plans, [space.full], 1, length, 2 if record.quick else 12
    )
    table = measure.table(times, 1, length)

    def kept(plan: Any) -> float:
        if plan not in known:
            known[plan] = score(plan)
        return known[plan]

    budget, seeds = (4, 1) if record.quick else (20, 5)
    ways: dict[str, Any] = {
        "evolution": strategies.evolution,
        "enumeration": strategies.enumeration,
        "random": strategies.random_search,
    }
    fronts: dict[str, list[Any]] = {}
    for name, way in ways.items():
        for seed in range(1 if name == "enumeration" else seeds):
            evaluations = Evaluations(space, kept, table, budget)
            way(evaluations, np.random.default_rng(seed))
            fronts.setdefault(name, []).append(evaluations.scores)
    worst = 1.01 * table(space.full), min(known.values()) - 0.01

    def volume(evaluated: Any) -> float:
        return hypervolume([table(p) for p in evaluated], list(evaluated.values()), *worst)

    everything = volume(known)
    shares = {
        name: {"share_of_all_known": [volume(one) / everything for one in draws], "budget": budget}
        for name, draws in fronts.items()
    }
    # How well depth and cost alone order the networks that were evaluated.
    costs = [plan.macs(shape, length) for plan in known]
    ranks = scipy.stats.spearmanr(costs, list(known.values())).statistic
    record.write(
        "strategies",
        {**shares, "evaluated": len(known), "rank_correlation_with_macs": float(ranks)},
    )
    print(json.dumps(shares, indent=2))


class Here:
    """Times calls of this process, as a `Worker` does."""

    def __init__(self, calls: dict[str, Any]):
        self.calls, self.names = calls, list(calls)
        for call in calls.values():
            jax.block_until_ready(call())

    def time(self, name: str, calls: int) -> list[float]:
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            jax.block_until_ready(self.calls[name]())
            times.append((time.perf_counter() - began) * 1e3)
        return times


def serving(record: Record) -> None:
    """Times the answers to test texts, padded to one length and to the next of a few lengths."""
    split: Any = _dataset(record).splits["test"]
    texts = [split.texts[row] for row in split.indices[: 64 if record.quick else 512]]
    calls: dict[str, Any] = {}
    for name in (n for n in record.known("accuracy") if n in LINES):
        folder = record.folder(name, record.seeds[0]) / "model"
        for padding in ("one length", "next length"):
            model = TextModel.load(folder)
            if padding == "one length":
                model.lengths = [min(PADDED, model.network.encoder.shape.max_length)]
            calls[f"{name}, {padding}"] = functools.partial(model.logits, texts)
    times = bench.interleaved(calls, 2 if record.quick else 3, 1, warmup=1)
    record.write(
        "serving",
        {
            name: {"texts_per_second": len(texts) / timing.median_ms * 1e3}
            for name, timing in times.items()
        },
    )


def torch(record: Record) -> None:
    """Times the full encoder of MiniLM's sizes here and in PyTorch, in turns."""
    from jaxeff.models.encoder import Encoder, EncoderShape
    from jaxeff.models.encoder_plan import EncoderPlan

    shapes = ["1x32", "1x128", "32x32"] + ([] if record.quick else ["32x128"])
    encoder = Encoder(EncoderShape(30522, 384, 6, 12, 1536), EncoderPlan(6))
    calls = {shape: measure.network_call(encoder, *map(int, shape.split("x"))) for shape in shapes}
    python = os.environ.get("TORCH_PYTHON", sys.executable)
    worker = Worker([python, str(HERE / "torch_encoder_worker.py"), *shapes])
    sides: Any = {"jaxeff": Here(calls), "torch": worker}
    try:
        timings = take_turns(sides, 2 if record.quick else 10, 3)
    finally:
        worker.close()
    record.write("torch", timings)
    for name, timing in timings.items():
        print(name, f"{timing['ms']:.2f} ms")


PARTS = {
    "accuracy": accuracy,
    "latency": latency,
    "prediction": prediction,
    "serving": serving,
    "strategies": strategies_compared,
    "torch": torch,
}


def main() -> None:
    """Runs the parts that the command line names, or all but PyTorch's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--setting", default="rotten_tomatoes_short")
    parser.add_argument("--lines", nargs="*", choices=LINES, metavar="LINE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--again", action="store_true")  # read by `is_current`
    arguments = parser.parse_args()
    keep_compiled()
    for part in arguments.parts or [name for name in PARTS if name != "torch"]:
        PARTS[part](Record(arguments))


if __name__ == "__main__":
    main()
