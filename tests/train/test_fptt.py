"""FPTT and its relatives against recorded updates, loops written by hand, and known limits."""

from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxeff import ode, train
from jaxeff.errors import ConfigError
from jaxeff.models import SequenceModel
from jaxeff.train.algorithms import BPTT, FPTT, Task, TruncatedBPTT
from jaxeff.train.console import Progress
from jaxeff.train.dynamic import dynamic_penalty
from jaxeff.train.loop import Training
from jaxeff.train.state import TrainState

GOLDEN = Path(__file__).parents[1] / "golden"
CLASSES, WIDTH, EXAMPLES = 3, 2, 4


def cross_entropy(outputs, batch):
    """In the precision of the outputs; averaged over the real steps if there are several."""
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"])
    if losses.ndim > 1 and "mask" in batch:
        losses = (losses * batch["mask"]).sum(1) / jnp.maximum(batch["mask"].sum(1), 1)
    return {"loss": losses.reshape(len(losses), -1).mean(1)}


def squared_error(outputs, batch):
    return {"loss": jnp.square(outputs - batch["labels"]).mean(1)}


CELLS = {
    "lstm": ode.LSTM(4),
    "tarnn": ode.TARNN(4, activation="tanh", num_inner_steps=2, step_size=0.3),
    "irnn": ode.IRNN(4, activation="tanh", step_size=0.3),
}


def network(cell="lstm", layers=1, readout="last", outputs=CLASSES, dtype=jnp.float64, **options):
    return SequenceModel(
        cell=CELLS[cell] if isinstance(cell, str) else cell,
        num_outputs=outputs,
        num_layers=layers,
        readout=readout,
        dtype=dtype,
        **options,
    )


def task_of(kind="classification", length=7, steps_per_epoch=1000):
    return Task(kind, 0 if kind == "regression" else CLASSES, length, steps_per_epoch)


def batch_of(kind="classification", length=7, examples=EXAMPLES, seed=0, lengths=None):
    rng = np.random.default_rng(seed)
    shape = {"tagging": (examples, length), "classification": (examples,)}
    if kind == "regression":
        labels = jnp.asarray(rng.normal(size=(examples, 1)))
    else:
        labels = jnp.asarray(rng.integers(0, CLASSES, shape[kind]), jnp.int32)
    batch = {
        "inputs": jnp.asarray(rng.normal(size=(examples, length, WIDTH))),
        "labels": labels,
        "weight": jnp.asarray(rng.uniform(0.5, 1.5, examples)),
    }
    if lengths is not None:
        steps = jnp.arange(length)
        batch["mask"] = (steps < jnp.asarray(lengths)[:, None]).astype(jnp.float64)
    return batch


def started(algorithm, batch, params=None):
    """A state of double precision whose parameters are drawn, or given."""
    shapes = jax.eval_shape(algorithm.init_state, jax.random.key(0), batch["inputs"])
    rng = np.random.default_rng(7)
    if params is None:
        params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0.0, 0.5, p.shape)), shapes.params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=algorithm.init_optimizer(params),
        algo_state=algorithm.init(params),
        model_state={},
        key=jax.random.key(1),
    )


def updated(algorithm, state, batch, times=1):
    step = jax.jit(algorithm.update)
    for _ in range(times):
        state, metrics = step(state, batch)
    return state, metrics


def assert_close(a, b, atol=1e-12):
    chex.assert_trees_all_close(a, b, atol=atol, rtol=0)


def distance(a, b):
    differences = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a, b)
    return max(jax.tree.leaves(differences))


