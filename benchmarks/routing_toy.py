"""A task on which confidence asks in vain and a trained router does not.

Half of the inputs are easy, a quarter is an exclusive or that only the expert can learn, and a
quarter has labels of pure chance. The base is as unsure of the last two, but a cue tells them
apart. In the clean variant nothing is chance, and confidence is about all there is to know. All
seeds are trained at once. Writes ``results/routing_toy.json``; about a minute:

    python benchmarks/routing_toy.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxeff import bench
from jaxeff.hybrid import curves, proxy
from jaxeff.layers.router import SlimRouter
from jaxeff.models.base import apply_with_features
from jaxeff.models.mlp import MLP
from jaxeff.selective import confidence

OUT = Path(__file__).parent / "results" / "routing_toy.json"
#: Shares of the easy and the expert's inputs; the rest is chance.
VARIANTS = {"noisy": (0.5, 0.25), "clean": (0.6, 0.4)}
COVERAGES = (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0)
BASE = MLP((4,), 2, "relu")
EXPERT = MLP((64, 64), 2, "relu")
ROUTER = SlimRouter(hidden=32)
STEPS = {"base": 800, "expert": 2500, "router": 2000}
PENALTIES = (None, "corrected", "released")


def draw(key: Any, count: int, shares: tuple[float, float]) -> tuple[Any, Any]:
    """Returns inputs ``[count, 4]`` and labels: x0 decides the easy ones, x1 is the cue."""
    kinds, label, values, cue = jax.random.split(key, 4)
    u = jax.random.uniform(kinds, (count,))
    easy, hard = u < shares[0], (u >= shares[0]) & (u < sum(shares))
    chance = jax.random.bernoulli(label, 0.5, (count,)).astype(jnp.int32)
    x = jax.random.normal(values, (count, 4))
    x0 = jnp.where(easy, (2 * chance - 1) * (0.3 + jnp.abs(x[:, 0])), x[:, 0])
    x1 = jnp.where(easy, 0.0, jnp.where(hard, 2.0, -2.0)) + 0.2 * jax.random.normal(cue, (count,))
    exclusive = ((x[:, 2] > 0) ^ (x[:, 3] > 0)).astype(jnp.int32)
    return jnp.stack([x0, x1, x[:, 2], x[:, 3]], 1), jnp.where(hard, exclusive, chance)


def fit(loss: Any, params: Any, key: Any, count: int, steps: int, batch: int = 256) -> Any:
    """Minimises ``loss(params, rows)`` by Adam with a cosine to zero."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def step(carry: Any, key: Any) -> Any:
        params, state = carry
        rows = jax.random.randint(key, (batch,), 0, count)
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = (params, optimizer.init(params))
    return jax.lax.scan(step, carry, jax.random.split(key, steps))[0][0]


def train(
    key: Any,
    shares: tuple[float, float],
    penalty: str | None = None,
    steps: dict[str, int] | None = None,
    sizes: tuple[int, int, int] = (4000, 4000, 10_000),
) -> dict[str, Any]:
    """Trains base, expert and router of one seed; returns logits, scores and labels of the test."""
    steps = steps or STEPS
    keys = iter(jax.random.split(key, 12))
    (x, y), (seen, labels), test = (draw(next(keys), n, shares) for n in sizes)
    nets = {}
    for name, net in (("base", BASE), ("expert", EXPERT)):

        def loss(params, rows, net=net):
            logits = net.apply(params, x[rows])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()

        nets[name] = fit(loss, net.init(next(keys), x[:1]), next(keys), len(x), steps[name])

    logits, features, _ = apply_with_features(BASE, nets["base"], seen)
    inside = features["penultimate"]
    right = proxy.correct(logits, labels), proxy.correct(EXPERT.apply(nets["expert"], seen), labels)
    queried = proxy.query_target(*right)

    def router_loss(params, rows):
        scores = ROUTER.apply(params, logits[rows], inside[rows])
        value = proxy.router_losses(scores, queried[rows]).mean()
        return value + (proxy.coverage_penalty(scores, 0.75, form=penalty) if penalty else 0.0)

    start = ROUTER.init(next(keys), logits[:1], inside[:1])
    router = fit(router_loss, start, next(keys), len(seen), steps["router"])
    base, features, _ = apply_with_features(BASE, nets["base"], test[0])
    return {
        "base": base,
        "expert": EXPERT.apply(nets["expert"], test[0]),
        "router": ROUTER.apply(router, base, features["penultimate"]),
        "labels": test[1],
    }


def rules(outputs: dict[str, np.ndarray]) -> dict[str, curves.AccuracyCoverageCurve]:
    """Returns the curve of every rule on the test inputs of one seed."""
    base, expert = outputs["base"].argmax(-1), outputs["expert"].argmax(-1)
    right = base == outputs["labels"], expert == outputs["labels"]
    scores = {
        "learned": outputs["router"],
        "entropy": confidence.entropy(outputs["base"].astype(np.float64)),
        "agreement oracle": (base != expert).astype(float),
        "label oracle": right[1].astype(float) - right[0],
        "random": np.zeros(len(base)),
    }
    return {name: curves.accuracy_coverage(score, *right) for name, score in scores.items()}


def compare(variant: str, penalty: str | None = None, seeds: int = 5, **options: Any) -> Any:
    """Returns accuracies at `COVERAGES` and areas in percent, ``[seeds]``, by rule."""
    keys = jax.random.split(jax.random.key(0), seeds)
    both = jax.jit(jax.vmap(lambda key: train(key, VARIANTS[variant], penalty, **options)))
    outputs = jax.tree.map(np.asarray, both(keys))
    table: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        for rule, curve in rules({name: a[seed] for name, a in outputs.items()}).items():
            row = table.setdefault(rule, {})
            row.setdefault("area", []).append(100 * curve.area)
            for coverage in COVERAGES:
                row.setdefault(f"{coverage:g}", []).append(100 * float(curve.accuracy_at(coverage)))
    return table


def main() -> None:
    """Compares all variants and writes the record."""
    from record_files import write

    record = {"command": "python benchmarks/routing_toy.py", "environment": bench.environment()}
    for variant in VARIANTS:
        for penalty in PENALTIES:
            name = f"{variant}, {penalty or 'no'} penalty"
            table = record[name] = compare(variant, penalty)
            sys.stdout.write(f"{name}\n")
            for rule, row in table.items():
                shown = "  ".join(
                    f"{k} {np.mean(v):5.2f}±{np.std(v, ddof=1):.2f}" for k, v in row.items()
                )
                sys.stdout.write(f"  {rule:18s} {shown}\n")
            sys.stdout.flush()
    write(OUT, record)


if __name__ == "__main__":
    main()
