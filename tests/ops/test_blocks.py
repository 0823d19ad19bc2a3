"""Work block by block: the same values and gradients as all at once."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.ops import blocks


def rows(n, width=6, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, width))


def model(skip, shared, x, y):
    kept = blocks.apart(skip, lambda x, w: jnp.sin(x @ w), x, shared["w"])
    return {"sum": kept + y, "first": kept[:, :2] * shared["b"][None]}


SHARED = {"w": rows(6, 5, seed=2), "b": jnp.array([2.0, -1.0])}


@pytest.mark.parametrize(("n", "block"), [(12, 3), (7, 3), (5, 100), (1, 1)])
def test_blocks_give_the_values_and_gradients_of_the_whole(n, block, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", block * 6 * 4)
    x, y = rows(n), rows(n, 5, seed=1)

    def loss(run, shared, x, y):
        out = run(shared, x, y)
        return jnp.sum(jnp.cos(out["sum"])) + jnp.sum(out["first"] ** 2), out

    def of(run):
        gradient = jax.grad(functools.partial(loss, run), argnums=(0, 1, 2), has_aux=True)
        return jax.jit(gradient)(SHARED, x, y)

    whole = of(functools.partial(model, None))
    by_block = of(functools.partial(blocks.over_blocks, model))
    chex.assert_trees_all_close(by_block, whole, rtol=1e-5, atol=1e-5)


def test_rows_are_divided_into_the_largest_blocks_that_fit(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 4 * 6 * 4)
    seen = []

    def noted(skip, shared, x):
        seen.append((skip is None, x.shape[0]))
        return x

    jax.jit(functools.partial(blocks.over_blocks, noted, ())).lower(rows(9)).compile()
    assert set(seen) == {(True, 9), (False, 3)}  # other platforms' whole batch, and blocks of 3


def test_what_is_not_a_number_stays_in_its_row(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 2 * 6 * 4)
    x = rows(6).at[2, 0].set(jnp.nan).at[4, 0].set(jnp.inf)
    y = rows(6, 5, seed=1)
    found = jax.jit(functools.partial(blocks.over_blocks, model))(SHARED, x, y)["sum"]
    whole = model(None, SHARED, x, y)["sum"]
    assert np.isnan(found[2]).all()
    sound = jnp.array([0, 1, 3, 5])
    assert np.isfinite(found[sound]).all()
    chex.assert_trees_all_close(found[sound], whole[sound], rtol=1e-6)


def test_what_is_kept_apart_has_a_branch_of_its_own():
    """The compiler's other barriers are gone before it fuses loops."""

    def shifted(skip, shared, x):
        kept = blocks.apart(skip, jnp.sin, x)
        return sum(jnp.roll(kept, i, 1) for i in range(4))

    program = jax.jit(functools.partial(blocks.over_blocks, shifted, ())).lower(rows(4)).compile()
    assert " conditional(" in program.as_text()
