"""Time of whole batches that are routed, beside what it would be at best and without routing.

A batch of 512 is answered by a base, and a quarter, half or all of it by an expert: an MLP of three
hidden layers of 2048, and a ResNet. The ideal is the base's time and the expert's times the share;
"both" runs both on everything in one program. Writes ``results/routing_speed.json``. Run it with
nothing else on the machine:

    python benchmarks/routing_speed.py
    python benchmarks/routing_speed.py mlp 3      # one pair, fewer rounds
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from record_files import locked_record, stamp

from jaxeff import bench
from jaxeff.hybrid import curves
from jaxeff.models import MODELS, HybridModel
from jaxeff.train.runtime import keep_freed_memory

OUT = Path(__file__).parent / "results" / "routing_speed.json"
BATCH = 512
SHARES = (0.25, 0.5, 1.0)
#: Input shape, base and expert.
PAIRS: dict[str, tuple[tuple[int, ...], dict, dict]] = {
    "mlp": (
        (784,),
        {"name": "mlp", "hidden": (64,), "activation": "relu"},
        {"name": "mlp", "hidden": (2048, 2048, 2048), "activation": "relu"},
    ),
    "resnet": (
        (28, 28, 1),
        {"name": "resnet", "blocks": (1, 1, 1), "widths": (4, 8, 16)},
        {"name": "resnet", "depth": 20},
    ),
}


def compare(name: str, rounds: int) -> dict[str, Any]:
    """Returns the times of one pair in milliseconds per batch."""
    shape, *specs = PAIRS[name]
    inputs = jax.random.normal(jax.random.key(0), (BATCH, *shape))
    pair = []
    for number, spec in enumerate(specs):
        model = MODELS.build(spec, "model", num_outputs=10)
        pair.append((model, jax.jit(model.init)(jax.random.key(number), inputs[:1])))
    (_, base_variables), (expert, expert_variables) = pair
    hybrid = HybridModel(*pair, batch_size=BATCH)
    _, scores = hybrid.collect(inputs)
    first, apply_expert = hybrid.stages[0], jax.jit(expert.apply)
    apply_base = jax.jit(lambda v, x: first.call(v, x)[:2])
    payload = {"inputs": inputs}

    @jax.jit
    def both(variables, inputs, threshold):
        logits, scores, _ = first.call(variables[0], {"inputs": inputs})
        answers = expert.apply(variables[1], inputs)
        return jnp.where((scores > threshold)[:, None], answers, logits)

    variables = (base_variables, expert_variables)
    calls: dict[str, Any] = {
        "base": lambda: apply_base(base_variables, payload),
        "expert": lambda: apply_expert(expert_variables, inputs),
    }
    lines, thresholds = {}, {}
    for share in SHARES:
        thresholds[share] = threshold = curves.calibrated_threshold(scores[0], 1 - share)
        routed = hybrid.cascade(payload, thresholds=(threshold,))
        dense = both(variables, inputs, threshold)
        lines[share] = {
            "queries": routed.reached[1],
            "largest_difference": float(np.abs(routed.outputs - dense).max()),
            "same_answers": bool((routed.outputs.argmax(-1) == dense.argmax(-1)).all()),
        }
        calls[f"routed {share:g}"] = lambda threshold=threshold: (
            hybrid.cascade(payload, thresholds=(threshold,)).outputs
        )
    calls["both"] = lambda: both(variables, inputs, thresholds[0.5])
    times = bench.interleaved(calls, rounds, 2, warmup=2)
    ms = {call: time.median_ms for call, time in times.items()}
    for share, line in lines.items():
        ideal = ms["base"] + share * ms["expert"]
        line |= {"routed_ms": ms[f"routed {share:g}"], "ideal_ms": ideal, "both_ms": ms["both"]}
        line["over_ideal"] = line["routed_ms"] / ideal
        line["over_both"] = line["routed_ms"] / ms["both"]
    return {
        "base_ms": ms["base"],
        "expert_ms": ms["expert"],
        "both_ms": ms["both"],
        "shares": {f"{share:g}": line for share, line in lines.items()},
    }


def main() -> None:
    """Measures the pairs that the command line names, or all, and writes each as it is done."""
    keep_freed_memory()
    names = [word for word in sys.argv[1:] if word in PAIRS] or list(PAIRS)
    rounds = next((int(word) for word in sys.argv[1:] if word.isdigit()), 15)
    for name in names:
        comparison = compare(name, rounds)
        provenance = stamp(f"python benchmarks/routing_speed.py {name} {rounds}")
        with locked_record(OUT) as record:
            record |= {"command": "python benchmarks/routing_speed.py", "batch": BATCH}
            record.setdefault("pairs", {})[name] = {**comparison, **provenance}
        sys.stdout.write(
            f"{name}: base {comparison['base_ms']:.1f}, expert {comparison['expert_ms']:.1f}, "
            f"both {comparison['both_ms']:.1f} ms\n"
        )
        for share, line in comparison["shares"].items():
            sys.stdout.write(
                f"  {share:>4s}: routed {line['routed_ms']:.1f} ms, {line['over_ideal']:.2f} of "
                f"the ideal, {line['over_both']:.2f} of both; largest difference "
                f"{line['largest_difference']:.1g}\n"
            )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
