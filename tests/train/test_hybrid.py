"""Training of hybrid models: what each part learns from, and what it leaves alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sweeps import swept

from jaxeff import train
from jaxeff.errors import ConfigError
from jaxeff.hybrid import proxy
from jaxeff.models import MODELS
from jaxeff.models.base import apply_with_features
from jaxeff.models.hybrid import part
from jaxeff.models.trained import Trained
from jaxeff.train import objectives
from jaxeff.train.algorithms import BPTT, BPTTWithoutFold, Hybrid

MLPS = {
    "name": "hybrid",
    "base": {"name": "mlp", "hidden": (3,)},
    "expert": {"name": "mlp", "hidden": (8,)},
}
RESNET = {"name": "resnet", "blocks": (1,), "widths": (4,)}
CROSS_ENTROPY = objectives.build({"name": "auto"}, "classification")


def algorithm(spec=None, rate=0.1, optimizer=None, **fields):
    model = MODELS.build({**MLPS, **(spec or {})}, "model", num_outputs=4)
    return Hybrid(model, CROSS_ENTROPY, optimizer or optax.sgd(rate), **fields)


def batch(seed=0, size=16, shape=(6,)):
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.normal(size=(size, *shape)).astype(np.float32),
        "labels": rng.integers(0, 4, size).astype(np.int32),
        "weight": (np.arange(size) < size - 2).astype(np.float32),
        "index": rng.permutation(10 * size)[:size].astype(np.int32),
    }


def start(algo, shape=(6,)):
    """A fresh state, with the parts' answers moved apart."""

    @jax.jit
    def made():
        state = algo.init_state(jax.random.key(1), jnp.zeros((1, *shape)))
        return state.replace(params=jax.tree.map(lambda p: 2 * p, state.params))

    return made()


def gap(one, two):
    gaps = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), one, two)
    return max(map(float, jax.tree.leaves(gaps)), default=0.0)


def seen(algo, state, data):
    """Logits of base and expert, features, and scores, from the models themselves."""
    network = algo.model

    @jax.jit
    def apply(variables, inputs):
        base, features, _ = apply_with_features(network.base, part(variables, "base"), inputs)
        expert = network.expert.apply(part(variables, "expert"), inputs)
        inside = features["penultimate"]
        return base, expert, inside, network.router.apply(part(variables, "router"), base, inside)

    return jax.tree.map(
        np.asarray, apply({"params": state.params, **state.model_state}, data["inputs"])
    )


@functools.cache
def gradient_of(algo, name):
    def loss(own, variables, data):
        return algo.part_loss(own, name, variables, data, jax.random.key(0))[0]

    return jax.jit(jax.value_and_grad(loss))


def grads(algo, state, data, name):
    variables = {"params": state.params, **state.model_state}
    return gradient_of(algo, name)(state.params[name], variables, data)


def moved_by(rate, params, slope):
    return jax.tree.map(lambda p, g: np.asarray(p) - rate * np.asarray(g), params, slope)


def test_parts_take_turns_and_leave_the_others_alone():
    # The schedule counts the steps of all parts.
    rates = np.float32([0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.08, 0.05])
    algo = algorithm(
        phases={"router": 2, "base": 1, "expert": 1},
        rates={"base": 0.5},
        optimizer=optax.sgd(lambda step: jnp.asarray(rates)[step]),
    )
    state, data, update = start(algo), batch(), jax.jit(algo.update)
    for step, name in enumerate(["router", "router", "base", "expert"] * 2):
        new, metrics = update(state, data)
        for other in ("router", "base", "expert"):
            moved = gap(new.params[other], state.params[other])
            assert (moved > 0) == (other == name)
        assert set(metrics) == {"loss", "accuracy", "queries"}
        _, slope = grads(algo, state, data, name)
        rate = rates[step] * (0.5 if name == "base" else 1)
        assert gap(new.params[name], moved_by(rate, state.params[name], slope)) < 1e-6
        state = new
    assert int(state.step) == 8


@pytest.mark.slow
def test_a_frozen_expert_stays_as_it_is_and_has_no_optimizer():
    algo = algorithm(phases={"router": 1, "base": 1}, optimizer=optax.adam(0.1))
    state, data = start(algo), batch()
    assert set(state.opt_state) == {"router", "base"}
    update, new = jax.jit(algo.update), state
    for _ in range(4):
        new, _ = update(new, data)
    assert gap(new.params["expert"], state.params["expert"]) == 0
    assert gap(new.params["base"], state.params["base"]) > 0