def loop_by_hand(model, objective, optimizer, params, batch, parts, loss_of, *, dynamic=None):
    """The algorithm as a plain Python loop, with gradients that JAX finds.

    ``loss_of(values, outputs, part, number, count)`` is the local loss ``[batch]``; ``dynamic`` is
    (alpha, beta), or None for no regulariser.
    """
    model = model.clone(backward="autodiff")
    length = batch["inputs"].shape[1]
    size = length // parts
    count = -(-length // size)
    timed = ["inputs", "mask"] + ["labels"] * (model.readout == "every_step")
    alpha, beta = dynamic or (0.0, 0.5)

    def local(params, mean, lam, h, part, weight, number):
        options = {"mask": part["mask"]} if "mask" in part else {}
        outputs, h = model.apply(
            {"params": params}, part["inputs"], carry=h, return_carry=True, **options
        )
        losses = loss_of(objective(outputs, part)["loss"], outputs, part, number, count)
        tie = jax.tree.map(
            lambda w, m, v: alpha / 2 * jnp.sum((w - m) ** 2) - jnp.sum(w * v), params, mean, lam
        )
        return jnp.sum(losses * weight) / jnp.sum(weight) + sum(jax.tree.leaves(tie)), h

    @jax.jit
    def update(params, mean, lam, moments, h, part, weight, number):
        grads, h = jax.grad(local, has_aux=True)(params, mean, lam, h, part, weight, number)
        updates, moments = optimizer.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
        if dynamic:
            lam = jax.tree.map(lambda v, w, m: v - alpha * (w - m), lam, params, mean)
            mean = jax.tree.map(
                lambda m, w, v: (1 - beta) * m + beta * w - beta / alpha * v, mean, params, lam
            )
        return params, mean, lam, moments, h

    state = (
        params,
        params,
        jax.tree.map(jnp.zeros_like, params),
        optimizer.init(params),
        model.initial_carry(batch["inputs"]),
    )
    history = []
    for number in range(count):
        first, last = number * size, min((number + 1) * size, length)
        part = {k: a[:, first:last] if k in timed else a for k, a in batch.items()}
        weight = part["weight"]
        if "mask" in part:
            weight = weight * jnp.any(part["mask"] > 0, axis=1)
        if weight.sum() > 0:
            state = update(*state, part, weight, jnp.asarray(number))
            history.append(state[0])
    return *state[:4], history


def plain_loss(values, outputs, part, number, count):
    return values


def ramp(values, outputs, part, number, count):
    counts = count
    if "mask" in part:
        counts = part["counts"]
    return jnp.minimum((number + 1) / counts, 1.0) * values


def ramp_and_uniform(parts, reduce):
    def loss(values, outputs, part, number, count):
        share = (number + 1) / count
        truth = jax.nn.one_hot(part["labels"], CLASSES)
        target = jnp.where(number >= parts - 1, truth, 1 / CLASSES)
        logs = jax.nn.log_softmax(outputs)
        return share * values + (1 - share) * reduce(-target * logs, axis=-1)

    return loss


ADAM = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.02))


# Recorded updates.


class Recorded(nn.Module):
    """A layer of PyTorch's LSTM with a head, under PyTorch's names."""

    @nn.nowrap
    def initial_carry(self, inputs):
        return (ode.LSTM(5).initial_carry(inputs.shape[:1], inputs.dtype),)

    @nn.compact
    def __call__(self, inputs, *, train=False, carry=None, return_carry=False):
        shapes = {"weight_ih_l0": (20, 3), "weight_hh_l0": (20, 5)}
        shapes |= {"bias_ih_l0": (20,), "bias_hh_l0": (20,)}
        zeros = nn.initializers.zeros
        arrays = {n: self.param(f"rnn.{n}", zeros, s, inputs.dtype) for n, s in shapes.items()}
        weight = self.param("head.weight", zeros, (4, 5), inputs.dtype)
        bias = self.param("head.bias", zeros, (4,), inputs.dtype)
        after, state = ode.unroll(
            ode.LSTM(5),
            ode.lstm_from_pytorch(arrays),
            inputs.swapaxes(0, 1),
            None if carry is None else carry[0],
            return_sequence=False,
        )
        outputs = state @ weight.T + bias
        return (outputs, (after,)) if return_carry else outputs


class Witness(FPTT):
    """Keeps every part's loss, regulariser included, and what its update left."""

    def step_optimizer(self, grads, opt_state, params, gradient):
        penalty = dynamic_penalty(
            params, opt_state, self.options["alpha"], quadratic=self.options["quadratic"]
        )
        params, opt_state = super().step_optimizer(grads, opt_state, params, gradient)
        self.left = penalty, params, opt_state.running, opt_state.multiplier
        return params, opt_state

    def observe(self, outputs, batch, number, axis_name):
        _, losses = self.local_objective(outputs, batch, {}, number, self.parts)
        penalty, *trees = self.left
        return losses.mean() + penalty, trees

    def absorb(self, algo_state, observed, axis_name):
        return {"seen": observed}


