"""Functions of arrays give the same whether they are those of NumPy or of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import swept

from jaxeff import affine, distill
from jaxeff.affine import POSES, Problem, Search, Transform, losses, resample
from jaxeff.constraints import statistics
from jaxeff.errors import ConfigError
from jaxeff.selective import confidence, one_sided, online

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(4, 6, 6, 1)).astype(np.float32)
LOGITS = RNG.normal(size=(2, 5, 3)).astype(np.float32)
LABELS = np.array([0, 2, 1, 1, 0])
WEIGHT = np.linspace(0.5, 1, 5, dtype=np.float32)
FAMILY = POSES.build({"name": "rotation", "translation": 0.1})
POSE = RNG.uniform(size=(4, 3)).astype(np.float32) * 0.1
STARTS = RNG.uniform(size=(4, 3, 3)).astype(np.float32) * 0.1
PROBLEM = Problem(
    code=lambda data, pose: data["t"],
    place=lambda code, pose: resample(code, FAMILY.transform(pose)),
    criterion=lambda out, data: ((out - data["t"]) ** 2).sum((1, 2, 3)),
)
TURN = np.asarray(FAMILY.transform(POSE).matrix), np.asarray(POSE[:, 1:])


def searched(method):
    settings = Search(method=method, steps=1, keep=2, chunk=8)
    return lambda images, starts: affine.search(PROBLEM, {"t": images}, starts, settings)


CASES = {
    **{method: (searched(method), IMAGES, STARTS) for method in ("align", "screen")},
    "adam": (lambda x, p: affine.adam(PROBLEM, {"t": x}, p, 1, 0.1), IMAGES, POSE),
    "resample": (lambda x, *t: resample(x, Transform(*t)), IMAGES, *TURN),
    "inverse": (lambda *t: affine.inverse(Transform(*t)), *TURN),
    "transform": (FAMILY.transform, POSE),
    "raw": (lambda pose: FAMILY.from_raw(FAMILY.to_raw(pose)), POSE),
    "floor": (lambda x, *t: losses.resampling_floor(x, Transform(*t)), IMAGES, *TURN),
    "kl": (losses.corrected_kl, POSE, POSE),
    "margins": (statistics.margins, LOGITS[0], LABELS),
    "hardest": (lambda z, w: statistics.hardest(z, w, 0.3), LOGITS[0, :, 0], WEIGHT),
    "norms": (
        lambda x: statistics.input_gradient_norms(lambda y: (y**2).sum(-1), x, 0.1),
        LOGITS[0],
    ),
    "dkd": (distill.dkd, LOGITS[0], LOGITS[1], LABELS),
    "hint": (distill.hint, LOGITS[0], LOGITS[1]),
    "disk": (distill.variant(top_k=2).loss, LOGITS[0], LOGITS[1], LABELS, WEIGHT),
    "one_sided": (
        lambda z, y: one_sided.class_losses(z, y, weight=WEIGHT),
        LOGITS[0],
        LABELS,
    ),
    "experts": (online.experts, LOGITS, np.array([0.0, 0.5])),
    "round": (
        lambda p: online.step(online.start(3), p, 1, 0.5, jax.random.key(0)),
        np.array([0, -1, 1]),
    ),
    "p_norm": (lambda z: confidence.max_logit_p_norm(z, 3), LOGITS),
}


@pytest.mark.parametrize("name", swept(CASES, *list(CASES)[::3]))
def test_numpy_is_as_good_as_jax(name):
    function, *arrays = CASES[name]
    expected = jax.jit(function)(*map(jnp.asarray, arrays))
    # As constants of a program, which what is traced there must be able to index.
    found = jax.jit(lambda: function(*arrays))()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


@pytest.mark.parametrize("starts", [STARTS[:3], STARTS[:, :0], POSE])
def test_starts_that_do_not_fit_are_one_sentence(starts):
    with pytest.raises(ConfigError, match=r"needs starts \[batch, starts, size\] for data"):
        affine.search(PROBLEM, {"t": IMAGES}, starts, Search(steps=1))