@pytest.mark.slow
def test_a_frozen_expert_has_no_gradient_and_the_other_parts_their_own_alone():
    algo = algorithm(phases={"router": 1, "base": 1})
    state, data = start(algo), batch()

    def total(params):
        variables = {"params": params}
        return sum(
            algo.part_loss(params[name], name, variables, data, jax.random.key(0))[0]
            for name in algo.active
        )

    @jax.jit
    def slopes(params):
        each = {
            name: jax.grad(algo.part_loss, has_aux=True)(
                params[name], name, {"params": params}, data, jax.random.key(0)
            )[0]
            for name in algo.active
        }
        return jax.grad(total)(params), each

    slope, each = slopes(state.params)
    assert gap(slope["expert"], jax.tree.map(np.zeros_like, slope["expert"])) == 0
    # Neither does the router's loss move the base, nor the base's the router.
    for name in ("router", "base"):
        assert gap(slope[name], each[name]) < 1e-6


@pytest.mark.parametrize("target", ["query", "difference"])
def test_the_router_learns_what_base_and_expert_answer_on_these_inputs(target):
    algo = algorithm(target=target)
    state, data = start(algo), batch(size=64)
    base, expert, _, scores = seen(algo, state, data)
    right = [logits.argmax(-1) == data["labels"] for logits in (base, expert)]
    if target == "query":
        wanted = np.asarray(~right[0] & right[1])
        assert 0 < wanted.sum() < 64
        losses = np.logaddexp(0, scores) - scores * wanted
    else:
        losses = (scores - (right[1].astype(float) - right[0].astype(float))) ** 2
    loss, _ = grads(algo, state, data, "router")
    np.testing.assert_allclose(loss, np.average(losses, weights=data["weight"]), rtol=1e-5)


