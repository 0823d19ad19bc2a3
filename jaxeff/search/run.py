"""The search between the training of a supernet and that of the network found in it.

``config.search`` names a strategy and a requirement. The supernet is the prerequisite "teacher".
What was found stands in ``search/search.json`` of the run's folder, so that a run that goes on, and
an evaluation, take the same network.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from jaxeff import bench, data
from jaxeff.config import first_difference, plain
from jaxeff.errors import CheckpointError, ConfigError, DataError
from jaxeff.eval.console import say
from jaxeff.layers.bottleneck import Bottleneck
from jaxeff.models.encoder import TransformerLayer
from jaxeff.models.encoder_plan import EncoderPlan
from jaxeff.models.encoder_space import stratified
from jaxeff.models.trained import Trained
from jaxeff.search import measure, record
from jaxeff.search.choice import Candidate, choose
from jaxeff.search.front import pareto
from jaxeff.search.record import TABLE
from jaxeff.search.searches import SEARCHES, SearchContext, SearchStrategy
from jaxeff.search.strategies import Evaluations

SUPERNET = "teacher"


def check(config: ml_collections.ConfigDict, trained: Mapping[str, Trained]) -> None:
    """Raises `ConfigError` if a config asks for a search that is not possible."""
    if not config.search.name:
        return
    SEARCHES.build(config.search, "search").programs()
    supernet: Any = trained[SUPERNET].model if SUPERNET in trained else None
    if getattr(supernet, "space", None) is None:
        raise ConfigError(
            f"config.search needs a supernet as config.prerequisites.{SUPERNET}, with model "
            "'encoder_supernet'"
        )
    if config.model.name != "encoder":
        raise ConfigError("config.search finds a model 'encoder'; name it in config.model.name")
    if jax.process_count() > 1:
        raise ConfigError("config.search measures one machine; train with a single process")
    if SUPERNET in config.prerequisites:
        theirs = plain(config.prerequisites[SUPERNET].data)
        difference = first_difference(theirs, plain(config.data), "data")
        if difference:
            raise ConfigError(
                f"config.search: the supernet must be trained on the data of the search, but for "
                f"config.prerequisites.{SUPERNET} {difference}"
            )


def resolved(
    config: ml_collections.ConfigDict,
    trained: Mapping[str, Trained],
    workdir: Path,
    dataset: Callable[[], data.Dataset],
) -> ml_collections.ConfigDict:
    """Returns the config with the network found, after searching for it if need be.

    Args:
      config: the config; one without a search is returned as it is.
      trained: the prerequisites, trained.
      workdir: folder of the run.
      dataset: gives the data, if it is needed.

    Raises:
      CheckpointError: the record of the search is lost or damaged after the training of the network
        found has begun, which another search might not find again.
    """
    if not config.search.name:
        return config
    space = getattr(trained[SUPERNET].model, "space", None)
    complaint = "the record of its search is missing"
    try:
        known = record.read(workdir, space)
    except DataError as error:
        known, complaint = None, str(error)
    if known is None:
        if _has_begun(workdir):
            raise CheckpointError(
                f"{workdir}: {complaint}, and the checkpoints are those of the network that it "
                f"named; restore {record.path_of(workdir)}, or give another --workdir"
            )
        if record.path_of(workdir).exists():
            say(f"warning: {complaint}; the search is made again")
        search: SearchStrategy = SEARCHES.build(config.search, "search")
        folder = record.path_of(workdir).parent
        record.write(workdir, run(search, trained[SUPERNET], dataset(), folder, config))
        known = record.read(workdir, space)
        assert known is not None
    return _with_network(config, known)


def found_before(
    config: ml_collections.ConfigDict, supernets: Mapping[str, Trained], workdir: Path
) -> ml_collections.ConfigDict:
    """Returns the config with the network that the run in a folder has found; searches for nothing.

    Args:
      config: the config; one without a search is returned as it is.
      supernets: the prerequisites, trained or not.
      workdir: folder of the run.

    Raises:
      CheckpointError: the run has not searched yet.
      DataError: the record of its search is damaged.
    """
    if not config.search.name:
        return config
    known = record.read(workdir, getattr(supernets[SUPERNET].model, "space", None))
    if known is None:
        raise CheckpointError(
            f"{workdir} holds no network that config.search has found; run --mode=train with it "
            "first, or give the network in config.model with config.search.name=''"
        )
    return _with_network(config, known)


def _with_network(
    config: ml_collections.ConfigDict, known: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Returns a copy of the config with the network that a record says was found."""
    config = copy.deepcopy(config)
    with config.unlocked():
        for field, value in known["found"]["plan"].items():
            config.model[field] = value
    return config


def _has_begun(workdir: Path) -> bool:
    """Whether a folder holds checkpoints."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def summary(workdir: Path) -> dict[str, Any]:
    """Returns what a run's report says of its search: ``{}`` if there was none."""
    recorded = record.read(workdir)
    return {"search": recorded} if recorded else {}


