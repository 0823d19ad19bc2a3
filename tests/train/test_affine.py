"""Training with searched poses: what a step changes, the cache, the head, and the refusals."""

import hashlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxeff.errors import ConfigError
from jaxeff.models import MODELS
from jaxeff.train.algorithms import ALGORITHMS, BPTT, AffineVAE, Task
from jaxeff.train.algorithms.affine import distance
from jaxeff.train.objectives import OBJECTIVES, elbo

KEY = jax.random.key(0)
FEW = {"starts": 3, "keep": 1, "method": "gauss_newton", "steps": 1}
TASK = Task("reconstruction", num_examples=10, num_versions=1)


def blobs(count, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:8, :8] - 3.5
    angle = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    images = np.exp(-((along - 0.8) ** 2) / 6 - across**2 / 1.5)
    return images[..., None].astype(np.float32)


def build(model=(), task=TASK, **fields):
    spec = {"name": "autoencoder", "size": 8, "latents": 2, "pose": {"name": "rotation"}}
    network = MODELS.build({**spec, **dict(model)}, num_outputs=1)
    spec = {"search": FEW, "evaluation": {"starts": 6, "method": "screen"}, **fields}
    return AffineVAE(network, elbo(), optax.sgd(1e-3), task, **spec)


def batch_of(images, index=None):
    index = np.arange(len(images)) if index is None else index
    return {"inputs": images, "weight": np.ones(len(images), np.float32), "index": index}


def fingerprint(tree):
    joined = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))
    return hashlib.sha256(joined).hexdigest()


@pytest.fixture(scope="module")
def cached():
    algorithm = build(cache=True)
    state = jax.jit(algorithm.init_state)(KEY, blobs(1))
    return algorithm, state, jax.jit(algorithm.update)


@pytest.mark.slow
def test_a_search_leaves_weights_and_statistics_alone(cached):
    algorithm, state, _ = cached
    variables = {"params": state.params, **state.model_state}
    before = fingerprint(variables)
    jax.block_until_ready(jax.jit(algorithm.find)(variables, blobs(3)))
    assert fingerprint(variables) == before


