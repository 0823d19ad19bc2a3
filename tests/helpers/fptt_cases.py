"""Networks, batches and loops written by hand for tests of training through time."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxeff import ode
from jaxeff.models import SequenceModel
from jaxeff.train.algorithms import Task
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
        labels = rng.normal(size=(examples, 1))
    else:
        labels = rng.integers(0, CLASSES, shape[kind]).astype(np.int32)
    batch = {
        "inputs": rng.normal(size=(examples, length, WIDTH)),
        "labels": labels,
        "weight": rng.uniform(0.5, 1.5, examples),
    }
    if lengths is not None:
        batch["mask"] = (np.arange(length) < np.asarray(lengths)[:, None]).astype(float)
    return jax.tree.map(jnp.asarray, batch)


def started(algorithm, batch, params=None):
    """A state of double precision whose parameters are drawn, or given."""
    shapes = jax.eval_shape(algorithm.init_state, jax.random.key(0), batch["inputs"])
    rng = np.random.default_rng(7)
    if params is None:
        params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0.0, 0.5, p.shape)), shapes.params)
    opt_state, algo_state = jax.jit(lambda p: (algorithm.init_optimizer(p), algorithm.init(p)))(
        params
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=opt_state,
        algo_state=algo_state,
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
    differences = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - np.asarray(y)).max(), a, b)
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
        jax.tree.map(np.zeros_like, params),
        jax.jit(optimizer.init)(params),
        model.initial_carry(batch["inputs"]),
    )
    history = []
    for number in range(count):
        first, last = number * size, min((number + 1) * size, length)
        part = {k: np.asarray(a) for k, a in batch.items()}
        part |= {k: part[k][:, first:last] for k in timed if k in part}
        weight = part["weight"]
        if "mask" in part:
            weight = weight * np.any(part["mask"] > 0, axis=1)
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

SLOW = pytest.mark.slow