@pytest.mark.parametrize("name", ["a", "b"])
def test_every_update_is_that_of_the_authors_code(x64, name):
    recorded = np.load(GOLDEN / f"fptt_lstm_{name}.npz")
    number = {field: float(recorded[field]) for field in ("alpha", "beta", "lr", "quad")}
    inputs = jnp.asarray(recorded["x"]).swapaxes(0, 1)
    algorithm = Witness(
        Recorded(),
        cross_entropy,
        optax.sgd(number["lr"]),
        Task("classification", 4, inputs.shape[1], 1000),
        parts=int(recorded["parts"]),
        alpha=number["alpha"],
        beta=number["beta"],
        quadratic=number["quad"],
        auxiliary="uniform",
    )
    start = "init_"
    params = {k[len(start) :]: jnp.asarray(recorded[k]) for k in recorded if k.startswith(start)}
    labels = jnp.asarray(recorded["y"])
    batch = {"inputs": inputs, "labels": labels, "weight": jnp.ones(len(labels))}
    state = started(algorithm, batch, params)
    step = jax.jit(algorithm.update)
    for number in range(2):
        state, _ = step(state.replace(algo_state={}), batch)
        losses, trees = state.algo_state["seen"]
        for part in range(5):
            which = f"u{number}_{part}"
            np.testing.assert_allclose(losses[part], recorded[f"{which}_loss"], rtol=1e-12)
            for kind, tree in zip(("W", "Wbar", "lam"), trees, strict=True):
                found = {name: tree[name][part] for name in params}
                assert_close(found, {name: recorded[f"{which}_{kind}_{name}"] for name in params})


# Limits and loops written by hand.


SLOW = pytest.mark.slow


@pytest.mark.parametrize("kind", ["classification", pytest.param("tagging", marks=SLOW)])
def test_one_part_without_regulariser_is_one_update_of_bptt(x64, quick_compile, kind):
    model = network(readout="every_step" if kind == "tagging" else "last")
    batch, task = batch_of(kind), task_of(kind)
    fptt = FPTT(model, cross_entropy, ADAM, task, parts=1, alpha=0.0)
    bptt = BPTT(model, cross_entropy, ADAM, task)
    state = started(bptt, batch)
    expected, metrics = updated(bptt, state, batch)
    state = state.replace(opt_state=fptt.init_optimizer(state.params))
    found, own = updated(fptt, state, batch)
    assert_close(found.params, expected.params, atol=1e-15)
    assert_close(found.opt_state.inner, expected.opt_state, atol=1e-15)
    np.testing.assert_allclose(own["loss"], metrics["loss"], rtol=1e-14)


HAND = {
    # cell, layers, kind, fields, local loss; 7 steps in 3 parts of 2 and a remainder of 1.
    "lstm_uniform": (
        *("lstm", 1, "classification", {"auxiliary": "uniform"}),
        ramp_and_uniform(3, jnp.mean),
    ),
    "two_layers_sum_classes": (
        *("lstm", 2, "classification"),
        {"auxiliary": "uniform", "auxiliary_reduction": "sum_classes"},
        ramp_and_uniform(3, jnp.sum),
    ),
    "tarnn_per_step": ("tarnn", 1, "tagging", {}, plain_loss),
    "irnn_per_step": ("irnn", 2, "tagging", {}, plain_loss),
    "irnn_regression": ("irnn", 1, "regression", {}, ramp),
}


# The others cost as much and say little more.
FAST = ("two_layers_sum_classes", "tarnn_per_step", "irnn_regression")