@pytest.mark.parametrize("name", ["base", "expert"])
def test_base_and_expert_learn_with_constant_weights(name):
    algo = algorithm(phases={"base": 1, "expert": 1})
    state, data = start(algo), batch()
    scores = seen(algo, state, data)[-1]
    asked = 1 / (1 + np.exp(-scores))
    emphasis = 2 - asked if name == "base" else 1 + asked
    model = getattr(algo.model, name)

    def weighted(own):
        logits = model.apply({"params": own}, data["inputs"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, data["labels"])
        return jnp.sum(emphasis * losses * data["weight"]) / data["weight"].sum()

    expected = jax.jit(jax.value_and_grad(weighted))(state.params[name])
    found = grads(algo, state, data, name)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert gap(found[1], expected[1]) < 1e-6
    assert asked.std() > 0.01


def test_penalty_is_added_to_the_routers_loss():
    plain, fined = algorithm(), algorithm(penalty_weight=3.0)
    state, data = start(plain), batch()
    *_, scores = seen(plain, state, data)
    excess = jax.jit(proxy.coverage_penalty, static_argnums=1)(scores, 0.75)
    assert excess > 0.01
    with_fine, without = (float(grads(a, state, data, "router")[0]) for a in (fined, plain))
    np.testing.assert_allclose(with_fine - without, 3 * float(excess), rtol=1e-4)


@pytest.mark.slow
def test_only_held_out_examples_teach_the_router_and_never_the_others():
    algo = algorithm(router_folds=3, phases={"base": 1, "expert": 1})
    assert algo.needs_index
    assert not algorithm().needs_index
    state, data = start(algo), batch()
    held = data["index"] % 3 == 0
    plain = algorithm(phases={"base": 1, "expert": 1})
    for name in ("router", "base", "expert"):
        kept = held if name == "router" else ~held
        expected = grads(plain, state, {**data, "weight": data["weight"] * kept}, name)
        found = grads(algo, state, data, name)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
        assert gap(found[1], expected[1]) < 1e-6
    nobody = {**data, "index": 3 * data["index"] + 1}
    new, metrics = jax.jit(algo.update)(state, nobody)
    assert gap(new.params, state.params) == 0
    assert float(metrics["loss"]) == 0


def test_a_training_without_a_fold_is_one_without_its_examples():
    model = MODELS.build({"name": "mlp", "hidden": (3,)}, "model", num_outputs=4)
    plain = BPTT(model, CROSS_ENTROPY, optax.sgd(0.1))
    fields = {"model": model, "objective": CROSS_ENTROPY, "optimizer": optax.sgd(0.1)}
    without = BPTTWithoutFold(folds=3, fold=1, **fields)
    assert without.needs_index
    data = batch()
    state = jax.jit(without.init_state)(jax.random.key(0), data["inputs"])
    kept = data["index"] % 3 != 1
    assert 0 < kept.sum() < 16
    found, metrics = jax.jit(without.update)(state, data)
    masked = {**data, "weight": data["weight"] * kept}
    expected, values = jax.jit(plain.update)(state, masked)
    assert gap(found.params, expected.params) == 0
    assert float(metrics["loss"]) == float(values["loss"])
    with pytest.raises(ConfigError, match="fold must be in"):
        BPTTWithoutFold(folds=3, fold=3, **fields)


@pytest.mark.slow
def test_statistics_of_a_part_move_only_in_its_turn():
    algo = algorithm({"base": RESNET, "router": {"name": "released"}}, phases={"base": 1})
    shape = (4, 4, 1)
    state, data = start(algo, shape), batch(shape=shape)
    update = jax.jit(algo.update)
    for turn in ("router", "base"):
        new, _ = update(state, data)
        for name in ("router", "base"):
            before, after = (s.model_state["batch_stats"][name] for s in (state, new))
            assert (gap(before, after) > 0) == (name == turn)
        state = new


@pytest.mark.slow
def test_parts_of_a_batch_update_as_the_whole_does():
    algo = algorithm(phases={"base": 1, "expert": 1}, penalty_weight=0.0, router_folds=3)
    state, data = start(algo), batch()
    halves = jax.tree.map(lambda a: np.stack(np.split(a, 2)), data)
    update = jax.jit(algo.update)
    mapped = jax.jit(
        lambda state: jax.vmap(
            lambda own: algo.update(state, own, axis_name="data"), axis_name="data"
        )(halves)
    )
    for _ in range(3):
        whole, metrics = update(state, data)
        split, means = mapped(state)
        for number in range(2):
            own = jax.tree.map(lambda a, n=number: np.asarray(a)[n], split.params)
            assert gap(own, whole.params) < 1e-5
        for name, value in metrics.items():
            np.testing.assert_allclose(means[name], value, rtol=1e-4)
        state = whole


@pytest.mark.parametrize("coverage", swept([0.0, 0.7], 0.7))
def test_evaluation_queries_exactly_the_share_of_highest_score(coverage):
    algo = algorithm({"coverage": coverage})
    state, data = start(algo), batch(size=22)  # of which two are padding
    evaluate = jax.jit(lambda state, data: algo.evaluate(state.params, state.model_state, data))
    found = evaluate(state, data)
    base, expert, _, scores = seen(algo, state, data)
    real = np.arange(22) < 20
    order = sorted(np.flatnonzero(real), key=lambda i: (-scores[i], i))
    asked = np.isin(np.arange(22), order[: round(20 - coverage * 20)])
    right = [logits.argmax(-1) == data["labels"] for logits in (base, expert)]
    assert float(found["weight"]) == 20
    assert float(found["coverage"]) == pytest.approx(20 * coverage)
    assert float(found["accuracy"]) == np.where(asked, *right[::-1])[real].sum()
    assert float(found["base_accuracy"]) == right[0][real].sum()
    assert float(found["expert_accuracy"]) == right[1][real].sum()
    halves = jax.tree.map(lambda a: np.stack(np.split(a, 2)), data)
    split = jax.vmap(
        lambda own: algo.evaluate(state.params, state.model_state, own, axis_name="data"),
        axis_name="data",
    )
    for name, value in jax.jit(split)(halves).items():
        np.testing.assert_allclose(value, found[name], rtol=1e-5)


def test_training_starts_from_what_was_trained_before():
    model = MODELS.build({**MLPS, "base": RESNET}, "model", num_outputs=4)
    inputs = np.zeros((1, 4, 4, 1), np.float32)
    trained = {}
    for name in ("base", "expert"):
        own = getattr(model, name)
        variables = jax.jit(own.init)(jax.random.key(7), inputs)
        trained[name] = Trained(own, jax.tree.map(lambda a: np.asarray(a) + 1, variables))
    algo = Hybrid(model, CROSS_ENTROPY, optax.adam(0.1), trained=trained, average_decay=0.9)
    state = jax.jit(algo.init_state)(jax.random.key(0), inputs)
    variables = {"params": state.params, **state.model_state}
    for name in ("base", "expert"):
        found = part(variables, name)
        assert gap(found, {k: v for k, v in trained[name].variables.items() if v}) == 0
    assert gap(state.algo_state["average"], state.params) == 0
    assert gap(state.algo_state["average_state"], state.model_state) == 0
    other = {"base": trained["expert"]}
    algo = Hybrid(model, CROSS_ENTROPY, optax.adam(0.1), trained=other)
    with pytest.raises(ConfigError, match="base trains another network than"):
        jax.eval_shape(algo.init_state, jax.random.key(0), inputs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "querry"}, "target must be one of"),
        ({"penalty": "x"}, "penalty must be one of"),
        ({"phases": {"bse": 1}}, "phases has no part 'bse'; did you mean 'base'"),
        ({"phases": {"router": 0}}, "phases must be numbers of steps"),
        ({"rates": {"gate": 1.0}}, "rates has no part 'gate'"),
        ({"trained": {"teacher": None}}, "prerequisites has no part 'teacher'"),
        ({"router_folds": 1}, "router_folds must be 0 or above 1"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        algorithm(**fields)


def test_other_models_are_refused():
    model = MODELS.build({"name": "mlp"}, "model", num_outputs=4)
    with pytest.raises(ConfigError, match=r"needs .*name='hybrid'"):
        Hybrid(model, CROSS_ENTROPY, optax.sgd(0.1))


def small_config(model, algorithm, analyses):
    made = train.base_config()
    made.name = "small"
    made.data.update({"name": "digits", "calibration_fraction": 0.2})
    made.model, made.algorithm, made.analyses = model, algorithm, analyses
    made.optim.learning_rate = 1e-2
    made.train.update({"batch_size": 64, "num_steps": 60, "log_every": 30, "eval_every": 60})
    made.eval.batch_size = 64
    made.devices.cpu = 1
    return made


@pytest.mark.slow
def test_a_run_trains_the_parts_joins_them_and_tells_what_they_cost(tmp_path):
    networks = {"base": MLPS["base"], "expert": {"name": "mlp", "hidden": (64,)}}
    analysis = {"name": "hybrid", "coverages": (0.75,), "accuracy_losses": (0.05,), "rounds": 1}
    made = small_config(
        {"name": "hybrid", **networks}, {"name": "hybrid", "router_folds": 5}, [analysis]
    )
    made.prerequisites = {
        name: small_config(spec, {"name": "bptt_without_fold"}, [])
        for name, spec in networks.items()
    }
    report = train.run(made, tmp_path)
    metrics = report["metrics"]["test"]
    assert metrics["base_accuracy"] < metrics["accuracy"] < metrics["expert_accuracy"]
    assert 0.7 < metrics["coverage"] < 0.8
    found = report["extras"]["hybrid"]
    assert (tmp_path / report["artifacts"]["accuracy_coverage"]).stat().st_size > 10_000
    static = found["static"]
    assert static["base"]["accuracy"] == pytest.approx(metrics["base_accuracy"], abs=1e-6)
    assert static["expert"]["accuracy"] == pytest.approx(metrics["expert_accuracy"], abs=1e-6)
    assert static["base"]["macs"] == 64 * 3 + 3 * 10
    areas = {name: rule["area"] for name, rule in found["rules"].items()}
    assert max(areas, key=areas.__getitem__) == "label oracle"
    assert areas["learned router"] > (metrics["base_accuracy"] + metrics["expert_accuracy"]) / 2
    point = found["rules"]["learned router"]["at_coverage"]["0.75"]
    kept, queried = point["base_on_kept"], point["expert_on_queried"]
    coverage = point["coverage"]
    joined = coverage * kept + (1 - coverage) * queried
    assert point["accuracy"] == pytest.approx(joined, abs=1e-9)
    assert abs(coverage - 0.75) < 0.15
