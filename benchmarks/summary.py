"""All comparisons of speed in short form, and one table of ratios; at most 15 minutes.

Ratios are the time (or memory) of what is compared with over that of the package. Every part runs
in a process of its own, with few rounds; the scripts that it calls make the records. With
``TORCH_PYTHON``, an interpreter that has PyTorch, that is compared too. Run it on an idle machine:

    TORCH_PYTHON=/path/to/python/with/torch python benchmarks/summary.py
    python benchmarks/summary.py networks exports       # some of the parts
    python benchmarks/summary.py --json ratios.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record_files import stamp, write

HERE = Path(__file__).resolve().parent
TORCH = os.environ.get("TORCH_PYTHON")
Ratios = dict[str, float]


def recurrent() -> Ratios:
    """Forward and backward of 784 steps; FPTT's updates too."""
    import rnn_speed

    return rnn_speed.ratios_of(rnn_speed.measure((128, 784, 1, 128), 2, 1, TORCH))


def small_recurrent() -> Ratios:
    """The least ratio of a corner of the grid of `rnn_heat.py`."""
    import rnn_heat

    if not TORCH:
        return {}
    ratios = {}
    workers = rnn_heat.started(TORCH)
    for cell, task, line in rnn_heat.lines(workers, rnn_heat.QUICK, 3):
        ratios[f"PyTorch to {cell}, {task}, 28 steps, the least"] = min(s["ratio"] for s in line)
    for worker in workers.values():
        worker.close()
    return ratios


def networks() -> Ratios:
    """ResNet-32 beside its Global and SI forms and PyTorch, inference and training."""
    import cnn_speed

    from jaxeff.train.runtime import keep_freed_memory

    keep_freed_memory()
    parts, ratios = cnn_speed.parts(), {}
    for part in ("32x32, batch 256", "training step, 32x32, batch 128"):
        lines = {name: line["median_ms"] for name, line in parts[part]().items()}
        host = lines.pop("ResNet32")
        for name, ms in lines.items():
            if "PyTorch" in name:
                ratios[f"{name} to here, {part}"] = ms / host
            else:
                ratios[f"ResNet32 to {name}, {part}"] = host / ms
    return ratios


def routing() -> Ratios:
    """Batches of which a share goes on to a larger network."""
    import routing_speed

    ratios = {}
    for name in routing_speed.PAIRS:
        for share, line in routing_speed.compare(name, 3)["shares"].items():
            ratios[f"both networks on all to routed, {name}, {share} of them"] = (
                line["both_ms"] / line["routed_ms"]
            )
    return ratios


def memory() -> Ratios:
    """Memory of an update by FPTT and through time."""
    import fptt_memory

    fptt = fptt_memory.memory(fptt_memory.CELLS["lstm"], 1024, "fptt", "auto")
    ratios = {}
    for label, backward in (("BPTT", "auto"), ("BPTT by a differentiated scan", "autodiff")):
        through_time = fptt_memory.memory(fptt_memory.CELLS["lstm"], 1024, "bptt", backward)
        if fptt and through_time:
            ratios[f"memory of {label} to FPTT, LSTM, 1024 steps"] = through_time / fptt
    return ratios


def poses() -> Ratios:
    """Searches for the poses of 128 images by a network that is not trained."""
    import jax
    import pose_search_speed
    from recorded import config_of
    from workers import Worker

    from jaxeff import bench
    from jaxeff.train import experiment

    built: Any = experiment.build(config_of("digits,model=avae", [], "avae"))
    images = pose_search_speed.some_images(built, 128)
    state = built.algorithm.init_state(jax.random.key(0), images[:1])
    variables = {"params": state.params, **state.model_state}
    calls = pose_search_speed.searches(built, variables, images)[0]
    ms = {name: t.min_ms for name, t in bench.interleaved(calls, 2, 1, warmup=1).items()}
    if TORCH:
        steps, starts = pose_search_speed.STEPS, pose_search_speed.STARTS
        size = (128, steps, built.model.latents, built.model.shape[0], os.cpu_count() or 1)
        worker = Worker([TORCH, str(HERE / "torch_pose_worker.py"), *map(str, size)])
        for name in worker.names:
            ms[f"PyTorch, {name.replace('_', ' ')}"] = starts * min(worker.time(name, 2))
        worker.close()
    best = "best 2 of spread ones by Gauss-Newton"
    return {f"{name} to {best}": t / ms[best] for name, t in ms.items() if name != best}