@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=SLOW) for case in HAND]
)
def test_sweep_equals_a_loop_by_hand(x64, quick_compile, case):
    cell, layers, kind, fields, loss = HAND[case]
    readout = "every_step" if kind == "tagging" else "last"
    outputs = 1 if kind == "regression" else CLASSES
    model = network(cell, layers, readout, outputs)
    objective = squared_error if kind == "regression" else cross_entropy
    batch = batch_of(kind)
    fptt = FPTT(model, objective, ADAM, task_of(kind), parts=3, alpha=0.2, beta=0.3, **fields)
    state = started(fptt, batch)
    params, mean, lam, moments, _ = loop_by_hand(
        model, objective, ADAM, state.params, batch, 3, loss, dynamic=(0.2, 0.3)
    )
    found, _ = updated(fptt, state, batch)
    assert_close(found.params, params)
    assert_close(found.opt_state.running, mean)
    assert_close(found.opt_state.multiplier, lam)
    assert_close(found.opt_state.inner, moments)
    assert int(optax.tree.get(moments, "count")) == 4
    assert int(found.step) == 1


@pytest.mark.slow
def test_truncated_bptt_is_fptt_without_regulariser_for_labels_at_every_step(x64, quick_compile):
    model, batch, task = network(readout="every_step"), batch_of("tagging"), task_of("tagging")
    tbptt = TruncatedBPTT(model, cross_entropy, ADAM, task, parts=3)
    state = started(tbptt, batch)
    params, _, _, moments, history = loop_by_hand(
        model, cross_entropy, ADAM, state.params, batch, 3, plain_loss
    )
    assert len(history) == 4
    found, _ = updated(tbptt, state, batch)
    assert_close(found.params, params)
    assert_close(found.opt_state, moments)
    fptt = FPTT(model, cross_entropy, ADAM, task, parts=3, alpha=0.0)
    found, _ = updated(fptt, started(fptt, batch), batch)
    assert_close(found.params, params)
    assert_close(found.opt_state.inner, moments)
    assert_close(found.opt_state.running, params, atol=1e-15)


@pytest.mark.parametrize("kind", ["tagging", "classification"])
def test_only_one_label_per_sequence_is_ramped_and_only_by_fptt(x64, kind):
    batch, task = batch_of(kind), task_of(kind)
    shape = (EXAMPLES, *((7,) if kind == "tagging" else ()), CLASSES)
    outputs = jnp.asarray(np.random.default_rng(3).normal(size=shape))
    whole = cross_entropy(outputs, batch)["loss"]
    for cls in (TruncatedBPTT, FPTT):
        algorithm = cls(network(), cross_entropy, ADAM, task, parts=3)
        for number in range(4):
            values, losses = algorithm.local_objective(outputs, batch, {}, number, 4)
            ramped = cls is FPTT and kind == "classification"
            np.testing.assert_allclose(losses, whole * ((number + 1) / 4 if ramped else 1))
            np.testing.assert_array_equal(values["loss"], whole)


