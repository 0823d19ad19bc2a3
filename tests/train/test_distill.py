"""Training with a teacher: who learns when, what stays as it is, and that devices do not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxeff import data, train
from jaxeff.distill import kd, variant
from jaxeff.errors import ConfigError
from jaxeff.models import MODELS
from jaxeff.models.trained import Trained
from jaxeff.train import launch, objectives
from jaxeff.train.algorithms import ALGORITHMS, Task

CLASSES = 4
NET = {"name": "resnet", "blocks": (1,)}


def build(spec, hidden=(3,), teacher=None, student=None, optimizer=None, task=None):
    model = hidden if hasattr(hidden, "apply") else mlp(hidden)
    trained = {"teacher": teacher or trained_mlp((6,), 7)}
    if student is not None:
        trained["student"] = student
    return ALGORITHMS.build(
        {"name": "distill", **spec},
        "algorithm",
        model=model,
        objective=objectives.build({"name": "auto"}, "classification"),
        optimizer=optimizer or optax.sgd(1.0),
        task=task or Task("classification", CLASSES, steps_per_epoch=2),
        trained=trained,
    )


def mlp(hidden):
    return MODELS.build({"name": "mlp", "hidden": hidden}, "model", num_outputs=CLASSES)


def trained_mlp(hidden, seed):
    params = jax.jit(mlp(hidden).init)(jax.random.key(seed), np.zeros((1, 5), "f"))["params"]
    return Trained(mlp(hidden), {"params": jax.tree.map(lambda p: 3 * np.asarray(p), params)})


def net(width, **spec):
    return MODELS.build({**NET, "widths": (width,), **spec}, "model", num_outputs=CLASSES)


def trained_net(width):
    variables = jax.jit(net(width).init)(jax.random.key(3), np.zeros((1, 4, 4, 1), "f"))
    return Trained(net(width), dict(variables))


def batch_of(shape=(5,), size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "inputs": jnp.asarray(rng.normal(size=(size, *shape)), jnp.float32),
        "labels": jnp.asarray(rng.integers(0, CLASSES, size), jnp.int32),
        "weight": jnp.asarray(rng.uniform(0.5, 1, size), jnp.float32),
    }


def start(algorithm, batch, seed=0):
    return jax.jit(algorithm.init_state)(jax.random.key(seed), batch["inputs"])


def gap(one, two):
    found = jax.tree.map(
        lambda a, b: float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max()), one, two
    )
    return max(jax.tree.leaves(found), default=0.0)


def same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))


def mean(values, batch):
    return jnp.sum(values * batch["weight"]) / batch["weight"].sum()


def answers(model, params, batch):
    return model.apply({"params": params}, batch["inputs"])


def test_the_loss_is_the_weighted_sum():
    algorithm = build({"label_weight": 0.1, "losses": {"kd": {"weight": 0.9, "temperature": 2.0}}})
    batch = batch_of()
    state = start(algorithm, batch)
    new, metrics = jax.jit(algorithm.update)(state, batch)
    teacher = algorithm.teacher

    def loss(params):
        goal = answers(teacher.model, teacher.variables["params"], batch)
        logits = answers(algorithm.model, params, batch)
        own = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        imitated = kd(logits, goal, 2.0)
        return mean(0.1 * own + 0.9 * imitated, batch), mean(imitated, batch)

    @jax.jit
    def by_hand(params):
        slope, imitated = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - g, params, slope), imitated

    expected, imitated = by_hand(state.params)
    assert gap(new.params, expected) < 1e-5
    np.testing.assert_allclose(metrics["kd"], imitated, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["normalised", "cifar50", "poster"])
def test_student_and_gate_descend_on_one_sum_of_which_each_sees_its_part(name):
    """The student pays for its help where the variant says so, and the multiplier follows."""
    budget, strength = 0.01, 3.0
    disk = {"variant": name, "weight": 0.9, "top_k": 2, "budget": budget, "strength": strength}
    algorithm = build({"label_weight": 0.1, "disk": disk, "gate": {"name": "logits"}})
    batch, made = batch_of(), variant(name, top_k=2, budget=budget, strength=strength)
    state = start(algorithm, batch)
    new, metrics = jax.jit(algorithm.update)(state, batch)
    helper, teacher = state.algo_state["helper"], algorithm.teacher
    goal = answers(teacher.model, teacher.variables["params"], batch)
    labels, weight = batch["labels"], batch["weight"]

    def parts(params, gate_params):
        logits = answers(algorithm.model, params, batch)
        gate = algorithm.disk_loss.gate.apply(
            {"params": gate_params}, teacher.seen(batch["inputs"])
        )
        own = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        lifted = made.loss(logits, goal, labels, gate) + made.cost(logits, gate)
        counted = jnp.sum(weight * made.counted(logits, labels))
        spent = jnp.sum(weight * made.help(logits, goal, labels, gate)) / counted
        excess = spent - budget
        charge = strength * excess if name != "normalised" else strength * excess**2 / 2
        return mean(0.1 * own + 0.9 * lifted, batch), charge

    @jax.jit
    def slopes(*players):
        loss, pull = jax.vjp(parts, *players)
        pays = 1.0 if name == "poster" else 0.0
        return pull((1.0, pays))[0], pull((1.0, 1.0))[1], loss[1]

    players = state.params, helper["gate"]["params"]
    students, gates, charge = slopes(*players)
    assert gap(new.params, jax.tree.map(lambda p, g: p - g, state.params, students)) < 1e-4
    found = new.algo_state["helper"]
    expected = jax.tree.map(lambda p, g: p - g, players[1], gates)
    assert gap(found["gate"]["params"], expected) < 1e-4
    assert charge > 0
    multiplier = jnp.sqrt(2 * strength * charge) if name == "normalised" else 0
    np.testing.assert_allclose(found["multiplier"], multiplier, rtol=1e-4)
    assert 0 < metrics["gate"] < 1


@pytest.mark.slow
def test_who_waits_for_its_turn_and_the_teacher_stay_as_they_are():
    teacher = trained_net(4)
    turns = {"gate_init_epochs": 1, "student_epochs": 1, "gate_epochs": 1}
    algorithm = build(
        {"disk": {"variant": "cifar50"}, "gate": {"name": "map", "width": 4}, **turns},
        net(2),
        teacher,
        optimizer=optax.sgd(optax.linear_schedule(0.1, 0.0, 10), momentum=0.9),
    )
    batch = batch_of((4, 4, 1))
    state, update = start(algorithm, batch), jax.jit(algorithm.update)
    evaluate = jax.jit(algorithm.evaluate)
    for step, gates_turn in enumerate([True, True, False, False, True, True, False]):
        new, metrics = update(state, batch)
        students = [(s.params, s.opt_state, s.model_state) for s in (state, new)]
        helpers = [(s.algo_state["helper"], s.algo_state["gate_opt_state"]) for s in (state, new)]
        assert same(*students) == gates_turn
        assert same(*helpers) != gates_turn
        statistics = [s.algo_state["helper"]["gate"]["batch_stats"] for s in (state, new)]
        assert same(*statistics) != gates_turn
        assert same(new.algo_state["teacher"]["variables"], teacher.variables)
        assert int(new.step) == step + 1
        assert np.isfinite(metrics["disk"])
        sums = evaluate(state.params, state.model_state, batch)
        evaluated = np.isclose(metrics["loss"], sums["loss"] / sums["weight"], rtol=1e-5)
        assert evaluated == gates_turn  # while the gate learns, its student is in evaluation mode
        moved = new.algo_state["gate_opt_state"] if gates_turn else new.opt_state
        counts = [s.count for s in jax.tree.leaves(moved, is_leaf=_scheduled) if _scheduled(s)]
        assert [int(count) for count in counts] == [step + 1]
        state = new


def _scheduled(node):
    return isinstance(node, optax.ScaleByScheduleState)


def test_rounds_are_counted_from_the_end_of_the_gates_own_epochs():
    turns = {"gate_init_epochs": 3, "student_epochs": 2, "gate_epochs": 1}
    algorithm = build({"disk": {}, **turns})
    steps = range(0, 22, 2)  # one an epoch
    is_gates_turn, rounds = jax.jit(algorithm._is_gates_turn), jax.jit(algorithm._rounds)
    turn = [bool(is_gates_turn(step)) for step in steps]
    assert turn == [True] * 3 + [False, False, True] * 2 + [False, False]
    assert [int(rounds(s)[0]) for s in steps[3:]] == [0, 0, 0, 1, 1, 1, 2, 2]


HELPED = [
    {"disk": {"budget": 0.01}, "gate": {"name": "logits"}},
    {"disk": {"variant": "cifar50", "budget": 0.01}, "gate": {"name": "logits"}},
    {"disk": {"budget": 0.05, "top_k": 2}, "gate": {"name": "closed_form"}},
    {"losses": {"dkd": {}}, "cache": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("spec", HELPED)
def test_parts_of_a_batch_on_devices_make_the_step_of_the_whole(spec):
    task = Task("classification", CLASSES, steps_per_epoch=2, num_examples=16, num_versions=1)
    algorithm = build(spec, task=task)
    batch = {
        **batch_of(),
        "index": jnp.arange(8, dtype=jnp.int32) * 2,
        "version": jnp.zeros(8, jnp.int32),
    }
    state = start(algorithm, batch)
    halves = jax.tree.map(lambda a: jnp.stack(jnp.split(a, 2)), batch)
    # vmap over an axis of that name is two devices as far as collectives can tell.
    mapped = jax.vmap(
        lambda part: algorithm.update(state, part, axis_name="data"), axis_name="data"
    )
    (together, there), (whole, here) = (
        jax.jit(mapped)(halves),
        jax.jit(algorithm.update)(state, batch),
    )
    for part in (0, 1):
        device = jax.tree.map(lambda a, part=part: a[part], (together, there))
        assert gap(device[0].params, whole.params) < 1e-5
        assert gap(device[0].algo_state, whole.algo_state) < 1e-5
        assert gap(device[1], here) < 1e-4
    assert not same(whole.params, state.params)


@pytest.mark.slow
def test_devices_agree_on_running_statistics():
    """Each normalises by its own part; what is kept is the average, of student and gate."""
    spec = {"disk": {}, "gate": {"name": "map", "width": 2}}
    algorithm = build(spec, net(2), trained_net(2))
    batch = batch_of((4, 4, 1))
    state = start(algorithm, batch)
    halves = jax.tree.map(lambda a: jnp.stack(jnp.split(a, 2)), batch)
    update = lambda part: algorithm.update(state, part, axis_name="data")[0]  # noqa: E731
    found = jax.jit(jax.vmap(update, axis_name="data"))(halves)
    one, two = (jax.tree.map(lambda a, i=i: a[i], found) for i in (0, 1))
    assert gap(one.model_state, state.model_state) > 1e-3
    for name in ("params", "model_state", "algo_state"):
        assert gap(getattr(one, name), getattr(two, name)) < 1e-6


@pytest.fixture(scope="module")
def versions(data_folder):
    """Batches of an augmented split that has two versions of each example."""
    import os

    os.environ["JAXEFF_DATA_DIR"] = str(data_folder)
    split = data.load("digits", augment={"crop": 1, "versions": 2}).splits["train"]
    small = type(split)(**{**split.__dict__, "indices": split.indices[:20]})
    stream = data.make_train_iterator(small, batch_size=7, seed=0, with_index=True, prefetch=0)
    return small, [jax.tree.map(jnp.asarray, next(stream)) for _ in range(10)]


def test_kept_answers_are_those_computed_anew(versions):
    split, batches = versions
    task = Task("classification", 10, num_examples=20, num_versions=split.versions)
    model = MODELS.build({"name": "mlp", "hidden": (5,)}, "model", num_outputs=10)
    params = jax.jit(model.init)(jax.random.key(0), batches[0]["inputs"])["params"]
    apply = jax.jit(model.apply)
    spec = {"losses": {"kd": {}}, "cache": True}
    kept = build(spec, model, Trained(model, {"params": params}), task=task).teacher
    call, state = jax.jit(kept), kept.init()
    assert len({tuple(b["version"].tolist()) for b in batches}) > 1
    for number, batch in enumerate(batches):
        if number == 6:  # two epochs of 20 examples in batches of 7, of which one holds the end
            assert state["table"]["known"].all()
            nothing = jax.tree.map(np.zeros_like, state["variables"])
            state = {**state, "variables": nothing}
        seen, state = call(state, batch)
        np.testing.assert_allclose(
            seen.logits, apply({"params": params}, batch["inputs"]), atol=1e-5
        )
        assert not seen.features


@pytest.mark.slow
def test_simkd_keeps_the_teachers_classifier_in_a_projected_student():
    student = MODELS.build(
        {"name": "projected", "backbone": {**NET, "widths": (2,)}, "width": 4},
        "model",
        num_outputs=CLASSES,
    )
    spec = {"label_weight": 0.0, "losses": {"simkd": {"at": "map"}}, "keep_classifier": True}
    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))
    teacher = trained_net(4)
    algorithm = build(spec, student, teacher, optimizer=decayed)
    batch = batch_of((4, 4, 1))
    state, update = start(algorithm, batch), jax.jit(algorithm.update)
    losses = []
    for _ in range(10):
        state, metrics = update(state, batch)
        losses.append(float(metrics["simkd"]))
    assert losses[-1] < losses[0]
    assert same(
        state.params["head"]["classifier"], teacher.variables["params"]["head"]["classifier"]
    )
    # What is evaluated is the projected student alone.
    sums = algorithm.evaluate(state.params, state.model_state, batch)
    logits = student.apply({"params": state.params, **state.model_state}, batch["inputs"])
    hits = (logits.argmax(-1) == batch["labels"]) * batch["weight"]
    np.testing.assert_allclose(sums["accuracy"], hits.sum(), rtol=1e-6)


def test_a_student_starts_from_what_was_trained_before():
    before = trained_mlp((3,), 11)
    algorithm = build({"losses": {"kd": {}}, "average_decay": 0.9}, student=before)
    state = start(algorithm, batch_of())
    assert same(state.params, before.variables["params"])
    assert same(state.algo_state["average"], before.variables["params"])
    with pytest.raises(ConfigError, match=r"prerequisites\.student has other parameters"):
        start(build({"losses": {"kd": {}}}, student=trained_mlp((2,), 0)), batch_of())


@pytest.mark.slow
def test_a_part_of_the_teacher_starts_as_it_is_there():
    teacher = trained_mlp((3, 4, 5), 11)
    spec = {"losses": {"kd": {}}, "inherit": True, "average_decay": 0.9}
    with pytest.raises(ConfigError, match=r"hidden_1/kernel has another shape"):
        start(build(spec, (3, 7), teacher), batch_of())
    own = build(spec, (3, 4, 5), teacher)
    state = start(own, batch_of())
    assert same(state.params, teacher.variables["params"])
    assert same(state.algo_state["average"], teacher.variables["params"])
    with pytest.raises(ConfigError, match="both initialise the student"):
        build(spec, student=trained_mlp((3,), 0))


@pytest.mark.slow
def test_adapters_learn_and_are_no_part_of_the_student():
    algorithm = build({"losses": {"fitnet": {}}, "label_weight": 0.0}, optimizer=optax.adam(1e-2))
    batch = batch_of()
    state, update = start(algorithm, batch), jax.jit(algorithm.update)
    first = state.algo_state["adapters"]["fitnet"]["adapter"]
    assert first["kernel"].shape == (3, 6)
    losses = []
    for _ in range(20):
        state, metrics = update(state, batch)
        losses.append(float(metrics["fitnet"]))
    assert losses[-1] < losses[0]
    assert not same(first, state.algo_state["adapters"]["fitnet"]["adapter"])
    assert set(state.params) == {"hidden_0", "readout"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"losses": {"kdd": {}}}, "unknown distillation loss 'kdd'; did you mean"),
        ({"losses": {"kd": {"tau": 3}}}, "has no such field"),
        ({"gate": {"name": "logits"}}, "give the fields of disk too"),
        ({"disk": {"variant": "cifar50"}, "gate": {"name": "closed_form"}}, "a closed-form gate"),
        ({"gate_epochs": 1}, "need disk and a gate that learns"),
        ({"disk": {}, "student_epochs": 0}, "student_epochs must be positive"),
        ({"losses": {"kd": {}}, "cache": True}, "set config.data.augment.versions"),
    ],
)
def test_fields_that_do_not_fit_are_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        build(spec)


def test_no_teacher_and_no_classifier_to_take_over_are_refused():
    spec = {"name": "distill", "losses": {"kd": {}}}
    common = dict.fromkeys(("model", "objective", "optimizer"))
    with pytest.raises(ConfigError, match=r"prerequisites\.teacher"):
        ALGORITHMS.build(spec, "algorithm", **common, trained={})
    regression = Task("regression")
    with pytest.raises(ConfigError, match="not for regression data"):
        ALGORITHMS.build(spec, "algorithm", **common, trained={}, task=regression)
    algorithm = build({"losses": {"simkd": {}}, "keep_classifier": True})
    with pytest.raises(ConfigError, match="give the student's last features its width"):
        start(algorithm, batch_of())


@pytest.mark.slow
def test_a_run_reports_the_student_alone(tmp_path):
    def config(hidden, steps):
        made = train.base_config()
        made.name, made.data.name = "distilled", "digits"
        made.model = {"name": "mlp", "hidden": hidden}
        made.optim.learning_rate = 1e-2
        made.train.update({"batch_size": 50, "num_steps": steps, "log_every": 10})
        made.train.eval_every = made.checkpoint.every = steps
        made.devices.cpu = 1
        return made

    made = config((8,), 60)
    made.prerequisites = {"teacher": config((32,), 150)}
    made.algorithm = {
        "name": "distill",
        "disk": {"weight": 0.9},
        "label_weight": 0.1,
        "cache": True,
    }
    report = train.run(made, tmp_path)
    assert report["model"]["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    assert report["model"]["macs_per_example"] == 64 * 8 + 8 * 10
    assert report["metrics"]["test"]["accuracy"] > 0.6
    assert set(report["metrics"]["test"]) == {"accuracy", "loss"}
    again = launch.run(made, tmp_path, "eval")
    assert again["metrics"]["test"] == report["metrics"]["test"]
