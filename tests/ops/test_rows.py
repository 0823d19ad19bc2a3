"""Work block by block: what blocks are, and what they keep apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.ops import platform
from jaxeff.ops.cpu import rows
from jaxeff.ops.rows import rowwise


def drawn(n, width=6):
    return jax.random.normal(jax.random.key(0), (n, width))


@pytest.mark.parametrize(("n", "sizes"), [(9, {3}), (7, {4, 3}), (4, {4}), (11, {4, 3})])
def test_rows_are_divided_into_the_largest_blocks_that_fit(monkeypatch, n, sizes):
    monkeypatch.setattr(rows, "BLOCK", 4 * 6 * 4)
    seen = set()

    def noted(_, x):
        seen.add(x.shape[0])
        return x

    with platform("cpu"):
        jax.eval_shape(lambda x: rowwise(noted, (), x), drawn(n))
    assert seen == sizes
    with platform("reference"):
        jax.eval_shape(lambda x: rowwise(noted, (), x), drawn(n))
    assert seen == {*sizes, n}


def test_what_is_not_a_number_stays_in_its_row(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 2 * 6 * 4)
    x = drawn(6).at[2, 0].set(jnp.nan).at[4, 0].set(jnp.inf)

    def total(_, x):
        return rows.compute_once(jnp.sin, x).sum(1)

    found = jax.jit(lambda x: rows.rowwise(total, (), x))(x)
    np.testing.assert_array_equal(np.isfinite(found), [1, 1, 0, 1, 0, 1])
    np.testing.assert_allclose(found[:2], np.sin(x[:2]).sum(1), rtol=1e-5)


@pytest.mark.parametrize("n", [4, 1])
def test_what_is_computed_once_has_a_branch_of_its_own(n):
    """The compiler's other barriers are gone before it fuses loops."""

    def shifted(_, x, waves):
        return sum(jnp.roll(waves, i, 1) for i in range(4)) + x

    def program(x):
        return rows.rowwise(shifted, (), x, jnp.sin(x))

    assert " conditional(" in jax.jit(program).lower(drawn(n)).compile().as_text()