def test_one_step_per_part_treats_the_state_before_as_constant(x64, quick_compile):
    cell, batch = CELLS["lstm"], batch_of("tagging", length=2)
    model = network(readout="every_step")
    fptt = FPTT(model, cross_entropy, optax.sgd(0.3), task_of("tagging", 2), parts=2, alpha=0.0)
    state = started(fptt, batch)
    found, _ = updated(fptt, state, batch)

    def loss(params, h, number):
        h, y = cell.step(params["cell_0"], h, batch["inputs"][:, number])
        logits = y @ params["readout"]["kernel"] + params["readout"]["bias"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"][:, number])
        return jnp.sum(losses * batch["weight"]) / batch["weight"].sum(), h

    h = cell.initial_carry((EXAMPLES,), jnp.float64)
    params = state.params
    for number in range(2):
        grads, after = jax.grad(loss, has_aux=True)(params, h, number)
        params, before, h = jax.tree.map(lambda w, g: w - 0.3 * g, params, grads), params, after
    assert_close(found.params, params)

    # The gradient through the state before is no small thing here.
    def through(params):
        _, h = loss(params, cell.initial_carry((EXAMPLES,), jnp.float64), 0)
        return loss(params, h, 1)[0]

    whole = jax.tree.map(lambda w, g: w - 0.3 * g, before, jax.grad(through)(before))
    assert distance(whole, params) > 1e-4


def test_inputs_before_a_part_matter_only_through_the_state(x64, quick_compile):
    """Two pasts that leave the same state make the same update of what follows."""
    model, task = network("irnn", readout="every_step"), task_of("tagging", 4)
    fptt = FPTT(model, cross_entropy, optax.sgd(0.3), task, parts=4, alpha=0.0)
    batch = batch_of("tagging", length=4)
    state = started(fptt, batch)
    # Steps whose mask is zero leave the state as it is, and no loss.
    lead = jnp.ones((EXAMPLES, 4)).at[:, :2].set(0.0)
    other = batch["inputs"].at[:, :2].add(5.0)
    first, _ = updated(fptt, state, {**batch, "mask": lead})
    second, _ = updated(fptt, state, {**batch, "mask": lead, "inputs": other})
    assert_close(first.params, second.params, atol=0)
    seen, _ = updated(fptt, state, {**batch, "mask": jnp.ones_like(lead), "inputs": other})
    assert distance(first.params, seen.params) > 1e-4


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


def test_oracle_is_the_average_prediction_of_the_epoch_before(x64, quick_compile):
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


# What happens between batches and epochs.


def a_state_at(algorithm, step):
    """A state whose running weights and multipliers are at rest nowhere."""
    state = started(algorithm, batch_of())
    running, multiplier = (
        jax.tree.map(lambda p, n=n: p * n + 0.1, state.params) for n in (0.5, 0.2)
    )
    found = state.opt_state._replace(running=running, multiplier=multiplier)
    return state.replace(opt_state=found, step=jnp.asarray(step, jnp.int32))


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("reset", ["epoch", "epoch_weights", "sequence", "none"])
def test_resets_of_epochs_of_two_batches(x64, reset, step):
    task = task_of(steps_per_epoch=2)
    fptt = FPTT(network(), cross_entropy, optax.adam(0.02), task, parts=3, reset=reset)
    before = a_state_at(fptt, step)
    after = fptt.end_batch(before)
    old = before.opt_state
    zeros = jax.tree.map(jnp.zeros_like, old.multiplier)
    expected = (before.params, old.running, old.multiplier)
    if reset == "sequence":
        expected = (before.params, before.params, zeros)
    elif reset.startswith("epoch") and step % 2 == 0:
        expected = (old.running, old.running, zeros if reset == "epoch" else old.multiplier)
    found = (after.params, after.opt_state.running, after.opt_state.multiplier)
    chex.assert_trees_all_equal(found, expected)
    chex.assert_trees_all_equal(after.opt_state.inner, old.inner)


def test_an_epoch_ends_with_its_last_batch(x64, quick_compile):
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


@pytest.mark.parametrize(
    ("kind", "steps", "parts", "auxiliary"),
    [
        ("classification", 6, 3, "uniform"),
        pytest.param("tagging", 5, 2, "none", marks=SLOW),
        pytest.param("classification", 5, 2, "none", marks=SLOW),
        pytest.param("tagging", 2, 1, "none", marks=SLOW),
    ],
)
def test_padding_after_the_end_changes_nothing(x64, quick_compile, kind, steps, parts, auxiliary):
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


@pytest.mark.parametrize("kind", ["classification", pytest.param("tagging", marks=SLOW)])
def test_examples_that_have_ended_get_no_weight(x64, quick_compile, kind):
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


def test_parts_without_anyone_leave_everything_untouched(x64, quick_compile):
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
    once = jax.tree.map(lambda a, w: 0.5 * a + 0.5 * w, state.algo_state["average"], params)
    assert_close(found.algo_state["average"], once)


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [("tagging", None), ("tagging", [7, 3, 4, 1]), ("classification", [7, 3, 4, 1])],
)
def test_metrics_are_those_of_whole_sequences(x64, quick_compile, kind, lengths):
    """With frozen weights there is one answer."""
    model = network(readout="every_step" if kind == "tagging" else "last")
    batch = batch_of(kind, lengths=lengths)
    tbptt = TruncatedBPTT(model, cross_entropy, optax.sgd(0.0), task_of(kind), parts=3)
    state = started(tbptt, batch)
    _, metrics = updated(tbptt, state, batch)
    sums = jax.jit(tbptt.evaluate)(state.params, {}, batch)
    np.testing.assert_allclose(metrics["loss"], sums["loss"] / sums["weight"], rtol=1e-12)


