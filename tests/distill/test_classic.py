"""Distillation by answers and by features, against sums written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.distill import LOSSES, Seen, dkd, hint, kd
from jaxeff.errors import ConfigError


@pytest.fixture
def case(x64):
    rng = np.random.default_rng(0)
    student, teacher = 3 * rng.normal(size=(2, 5, 4))
    return student, teacher, rng.integers(0, 4, 5)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def kl(p, q):
    return float(np.sum(p * np.log(p / q)))


def test_kd_sums_over_classes_and_keeps_the_size_of_its_slope(case):
    student, teacher, _ = case
    pairs = [(softmax(t / 3), softmax(s / 3)) for s, t in zip(student, teacher, strict=True)]

    @jax.jit
    def found(student):
        values, pull = jax.vjp(lambda s: kd(s, teacher, 3.0), student)
        return values, pull(jnp.ones(5))[0]

    values, slope = found(student)
    np.testing.assert_allclose(values, [9 * kl(*p) for p in pairs], atol=1e-12)
    np.testing.assert_allclose(slope, [3 * (q - p) for p, q in pairs], atol=1e-12)


def test_kd_of_a_certain_teacher_is_finite():
    teacher = np.float32([[1e4, 0.0, -1e4]])
    value_and_slope = jax.jit(jax.value_and_grad(lambda s: kd(s, teacher, 1.0).sum()))
    value, slope = value_and_slope(np.ones((1, 3), np.float32))
    np.testing.assert_allclose(value, np.log(3), rtol=1e-6)
    assert np.isfinite(slope).all()


def test_dkd_weighs_the_two_parts_of_kd(case):
    student, teacher, labels = case
    target, others = [], []
    for s, t, y in zip(student, teacher, labels, strict=True):
        p, q = softmax(t / 2), softmax(s / 2)
        target.append(kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]])))
        rest = np.arange(4) != y
        others.append(kl(p[rest] / (1 - p[y]), q[rest] / (1 - q[y])))
    expected = 4 * (1.5 * np.array(target) + 6.0 * np.array(others))
    loss = jax.jit(dkd, static_argnums=(3, 4))
    np.testing.assert_allclose(loss(student, teacher, labels, 2.0, 1.5, 6.0), expected, atol=1e-11)
    uncertainty = 1 - np.array([softmax(t / 2)[y] for t, y in zip(teacher, labels, strict=True)])
    whole = jax.jit(kd, static_argnums=2)(student, teacher, 2.0)
    for row, beta in enumerate(uncertainty):
        found = loss(student, teacher, labels, 2.0, 1.0, beta)
        np.testing.assert_allclose(found[row], whole[row], atol=1e-11)


def test_slopes_of_dkd_are_finite_at_the_extremes():
    student, teacher = np.float32([[80.0, -80.0, 0.0]]), np.float32([[200.0, 0.0, -200.0]])
    slope = jax.jit(jax.grad(lambda s: dkd(s, teacher, np.zeros(1, int), 1.0).sum()))(student)
    assert np.isfinite(slope).all()


def test_a_hint_is_a_mean_of_squares(case):
    rng = np.random.default_rng(1)
    one, two = rng.normal(size=(2, 5, 2, 2, 3))
    np.testing.assert_allclose(hint(one, two), ((one - two) ** 2).mean((1, 2, 3)), atol=1e-12)
    with pytest.raises(ValueError, match="must have the shape of the teacher's"):
        hint(one, two[:, :1])


def test_an_adapter_is_a_1x1_convolution_that_can_close_the_gap(case):
    rng = np.random.default_rng(1)
    own, matrix = rng.normal(size=(5, 2, 2, 3)), rng.normal(size=(3, 7))
    logits = np.zeros((5, 4))
    student = Seen(logits, {"map": own})
    teacher = Seen(logits, {"map": own @ matrix})
    loss = LOSSES.build({"name": "fitnet", "at": "map"}, "losses")
    params = jax.eval_shape(lambda: loss.init(jax.random.key(0), student, teacher, None))["params"]
    assert params["adapter"]["kernel"].shape == (3, 7)
    solved = {"adapter": {"kernel": matrix, "bias": np.zeros(7)}}
    left = jax.jit(lambda p: loss.apply({"params": p}, student, teacher, None))(solved)
    assert np.max(left) < 1e-24
    unadapted = LOSSES.build({"name": "simkd", "at": "map"}, "losses")
    with pytest.raises(ConfigError, match="at='map': the student's features"):
        unadapted.apply({}, student, teacher, None)
    with pytest.raises(ConfigError, match="the features 'penultimate', but the network has only"):
        LOSSES.build({"name": "simkd"}, "losses").apply({}, student, teacher, None)


def test_named_losses_are_the_functions(case):
    student, teacher, labels = case
    seen = Seen(student, {}), Seen(teacher, {})
    found = LOSSES.build({"name": "dkd", "beta": 2.0}, "losses").apply({}, *seen, labels)
    np.testing.assert_array_equal(found, dkd(student, teacher, labels, 4.0, 1.0, 2.0))
    found = LOSSES.build({"name": "kd", "temperature": 2.0}, "losses").apply({}, *seen, labels)
    np.testing.assert_array_equal(found, kd(student, teacher, 2.0))