def run(
    search: SearchStrategy,
    supernet: Trained,
    dataset: data.Dataset,
    folder: Path,
    config: ml_collections.ConfigDict,
) -> dict[str, Any]:
    """Searches, and returns the record; the table of latencies goes into the folder."""
    network: Any = supernet.model
    space, began, programs = network.space, time.monotonic(), search.programs()
    length = search.length or dataset.input_shape[0]
    shape = network.encoder.shape
    whole = [space.full, space.smallest]
    whole += stratified(space.plans, lambda plan: plan.macs(shape, length), 3, seed=1)
    say(
        f"search   measures the parts of {len(space)} networks at batch {search.batch}, "
        f"length {length}, in {programs.description}"
    )
    times = measure.time_parts(
        network.subnetwork,
        space.plans,
        list(dict.fromkeys(whole)),
        search.batch,
        length,
        search.rounds,
        programs,
    )
    table = measure.table(times, search.batch, length, runtime=programs.description)
    table.save(folder / TABLE)
    full_ms = getattr(times[space.full], measure.STATISTIC)
    requirement = search.requirement(full_ms)
    measured_seconds = time.monotonic() - began
    score = Scorer(supernet, dataset, config.eval.batch_size, search.examples)
    limit = requirement.max_ms or math.inf
    evaluations = Evaluations(space, score, table, search.budget, limit)
    say(f"search   evaluates {search.budget} networks for {requirement}")
    known = SearchContext(supernet, table, dataset.splits["train"], full_ms)
    search.explore(evaluations, np.random.default_rng(config.seed), known)
    if not evaluations.scores:  # nothing is predicted to be fast enough
        fastest = evaluations.allowed[0]
        evaluations.scores[fastest] = score(fastest)
    candidates = [Candidate(plan, value, table(plan)) for plan, value in evaluations.scores.items()]
    chosen = choose(candidates, requirement, _measurement(network, search, length, programs))
    met = requirement.met_by(chosen)
    sentence = f"found {chosen}" if met else f"nothing meets {requirement}; the closest is {chosen}"
    say(f"search   {sentence}")
    front = pareto([c.predicted_ms for c in candidates], [c.accuracy for c in candidates])
    return {
        "requirement": str(requirement),
        "met": met,
        "sentence": sentence,
        "found": described(chosen),
        "full": {"measured_ms": full_ms, "accuracy": score(space.full)},
        "front": [described(candidates[i]) for i in front],
        "evaluated": [described(candidate) for candidate in candidates],
        "networks_in_space": len(space),
        "evaluations": len(candidates),
        "seconds": {
            "measuring": measured_seconds,
            "all": time.monotonic() - began,
        },
        "batch": search.batch,
        "length": length,
        "runtime": programs.description,
        "environment": bench.environment(),
    }


def described(candidate: Candidate) -> dict[str, Any]:
    """Returns a candidate as plain values; its plan as fields of the model 'encoder'."""
    fields = dataclasses.asdict(candidate)
    fields["plan"]["cuts"] = [list(cut) for cut in candidate.plan.cuts]
    return fields


def _measurement(
    network: Any, search: SearchStrategy, length: int, programs: measure.Programs
) -> Callable[[Sequence[Candidate]], list[Candidate]]:
    def measured(candidates: Sequence[Candidate]) -> list[Candidate]:
        calls = {
            str(i): programs.network(network.subnetwork(c.plan), search.batch, length)
            for i, c in enumerate(candidates)
        }
        times = bench.interleaved(calls, search.rounds, 3, warmup=2).values()
        return [
            dataclasses.replace(candidate, measured_ms=getattr(timing, measure.STATISTIC))
            for candidate, timing in zip(candidates, times, strict=True)
        ]

    return measured


@functools.cache
def _program(module: nn.Module) -> Callable[..., Any]:
    """Returns a module without a place in a network as a function of its variables and inputs."""
    program: Callable[..., Any] = jax.jit(module.apply)
    return program


def _in_parts(call: Callable[..., Any], args: Any, options: Any, context: Any) -> Any:
    """Calls a network's parts as programs that all parts of the same sizes share."""
    module = context.module
    is_part = isinstance(module, (TransformerLayer, Bottleneck, nn.LayerNorm))
    if not is_part or not module.path:  # without a path it is the program of a part
        return call(*args, **options)
    inputs = {name: value for name, value in options.items() if name != "train"}
    return _program(module.clone(parent=None, name=None))(module.variables, *args, **inputs)


class Scorer:
    """Accuracy of plans with the parameters of a supernet.

    A program per part and its sizes, which few networks need new ones of: a program per network
    takes many times as long to compile as to run.

    Args:
      supernet: the trained supernet.
      dataset: whose validation split to use.
      batch_size: examples of a call, at most.
      examples: of the split, drawn at random; 0 takes all.
    """

    def __init__(self, supernet: Trained, dataset: data.Dataset, batch_size: int, examples: int):
        self._network: Any = supernet.model
        self._variables = jax.device_put(dict(supernet.variables), jax.local_devices()[0])
        split = dataset.splits["validation"]
        if not len(split):
            raise ConfigError(
                f"config.search: data '{dataset.name}' has no validation examples; set "
                "config.data.validation_fraction above 0"
            )
        # Drawn from all of it: a split may be sorted by class.
        number = min(examples or len(split), len(split))
        rows = np.random.default_rng(0).permutation(len(split))[:number]
        parts = np.array_split(rows, -(-number // batch_size))
        # All of one size, for which programs are compiled.
        self._batches = [(split.take(np.resize(part, len(parts[0]))), len(part)) for part in parts]

    def __call__(self, plan: EncoderPlan) -> float:
        """Returns the accuracy of a plan's network."""
        network = self._network.subnetwork(plan)
        right = 0
        for batch, number in self._batches:
            options = {"mask": batch["mask"]} if "mask" in batch else {}
            with nn.intercept_methods(_in_parts):
                logits = np.asarray(network.apply(self._variables, batch["inputs"], **options))
            # An answer of NaN is none, and never the label.
            answers = np.where(np.isfinite(logits).all(-1), logits.argmax(-1), -1)
            right += int((answers == batch["labels"])[:number].sum())
        return right / sum(number for _, number in self._batches)