# Counts, memory and compilation.


@pytest.mark.parametrize(
    ("length", "parts", "count"), [(6, 3, 3), (7, 3, 4), (7, 7, 7), (784, 10, 11), (0, 4, 4)]
)
def test_updates_per_batch_count_the_remainder(length, parts, count):
    for cls in (FPTT, TruncatedBPTT):
        algorithm = cls(network(), cross_entropy, ADAM, task_of(length=length), parts=parts)
        assert algorithm.updates_per_batch == count
        if length:
            assert algorithm.count(length) == count


def memory(temp_bytes, algorithm, length, width=4, examples=4):
    batch = {
        "inputs": jax.ShapeDtypeStruct((examples, length, width), jnp.float32),
        "labels": jax.ShapeDtypeStruct((examples,), jnp.int32),
        "weight": jax.ShapeDtypeStruct((examples,), jnp.float32),
    }
    state = jax.eval_shape(algorithm.init_state, jax.random.key(0), batch["inputs"])
    return temp_bytes(algorithm.update, state, batch)


def update_memory(temp_bytes, cls, length, backward, **fields):
    model = network(ode.LSTM(8), dtype=jnp.float32, backward=backward)
    algorithm = cls(model, cross_entropy, optax.sgd(0.1), task_of(length=length), **fields)
    return memory(temp_bytes, algorithm, length)


@pytest.mark.slow
@pytest.mark.parametrize("backward", ["autodiff", "stored"])
def test_memory_is_that_of_one_part_whatever_the_length(temp_bytes, backward):
    """Parts of 64 steps, up to 64 of them."""
    fptt = {
        length: update_memory(
            temp_bytes, FPTT, length, backward, parts=length // 64, auxiliary="uniform"
        )
        for length in (256, 1024, 4096)
    }
    bptt = {length: update_memory(temp_bytes, BPTT, length, backward) for length in (256, 4096)}
    # What remains is a few numbers per part: its metrics.
    assert max(fptt.values()) < 1.03 * min(fptt.values()) + 64 * 40
    assert bptt[4096] > 10 * bptt[256]
    assert fptt[4096] <= bptt[4096] / 20


@pytest.mark.parametrize(
    ("alpha", "reset"),
    [
        (0.2, "epoch"),
        (0.2, "sequence"),
        (0.0, "epoch"),
        *(pytest.param(a, r, marks=SLOW) for a in (0.0, 0.2) for r in ("epoch_weights", "none")),
        pytest.param(0.0, "sequence", marks=SLOW),
    ],
)
def test_update_is_traced_once_and_takes_over_the_memory_of_its_state(quick_compile, alpha, reset):
    fptt = FPTT(
        *(network(dtype=jnp.float32), cross_entropy, ADAM, task_of(steps_per_epoch=2)),
        parts=3,
        alpha=alpha,
        reset=reset,
        auxiliary="oracle",
        average_decay=0.9,
    )
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(fptt.update, n=1), donate_argnums=0)
    batch = jax.tree.map(lambda a: a.astype(jnp.float32), batch_of())
    batch["labels"] = batch["labels"].astype(jnp.int32)
    state = fptt.init_state(jax.random.key(0), batch["inputs"])
    for _ in range(5):
        old = state
        state, metrics = step(state, batch)
    taken = [old.params, old.opt_state.inner, old.algo_state]
    if alpha:  # else the running weights are not read
        taken += [old.opt_state.running]
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(taken))
    chex.assert_tree_all_finite((state.params, state.opt_state, state.algo_state, metrics))
    assert int(state.step) == 5


# Which weights are evaluated.


def test_weights_that_may_be_evaluated(x64):
    batch = batch_of()

    def candidates(**fields):
        fptt = FPTT(network(), cross_entropy, optax.sgd(0.1), task_of(), parts=3, **fields)
        state = started(fptt, batch)
        one, two = (jax.tree.map(lambda p, n=n: p + n, state.params) for n in (1, 2))
        state = state.replace(params=one, opt_state=state.opt_state._replace(running=two))
        return fptt.candidates(state), one, two

    named, one, two = candidates()
    assert list(named) == ["running", "live"]
    chex.assert_trees_all_equal((named["live"], named["running"]), (one, two))
    assert list(candidates(average_decay=0.9)[0]) == ["running", "live", "average"]
    for choice in ("running", "live"):
        named, one, two = candidates(evaluate_at=choice)
        chex.assert_trees_all_equal(named, {choice: two if choice == "running" else one})
    assert list(candidates(average_decay=0.9, evaluate_at="average")[0]) == ["average"]


