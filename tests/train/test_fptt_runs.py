"""What FPTT costs, which weights a run evaluates, and what is refused."""

import chex
import flax.linen as nn
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
    loop_by_hand,
    network,
    plain_loss,
    started,
    task_of,
    updated,
)

from jaxeff import ode, train
from jaxeff.errors import ConfigError
from jaxeff.eval.console import Progress
from jaxeff.train.algorithms import BPTT, FPTT, Task, TruncatedBPTT
from jaxeff.train.loop import Training

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
@pytest.mark.parametrize("backward", ["autodiff", "fused"])
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
        pytest.param(0.0, "epoch", marks=SLOW),
        pytest.param(0.2, "sequence", marks=SLOW),
        (0.2, "epoch"),
        *(pytest.param(a, r, marks=SLOW) for a in (0.0, 0.2) for r in ("epoch_weights", "none")),
        pytest.param(0.0, "sequence", marks=SLOW),
    ],
)
def test_update_is_traced_once_and_takes_over_the_memory_of_its_state(alpha, reset):
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
    batch = jax.tree.map(lambda a: np.asarray(a, np.float32), batch_of())
    batch["labels"] = batch["labels"].astype(np.int32)
    state = jax.jit(fptt.init_state)(jax.random.key(0), batch["inputs"])
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
        one, two = (jax.tree.map(lambda p, n=n: np.asarray(p) + n, state.params) for n in (1, 2))
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


@pytest.mark.slow
def test_average_moves_with_every_part(x64):
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
        chosen = training.selection().chosen
        values = evaluate(chosen["params"])
        assert values == training.values["best_metrics"]
        assert values["accuracy"] >= found[best]["accuracy"]
        assert training.selection().weights == training.values["best_weights"]
        training.config.eval.select = "last"
        selection = training.selection()
        chosen, step = selection.chosen, selection.step
        assert (step, training.selection().weights) == (12, best)
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
            assert training.values["weights"] == training.selection().weights == best
            chex.assert_trees_all_equal(training.selection().chosen["params"], named[best])
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

    rates = jax.jit(lambda: jax.lax.scan(step, algorithm.optimizer.init(one), None, 20)[1])()
    closed = 0.5 * (1 + np.cos(np.pi * np.arange(20) / 20))
    np.testing.assert_allclose(rates, closed, atol=1e-6)


# Repeated updates of back-propagation.


def test_repeats_are_updates_on_the_same_batch(x64):
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
