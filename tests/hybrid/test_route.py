"""Bucketed routing against running every stage on everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.errors import ConfigError
from jaxeff.hybrid.route import Cascade, Stage, bucket, bucket_sizes, by_priority, route

BATCH = 24


def inputs(seed=0, batch=BATCH):
    """Small whole numbers, whose sums are exact in any order: equal means equal."""
    return jnp.asarray(np.random.default_rng(seed).integers(-8, 9, (batch, 6)), jnp.float32)


def weights(seed):
    return jnp.asarray(np.random.default_rng(seed).integers(-3, 4, (6, 5)), jnp.float32)


def stage(seed):
    """A linear stage that scores its inputs by their first entry, with many ties."""

    def call(kernel, x):
        return x @ kernel, x[:, 0], x

    return Stage(call, weights(seed))


def dense(stages, thresholds, x):
    """Runs every stage on every input and picks the answers."""
    outputs = np.stack([x @ s.variables for s in stages])
    chosen, here = np.zeros(len(x), int), np.ones(len(x), bool)
    for number, threshold in enumerate(thresholds):
        here = here & (np.asarray(x[:, 0]) > threshold)
        chosen[here] = number + 1
    return outputs[chosen, np.arange(len(x))], chosen


def test_sizes_of_buckets():
    assert bucket_sizes(512) == tuple(range(64, 513, 64))
    assert bucket_sizes(3) == (1, 2, 3)
    assert bucket_sizes(20, 7) == (3, 5, 7)
    for batch in range(1, 70):
        sizes = bucket_sizes(batch)
        assert len(sizes) <= 8
        assert sizes[-1] == batch
        for rows in range(1, batch + 1):
            size = bucket(rows, sizes)
            assert rows <= size
            assert not any(rows <= other < size for other in sizes)
    assert bucket(0, (4, 8)) == 0
    assert bucket(9, (4, 8)) == 8
    assert bucket(9, bucket_sizes(16, 0)) == 0


def test_priority_is_by_score_and_then_by_index():
    scores = jnp.array([1.0, 3.0, -jnp.inf, 3.0, 9.0, 1.0])
    wanted = jnp.array([True, True, True, True, False, True])
    np.testing.assert_array_equal(by_priority(scores, wanted), [1, 3, 0, 5, 2, 4])


@pytest.mark.parametrize("threshold", [-np.inf, -5.0, 0.0, 3.0, np.inf])
def test_two_stages_answer_as_both_branches_do(threshold):
    stages, x = [stage(1), stage(2)], inputs()
    cascade = Cascade(stages, [threshold])
    found = cascade(x)
    expected, answered_by = dense(stages, [threshold], x)
    np.testing.assert_array_equal(found.outputs, expected)
    np.testing.assert_array_equal(found.answered_by, answered_by)
    np.testing.assert_array_equal(found.scores, x[:, 0])
    assert found.overflow == 0
    assert found.reached == (BATCH, int(answered_by.sum()))


def test_the_ends_are_the_base_and_the_expert():
    stages, x = [stage(1), stage(2)], inputs()
    cascade = Cascade(stages, [0.0])
    for threshold, number in ((np.inf, 0), (-np.inf, 1)):
        found = cascade(x, thresholds=[threshold])
        np.testing.assert_array_equal(found.outputs, x @ stages[number].variables)
        assert found.reached == (BATCH, BATCH * number)


@pytest.mark.parametrize(
    "thresholds", [(-2.0, 3.0), (2.0, -9.0), (4.0, -9.0), (6.0, -9.0), (-np.inf, -np.inf)]
)
def test_three_stages_hand_on_what_the_last_has_computed(thresholds):
    """The payload, here counted up at every stage, is that of the rows that went on."""
    kernels = [weights(seed) for seed in (1, 2, 3)]

    def call(kernel, payload):
        x, count = payload
        outputs = x @ kernel + count[:, None]
        return outputs, x[:, 0], (x, count + 100)

    def first(kernel, x):
        return call(kernel, (x, jnp.arange(len(x), dtype=jnp.float32)))

    x = inputs()
    stages = [Stage(first, kernels[0]), Stage(call, kernels[1]), Stage(call, kernels[2])]
    found = Cascade(stages, thresholds)(x)
    plain, answered_by = dense([Stage(None, k) for k in kernels], thresholds, x)
    expected = plain + np.arange(BATCH)[:, None] + 100 * answered_by[:, None]
    np.testing.assert_array_equal(found.outputs, expected)
    np.testing.assert_array_equal(found.answered_by, answered_by)
    counts = [int(np.sum(answered_by >= number)) for number in range(3)]
    assert list(found.reached) == counts


def test_overflow_keeps_the_answer_of_the_base_and_is_counted():
    stages, x = [stage(1), stage(2)], inputs()
    found = Cascade(stages, [0.0], limits=[5])(x)
    scores = np.asarray(x[:, 0])
    asked = np.flatnonzero(scores > 0)
    order = sorted(asked, key=lambda i: (-scores[i], i))
    assert len(asked) > 5
    assert found.overflow == len(asked) - 5
    assert sorted(np.flatnonzero(found.answered_by)) == sorted(order[:5])
    expected = np.array(x @ stages[0].variables)
    expected[order[:5]] = np.asarray(x @ stages[1].variables)[order[:5]]
    np.testing.assert_array_equal(found.outputs, expected)
    nobody = Cascade(stages, [0.0], limits=[0])(x)
    assert (nobody.overflow, nobody.reached) == (len(asked), (BATCH, 0))


def test_permuting_the_batch_permutes_the_answers():
    stages, x = [stage(1), stage(2)], inputs()
    order = np.random.default_rng(3).permutation(BATCH)
    cascade = Cascade(stages, [0.0])
    found, moved = cascade(x), cascade(x[order])
    np.testing.assert_array_equal(moved.outputs, found.outputs[order])
    np.testing.assert_array_equal(moved.answered_by, found.answered_by[order])


def test_padding_never_takes_a_place():
    """Padding of the highest scores goes nowhere, and the rest is answered as without it."""
    stages, x = [stage(1), stage(2)], inputs()
    padded = jnp.concatenate([x, jnp.full((8, 6), 1000.0)])
    valid = np.arange(BATCH + 8) < BATCH
    for limits in (None, [4]):
        cascade = Cascade(stages, [0.0], limits)
        alone, together = cascade(x), cascade(padded, valid)
        np.testing.assert_array_equal(together.outputs[:BATCH], alone.outputs)
        np.testing.assert_array_equal(together.answered_by[:BATCH], alone.answered_by)
        assert not together.answered_by[BATCH:].any()
        assert (together.reached, together.overflow) == (alone.reached, alone.overflow)


def test_one_program_per_bucket_and_stage():
    seen = []

    def call(kernel, x):
        seen.append(len(x))
        return x @ kernel, x[:, 0], x

    cascade = Cascade([Stage(call, weights(1)), Stage(call, weights(2))], [0.0])
    for seed in range(4):
        for threshold in range(-9, 9):
            cascade(inputs(seed), thresholds=[threshold])
    first, *buckets = seen
    assert first == BATCH
    assert len(buckets) == len(set(buckets)) <= 8
    assert set(buckets) <= set(bucket_sizes(BATCH))
    assert cascade.programs == [len(buckets)]


def test_a_stream_answers_batch_by_batch():
    cascade = Cascade([stage(1), stage(2)], [0.0])
    batches = [(inputs(seed), np.arange(BATCH) < 20) for seed in range(3)]
    for found, (x, valid) in zip(cascade.stream(batches), batches, strict=True):
        alone = cascade(x, valid)
        np.testing.assert_array_equal(found.outputs, alone.outputs)
        assert found.reached == alone.reached
    assert list(cascade.stream([])) == []


def test_route_works_inside_a_compiled_function():
    kernel, other, x = weights(1), weights(2), inputs()
    scores, wanted = x[:, 0], x[:, 1] > 0

    @jax.jit
    def run(x):
        return route(lambda x: x @ other, x, x @ kernel, scores, wanted, capacity=6)

    outputs, answered = run(x)
    order = sorted(np.flatnonzero(wanted), key=lambda i: (-float(scores[i]), i))[:6]
    assert sorted(np.flatnonzero(answered)) == sorted(order)
    expected = np.where(np.asarray(answered)[:, None], x @ other, x @ kernel)
    np.testing.assert_array_equal(outputs, expected)


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="2 stages need 1 thresholds"):
        Cascade([stage(1), stage(2)], [])
    with pytest.raises(ConfigError, match="0 stages"):
        Cascade([], [])


def test_scores_without_a_sign_are_ranked_as_numbers():
    scores = np.array([3, 0, 250, 7], np.uint8)  # minus 250 would be 6
    np.testing.assert_array_equal(by_priority(scores, np.ones(4, bool)), [2, 3, 0, 1])