def test_average_moves_with_every_part(x64, quick_compile):
    batch = batch_of("tagging")
    tbptt = TruncatedBPTT(
        *(network(readout="every_step"), cross_entropy, ADAM, task_of("tagging")),
        parts=3,
        average_decay=0.7,
    )
    state = started(tbptt, batch)
    found, _ = updated(tbptt, state, batch)
    *_, history = loop_by_hand(tbptt.model, cross_entropy, ADAM, state.params, batch, 3, plain_loss)
    average = state.params
    assert len(history) == 4
    for params in history:
        average = jax.tree.map(lambda a, w: 0.7 * a + 0.3 * w, average, params)
    assert_close(found.algo_state["average"], average)


@pytest.fixture
def fptt_config(tiny_config):
    tiny_config.model = {"name": "sequence", "cell": {"name": "lstm", "features": 8}}
    tiny_config.algorithm = {"name": "fptt", "parts": 4, "auxiliary": "oracle", "alpha": 0.1}
    tiny_config.train.update({"num_steps": 12, "eval_every": 4, "log_every": 4})
    tiny_config.checkpoint.every = 100
    return tiny_config


@pytest.mark.slow
def test_run_picks_the_best_of_the_weights(fptt_config, tmp_path):
    fptt_config.algorithm.average_decay = 0.5
    experiment = train.build(fptt_config)
    training = Training(experiment, tmp_path)

    def evaluate(params):
        return training.evaluate(params, training.state.model_state, "validation")

    try:
        assert training.run()
        named = experiment.algorithm.candidates(training.state)
        assert list(named) == ["running", "live", "average"]
        found = {name: evaluate(params) for name, params in named.items()}
        assert len({values["loss"] for values in found.values()}) == 3
        best = max(found, key=lambda name: (found[name]["accuracy"], -found[name]["loss"]))
        assert training.values["weights"] == best
        chosen, _ = training.selected()
        values = evaluate(chosen["params"])
        assert values == training.values["best_metrics"]
        assert values["accuracy"] >= found[best]["accuracy"]
        assert training.selected_weights == training.values["best_weights"]
        training.config.eval.select = "last"
        chosen, step = training.selected()
        assert (step, training.selected_weights) == (12, best)
        assert evaluate(chosen["params"]) == found[best]
        # The optimiser's count is that of the updates, and with it the schedule's.
        counts = [int(c) for _, c in optax.tree.get_all_with_path(training.state, "count")]
        assert counts
        assert set(counts) == {12 * 4}
    finally:
        training.close()


def test_choice_of_weights_is_the_validation_not_their_order(fptt_config, tmp_path):
    """Each kind of weights is chosen where it is the best one."""
    experiment = train.build(fptt_config)
    training = Training(experiment, tmp_path)
    try:
        live = jax.tree.map(lambda p: p + 1, training.state.params)
        training.state = training.state.replace(params=live)
        training.config.eval.select = "last"
        good, bad = {"accuracy": 0.9, "loss": 1.0}, {"accuracy": 0.5, "loss": 0.1}
        for best in ("live", "running"):
            named = experiment.algorithm.candidates(training.state)
            results = iter([good if name == best else bad for name in named])
            training.evaluate = lambda *args, results=results: next(results)
            training._validate(1, None, Progress(1, 0, False))
            assert training.values["weights"] == training.selected_weights == best
            chex.assert_trees_all_equal(training.selected()[0]["params"], named[best])
    finally:
        training.close()


