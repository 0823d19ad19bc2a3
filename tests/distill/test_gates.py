"""Gates: their sizes are those of the released ones, and what they read."""

import jax
import numpy as np
import pytest
from sweeps import swept

from jaxeff.distill import Seen
from jaxeff.errors import ConfigError
from jaxeff.layers.gates import GATES


def seen(batch=3, classes=100, width=1280, channels=128):
    rng = np.random.default_rng(0)
    draw = [rng.normal(size=s) for s in ((batch, classes), (batch, width), (batch, 8, 8, channels))]
    logits, pooled, features = (a.astype(np.float32) for a in draw)
    return Seen(logits, {"penultimate": pooled, "map": features})


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        # On the 128 channels after the third stage of a ResNet10 of widths 32 to 256.
        ("map", 100, 781_457),
        ("auto", 100, 781_457),
        ("wide_features", 1000, 1_415_193),
        ("features", 100, 1280 * 64 + 64 + 64 * 128 + 128 + 128 + 1),
        ("logits", 10, 10 * 32 + 32 + 32 + 1),
    ],
)
def test_parameters(name, classes, parameters):
    gate = GATES.build({"name": name}, "gate", num_classes=classes)
    shapes = jax.eval_shape(lambda s: gate.init(jax.random.key(0), s), seen(classes=classes))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == parameters


# "auto" is one of the others.
@pytest.mark.parametrize("name", swept(GATES, *(name for name in GATES if name != "auto")))
def test_gates_are_shares_and_differ_between_examples(name):
    gate = GATES.build({"name": name}, "gate", num_classes=10)
    teacher = seen(classes=10, width=6, channels=4)
    found, _ = jax.jit(gate.init_with_output)(jax.random.key(0), teacher)
    found = np.asarray(found)
    assert found.shape == (3,)
    assert ((found > 0) & (found < 1)).all()
    assert len(np.unique(found)) == 3


def test_the_automatic_gate_reads_logits_where_there_is_no_map():
    gate = GATES.build({"name": "auto"}, "gate", num_classes=10)
    only = Seen(seen(classes=10).logits, {})
    variables = jax.eval_shape(lambda: gate.init(jax.random.key(0), only))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 385
    with pytest.raises(ConfigError, match=r"needs the features 'map'.* has only: logits"):
        GATES.build({"name": "map"}, "gate", num_classes=10).init(jax.random.key(0), only)
