"""The benchmark job: counts, latency, and time and memory of a training step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import ml_collections

from jaxeff import bench
from jaxeff.eval.console import say
from jaxeff.train import announce, prerequisites, run_report


def benchmark(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Measures a fresh model, and reports into ``workdir/bench``."""
    built = prerequisites.build_untrained(config, workdir)
    announce.job(built, workdir / "bench", "measuring")
    state = built.init_state()
    batch = built.devices.shard(next(built.train_batches()))
    mapped: Any = built.devices.map(built.algorithm.update)
    step, seconds = bench.compile_time(mapped, state, batch)
    timing = bench.measure(step, state, batch, warmup=3, repeats=20)
    if jax.process_index() != 0:
        return None
    cost = run_report.inference_cost(built, state.params, state.model_state)
    cost["step_memory_bytes"] = run_report.memory_section(bench.compiled_memory(step))
    cost["compile_seconds"] = seconds
    report = run_report.write(
        built,
        workdir / "bench",
        metrics={},
        cost=cost,
        training={"steps": 0, "seconds": 0.0},
        params=state.params,
        extras={"training_step_ms": {"median": timing.median_ms, "p95": timing.p95_ms}},
        curve=False,
    )
    say(f"training step {timing.median_ms:.2f} ms (median of {timing.repeats})")
    for size, times in report["cost"]["latency_ms"].items():
        say(f"inference {size.replace('_', ' ')}: {times['median']:.3f} ms (median)")
    say(f"report     {workdir / 'bench' / 'report.md'}")
    return report