def test_learning_rate_falls_over_all_updates_of_a_run(fptt_config):
    fptt_config.optim.update({"name": "sgd", "learning_rate": 1.0, "schedule_name": "cosine"})
    fptt_config.train.num_steps = 5
    fptt_config.algorithm.parts = 3
    algorithm = train.build(fptt_config).algorithm
    one = jnp.ones(())

    def step(state, _):
        updates, state = algorithm.optimizer.update(one, state, one)
        return state, -updates

    _, rates = jax.lax.scan(step, algorithm.optimizer.init(one), None, 20)
    closed = 0.5 * (1 + np.cos(np.pi * np.arange(20) / 20))
    np.testing.assert_allclose(rates, closed, atol=1e-6)


# Repeated updates of back-propagation.


def test_repeats_are_updates_on_the_same_batch(x64, quick_compile):
    batch = batch_of()
    once = BPTT(network(), cross_entropy, ADAM, task_of(), average_decay=0.7)
    often = BPTT(network(), cross_entropy, ADAM, task_of(), repeats=3, average_decay=0.7)
    assert (once.updates_per_batch, often.updates_per_batch) == (1, 3)
    state = started(once, batch)
    expected, _ = updated(once, state, batch, times=3)
    found, metrics = updated(often, state, batch)
    assert_close(found.params, expected.params, atol=1e-14)
    assert_close(found.opt_state, expected.opt_state, atol=1e-14)
    assert_close(found.algo_state, expected.algo_state, atol=1e-14)
    assert int(found.step) == 1
    np.testing.assert_allclose(metrics["loss"], updated(once, state, batch)[1]["loss"], rtol=1e-12)


# Mistakes.


class Stateless(nn.Module):
    def __call__(self, inputs, train=False):
        return inputs


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"parts": 8}, "parts=8 needs sequences of at least as many steps, but they have 7; lower"),
        ({"parts": 0}, "parts must be at least 1, not 0"),
        ({"reset": "epochs"}, "reset: unknown choice 'epochs'; did you mean 'epoch'"),
        ({"auxiliary": "oracl"}, "auxiliary: unknown choice 'oracl'; did you mean 'oracle'"),
        (
            {"auxiliary_reduction": "sum"},
            "auxiliary_reduction: unknown choice 'sum'",
        ),
        ({"form": "fedyn"}, "form: unknown choice 'fedyn'"),
        ({"alpha": -1.0}, "alpha must not be negative"),
        ({"uniform_epochs": 0}, "uniform_epochs must be at least 1, not 0"),
        ({"evaluate_at": "average"}, "evaluate_at: unknown choice 'average'; set average_decay"),
        ({"evaluate_at": "runing"}, "evaluate_at: unknown choice 'runing'; did you mean 'running'"),
        ({"average_decay": 1.0}, r"average_decay must be in \[0, 1\), not 1.0"),
        ({"model": Stateless()}, "a model that keeps its state, which Stateless does not"),
        (
            {"task": Task("regression", 0, 7, 9), "auxiliary": "uniform"},
            "auxiliary='uniform' needs one class label per sequence, but the task is regression",
        ),
        (
            {"task": Task("tagging", 3, 7, 9), "auxiliary": "oracle"},
            "auxiliary='oracle' needs one class label per sequence, but the task is tagging",
        ),
        ({"task": Task("classification", 3, 7, 0)}, "need task.steps_per_epoch"),
    ],
)
def test_impossible_fields_are_one_sentence(fields, sentence):
    options = {"model": network(), "task": task_of(), "parts": 3, **fields}
    with pytest.raises(ConfigError, match=sentence) as caught:
        FPTT(objective=cross_entropy, optimizer=ADAM, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"part": 4}, r"config.algorithm.part: .*no such field; did you mean 'parts'"),
        ({"parts": 9}, "config.algorithm: parts=9 needs sequences of at least as many steps"),
        ({"alpa": 0.1}, r"config.algorithm.alpa: .*did you mean 'alpha'"),
    ],
)
def test_mistakes_in_a_config_name_the_field(fptt_config, fields, sentence):
    fptt_config.algorithm.update(fields)
    with pytest.raises(ConfigError, match=sentence):
        train.build(fptt_config)


def test_impossible_repeats_are_refused():
    with pytest.raises(ConfigError, match="repeats must be at least 1, not 0"):
        BPTT(network(), cross_entropy, ADAM, repeats=0)