def in_parallel() -> Ratios:
    """States of all steps at once against the loop."""
    import parallel_in_time

    settings = argparse.Namespace(rounds=3, seconds=2.0, dense_mib=64.0)
    ratios = {}
    for cell in ("gru", "irnn"):
        for entry in parallel_in_time.measure(cell, 4, 1024, 1, settings):
            if entry["method"] != "loop":
                name = f"loop to {entry['method']}, {cell}, 1024 steps of 4, {entry['task']}"
                ratios[name] = entry["loop_over_this"]
    return ratios


def exports() -> Ratios:
    """ResNet-32 and its forms in LiteRT at batch 1, and models in every runtime beside JAX."""
    import export_table

    with tempfile.TemporaryDirectory() as folder:
        ms = export_table.speed("resnet32", 32, Path(folder), 5)
        host = ms.pop("resnet32")
        ratios = {f"resnet32 to {form} in LiteRT": host / t for form, t in ms.items()}
        for name in ("irnn", "resnet32_global"):
            system = export_table.SYSTEMS[name]
            for row in export_table.measure(system, Path(folder) / name, 3, export_table.FORMS):
                for batch, ms in row["latency_ms"].items():
                    label = f"{name} in JAX to {row['format']}, {row['entry']}, batch {batch}"
                    ratios[label] = ms["jitted"] / ms["artifact"]
    return ratios


def encoders() -> Ratios:
    """MiniLM beside networks of the search, batch 1 and 32."""
    import encoder_integers

    from jaxeff import bench
    from jaxeff.models import MODELS
    from jaxeff.search import measure

    spec = {"name": "encoder", "shape": encoder_integers.SHAPE}
    ratios = {}
    for batch, length in ((1, 32), (32, 128)):
        calls = {
            name: measure.network_call(MODELS.build({**spec, **plan}, num_outputs=2), batch, length)
            for name, plan in encoder_integers.networks().items()
        }
        ms = {n: t.min_ms for n, t in bench.interleaved(calls, 3, 2, warmup=1).items()}
        full = ms.pop(encoder_integers.FULL)
        for name, t in ms.items():
            ratios[f"full MiniLM to {name}, batch {batch}, {length} tokens"] = full / t
    return ratios


PARTS: dict[str, Callable[[], Ratios]] = {
    "recurrent": recurrent,
    "small_recurrent": small_recurrent,
    "networks": networks,
    "routing": routing,
    "memory": memory,
    "poses": poses,
    "parallel": in_parallel,
    "exports": exports,
    "encoders": encoders,
}


def in_a_process(part: str) -> dict[str, Any]:
    """Returns the ratios of a part, the seconds that it took, and where it was made."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ratios.json"
        command = [sys.executable, __file__, "--alone", "--json", str(path), part]
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if ended.returncode:
            said = "\n".join(ended.stdout.splitlines()[-3:])
            return {"ratios": {}, "failure": f"ended with status {ended.returncode}: {said}"}
        line = json.loads(path.read_text(encoding="utf-8"))
    return {**line, "seconds": time.perf_counter() - began}


def main() -> int:
    """Prints a line per ratio; returns 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--json", type=Path, help="writes the ratios to this file")
    parser.add_argument("--alone", action="store_true", help="one part, in this process")
    asked = parser.parse_args()
    names = asked.parts or list(PARTS)
    if asked.alone:
        line = {"ratios": PARTS[names[0]](), **stamp(f"python benchmarks/summary.py {names[0]}")}
        write(asked.json, line)
        return 0
    lines = {}
    for name in names:
        lines[name] = line = in_a_process(name)
        sys.stdout.write(
            f"{name} ({line.get('failure') or format(line['seconds'], '.0f') + ' s'})\n"
        )
        for label, ratio in line["ratios"].items():
            sys.stdout.write(f"  {ratio:8.2f}  {label}\n")
        sys.stdout.flush()
    if asked.json:
        write(asked.json, {"command": "python benchmarks/summary.py", "parts": lines})
    return int(any("failure" in line for line in lines.values()))


if __name__ == "__main__":
    sys.exit(main())
