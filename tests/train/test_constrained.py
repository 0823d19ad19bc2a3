"""Training under constraints: plain training where they ask nothing, their levels where they do."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sweeps import swept

from jaxeff.constraints.statistics import ascend, hardest, predictive_entropy
from jaxeff.errors import ConfigError
from jaxeff.train import objectives
from jaxeff.train.algorithms import ALGORITHMS, BPTT, Constrained, Task

CLASSES, BATCH, COST = 3, 16, 10.0
ALL = (
    {"name": "entropy", "start": 0.9},
    {"name": "input_lipschitz", "start": 0.1},
    {"name": "input_lipschitz", "start": 0.1, "step": 0.1},
    {"name": "width", "start": 0.0, "radius": 0.3},
    {"name": "margin", "start": 0.0},
    {"name": "class_loss", "slack": 0.0},
    {"name": "cost", "start": 5.0},
)
DCL = (
    {"name": "discount", "start": 0.2, "end": 0.0, "period": 4.0},
    {"name": "entropy", "start": 0.95},
    {"name": "width", "start": 0.0},
)


class Gated(nn.Module):
    """A layer whose units cost something in the measure in which their gates are open."""

    norm: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, inputs, *, train=False):
        x = nn.Dense(8)(inputs)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train)(x)
        gate = nn.sigmoid(nn.Dense(8, name="gate")(inputs))
        self.sow("intermediates", "macs", COST * gate.sum(-1))
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.tanh(x) * gate)
        return nn.Dense(CLASSES)(x)


def build(constraints=(), model=None, rate=0.5, num_classes=CLASSES, objective=None, **fields):
    return ALGORITHMS.build(
        {"name": "constrained", "constraints": constraints, **fields},
        "algorithm",
        model=model or Gated(),
        objective=objectives.build(objective or {"name": "auto"}, "classification"),
        optimizer=optax.sgd(rate, momentum=0.5),
        task=Task(num_classes=num_classes, steps_per_epoch=5),
    )


def batches(count, seed=0):
    rng = np.random.default_rng(seed)
    centres = 1.5 * rng.normal(size=(CLASSES, 4))
    found = []
    for _ in range(count):
        labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
        inputs = (centres[labels] + rng.normal(size=(BATCH, 4))).astype(np.float32)
        weight = rng.uniform(0.5, 1.5, BATCH).astype(np.float32)
        found.append({"inputs": inputs, "labels": labels, "weight": weight})
    return found


def run(algo, data):
    state = started(algo, data[0])
    update, seen = jax.jit(algo.update), []
    for batch in data:
        state, metrics = update(state, batch)
        seen.append(metrics)
    return state, {name: np.array([m[name] for m in seen]) for name in seen[0]}


def started(algo, batch):
    return jax.jit(algo.init_state)(jax.random.key(0), batch["inputs"])


def moved(before, after):
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), before.params, after.params)


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


PLAIN = {
    "measured": ((ALL[0], ALL[3]), {"dual": {"name": "fixed"}}),
    "no_weights": (
        (ALL[1], ALL[4], ALL[5]),
        {"dual": {"name": "gradient", "rate": 0.0}, "rho": 0.0},
    ),
    "always_kept": (({"name": "entropy", "start": 0.0},), {"rho": 2.0}),
    "none": ((), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("which", PLAIN)
def test_plain_training_where_constraints_have_no_weight(which):
    constraints, fields = PLAIN[which]
    model, data = Gated(norm=True, dropout=0.2), batches(8)
    algo = build(constraints, model, average_decay=0.9, **fields)
    plain = BPTT(model, objectives.build({"name": "auto"}, "classification"), algo.optimizer,
                 average_decay=0.9)  # fmt: skip
    state, metrics = run(algo, data)
    expected, wanted = run(plain, data)
    duals = state.algo_state.pop("duals")
    # Terms of weight zero change how a program is fused, and with it roundings.
    rounding = 1e-6 if which in ("measured", "no_weights") else 0.0
    chex.assert_trees_all_close(
        (state.params, state.opt_state, state.model_state, state.algo_state, metrics["loss"]),
        (
            *(expected.params, expected.opt_state, expected.model_state, expected.algo_state),
            wanted["loss"],
        ),
        atol=rounding,
        rtol=rounding,
    )
    assert not any(m.any() for m in duals.multiplier.values())
    if which == "always_kept":
        assert (metrics["entropy_violation"] < 0).all()


@pytest.fixture(scope="module")
def plain_step():
    """One batch, and the parameters before and after a step without constraints."""
    algo, batch = build(), batches(1)[0]
    batch["weight"][:5] = 0.1
    batch["labels"][:8] = 0  # so that two halves have different classes
    state = started(algo, batch)
    return batch, state.params, jax.jit(algo.update)(state, batch)[0].params


def farthest(one, two):
    gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one, two)
    return max(jax.tree.leaves(gaps))


GROUPS = {
    "outputs": ((ALL[0], ALL[1], ALL[4], ALL[5]), 0.0),
    "reruns": ((ALL[2], ALL[3], ALL[6], DCL[0]), 0.0),
    "sharpness": ((ALL[0], {"name": "cvar", "start": 0.3}), 0.2),
}


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_two_devices_make_the_step_of_one(group, plain_step):
    """A mapped axis is two devices as far as collectives can tell."""
    constraints, radius = GROUPS[group]
    algo = build(constraints, initial_multiplier=1.5, rho=2.0, sharpness_radius=radius)
    batch, before, free = plain_step
    state = started(algo, batch)
    same(state.params, before)
    halves = jax.tree.map(lambda a: np.stack(np.split(a, 2)), batch)
    mapped = jax.vmap(lambda half: algo.update(state, half, axis_name="data"), axis_name="data")
    found, metrics = jax.jit(mapped)(halves)
    expected, wanted = jax.jit(algo.update)(state, batch)
    for device in (0, 1):
        own = jax.tree.map(lambda a, d=device: a[d], (found.params, found.algo_state, metrics))
        reference = (expected.params, expected.algo_state, wanted)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), own, reference
        )
    both = jax.tree.leaves((found.algo_state, found.params))
    assert all(np.array_equal(a[0], a[1]) for a in both)  # to the bit
    assert farthest(expected.params, before) > 1e-2
    assert farthest(expected.params, free) > 1e-3
    shown = {"loss", "accuracy"}
    for name in (section["name"] for section in constraints):
        closed = name in ("discount", "cvar")
        ends = ("_share", "_border") if closed else ("", "_violation", "_multiplier")
        shown |= {name + end for end in ends}
    assert set(metrics) == shown


@pytest.mark.slow
@pytest.mark.parametrize("name", ["discount", "cvar"])
def test_reweighted_training_descends_the_loss_of_the_examples_that_count(name):
    algo = build(({"name": name, "start": 0.25},), rate=1.0)
    algo.optimizer = optax.sgd(1.0)
    batch = batches(1)[0]
    state = started(algo, batch)

    def losses(params):
        logits = algo.model.apply({"params": params}, batch["inputs"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])

    g, border = hardest(losses(state.params), batch["weight"], 0.25)
    factors = batch["weight"] * (1 - g if name == "discount" else g / 0.25)
    slope = jax.grad(lambda p: jnp.sum(factors * losses(p)) / batch["weight"].sum())(state.params)
    new, metrics = jax.jit(algo.update)(state, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), moved(state, new), slope)
    assert metrics[f"{name}_share"] == 0.25
    assert metrics[f"{name}_border"] == pytest.approx(float(border))
    mean = np.average(losses(state.params), weights=batch["weight"])
    assert metrics["loss"] == pytest.approx(mean, rel=1e-5)  # of all, to be compared


def test_discount_is_relaxed_in_epochs():
    _, metrics = run(build(DCL[:1]), batches(25))  # five batches an epoch, a period of four epochs
    shares = metrics["discount_share"]
    assert shares[0] == np.float32(0.2)
    assert shares[10] == pytest.approx(0.1)
    assert not shares[20:].any()


def test_sharpness_aware_gradient_is_that_of_the_weights_uphill():
    algo, batch = build((), sharpness_radius=0.4), batches(1)[0]
    algo.optimizer = optax.sgd(1.0)
    state = started(algo, batch)

    def loss(params):
        logits = algo.model.apply({"params": params}, batch["inputs"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return jnp.average(losses, weights=batch["weight"])

    @jax.jit
    def both(state):
        params = state.params
        slope = jax.grad(loss)(ascend(params, jax.grad(loss)(params), 0.4))
        return algo.update(state, batch)[0], slope

    new, slope = both(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), moved(state, new), slope)


@pytest.mark.slow
def test_penalties_run_the_model_again_at_other_weights_and_other_inputs():
    constraints = ({"name": "width", "start": 0.0, "radius": 0.3}, ALL[1])
    fields = {"initial_multiplier": 0.6, "normalize": False, "dual": {"name": "fixed"}}
    algo, batch = build(constraints, **fields), batches(1)[0]
    algo.optimizer = optax.sgd(1.0)
    state = started(algo, batch)

    def losses(params, inputs=batch["inputs"]):
        logits = algo.model.apply({"params": params}, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])

    def mean(values):
        return jnp.average(values, weights=batch["weight"])

    def statistics(p, moves):
        slopes = jax.grad(lambda x: losses(p, x).sum())(batch["inputs"])
        rise = mean(losses(jax.tree.map(jnp.add, p, moves))) - mean(losses(p))
        return rise, mean(jnp.linalg.norm(slopes, axis=1))

    @jax.jit
    def by_hand(params):
        uphill = jax.grad(lambda p: mean(losses(p)))(params)
        moves = jax.tree.map(lambda a, b: a - b, ascend(params, uphill, 0.3), params)

        def total(p):
            values = statistics(p, moves)
            return mean(losses(p)) + 0.6 * sum(values), values

        return jax.grad(total, has_aux=True)(params)

    new, metrics = jax.jit(algo.update)(state, batch)
    slope, wanted = by_hand(state.params)
    np.testing.assert_allclose([metrics["width"], metrics["input_lipschitz"]], wanted, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved(state, new), slope)


@pytest.mark.slow
def test_statistics_are_those_at_the_weights_and_not_uphill():
    model, data, constraints = Gated(norm=True), batches(1), ({"name": "width", "start": 0.0},)
    plain, metrics = run(build(constraints, model), data)
    sharp, found = run(build(constraints, model, sharpness_radius=2.0), data)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        (plain.model_state, plain.algo_state, metrics),
        (sharp.model_state, sharp.algo_state, found),
    )
    assert farthest(plain.params, sharp.params) > 1e-2
    assert set(sharp.model_state) == {"batch_stats"}


@pytest.mark.parametrize("dual", swept(["gradient", "nupi"], "nupi"))
def test_expected_cost_is_brought_to_its_level(dual):
    level = 5.0  # of 80
    section = ({"name": "cost", "start": level},)
    _, metrics = run(
        build(section, dual={"name": dual, "rate": 0.05}, decay=0.9, rate=0.2), batches(400)
    )
    _, free = run(build(section, dual={"name": "fixed"}, rate=0.2), batches(400))
    found, unheld = (
        {name: seen[-100:].mean() for name, seen in m.items()} for m in (metrics, free)
    )
    assert unheld["cost"] > 5 * level
    assert found["cost"] == pytest.approx(level, rel=0.15)
    assert found["cost_violation"] == pytest.approx(0, abs=0.02)
    assert found["cost_multiplier"] > 0.1
    assert found["accuracy"] > unheld["accuracy"] - 0.15


class Abstaining:
    """An objective of logits and one more output."""

    def num_outputs(self, num_classes):
        return num_classes + 1

    def class_logits(self, outputs):
        return outputs[..., :-1]

    def __call__(self, outputs, batch):
        return {"loss": jnp.square(outputs[:, -1])}


def test_constraints_see_the_logits_of_an_objective_that_has_more_outputs():
    algo = Constrained(Gated(), Abstaining(), optax.sgd(0.1), Task(num_classes=2),
                       constraints=(ALL[0],))  # fmt: skip
    batch = batches(1)[0]
    state = started(algo, batch)

    @jax.jit
    def found(state):
        logits = algo.model.apply({"params": state.params}, batch["inputs"])[:, :2]
        sums = algo.evaluate(state.params, {}, batch)
        return predictive_entropy(logits) / np.log(2), algo.update(state, batch)[1], sums

    share, metrics, sums = found(state)
    assert metrics["entropy"] == pytest.approx(float(np.average(share, weights=batch["weight"])))
    assert float(sums["entropy"]) == pytest.approx(float(batch["weight"] @ share), rel=1e-5)
    assert objectives.num_outputs(algo.objective, 2) == 3


def test_multipliers_move_after_whole_epochs():
    _, metrics = run(build((ALL[0],), move="epoch"), batches(11))
    steps = np.flatnonzero(np.diff(metrics["entropy_multiplier"], prepend=0))
    assert set(steps) <= {4, 9}
    assert 9 in steps


def test_evaluation_shows_what_the_outputs_alone_say():
    algo, batch = build(ALL[:2] + ALL[3:]), batches(1)[0]
    state = started(algo, batch)
    sums, p = jax.jit(
        lambda params: (
            algo.evaluate(params, {}, batch),
            jax.nn.softmax(algo.model.apply({"params": params}, batch["inputs"])),
        )
    )(state.params)
    p = np.asarray(p)
    share = -(p * np.log(p)).sum(-1) / np.log(CLASSES)
    assert float(sums["entropy"]) == pytest.approx(float(batch["weight"] @ share), rel=1e-5)
    assert set(sums) == {"loss", "accuracy", "weight", "entropy", "margin"}


@pytest.mark.slow
def test_infeasible_constraint_is_told_in_one_sentence():
    hopeless = ({"name": "width", "start": 0.0}, {"name": "entropy", "start": 0.0})
    algo = build(hopeless, dual={"name": "gradient", "rate": 50.0}, max_multiplier=3.0)
    state, _ = run(algo, batches(4))
    sentences = algo.warnings(state)
    assert len(sentences) == 1
    assert "constraint 'width' cannot be met: its multiplier ended at its limit 3" in sentences[0]
    assert BPTT.warnings(algo, state) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"constraints": (DCL[0], {"name": "cvar"})}, "'discount' and 'cvar' both weigh"),
        ({"constraints": ({"name": "widht", "start": 1.0},)}, r"constraints\[0\].*'width'"),
        ({"constraints": ({"name": "width", "levl": 1.0},)}, r"config.algorithm.constraints\[0\]"),
        ({"dual": {"name": "gradient", "gain": 1.0}}, "config.algorithm.dual.gain"),
        ({"dual": {"name": "newton"}}, "config.algorithm.dual.name"),
        ({"move": "steps"}, "did you mean 'step'"),
        ({"sharpness_radius": -1.0}, "sharpness_radius must not be negative"),
        ({"initial_multiplier": 11.0}, "multipliers start at 11"),
        ({"constraints": (DCL[1],), "num_classes": 0}, "needs a task with classes"),
    ],
)
def test_impossible_fields_are_one_sentence(fields, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(**fields)
    assert "\n" not in str(caught.value)


def test_two_constraints_of_one_name_are_refused_before_anything_runs():
    algo = build((ALL[0], ALL[0]))
    with pytest.raises(ConfigError, match="two constraints have the name 'entropy'"):
        algo.init_state(jax.random.key(0), batches(1)[0]["inputs"])


def test_algorithm_is_registered_and_exported():
    assert ALGORITHMS["constrained"] is Constrained
