"""The closed-form gate against a general optimiser, and where it is slack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxeff.distill import closed_form_gate, gate_at, variant, water_price
from jaxeff.errors import ConfigError

pour = jax.jit(closed_form_gate)


def problem(seed, size=6, kept=4.0):
    rng = np.random.default_rng(seed)
    entropy = rng.uniform(0.2, 5, size)
    return entropy, rng.uniform(0.1, 4, size), np.full(size, kept)


def bound(gate, entropy, kept):
    return np.sum(-np.log(np.exp(-entropy) + gate) + np.log1p(kept * gate))


@pytest.mark.parametrize("kept", [0.0, 4.0])
@pytest.mark.parametrize("allowed", [0.3, 1.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_gate_within_the_budget_has_a_lower_bound(x64, seed, allowed, kept):
    entropy, need, kept = problem(seed, kept=kept)
    gate = pour(entropy, need, kept, allowed, np.ones(6))
    np.testing.assert_allclose(gate @ need, allowed, rtol=1e-9)
    best = optimize.minimize(
        bound,
        np.full(6, 0.01),
        (entropy, kept),
        bounds=[(0, 1)] * 6,
        constraints={"type": "ineq", "fun": lambda g: allowed - g @ need},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert bound(np.asarray(gate), entropy, kept) <= best.fun + 1e-9
    np.testing.assert_allclose(gate, best.x, atol=1e-4)


def test_inside_the_box_every_gain_per_help_is_the_price(x64):
    entropy, need, kept = problem(3)

    @jax.jit
    def found():
        price = water_price(entropy, need, kept, 0.5, jnp.ones(6))
        return price, gate_at(price, entropy, need, kept)

    price, gate = map(np.asarray, found())
    gain = 1 / (np.exp(-entropy) + gate) - kept / (1 + kept * gate)
    inside = (gate > 0) & (gate < 1)
    assert inside.any()
    np.testing.assert_allclose(gain[inside] / need[inside], price, rtol=1e-9)
    assert (gain[gate == 0] / need[gate == 0] <= price).all()


def test_a_large_budget_helps_all_who_are_worse_than_guessing_and_no_other(x64):
    entropy, need, kept = problem(4, size=40)
    gate = pour(entropy, need, kept, 1e6, np.ones(40))
    np.testing.assert_allclose(gate, entropy > np.log(4), atol=1e-12)


def test_no_budget_gives_no_help_and_padding_spends_nothing(x64):
    entropy, need, kept = problem(5)
    assert np.max(pour(entropy, need, kept, 0.0, np.ones(6))) < 1e-9
    whole = pour(entropy, need, kept, 0.5, np.ones(6))
    padded = pour(
        *(np.concatenate([a, a[:3]]) for a in (entropy, need, kept)),
        0.5,
        np.asarray([1.0] * 6 + [0.0] * 3),
    )
    np.testing.assert_allclose(np.asarray(padded)[:6], whole, atol=1e-9)


@pytest.mark.parametrize("size", [0.0, 100.0])
def test_certain_students_are_finite(size):
    values = (np.float32(each) for each in ([size, 0.0], [0.0, 5.0], [3.0, 3.0]))
    assert np.isfinite(pour(*values, 0.5, np.ones(2, np.float32))).all()


@pytest.mark.parametrize("name", ["normalised", "poster"])
def test_the_bound_is_above_the_loss_and_meets_it_for_one_class(x64, name):
    rng = np.random.default_rng(0)
    student, teacher = 2 * rng.normal(size=(2, 9, 5))
    labels, gate = rng.integers(0, 5, 9), rng.uniform(size=9)
    for top_k, sharp in ((3, 1.0), (1, 1e4)):
        made = variant(name, top_k=top_k, divergence=False)

        @jax.jit
        def found(teacher, made=made):
            given = student, teacher, labels
            terms = made.closed_form_terms(*given)
            return *terms, made.loss(*given, gate), made.help(*given, jnp.ones(9))

        entropy, need, kept, value, helped = map(np.asarray, found(sharp * teacher))
        value = value / (3.5 * 4)
        above = -np.log(np.exp(-entropy) + gate) + np.log1p(kept * gate)
        np.testing.assert_allclose(need, helped, atol=0)
        if sharp == 1:
            assert (value < above - 1e-6).any()
            assert (value <= above + 1e-12).all()
        else:
            np.testing.assert_allclose(value, above, atol=1e-9)


def test_other_variants_have_no_closed_form():
    for name in ("cifar50", "cifar42", "imagenet"):
        with pytest.raises(ConfigError, match="a closed-form gate needs"):
            variant(name).check_closed_form()
    variant().check_closed_form()
