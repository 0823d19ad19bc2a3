"""FPTT between batches and epochs, and on sequences that differ in length."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fptt_cases import (
    ADAM,
    SLOW,
    assert_close,
    batch_of,
    cross_entropy,
    distance,
    loop_by_hand,
    network,
    plain_loss,
    ramp,
    started,
    task_of,
    updated,
)
from sweeps import swept

from jaxeff.train.algorithms import FPTT, TruncatedBPTT

# What happens between batches and epochs.


def a_state_at(algorithm, step):
    """A state whose running weights and multipliers are at rest nowhere."""
    state = started(algorithm, batch_of())
    running, multiplier = (
        jax.tree.map(lambda p, n=n: np.asarray(p) * n + 0.1, state.params) for n in (0.5, 0.2)
    )
    found = state.opt_state._replace(running=running, multiplier=multiplier)
    return state.replace(opt_state=found, step=jnp.asarray(step, jnp.int32))


@pytest.mark.parametrize("reset", ["epoch", "epoch_weights", "sequence", "none"])
def test_resets_of_epochs_of_two_batches(x64, reset):
    task = task_of(steps_per_epoch=2)
    fptt = FPTT(network(), cross_entropy, optax.adam(0.02), task, parts=3, reset=reset)
    end_batch = jax.jit(fptt.end_batch)
    for step in (1, 2, 3, 4):
        before = a_state_at(fptt, step)
        after = end_batch(before)
        old = before.opt_state
        zeros = jax.tree.map(np.zeros_like, old.multiplier)
        expected = (before.params, old.running, old.multiplier)
        if reset == "sequence":
            expected = (before.params, before.params, zeros)
        elif reset.startswith("epoch") and step % 2 == 0:
            expected = (old.running, old.running, zeros if reset == "epoch" else old.multiplier)
        found = (after.params, after.opt_state.running, after.opt_state.multiplier)
        chex.assert_trees_all_equal(found, expected)
        chex.assert_trees_all_equal(after.opt_state.inner, old.inner)


@pytest.mark.slow
def test_an_epoch_ends_with_its_last_batch(x64):
    batch = batch_of()
    states = {}
    for reset in ("none", "epoch"):
        task = task_of(steps_per_epoch=2)
        fptt = FPTT(network(), cross_entropy, ADAM, task, parts=3, alpha=0.2, reset=reset)
        step, state, states[reset] = jax.jit(fptt.update), started(fptt, batch), []
        for _ in range(3):
            state, _ = step(state, batch)
            states[reset].append((state.params, state.opt_state))
    kept, found = states["none"], states["epoch"]
    assert_close(found[0], kept[0], atol=1e-14)
    running = kept[1][1].running
    assert distance(running, kept[1][0]) > 1e-4
    assert_close((found[1][0], found[1][1].running), (running, running), atol=1e-14)
    assert not any(leaf.any() for leaf in jax.tree.leaves(found[1][1].multiplier))
    assert_close(found[1][1].inner, kept[1][1].inner, atol=1e-14)
    assert distance(found[2][0], found[2][1].running) > 1e-4  # within an epoch they differ


# Sequences of different lengths.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "steps", "parts", "auxiliary"),
    [
        ("classification", 6, 3, "uniform"),
        pytest.param("tagging", 5, 2, "none", marks=SLOW),
        pytest.param("classification", 5, 2, "none", marks=SLOW),
        pytest.param("tagging", 2, 1, "none", marks=SLOW),
    ],
)
def test_padding_after_the_end_changes_nothing(x64, kind, steps, parts, auxiliary):
    """Eight steps in four parts of two, of which ``steps`` are real."""
    model = network("tarnn", readout="every_step" if kind == "tagging" else "last")

    def algorithm(length, parts):
        return FPTT(
            *(model, cross_entropy, ADAM, task_of(kind, length)),
            parts=parts,
            alpha=0.2,
            auxiliary=auxiliary,
            average_decay=0.9,
        )

    whole = batch_of(kind, 8, examples=1, lengths=[steps])
    garbage = jnp.where(whole["mask"][..., None] > 0, whole["inputs"], 1e3)
    padded, short = algorithm(8, 4), algorithm(steps, parts)
    cut = {"inputs": whole["inputs"][:, :steps], "weight": whole["weight"]}
    cut["labels"] = whole["labels"][:, :steps] if kind == "tagging" else whole["labels"]
    state = started(padded, whole)
    expected, _ = updated(short, state, cut)
    found, own = updated(padded, state, {**whole, "inputs": garbage})
    assert_close(found.params, expected.params)
    assert_close(found.opt_state, expected.opt_state)
    assert distance(found.params, state.params) > 1e-3
    assert np.isfinite(own["local_loss"])
    np.testing.assert_allclose(
        found.algo_state["average"]["readout"]["bias"],
        expected.algo_state["average"]["readout"]["bias"],
        rtol=1e-12,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", pytest.param("tagging", marks=SLOW)])
def test_examples_that_have_ended_get_no_weight(x64, kind):
    model = network(readout="every_step" if kind == "tagging" else "last")
    batch = batch_of(kind, 7, lengths=[7, 3, 4, 1])
    fptt = FPTT(model, cross_entropy, ADAM, task_of(kind), parts=3, alpha=0.2, beta=0.3)
    state = started(fptt, batch)
    found, _ = updated(fptt, state, batch)
    by_hand = {**batch, "counts": jnp.array([4.0, 2.0, 2.0, 1.0])}
    loss = plain_loss if kind == "tagging" else ramp
    params, mean, lam, moments, _ = loop_by_hand(
        model, cross_entropy, ADAM, state.params, by_hand, 3, loss, dynamic=(0.2, 0.3)
    )
    assert_close(found.params, params)
    assert_close(found.opt_state.running, mean)
    assert_close(found.opt_state.multiplier, lam)
    assert_close(found.opt_state.inner, moments)


def test_parts_without_anyone_leave_everything_untouched(x64):
    batch = batch_of("tagging", 8, lengths=[2, 1, 2, 2])
    fptt = FPTT(
        *(network(readout="every_step"), cross_entropy, ADAM, task_of("tagging", 8)),
        parts=4,
        alpha=0.2,
        average_decay=0.5,
    )
    state = started(fptt, batch)
    found, _ = updated(fptt, state, batch)
    assert int(optax.tree.get(found.opt_state.inner, "count")) == 1
    params, mean, lam, moments, history = loop_by_hand(
        *(network(readout="every_step"), cross_entropy, ADAM, state.params, batch, 4, plain_loss),
        dynamic=(0.2, 0.5),
    )
    assert len(history) == 1
    assert_close(found.params, params)
    assert_close(tuple(found.opt_state), (moments, mean, lam))
    once = jax.tree.map(
        lambda a, w: 0.5 * np.asarray(a) + 0.5 * np.asarray(w), state.algo_state["average"], params
    )
    assert_close(found.algo_state["average"], once)


@pytest.mark.parametrize(
    ("kind", "lengths"),
    swept(
        [("tagging", None), ("tagging", [7, 3, 4, 1]), ("classification", [7, 3, 4, 1])],
        ("tagging", [7, 3, 4, 1]),
    ),
)
def test_metrics_are_those_of_whole_sequences(x64, kind, lengths):
    """With frozen weights there is one answer."""
    model = network(readout="every_step" if kind == "tagging" else "last")
    batch = batch_of(kind, lengths=lengths)
    tbptt = TruncatedBPTT(model, cross_entropy, optax.sgd(0.0), task_of(kind), parts=3)
    state = started(tbptt, batch)
    (_, metrics), sums = jax.jit(
        lambda state, batch: (tbptt.update(state, batch), tbptt.evaluate(state.params, {}, batch))
    )(state, batch)
    np.testing.assert_allclose(metrics["loss"], sums["loss"] / sums["weight"], rtol=1e-12)
