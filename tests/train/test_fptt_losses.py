"""The local objectives of FPTT, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fptt_cases import CLASSES, batch_of, cross_entropy, network, started, task_of

from jaxeff.train.algorithms import FPTT

# Local objectives.


def local(auxiliary="none", parts=3, length=7, reduction="mean_all", own_parts=None):
    """The loss of every part for the same outputs, from the algorithm itself."""
    task = task_of(length=length)
    fptt = FPTT(
        network(),
        cross_entropy,
        optax.sgd(0.1),
        task,
        parts=parts,
        auxiliary=auxiliary,
        auxiliary_reduction=reduction,
    )
    outputs = jnp.asarray(np.random.default_rng(5).normal(size=(3, CLASSES)))
    batch = {"labels": jnp.array([0, 2, 1])}
    if own_parts is not None:
        batch["parts"] = own_parts
    algo_state = fptt.init({})
    if auxiliary == "oracle":
        draw = np.random.default_rng(6).dirichlet(np.ones(CLASSES), (fptt.count(length), CLASSES))
        algo_state["targets"] = jnp.asarray(draw)
    count = fptt.count(length)
    losses = [
        fptt.local_objective(outputs, batch, algo_state, number, count)[1]
        for number in range(count)
    ]
    logs = jax.nn.log_softmax(outputs)
    return np.stack(losses), np.asarray(logs), np.asarray(batch["labels"]), algo_state


@pytest.mark.parametrize("length", [6, 7])
@pytest.mark.parametrize("reduction", ["mean_all", "sum_classes"])
@pytest.mark.parametrize("auxiliary", ["none", "uniform", "oracle"])
def test_terminal_losses_by_hand(x64, length, auxiliary, reduction):
    losses, logs, labels, algo_state = local(auxiliary, length=length, reduction=reduction)
    count = 3 if length == 6 else 4
    assert len(losses) == count
    truth = np.eye(CLASSES)[labels]
    nll = -(truth * logs).sum(1)
    for number, found in enumerate(losses):
        share = (number + 1) / count
        expected = share * nll
        if auxiliary != "none":
            target = np.full((3, CLASSES), 1 / CLASSES)
            if auxiliary == "oracle":
                target = np.asarray(algo_state["targets"])[number, labels]
            if number >= 2:  # from the last of the parts that are not the remainder
                target = truth
            cross = -(target * logs).sum(1)
            expected = expected + (1 - share) * cross / (CLASSES if reduction == "mean_all" else 1)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(losses[-1], nll, rtol=1e-12)


def test_shares_of_examples_that_differ_in_length(x64):
    losses, logs, labels, _ = local("uniform", length=6, own_parts=jnp.array([1.0, 2.0, 3.0]))
    nll = -logs[np.arange(3), labels]
    np.testing.assert_allclose(losses[0, 0], nll[0], rtol=1e-12)
    np.testing.assert_allclose(losses[1, 1], nll[1], rtol=1e-12)
    np.testing.assert_allclose(losses[2], nll, rtol=1e-12)
    mixed = 0.5 * nll[1] - 0.5 * logs[1].sum() / CLASSES / CLASSES
    np.testing.assert_allclose(losses[0, 1], mixed, rtol=1e-12)


def predictions(model, params, batch):
    """The softmax at the end of parts of two steps of seven ``[parts, batch, classes]``."""
    every_step = model.clone(readout="every_step")
    outputs = jax.jit(lambda p, x: every_step.apply({"params": p}, x))(params, batch["inputs"])
    return np.asarray(jax.nn.softmax(outputs)).swapaxes(0, 1)[[1, 3, 5, 6]]


@pytest.mark.slow
def test_oracle_is_the_average_prediction_of_the_epoch_before(x64):
    """With frozen weights the predictions of an epoch are known."""
    model, task = network(), task_of(steps_per_epoch=2)
    fptt = FPTT(
        model,
        cross_entropy,
        optax.sgd(0.0),
        task,
        parts=3,
        alpha=0.0,
        auxiliary="oracle",
        uniform_epochs=2,
        reset="none",
    )
    first, second = (batch_of(seed=seed, examples=6) for seed in (0, 1))
    for batch in (first, second):
        batch["labels"] = batch["labels"] % 2  # the third class is never seen
        batch["weight"] = jnp.array([1.0, 1, 1, 1, 1, 0])  # the last example is a filler
    third = {**first, "labels": 1 - first["labels"]}
    state = started(fptt, first)
    uniform = np.full((4, CLASSES, CLASSES), 1 / CLASSES)
    np.testing.assert_allclose(state.algo_state["targets"], uniform)
    step = jax.jit(fptt.update)

    def average(*batches):
        sums, counts = np.zeros((4, CLASSES, CLASSES)), np.zeros(CLASSES)
        for batch in batches:
            found = predictions(model, state.params, batch)
            for example in range(5):
                label = int(batch["labels"][example])
                sums[:, label] += found[:, example]
                counts[label] += 1
        estimate = uniform.copy()
        estimate[:, counts > 0] = sums[:, counts > 0] / counts[counts > 0, None]
        return estimate

    for batch in (first, second):
        state, _ = step(state, batch)
    np.testing.assert_allclose(state.algo_state["targets"], uniform, rtol=1e-6)
    assert not state.algo_state["sums"].any()
    for batch in (third, second):
        state, metrics = step(state, batch)
        # The second epoch is still trained with the uniform distribution.
        expected = mean_local_loss(model, state.params, batch, uniform)
        np.testing.assert_allclose(metrics["local_loss"], expected, rtol=1e-6)
    estimate = average(third, second)
    assert np.abs(estimate - average(first, second)).max() > 1e-3
    np.testing.assert_allclose(state.algo_state["targets"], estimate, rtol=1e-5)
    state, metrics = step(state, first)
    np.testing.assert_allclose(state.algo_state["targets"], estimate, rtol=1e-5)
    expected = mean_local_loss(model, state.params, first, estimate)
    np.testing.assert_allclose(metrics["local_loss"], expected, rtol=1e-6)
    assert abs(mean_local_loss(model, state.params, first, uniform) - expected) > 1e-4


def mean_local_loss(model, params, batch, targets):
    """The mean local loss of a sweep of four parts."""
    found = predictions(model, params, batch)
    labels, weight = np.asarray(batch["labels"]), np.asarray(batch["weight"])
    truth = np.eye(CLASSES)[labels]
    losses = []
    for number in range(4):
        share, logs = (number + 1) / 4, np.log(found[number])
        target = truth if number >= 2 else targets[number, labels]
        losses.append(-share * (truth * logs).sum(1) - (1 - share) * (target * logs).mean(1))
    means = [np.average(one, weights=weight) for one in losses]
    return np.mean(means)
