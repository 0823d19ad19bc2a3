import numpy as np
import pytest

from jaxeff.data import counter_rng

KEYS = counter_rng.example_keys(3, 1, np.arange(500))


def test_words_are_splitmix64():
    # First outputs of the published C code for the seed 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    drawn = counter_rng.words(np.array([1234567], np.uint64), 3)
    assert drawn[0].tolist() == expected


def test_normal_has_the_moments_and_tails_of_a_normal():
    drawn = counter_rng.normal(KEYS, 2001)
    assert drawn.dtype == np.float32
    drawn = drawn.astype(np.float64)
    n = drawn.size
    assert np.isfinite(drawn).all()
    assert abs(drawn.mean()) < 5 / np.sqrt(n)
    assert abs(drawn.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((drawn**4).mean() - 3) < 5 * np.sqrt(96 / n)
    assert abs((drawn > 2).mean() - 0.02275) < 5 * np.sqrt(0.02275 / n)
    # Columns of one row must be uncorrelated, also the two halves of a Box-Muller pair.
    for lag in (1, 1000, 1001):
        product = (drawn[:, :-lag] * drawn[:, lag:]).ravel()
        assert abs(product.mean()) < 5 / np.sqrt(product.size)
    product = (drawn[:-1] * drawn[1:]).ravel()
    assert abs(product.mean()) < 5 / np.sqrt(n)


def test_uniform_has_the_moments_of_a_uniform():
    drawn = counter_rng.uniform(KEYS, 1000)
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean(dtype=np.float64) - 0.5) < 5 * np.sqrt(1 / 12 / drawn.size)
    assert abs(drawn.var(dtype=np.float64) - 1 / 12) < 1e-3


def test_integers_cover_their_range_evenly():
    counts = np.bincount(counter_rng.integers(KEYS, 100, 2, 7).ravel(), minlength=7)
    assert counts[:2].sum() == 0
    assert len(counts) == 7
    np.testing.assert_allclose(counts[2:], 10_000, atol=5 * 100)


@pytest.mark.parametrize("draw", [counter_rng.normal, counter_rng.uniform, counter_rng.words])
@pytest.mark.parametrize("count", [1, 7, 40_000])
def test_a_row_depends_on_its_key_alone(draw, count):
    keys = KEYS[:5]
    whole = draw(keys, count)
    assert whole.shape == (5, count)
    for row in range(5):
        np.testing.assert_array_equal(draw(keys[row : row + 1], count)[0], whole[row])
    assert len(np.unique(whole[:, 0])) == 5


def test_keys_differ_by_seed_stream_and_index():
    indices = np.arange(1000)
    keys = [counter_rng.example_keys(s, t, indices) for s, t in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len(np.unique(np.concatenate(keys))) == 4000
    np.testing.assert_array_equal(counter_rng.example_keys(0, 0, indices[7:9]), keys[0][7:9])


def test_no_keys_draw_nothing():
    assert counter_rng.normal(KEYS[:0], 3).shape == (0, 3)


def test_seeds_of_any_size_are_different():
    seeds = [0, 1, 2**32, 2**32 + 1, 2**33, 2**64, 2**64 + 2**32, 2**96 + 1]
    keys = [counter_rng.example_keys(seed, stream, np.arange(1))[0] for seed in seeds
            for stream in (0, 1, 2)]  # fmt: skip
    assert len(set(keys)) == len(keys)
    # Those of small seeds are numpy's own.
    state = [int(n) for n in counter_rng.entropy(7, 2).generate_state(2)]
    assert state == [int(n) for n in np.random.SeedSequence([7, 2]).generate_state(2)]
