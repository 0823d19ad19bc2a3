"""Designs change their host, or say in a sentence why they cannot."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from sweeps import swept

from jaxeff.errors import ConfigError
from jaxeff.layers.shared_conv import MODES
from jaxeff.models import DESIGNS, MODELS

HOSTS = {
    "resnet": {"name": "resnet", "blocks": (1, 2), "widths": (4, 8)},
    "one_stage": {"name": "resnet", "blocks": (2,), "widths": (4,)},
    "wide_resnet": {"name": "wide_resnet", "depth": 16, "width": 1},
    "densenet": {"name": "densenet", "blocks": (2, 2), "growth": 4, "stem_width": 8},
    "mobilenet_v2": {"name": "mobilenet_v2", "width": 0.25},
    "mobilenet_v3": {"name": "mobilenet_v3", "width": 0.25},
    "xception": {"name": "xception", "divide": 16},
    "small_xception": {"name": "xception", "small": True, "divide": 16},
}


def build(host, **design):
    return MODELS.build({**HOSTS[host], "design": design}, "model", num_outputs=3)


def parameters(model):
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: jax.jit(model.init)(jax.random.key(0), x), x)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


@pytest.fixture(scope="module")
def plain():
    return {}


def of_plain(plain, host):
    if host not in plain:
        plain[host] = parameters(build(host, name="plain"))
    return plain[host]


WORKING = [
    *((host, {"name": "global", "initial": "block"}) for host in HOSTS),
    ("one_stage", {"name": "global"}),
    ("xception", {"name": "global", "kept": 1, "initial": "next"}),
    ("xception", {"name": "looped"}),
    ("one_stage", {"name": "looped"}),
    ("mobilenet_v3", {"name": "looped"}),
    ("small_xception", {"name": "shared"}),
    ("small_xception", {"name": "shared", "mode": "depthwise_tile"}),
    ("one_stage", {"name": "shared"}),
    ("densenet", {"name": "shared", "mode": "blueprint"}),
    ("xception", {"name": "interpolated"}),
]


#: Every design and every kind of host once.
ALWAYS = [
    ("mobilenet_v2", {"name": "global", "initial": "block"}),
    ("one_stage", {"name": "global"}),
    ("one_stage", {"name": "looped"}),
    ("small_xception", {"name": "shared"}),
    ("xception", {"name": "interpolated"}),
]


@pytest.mark.parametrize(("host", "design"), swept(WORKING, *ALWAYS))
def test_a_design_changes_the_network(host, design, plain):
    assert parameters(build(host, **design)) != of_plain(plain, host)


DESIGNS_AND_FIELDS = [
    *({"name": "global", "initial": initial} for initial in ("identity", "block")),
    {"name": "global", "initial": "next", "kept": 1},
    {"name": "interpolated"},
    {"name": "looped"},
    *({"name": "shared", "mode": mode} for mode in MODES),
]


#: Why a design is impossible in one of these small networks.
REASONS = r"changes nothing in|changes none of the conv|kept=1 leaves none|smaller than"


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS_AND_FIELDS, ids=lambda d: "-".join(map(str, d.values())))
@pytest.mark.parametrize("host", HOSTS)
def test_every_design_changes_every_host_or_says_why_not(host, design, plain):
    assert set(DESIGNS) == {"plain", *(fields["name"] for fields in DESIGNS_AND_FIELDS)}
    said = ""
    try:
        count = parameters(build(host, **design))
    except ConfigError as error:
        said = str(error)
        count = of_plain(plain, host)
    assert (count == of_plain(plain, host)) == bool(re.search(REASONS, said)), said


def test_rows_of_blocks_that_keep_their_shape_are_looped_where_they_stand(plain):
    # Of the second stage's 512, 512, 512/2, 512, 1024/2 only the first two are one.
    block = 2 * (32 * 9 + 32 * 32 + 2 * 32) + (32 * 9 + 32 * 32 + 2 * 32)
    assert of_plain(plain, "xception") - parameters(build("xception", name="looped")) == block


REFUSED = [
    ("densenet", {"name": "interpolated"}, "changes nothing in DenseNet"),
    ("densenet", {"name": "looped"}, "changes nothing in DenseNet"),
    ("small_xception", {"name": "looped"}, "changes nothing in"),
    ("resnet", {"name": "looped"}, "changes nothing in"),
    ("mobilenet_v2", {"name": "shared", "mode": "blueprint"}, "changes none of the convolutions"),
    ("xception", {"name": "shared", "mode": "basis"}, "changes none of the convolutions"),
    ("resnet", {"name": "shared", "mode": "depthwise_tile"}, "changes none of the convolutions"),
    ("resnet", {"name": "shared", "stages": (1, 2)}, "stages names stage 2.*stages 0 to 1"),
    ("resnet", {"name": "global", "stages": (-1,)}, "stages names stage -1"),
    ("resnet", {"name": "interpolated", "stages": ()}, "stages is empty"),
    ("xception", {"name": "global", "stages": (0, 1, 2)}, "stages names stage 2"),
    ("resnet", {"name": "global", "per_stage": {"2": {"dt": 0.1}}, "stages": (1,)}, "per_stage"),
    ("resnet", {"name": "global", "kept": -2}, "kept must be"),
    ("resnet", {"name": "global", "kept": 1, "initial": "next"}, "stage 0 has 1 blocks; kept=1"),
]


@pytest.mark.parametrize(("host", "design", "message"), REFUSED)
def test_a_design_that_would_change_nothing_is_refused(host, design, message):
    with pytest.raises(ConfigError, match=f"^config.model.design: .*{message}"):
        build(host, **design)


@pytest.mark.parametrize("field", [{"stages": (0.5,)}, {"kept": 1.5}])
def test_fields_that_count_are_whole_numbers(field):
    with pytest.raises(ConfigError, match=r"^config\.model\.design\.\w+ must be .*whole number"):
        build("resnet", name="global", **field)


def test_a_factor_of_one_is_the_plain_network(plain):
    shared = build("one_stage", name="shared", factor=1)
    assert parameters(shared) == of_plain(plain, "one_stage")