@pytest.mark.slow
def test_a_step_is_the_gradient_at_the_poses_it_found(cached):
    # The search is no part of the weights' gradient: it is the plain model's at those poses.
    algorithm, state, update = cached
    new, metrics = update(state, batch_of(blobs(4)))
    pose = new.algo_state["poses"][:4]
    _, code_key = jax.random.split(jax.random.fold_in(state.key, state.step))

    def loss(params):
        variables = {"params": params, **state.model_state}
        outputs, changed = algorithm.model.apply(
            variables, blobs(4), pose, train=True, rngs={"dropout": code_key},
            mutable=["batch_stats"],
        )  # fmt: skip
        return elbo()(outputs, {"inputs": blobs(4)})["loss"].mean(), changed

    (value, changed), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    assert new.step == state.step + 1
    updates, _ = algorithm.optimizer.update(grads, state.opt_state, state.params)
    wanted = optax.apply_updates(state.params, updates)
    for one, other in zip(
        jax.tree.leaves((new.params, new.model_state)),
        jax.tree.leaves((wanted, changed)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_examples_count_by_their_weight_and_only_relative_to_the_others(cached):
    _, state, update = cached

    def kernel(*weight):
        batch = {**batch_of(blobs(4)), "weight": np.asarray(weight, np.float32)}
        return update(state, batch)[0].params["canonical"]["linear"]["linear"]["kernel"]

    np.testing.assert_allclose(kernel(1, 1, 0, 0), kernel(3, 3, 0, 0), rtol=1e-5, atol=1e-7)
    assert np.abs(kernel(1, 1, 0, 0) - kernel(1, 1, 1, 1)).max() > 1e-4


@pytest.mark.slow
def test_a_search_descends_the_whole_loss_of_an_image(cached):
    algorithm, state, _ = cached
    # Large variances, so that their divergence is a visible part of the loss.
    params = jax.tree.map_with_path(
        lambda path, p: 30 * np.asarray(p) if "log_variance" in jax.tree_util.keystr(path) else p,
        state.params,
    )
    variables = {"params": params, **state.model_state}
    images, pose = blobs(3), np.float32([[0.3], [2.0], [-1.0]])

    @jax.jit
    def slopes(pose):
        def loss(pose):
            return elbo()(algorithm.model.apply(variables, images, pose), {"inputs": images})[
                "loss"
            ]

        wanted = jax.grad(lambda p: loss(p).sum())(pose)
        return algorithm.problem(variables).derivatives({"inputs": images}, pose)[1], wanted

    found, wanted = slopes(pose)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_the_cache_begins_at_the_identity_and_is_a_start_by_itself():
    algorithm = build(
        model={"pose": {"name": "free_affine"}},
        cache=True,
        search={"starts": 0, "method": "align", "steps": 1},
    )
    poses = algorithm.init({})["poses"]
    np.testing.assert_array_equal(poses, np.tile(algorithm.family.identity(), (10, 1)))
    assert np.abs(poses).max() == 1


@pytest.mark.slow
def test_the_cache_holds_the_best_pose_known(cached):
    algorithm, state, update = cached
    images = blobs(4)
    first, _ = update(state, batch_of(images, np.array([7, 2, 5, 0])))
    poses = first.algo_state["poses"]
    assert poses.shape == (10, 1)
    np.testing.assert_array_equal(poses[np.array([1, 3, 4, 6, 8, 9])], 0.0)
    # With the same weights the pose kept is a start, so the next search is not worse.
    kept = state.replace(algo_state=first.algo_state, step=state.step + 1)
    second, _ = update(kept, batch_of(images, np.array([7, 2, 5, 0])))
    problem = algorithm.problem({"params": state.params, **state.model_state})
    loss = jax.jit(problem.loss)
    rows = np.array([7, 2, 5, 0])
    before = loss({"inputs": images}, poses[rows])
    after = loss({"inputs": images}, second.algo_state["poses"][rows])
    assert (after <= before * (1 + 1e-5)).all()


@pytest.mark.slow
def test_evaluation_searches_and_does_not_depend_on_the_batch(cached):
    algorithm, state, _ = cached
    variables = {"params": state.params, **state.model_state}
    evaluate = jax.jit(algorithm.evaluate)
    images = blobs(4)
    every = [
        evaluate(state.params, state.model_state, {"inputs": images[[i] * 4], "weight": np.ones(4)})
        for i in range(4)
    ]
    whole = evaluate(state.params, state.model_state, {"inputs": images, "weight": np.ones(4)})
    np.testing.assert_allclose(whole["loss"], sum(e["loss"] for e in every) / 4, rtol=1e-5)
    pose = jax.jit(algorithm.find)(variables, images)
    outputs = jax.jit(algorithm.model.apply)(variables, images, pose)
    values = elbo()(outputs, {"inputs": images})
    np.testing.assert_allclose(whole["loss"], values["loss"].sum(), rtol=1e-5)
    assert whole["weight"] == 4


def test_without_turning_the_loss_is_the_plain_autoencoders(cached):
    algorithm, state, _ = cached
    variables = {"params": state.params, **state.model_state}
    plain = BPTT(MODELS.build({"name": "autoencoder", "size": 8, "latents": 2}, num_outputs=1),
                 elbo(), optax.adam(1e-3), TASK)  # fmt: skip

    @jax.jit
    def both(variables):
        loss = algorithm.problem(variables).loss({"inputs": blobs(3)}, jnp.zeros((3, 1)))
        return loss.sum(), plain.evaluate(state.params, state.model_state, batch_of(blobs(3)))

    loss, sums = both(variables)
    np.testing.assert_allclose(loss, sums["loss"], rtol=1e-4)


@pytest.fixture(scope="module")
def amortised():
    algorithm = build(
        model={"proposals": 4},
        search={**FEW, "starts": 8, "proposals": 4},
        evaluation={"starts": 0, "proposals": 1, "method": "align", "steps": 2},
    )
    algorithm.optimizer = optax.adam(5e-3)
    return algorithm, jax.jit(algorithm.init_state)(KEY, blobs(1)), jax.jit(algorithm.update)


@pytest.mark.slow
def test_the_head_learns_the_poses_that_are_found(amortised):
    algorithm, state, update = amortised
    head = []
    for _ in range(40):
        state, metrics = update(state, batch_of(blobs(4)))
        head.append(float(metrics["head"]))
    assert np.mean(head[-5:]) < 0.6 * np.mean(head[:5])
    moved = jax.tree.map(lambda a: np.abs(np.asarray(a)).max(), state.model_state["batch_stats"])
    assert moved["head"]["norm0"]["mean"] > 0
    assert moved["encoder"]["norm0"]["mean"] > 0
    variables = {"params": state.params, **state.model_state}
    proposed, _ = jax.jit(lambda v: algorithm.model.apply(v, blobs(4), method="propose"))(variables)
    starts = algorithm.starts(variables, jnp.asarray(blobs(4)), algorithm.evaluation, None)
    np.testing.assert_allclose(starts, proposed[:, :1], atol=1e-6)


def test_a_code_is_used_again_at_evaluation_alone():
    with pytest.raises(ConfigError, match=r"reuse_code has no effect in training.*evaluation"):
        build(search={"starts": 3, "method": "align", "steps": 1, "reuse_code": True})


@pytest.mark.slow
def test_outputs_of_the_aligned_code_have_the_loss_that_was_found():
    aligned = {"starts": 5, "keep": 2, "method": "align", "steps": 2}
    reused, again = (build(evaluation={**aligned, "reuse_code": reuse}) for reuse in (True, False))
    state = jax.jit(reused.init_state)(KEY, blobs(1))
    # Larger weights, whose codes change with the pose.
    variables = {"params": jax.tree.map(lambda a: 3 * a, state.params), **state.model_state}

    @jax.jit
    def both(variables, images):
        found = reused.searched(variables, images)
        outputs = reused.forward(variables, {"inputs": images}, train=False)[0]
        encoded = again.forward(variables, {"inputs": images}, train=False)[0]
        own = again.model.apply(variables, images, found.pose)
        losses = reused.objective(outputs, {"inputs": images})["loss"]
        return found.loss, losses, outputs.mean, encoded.mean, own.mean

    loss, losses, code, encoded, own = both(variables, jnp.asarray(blobs(4)))
    np.testing.assert_allclose(losses, loss, rtol=1e-5)
    np.testing.assert_allclose(encoded, own, rtol=1e-4, atol=1e-5)
    assert not np.allclose(code, own, atol=1e-4)  # it is that of the start


@pytest.mark.parametrize(
    ("count", "apart", "expected"),
    [
        (3, 0.0, [0.0, 0.05, 0.1]),
        (2, 0.3, [0.0, 3.0]),
        (3, 0.3, [0.0, 3.0, 1.0]),
        (4, 0.3, [0.0, 3.0, 1.0, 0.05]),  # no other is far: the likeliest of the near ones
        (5, 0.3, [0.0, 3.0, 1.0, 0.05, 0.1]),
    ],
)
def test_proposals_that_are_near_a_likelier_one_come_last(count, apart, expected):
    settings = {"starts": 0, "proposals": count, "apart": apart, "method": "screen"}
    algorithm = build(model={"proposals": 5}, evaluation=settings)
    proposed = np.float32([[0.0], [0.05], [0.1], [3.0], [1.0]])[None]
    scores = np.float32([[2.0, 1.5, 1.0, 0.5, 0.0]])
    algorithm._apply = lambda *_, **__: (jnp.asarray(proposed), jnp.asarray(scores))
    starts = algorithm.starts({}, jnp.zeros((1, 8, 8, 1)), algorithm.evaluation, None)
    np.testing.assert_allclose(starts[0, :, 0], expected, atol=1e-6)


def test_the_nearest_proposal_is_drawn_to_the_pose_and_its_score_raised():
    algorithm = build()
    proposed = np.tile(np.float32([[0.0], [1.0], [2.0]]), (2, 1, 1))
    scores = np.float32([[0.1, 0.7, -0.4], [0.3, 0.0, 0.5]])
    algorithm.model = types.SimpleNamespace(apply=lambda *_, **__: ((proposed, scores), {}))
    loss, _ = jax.jit(lambda pose: algorithm._head_loss({}, jnp.zeros((2, 1)), pose))(
        np.float32([[1.1], [-0.2]])
    )
    far = 4 - 4 * np.cos([0.1, 0.2])  # of rotations by so much
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(loss, far - np.log(shares[[0, 1], [1, 0]]), rtol=1e-4)


@pytest.mark.slow
def test_the_head_learns_as_well_where_all_images_push_its_units_down():
    # As after steps in which all images had one best pose: no unit is left where ELU is flat.
    algorithm = build(model={"proposals": 3})
    images = blobs(4)
    variables = dict(jax.jit(algorithm.model.init)(KEY, images))
    params = variables.pop("params")
    scores = params["head"]["scores"]
    scores["kernel"] = jax.random.normal(KEY, scores["kernel"].shape)

    @jax.jit
    def slopes(bias):
        linear = {**params["head"]["hidden"]["linear"], "bias": bias}
        head = {**params["head"], "hidden": {"linear": linear}}

        def loss(head):
            every = {**variables, "params": {**params, "head": head}}
            losses, collected = algorithm._head_loss(every, images, jnp.ones((4, 1)))
            return losses.mean(), collected["batch_stats"]

        grads, statistics = jax.grad(loss, has_aux=True)(head)
        return grads["conv0"]["kernel"], statistics

    bias = params["head"]["hidden"]["linear"]["bias"]
    plain, pushed = slopes(bias), slopes(bias - 10)
    largest = np.abs(plain[0]).max()
    assert largest > 0.1
    np.testing.assert_allclose(pushed[0] / largest, plain[0] / largest, atol=2e-3)
    # The statistics of evaluation follow, those of the other parts stay.
    means = [statistics["head"]["norm3"]["mean"] for _, statistics in (plain, pushed)]
    np.testing.assert_allclose(means[1] - means[0], -1.0, rtol=1e-4)
    for one, other in zip(
        jax.tree.leaves(plain[1]["encoder"]),
        jax.tree.leaves(variables["batch_stats"]["encoder"]),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_the_distance_of_poses_does_not_see_whole_turns():
    family = build().family

    @jax.jit
    def apart(one, other, shift):
        one, other = family.transform(one), family.transform(other)
        return distance(one._replace(shift=one.shift + shift), other)

    one, other, far = (np.float32([[angle]]) for angle in (0.3, 6.783185, 0.3 + np.pi))
    assert apart(one, other, np.zeros(2, np.float32))[0] < 0.2
    np.testing.assert_allclose(apart(one, far, np.zeros(2, np.float32)), 8.0, rtol=1e-5)
    np.testing.assert_allclose(apart(one, far, np.float32([0.3, 0.4])), 8.25, rtol=1e-5)


def test_parts_of_the_objective():
    values = OBJECTIVES["elbo"]()
    given = np.full((2, 8, 8, 1), 0.5, "f"), np.ones((2, 3), "f"), np.zeros((2, 3), "f")
    inputs = np.zeros((2, 8, 8, 1), "f")
    found = jax.jit(lambda *at: values(build().model.outputs(*at), {"inputs": inputs}))(*given)
    np.testing.assert_allclose(found["reconstruction"], 16.0)
    np.testing.assert_allclose(found["kl"], 1.5)
    np.testing.assert_allclose(found["loss"], 17.5)
    np.testing.assert_allclose(found["reducible"], 17.5)


def test_what_no_output_can_avoid_is_told_apart():
    images, zeros = np.full((2, 8, 8, 1), 0.25, "f"), np.zeros((2, 3), "f")
    values = elbo("cross_entropy")
    found = jax.jit(lambda x: values(build().model.outputs(x, zeros, zeros), {"inputs": images}))(
        images
    )
    assert (np.asarray(found["loss"]) > 30).all()
    np.testing.assert_allclose(found["reducible"], 0, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(model={"pose": None}), "no poses to search; set config.model.pose"),
        (lambda: build(search={"starts": 0}), "algorithm.search has no pose to start from"),
        (
            lambda: build(evaluation={"starts": 0}),
            "algorithm.evaluation has no pose to start from",
        ),
        (
            lambda: build(search={**FEW, "proposals": 2}),
            "algorithm.search.proposals=2 needs as many of the model's head, which has 0",
        ),
        (
            lambda: build(model={"proposals": 2}, evaluation={**FEW, "proposals": 3}),
            "algorithm.evaluation.proposals=3 needs .* which has 2; lower it",
        ),
        (lambda: build(search={**FEW, "apart": 0.5}), "search.apart chooses among proposals"),
        (
            lambda: build(model={"proposals": 2}, search={**FEW, "proposals": 1, "apart": 0.5}),
            "set search.proposals to 2 or more, not 1",
        ),
        (
            lambda: build(cache=True, task=Task("reconstruction", num_examples=9)),
            "set config.algorithm.cache=False, or config.data.redraw=False",
        ),
        (lambda: build(search={"lik": "2020"}), "algorithm.search.lik is not a field"),
        (lambda: elbo(kl="2019"), "config.objective.kl: unknown choice '2019'"),
        (lambda: elbo(reconstruction="bce"), "config.objective.reconstruction: unknown choice"),
    ],
)
def test_impossible_fields_are_one_sentence(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_it_has_a_name():
    assert ALGORITHMS["avae"] is AffineVAE
    assert build(cache=True).needs_index
    assert not build().needs_index
