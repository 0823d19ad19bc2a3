"""The training loop: steps, logs, evaluations, checkpoints, and an exact resume of all of them.

From the command line to an update: `jaxeff.main.main` calls `launch.run`, which sets up the
process; `launch.train` builds the experiment; `Training.run` loops over batches; and the
algorithm's ``update``, mapped over the devices, makes a step.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.bench import compiled_memory
from jaxeff.errors import TrainingError
from jaxeff.eval import MetricsWriter
from jaxeff.eval.console import Progress, say
from jaxeff.train import run_report, selection
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.evaluate import Evaluator
from jaxeff.train.experiment import Experiment
from jaxeff.train.interrupt import Interrupt

CHECKPOINTS = selection.CHECKPOINTS


def better(new: dict[str, float], old: dict[str, float], by: str = "accuracy") -> bool:
    """Whether validation metrics improved: by accuracy, then by loss; or by the loss alone."""
    if not old:
        return True
    if by == "loss":
        return new["loss"] < old["loss"]
    return (new.get("accuracy", 0.0), -new["loss"]) > (old.get("accuracy", 0.0), -old["loss"])


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


class Training:
    """One run of an experiment in a working directory.

    A checkpoint contains the training state and the best parameters so far, as arrays; and as plain
    values the position of the data, unlogged metrics, the best step and its metrics, the elapsed
    seconds and the number of resumes.

    Args:
      experiment: what to train.
      workdir: for checkpoints, metrics and the report.
    """

    def __init__(self, experiment: Experiment, workdir: Path):
        self.experiment, self.workdir = experiment, workdir
        self.config, self.devices = experiment.config, experiment.devices
        self.evaluate = Evaluator(experiment)
        self.checkpoints = Checkpoints(
            workdir / CHECKPOINTS, self.config.checkpoint.keep, self._say
        )
        self.by = "accuracy" if experiment.dataset.task == "classification" else "loss"
        if not self._restore():
            self._start()

    def _start(self) -> None:
        """Initialises the state before the first step."""
        self.state = self.experiment.init_state()
        first = next(iter(self.experiment.algorithm.candidates(self.state)))
        self.best = self._snapshot(first)
        self.values: dict[str, Any] = {
            "weights": first,  # selected by the last validation
            "best_weights": first,
            "best_step": -1,
            "best_metrics": {},
            "pending": [],
            "last_metrics": {},
            "seconds": 0.0,
            "waiting": 0.0,  # seconds of these that the devices had to wait for a batch
            "resumed": 0,
            "data": None,
            "cost": {},  # of a training step: compile_seconds, and step_memory_bytes
        }

    @property
    def main_process(self) -> bool:
        """Whether this process writes logs and reports."""
        return jax.process_index() == 0

    @property
    def step(self) -> int:
        """Updates made so far."""
        return int(self.state.step)

    def _say(self, line: str) -> None:
        if self.main_process:
            say(line)

    def _snapshot(self, weights: str) -> dict[str, Any]:
        """Returns a copy of the named weights; the state itself is donated to the step."""
        weights_now = selection.named(self.experiment, self.state, weights)
        copy: dict[str, Any] = jax.tree.map(jnp.copy, weights_now)
        return copy

    def _restore(self) -> bool:
        """Restores the newest intact checkpoint; returns whether there is one."""
        shapes = self.experiment.state_shapes()
        like = {"train": shapes, "best": selection.shapes(self.experiment, shapes)}
        restored = self.checkpoints.restore(like, set_aside=True)
        if restored is None:
            return False
        step, tree, values = restored
        self.state, self.best, self.values = (
            tree["train"],
            tree["best"],
            {"cost": {}, "waiting": 0.0, **values},
        )
        if step < self.config.train.num_steps:
            self.values["resumed"] += 1
            self._say(f"resuming at step {step} from {self.checkpoints.directory}")
        return True

    def run(self) -> bool:
        """Trains to the last step; returns False if a signal stopped it before.

        Raises:
          TrainingError: the loss is not finite.
        """
        config, total = self.config, self.config.train.num_steps
        start = self.step
        if start >= total:
            return True
        batches = self._batches()
        first = next(batches)
        train_step = self._compile(first)
        writer = MetricsWriter(self.workdir, resume_step=start) if self.main_process else None
        progress = Progress(total, start, self.main_process)
        began, before = time.monotonic(), self.values["seconds"]
        metrics: Any = None
        try:
            with Interrupt() as interrupt:
                for step in range(start + 1, total + 1):
                    asked = time.monotonic()
                    batch = self.devices.shard(first if step == start + 1 else next(batches))
                    # If the step before has ended by now, the devices were idle: an upper bound.
                    if metrics is None or metrics["loss"].is_ready():
                        self.values["waiting"] += time.monotonic() - asked
                    self.state, metrics = train_step(self.state, batch)
                    if self.devices.must_wait:
                        jax.block_until_ready(metrics)
                    self.values["pending"].append(metrics)
                    progress.advance(step)
                    if step % config.train.log_every == 0 or step == total:
                        self._log(step, writer, progress)
                    if step % config.train.eval_every == 0 or step == total:
                        self._validate(step, writer, progress)
                    stop = interrupt.requested(step)
                    if step % config.checkpoint.every == 0 or step == total or stop:
                        self.values["seconds"] = before + time.monotonic() - began
                        self._save(step, batches)
                    if stop and step < total:
                        self.checkpoints.wait()
                        self._say(f"stopped at step {step}; the same command goes on from there")
                        return False
                self.checkpoints.wait()
        finally:
            progress.close()
            if writer is not None:
                writer.close()
        return True

    def _batches(self) -> Any:
        """Returns the iterator over batches, at the position of the restored run."""
        batches = self.experiment.train_batches()
        if self.values["data"] is not None:
            batches.set_state(self.values["data"])
        return batches

    def _compile(self, batch: Any) -> Any:
        began = time.monotonic()
        step = self.experiment.train_step()
        compiled = step.lower(self.state, self.devices.shard(batch)).compile()
        self.values["cost"] = {
            "compile_seconds": time.monotonic() - began,
            "step_memory_bytes": run_report.memory_section(compiled_memory(compiled)),
        }
        return compiled

    def _drain(self, step: int) -> list[dict[str, float]]:
        """Fetches the metrics of the steps since the last log, and checks that they are finite."""
        pending = self.values["pending"]
        fetched = [{k: float(v) for k, v in m.items()} for m in jax.device_get(pending)]
        for offset, metrics in enumerate(fetched):
            if not math.isfinite(metrics["loss"]):
                at = step - len(fetched) + 1 + offset
                raise self._diverged(f"the loss became {metrics['loss']} at step {at}")
        self.values["pending"] = fetched
        return fetched

    def _diverged(self, what: str) -> TrainingError:
        self.checkpoints.wait()
        steps, optim = self.checkpoints.steps, self.config.optim
        last = f"step {steps[-1]} in {self.checkpoints.directory}" if steps else "none yet"
        return TrainingError(
            f"{what}; lower config.optim.learning_rate (now {optim.learning_rate}) or set "
            f"config.optim.clip_norm (now {optim.clip_norm}); last good checkpoint: {last}"
        )

    def _log(self, step: int, writer: MetricsWriter | None, progress: Progress) -> None:
        """Logs the means over the steps since the last log."""
        fetched = self._drain(step)
        means = {name: math.fsum(m[name] for m in fetched) / len(fetched) for name in fetched[0]}
        self.values["pending"] = []
        self.values["last_metrics"] = means
        progress.show(step, means)
        if writer is not None:
            writer.write(step, {f"train/{name}": value for name, value in means.items()})

    def _validate(self, step: int, writer: MetricsWriter | None, progress: Progress) -> None:
        """Evaluates on the validation split and keeps the parameters if they are the best.

        Where the algorithm has several kinds of weights, the best of them counts.
        """
        algorithm = self.experiment.algorithm
        named = algorithm.candidates(self.state)
        results = {
            name: self.evaluate(params, algorithm.statistics(self.state, name), "validation")
            for name, params in named.items()
        }
        chosen = next(iter(results))
        for name, values in results.items():
            if values and better(values, results[chosen], self.by):
                chosen = name
        metrics, self.values["weights"] = results[chosen], chosen
        if not metrics or better(metrics, self.values["best_metrics"], self.by):
            self.best, self.values["best_step"] = self._snapshot(chosen), step
            self.values["best_metrics"], self.values["best_weights"] = metrics, chosen
        progress.show(step, {f"validation {name}": value for name, value in metrics.items()})
        if writer is not None and metrics:
            rows = {f"validation/{name}": value for name, value in metrics.items()}
            if len(results) > 1:
                rows |= {
                    f"validation/{metric}_{name}": value
                    for name, values in results.items()
                    for metric, value in values.items()
                }
            writer.write(step, rows)

    def _save(self, step: int, batches: Any) -> None:
        self._drain(step)
        if not _all_finite(self.state.params):
            raise self._diverged(f"the parameters became infinite or NaN at step {step}")
        values = {**self.values, "data": batches.get_state()}
        self.checkpoints.save(step, {"train": self.state, "best": self.best}, values)

    def progress(self) -> dict[str, Any]:
        """Returns the report's section ``training`` for the updates made so far."""
        config, steps, seconds = self.config, self.step, self.values["seconds"]
        examples = steps * config.train.batch_size
        return {
            "steps": steps,
            "updates": steps * self.experiment.algorithm.updates_per_batch,
            "epochs": examples / len(self.experiment.dataset.splits["train"]),
            "seconds": seconds,
            "examples_per_second": examples / max(seconds, 1e-9),
            "waiting_for_data": min(1.0, self.values["waiting"] / max(seconds, 1e-9)),
            "resumed": self.values["resumed"],
        }

    def selection(self) -> selection.Selection:
        """Returns the parameters that the config selects for the test, with their step and kind."""
        return selection.select(self.experiment, self.state, self.best, self.values)

    def close(self) -> None:
        """Finishes the running save."""
        self.checkpoints.close()
