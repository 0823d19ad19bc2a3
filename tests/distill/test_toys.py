"""What selective distillation is for: students too small for their teacher."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxeff.distill import variant

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimised")]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
POINTS, SIZE = 200, 10.0
SHARES = (0.185, 0.13, 0.17, 0.33, 0.185)  # of negatives and positives in turn, along a line


def interval(x, low, high):
    """Log-probability of being inside, with soft ends."""
    return jax.nn.log_sigmoid(4 * (x - low)) + jax.nn.log_sigmoid(4 * (high - x))


def accuracies(helps):
    """Where a student of one interval ends for a teacher of two, from 78 starts."""
    x = jnp.asarray((np.arange(POINTS) + 0.5) / POINTS * SIZE - SIZE / 2)
    ends = SIZE * (np.cumsum(SHARES)[:4] - 0.5)
    labels = jnp.asarray(((x > ends[0]) & (x < ends[1])) | ((x > ends[2]) & (x < ends[3])), int)
    inside = jnp.exp(interval(x, *ends[:2])) + jnp.exp(interval(x, *ends[2:]))
    inside = jnp.clip(inside, 1e-4, 1 - 1e-4)
    teacher = jnp.stack([jnp.log1p(-inside), jnp.log(inside)], 1)
    grid = np.linspace(-SIZE / 2, SIZE / 2, 13)
    starts = jnp.asarray([(a, b) for i, a in enumerate(grid) for b in grid[i + 1 :]])
    made = variant(top_k=0, student_temperature=1.0, teacher_temperature=1.0)

    def logits(ends):
        log_p = jnp.minimum(interval(x, *ends), -1e-6)
        return jnp.stack([jnp.log1p(-jnp.exp(log_p)), log_p], 1)

    def loss(players):
        ends, gate = players
        gate = jax.nn.sigmoid(gate) if helps else jnp.zeros(POINTS)
        student = logits(ends)
        spent = made.spent(jax.lax.stop_gradient(student), teacher, labels, gate)
        lifted = made.loss(student, teacher, labels, gate).mean()
        return lifted + 5 * jnp.maximum(spent - 0.1, 0)

    optimizer = optax.adam(0.05)

    def train(start):
        players = start, jnp.zeros(POINTS)

        def step(carry, _):
            players, state = carry
            updates, state = optimizer.update(jax.grad(loss)(players), state)
            return (optax.apply_updates(players, updates), state), ()

        (players, _), _ = jax.lax.scan(step, (players, optimizer.init(players)), None, length=2000)
        return (logits(players[0]).argmax(1) == labels).mean()

    return np.asarray(jax.jit(jax.vmap(train))(starts))


def test_help_lets_one_interval_choose_what_it_can_cover():
    """Without help every start ends at one compromise; with it, at better ones on average."""
    plain, helped = accuracies(False), accuracies(True)
    assert len(plain) == 78
    np.testing.assert_allclose(plain, 0.738, atol=0.006)
    assert helped.mean() > 0.78
    assert helped.max() == pytest.approx(0.87, abs=0.006)


def test_normalised_help_is_no_worse_than_plain_distillation_on_digits(monkeypatch):
    """Six networks of three hidden units, pretrained on the labels."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("distill_accuracy", None)
    import distill_accuracy as benchmark

    found = {
        method: np.mean(benchmark.digits_line(3, "pretrained", method)["test"])
        for method in ("kd", "normalised in turns", "closed form")
    }
    assert found["kd"] > 0.75
    for method in ("normalised in turns", "closed form"):
        assert found[method] >= found["kd"] - 0.01
