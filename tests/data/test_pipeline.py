import itertools
import threading

import chex
import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp

from jaxeff import data
from jaxeff.errors import ConfigError, DataError

NOISY = ("noisy_rows", {"noise_scale": 0.25})
VIEWS = [("", {}), NOISY, ("noise_padded_rows", {"padded_length": 9})]


class Windows(data.Split):
    """An ordered split whose every batch shows its indices."""

    ordered = True

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def take(self, indices, rng=None):
        assert rng is None
        return {"inputs": np.eye(self.count)[indices], "labels": np.asarray(indices, np.int32)}


def draw(iterator, count):
    return [next(iterator) for _ in range(count)]


def stream(split, count, **options):
    return draw(data.make_train_iterator(split, **{"seed": 0, **options}), count)


def order(batches):
    return np.concatenate([batch["labels"] for batch in batches])


def test_every_epoch_shows_every_example_once_in_a_new_order(make_split):
    seen = order(stream(make_split(20), 15, batch_size=8)).reshape(6, 20)
    for epoch in seen:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(20))
    assert len(np.unique(seen, axis=0)) == 6
    other = order(stream(make_split(20), 15, batch_size=8, seed=1)).reshape(6, 20)
    assert not np.array_equal(other, seen)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 7, 50])
def test_the_order_does_not_depend_on_the_batch_size(make_split, batch_size):
    seen = order(stream(make_split(10), -(-60 // batch_size), batch_size=batch_size))[:60]
    np.testing.assert_array_equal(seen, order(stream(make_split(10), 60, batch_size=1)))


def test_without_shuffling_the_order_is_the_splits(make_split):
    seen = order(stream(make_split(10), 6, batch_size=5, shuffle=False))
    np.testing.assert_array_equal(seen, np.tile(np.arange(10), 3))


def test_a_batch_holds_its_examples(make_split):
    batch = stream(make_split(30), 1, batch_size=8)[0]
    assert set(batch) == {"inputs", "labels", "weight"}
    expected = np.broadcast_to(batch["labels"][:, None, None, None], (8, 4, 3, 2))
    np.testing.assert_array_equal(batch["inputs"], expected)
    np.testing.assert_array_equal(batch["weight"], np.ones(8))
    assert [batch[k].dtype for k in ("inputs", "labels", "weight")] == ["f4", "i4", "f4"]


@pytest.mark.parametrize(("view", "options"), VIEWS)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_resuming_in_the_middle_of_an_epoch_is_exact(make_split, view, options, prefetch):
    def make():
        split = make_split(20, view, **options)
        return data.make_train_iterator(split, batch_size=8, seed=0, prefetch=prefetch)

    iterator = make()
    draw(iterator, 6)
    state = iterator.get_state()
    uninterrupted = draw(iterator, 9)
    fresh = make()
    fresh.set_state(state)
    chex.assert_trees_all_equal(draw(fresh, 9), uninterrupted)
    iterator.set_state(state)
    chex.assert_trees_all_equal(draw(iterator, 9), uninterrupted)


def test_resuming_through_orbax_is_exact(make_split, tmp_path):
    def make():
        return data.make_train_iterator(
            make_split(20, *NOISY[:1], **NOISY[1]), batch_size=8, seed=0
        )

    iterator = make()
    draw(iterator, 4)
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_checkpointables(4, {"data": iterator})
    uninterrupted = draw(iterator, 5)
    fresh = make()
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        checkpointer.load_checkpointables(4, {"data": fresh})
    chex.assert_trees_all_equal(draw(fresh, 5), uninterrupted)


@settings(max_examples=25, deadline=None)
@given(
    examples=st.integers(1, 40),
    local=st.integers(1, 5),
    processes=st.integers(1, 4),
    view=st.sampled_from(VIEWS),
    evaluation=st.booleans(),
)
def test_the_parts_of_all_processes_are_the_whole(examples, local, processes, view, evaluation):
    split = _split(examples, *view)
    batch_size = local * processes

    def batches(index, count):
        if evaluation:
            return list(data.eval_batches(split, batch_size, 3, index, count))
        where = {"process_index": index, "process_count": count, "prefetch": 0}
        return stream(split, 4, batch_size=batch_size, **where)

    whole = batches(0, 1)
    parts = [batches(index, processes) for index in range(processes)]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    chex.assert_trees_all_equal(joined, whole)


def _split(examples, view, options):
    """As the fixture, which hypothesis may not use."""
    images = np.zeros((examples, 4, 3, 2), np.uint8)
    viewer = data.VIEWS[view](**options) if view else None
    labels = np.arange(examples, dtype=np.int32)
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    return data.base.ArraySplit(images, labels, np.arange(examples), ones, zeros, viewer)


def test_training_noise_is_fresh_in_every_epoch_and_reproducible(make_split):
    split = make_split(4, "noise_padded_rows", padded_length=9)
    options = {"batch_size": 4, "shuffle": False}
    first, second = stream(split, 2, **options)
    np.testing.assert_array_equal(first["labels"], second["labels"])
    np.testing.assert_array_equal(first["inputs"][:, :4], second["inputs"][:, :4])
    assert not np.intersect1d(first["inputs"][:, 4:], second["inputs"][:, 4:]).size
    chex.assert_trees_all_equal(stream(split, 2, **options), [first, second])
    other = stream(split, 1, seed=1, **options)[0]
    assert not np.intersect1d(first["inputs"][:, 4:], other["inputs"][:, 4:]).size


def test_evaluation_noise_is_fixed_whatever_the_batch_size(make_split):
    split = make_split(11, *NOISY[:1], **NOISY[1])

    def everything(batch_size, seed):
        batches = data.eval_batches(split, batch_size, seed)
        return np.concatenate([b["inputs"][b["weight"] > 0] for b in batches])

    np.testing.assert_array_equal(everything(4, 0), everything(4, 0))
    np.testing.assert_array_equal(everything(4, 0), everything(11, 0))
    assert not np.intersect1d(everything(4, 0), everything(4, 1)).size


def test_noise_differs_between_splits_and_from_training():
    splits = data.load("digits", view="noise_padded_rows", padded_length=12).splits
    noise = [next(data.eval_batches(splits[p], 9))["inputs"][:, 8:] for p in splits]
    noise += [
        next(data.make_train_iterator(splits["train"], batch_size=9, seed=0))["inputs"][:, 8:]
    ]
    noise = np.concatenate(noise).reshape(36, -1)
    assert abs(np.corrcoef(noise) - np.eye(36)).max() < 0.95
    assert len(np.unique(noise.round(5), axis=0)) == 36


def test_noise_without_a_generator_is_an_examples_own(make_split):
    split = make_split(11, *NOISY[:1], **NOISY[1])
    whole = split.take(np.arange(11))["inputs"]
    np.testing.assert_array_equal(split.take(np.array([7, 2]))["inputs"], whole[[7, 2]])


@settings(max_examples=30, deadline=None)
@given(examples=st.integers(0, 30), batch_size=st.integers(1, 12))
def test_evaluation_shows_every_example_exactly_once(examples, batch_size):
    batches = list(data.eval_batches(_split(examples, "", {}), batch_size))
    assert len(batches) == -(-examples // batch_size)
    for batch in batches:
        assert batch["inputs"].shape == (batch_size, 4, 3, 2)
        assert batch["labels"].shape == batch["weight"].shape == (batch_size,)
        assert batch["weight"].dtype == np.float32
    if batches:
        weight = np.concatenate([batch["weight"] for batch in batches])
        np.testing.assert_array_equal(order(batches)[weight == 1], np.arange(examples))
        assert weight.sum() == examples
        assert set(np.unique(weight)) <= {0, 1}


def test_the_iterator_is_grains_and_fills_ahead_in_a_thread(make_split):
    threads = set()
    split = make_split(20)

    class Watched(data.Split):
        def __len__(self):
            return 20

        def take(self, indices, rng=None):
            threads.add(threading.current_thread())
            return split.take(indices, rng)

    iterator = data.make_train_iterator(Watched(), batch_size=8, seed=0, prefetch=0)
    assert isinstance(iterator, grain.DatasetIterator)
    draw(iterator, 3)
    assert threads == {threading.main_thread()}
    threads.clear()
    draw(data.make_train_iterator(Watched(), batch_size=8, seed=0, prefetch=2), 3)
    assert threading.main_thread() not in threads


def test_generated_data_run_through_both():
    splits = data.load("copy", length=25, num_train=12, num_validation=5).splits
    batch = stream(splits["train"], 1, batch_size=32)[0]
    assert batch["labels"].shape == (32, 25)
    assert batch["weight"].shape == (32,)
    padded = list(data.eval_batches(splits["validation"], 4))
    np.testing.assert_array_equal(padded[1]["weight"], [1, 0, 0, 0])
    np.testing.assert_array_equal(padded[1]["labels"][1], padded[1]["labels"][0])


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_ordered_split_is_read_as_a_stream_per_row(shuffle):
    batches = stream(Windows(14), 8, batch_size=4, shuffle=shuffle)
    first = np.array([0, 3, 6, 9])
    expected = [first, first + 1, first + 2] * 2 + [first, first + 1]  # 12 and 13 are left out
    np.testing.assert_array_equal([batch["labels"] for batch in batches], expected)
    starts = np.array([[1], [0], [0], [1], [0], [0], [1], [0]]) * np.ones(4)
    np.testing.assert_array_equal([batch["start"] for batch in batches], starts)
    np.testing.assert_array_equal([batch["weight"] for batch in batches], np.ones((8, 4)))
    assert batches[0]["start"].dtype == batches[0]["weight"].dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(windows=st.integers(1, 40), batch_size=st.integers(1, 9))
def test_start_is_one_just_where_a_row_does_not_go_on(windows, batch_size):
    evaluated = list(data.eval_batches(Windows(windows), batch_size))
    trained = stream(Windows(max(windows, batch_size)), 9, batch_size=batch_size, prefetch=0)
    for batches in (evaluated, trained):
        assert (batches[0]["start"] == 1).all()
        for before, after in itertools.pairwise(batches):
            real = after["weight"] > 0
            goes_on = after["labels"] == before["labels"] + 1
            # Streams of one window wrap onto themselves, and never go on.
            np.testing.assert_array_equal(after["start"][real] == 0, goes_on[real])


@settings(max_examples=40, deadline=None)
@given(windows=st.integers(0, 40), batch_size=st.integers(1, 12))
def test_evaluation_shows_every_window_exactly_once(windows, batch_size):
    batches = list(data.eval_batches(Windows(windows), batch_size))
    assert len(batches) == -(-windows // batch_size)
    if batches:
        weight = np.concatenate([batch["weight"] for batch in batches])
        np.testing.assert_array_equal(np.sort(order(batches)[weight == 1]), np.arange(windows))
        assert weight.sum() == windows
        assert (order(batches)[weight == 0] == windows - 1).all()
        assert {len(batch["labels"]) for batch in batches} == {batch_size}


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_ordered_split_resumes_exactly(prefetch):
    def make():
        return data.make_train_iterator(Windows(23), batch_size=4, seed=0, prefetch=prefetch)

    iterator = make()
    draw(iterator, 7)
    state = iterator.get_state()
    uninterrupted = draw(iterator, 9)
    fresh = make()
    fresh.set_state(state)
    chex.assert_trees_all_equal(draw(fresh, 9), uninterrupted)
    assert uninterrupted[0]["labels"].tolist() == [2, 7, 12, 17]


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_the_parts_of_all_processes_are_the_whole_of_an_ordered_split(processes):
    def train(index, count):
        where = {"process_index": index, "process_count": count}
        return stream(Windows(20), 5, batch_size=6, **where)

    def evaluate(index, count):
        return list(data.eval_batches(Windows(20), 6, 0, index, count))

    for batches in (train, evaluate):
        parts = [batches(index, processes) for index in range(processes)]
        joined = [
            {key: np.concatenate([part[key] for part in step]) for key in step[0]}
            for step in zip(*parts, strict=True)
        ]
        chex.assert_trees_all_equal(joined, batches(0, 1))


def test_an_ordered_split_needs_a_window_a_row():
    assert stream(Windows(4), 2, batch_size=4)[1]["start"].tolist() == [1, 1, 1, 1]
    with pytest.raises(DataError, match="has 3 windows in order, too few for batch_size 4"):
        data.make_train_iterator(Windows(3), batch_size=4, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 9, "process_count": 2}, "9 must be a multiple of the 2 processes"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"process_index": 2, "process_count": 2}, r"in \[0, process_count=2\), not 2"),
        ({"seed": -1}, "must not be negative"),
    ],
)
def test_impossible_settings(make_split, options, message):
    options = {"batch_size": 8, "seed": 0, **options}
    with pytest.raises(ConfigError, match=message):
        data.make_train_iterator(make_split(20), **options)
    with pytest.raises(ConfigError, match=message):
        data.eval_batches(make_split(20), **options)


def test_an_empty_split_cannot_be_trained_on(make_split):
    with pytest.raises(DataError, match="the training split has no examples"):
        data.make_train_iterator(make_split(0), batch_size=8, seed=0)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("multiple", [1, 2, 3, 5, 8, 40])
def test_rows_that_fill_up_evaluation_batches_change_nothing(make_split, ordered, multiple):
    split = Windows(23) if ordered else make_split(23, NOISY[0], **NOISY[1])
    plain = list(data.eval_batches(split, 10))
    filled = list(data.eval_batches(split, 10, multiple=multiple))
    assert len(filled) == len(plain)
    for batch, wider in zip(plain, filled, strict=True):
        assert len(wider["weight"]) == -(-10 // multiple) * multiple
        assert not wider["weight"][10:].any()
        for name, values in batch.items():
            np.testing.assert_array_equal(wider[name][:10], values)
    parts = [
        list(data.eval_batches(split, 10, process_index=i, process_count=2, multiple=2 * multiple))
        for i in range(2)
    ]
    for whole, *halves in zip(
        data.eval_batches(split, 10, multiple=2 * multiple), *parts, strict=True
    ):
        for name, values in whole.items():
            np.testing.assert_array_equal(np.concatenate([h[name] for h in halves]), values)
