"""Convolutional hosts: exact sizes of the published networks, designs, folding, refusals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.bench import cost_per_example
from jaxeff.errors import ConfigError
from jaxeff.models import MODELS
from jaxeff.models.folding import fold_output_tiles
from jaxeff.models.mobilenet import divisible

WIDTHS = (16, 32, 64, 64)
GLOBAL = {"name": "global"}
NEXT = {
    "name": "global",
    "stages": (1, 2, 3, 4, 5),
    "kept": 1,
    "initial": "next",
    "diffusivity": (1.0, 1.0),
    "coefficient_epsilon": 1e-5,
}
SMALL_MOBILE = {"name": "mobilenet_v2", "project_skip": True, "strides": (1, 1, 1, 2, 2, 1, 2, 1)}


def first_fast(cases, fast=1):
    """The first cases of a table for every run, the others for the longer checks."""
    cases = list(cases)
    slow = [case if isinstance(case, tuple) else (case,) for case in cases[fast:]]
    return [*cases[:fast], *(pytest.param(*case, marks=pytest.mark.slow) for case in slow)]


def build(outputs=10, **spec):
    return MODELS.build(spec, "model", num_outputs=outputs)


def shapes(model, size=32, channels=3):
    x = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x), x


def parameters(outputs=10, size=32, **spec):
    variables, _ = shapes(build(outputs, **spec), size)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def macs(outputs=10, size=32, **spec):
    model = build(outputs, **spec)
    variables, x = shapes(model, size)
    return cost_per_example(model.apply, variables, x).macs


def sharing(mode, factor, **fields):
    return {"name": "shared", "mode": mode, "factor": factor, **fields}


# Parameters of the authors' networks for 10 and 100 classes.
GLOBAL_TABLE = [
    ({"name": "resnet", "depth": 32}, 466_906, 472_756),
    ({"name": "resnet", "blocks": (1,) * 4, "widths": WIDTHS, "design": GLOBAL}, 161_402, 167_252),
    ({"name": "resnet", "blocks": (1,) * 3, "widths": WIDTHS[:3], "design": GLOBAL}, 83_194, None),
    ({"name": "resnet", "depth": 56}, 855_770, 861_620),
    ({"name": "resnet", "blocks": (2,) * 4, "widths": WIDTHS, "design": GLOBAL}, 332_602, 338_452),
    ({"name": "wide_resnet", "depth": 40, "width": 4}, 8_977_994, 9_001_124),
    (
        {"name": "wide_resnet", "depth": 10, "design": {**GLOBAL, "initial": "block"}},
        2_798_282,
        2_821_412,
    ),
    ({"name": "densenet"}, 769_162, 800_032),
    (
        {
            "name": "densenet",
            "blocks": (8, 8, 8),
            "design": {**GLOBAL, "stages": (0, 1), "initial": "block"},
        },
        465_442,
        481_192,
    ),
]


@pytest.mark.parametrize(("spec", "ten", "hundred"), first_fast(GLOBAL_TABLE))
def test_parameters_of_the_cifar_networks(spec, ten, hundred):
    assert parameters(**spec) == ten
    if hundred:
        assert parameters(100, **spec) == hundred


def test_constant_diffusivity_saves_22_parameters_per_channel():
    spec = {"name": "resnet", "blocks": (1,) * 4, "widths": WIDTHS}
    fixed = parameters(**spec, design={**GLOBAL, "diffusivity": (1.0, 1.0)})
    assert parameters(**spec, design=GLOBAL) - fixed == 22 * (16 + 32 + 64)


IMAGENET_TABLE = [
    ({"name": "mobilenet_v2"}, 3_504_872, 300.8),
    ({"name": "mobilenet_v3"}, 5_483_032, 216.6),
    ({"name": "efficientnet_b0"}, 5_288_548, 385.8),
    ({"name": "mobilenet_v2", "design": NEXT}, 2_952_232, 233.5),
    (
        {"name": "mobilenet_v3_global", "design": {**NEXT, "kept": (1, 1, 1, 1, 0)}},
        3_868_160,
        174.4,
    ),
    ({"name": "efficientnet_b0", "design": {**NEXT, "product": True}}, 3_822_932, 295.4),
]


@pytest.mark.parametrize(("spec", "size", "millions"), first_fast(IMAGENET_TABLE[::-1], 0))
def test_parameters_and_multiply_adds_of_the_imagenet_networks(spec, size, millions):
    assert parameters(1000, 224, **spec) == size
    assert round(macs(1000, 224, **spec) / 1e6, 1) == millions


RESNET18_TABLE = {
    # factor: tied shortcuts, full shortcuts, narrowed; then their millions of multiply-adds
    1: (11_173_962, 11_173_962, 11_173_962, 555.423, 555.423, 555.423),
    2: (5_664_458, 5_751_370, 2_929_866, 354.096, 357.242, 258.673),
    4: (2_909_706, 3_040_074, 856_842, 253.433, 258.151, 181.864),
    8: (1_532_330, 1_684_426, 332_586, 203.101, 208.606, 161.350),
    16: (843_642, 1_006_602, 198_522, 177.935, 183.834, 155.566),
}


@pytest.mark.parametrize("factor", first_fast([2, 1, 4, 8, 16]))
def test_resnet_18_with_tiled_outputs(factor):
    specs = (
        {"design": sharing("out_tile", factor, share_shortcut=True)},
        {"design": sharing("out_tile", factor)},
        {"widths": (64, 128 // factor, 256 // factor, 512 // factor)},
    )
    counts = [parameters(name="resnet", depth=18, **spec) for spec in specs]
    costs = [round(macs(name="resnet", depth=18, **spec) / 1e6, 3) for spec in specs]
    assert (*counts, *costs) == RESNET18_TABLE[factor]


@pytest.mark.parametrize(
    ("factor", "tied", "full", "narrowed"),
    first_fast(
        [
            (2, 11_879_498, 13_259_338, 6_102_090),
            (4, 6_058_826, 8_128_586, 1_718_090),
            (8, 3_148_490, 5_563_210, 607_434),
            (16, 1_693_322, 4_280_522, 322_442),
        ],
        fast=0,
    ),
)
def test_resnet_50_with_tiled_outputs(factor, tied, full, narrowed):
    spec = {"name": "resnet", "depth": 50}
    design = sharing("out_tile", factor)
    assert parameters(**spec, design={**design, "share_shortcut": True}) == tied
    assert parameters(**spec, design=design) == full
    widths = (64, 128 // factor, 256 // factor, 512 // factor)
    assert parameters(**spec, widths=widths) == narrowed


XCEPTION_TABLE = {
    # small, factor: depthwise tiles, pointwise tiles, narrowed
    (False, 1): (7_649_898, 7_649_898, 7_649_898),
    (False, 2): (7_617_642, 5_683_818, 3_012_458),
    (False, 4): (7_601_514, 4_700_778, 1_627_626),
    (False, 8): (7_593_450, 4_209_258, 1_168_682),
    (True, 1): (787_242, 787_242, 787_242),
    (True, 2): (777_450, 508_714, 232_746),
    (True, 4): (772_554, 369_450, 103_338),
    (True, 8): (770_106, 299_818, 61_034),
}


@pytest.mark.parametrize(("small", "factor"), first_fast(list(XCEPTION_TABLE)[::-1]))
def test_xception_with_tiled_inputs(small, factor):
    spec = {"name": "xception", "small": small}
    stages = (0,) if small else (1,)
    found = (
        parameters(**spec, design=sharing("depthwise_tile", factor, stages=stages)),
        parameters(**spec, design=sharing("in_tile", factor, stages=stages)),
        parameters(**spec, divide=factor),
    )
    assert found == XCEPTION_TABLE[small, factor]


@pytest.mark.parametrize(
    ("factor", "size"),
    first_fast([(2, 2_264_810), (1, 2_296_922), (4, 2_248_754), (8, 2_240_726)], fast=0),
)
def test_mobilenet_with_tiled_depthwise_kernels(factor, size):
    design = sharing("depthwise_tile", factor, stages=tuple(range(7)))
    assert parameters(**SMALL_MOBILE, design=design) == size


@pytest.mark.slow
def test_whole_networks_of_interpolated_blocks():
    """The reconstruction's counts, without squeeze-excitation and with 4 per interpolated value."""
    base = macs(1000, 224, name="efficientnet_b0")
    cut = macs(1000, 224, name="efficientnet_b0", design={"name": "interpolated"})
    assert round(1 - cut / base, 3) == 0.394  # 0.392 with interpolation counted, as published
    none = macs(1000, 224, name="efficientnet_b0", design={"name": "interpolated", "cheap": "none"})
    assert cut - none == 9 * sum(
        c * n * s * s
        for c, n, s in ((24, 1, 56), (40, 1, 28), (80, 2, 14), (112, 2, 14), (192, 3, 7))
    )
    base = macs(1000, 224, name="mobilenet_v3")
    cut = macs(1000, 224, name="mobilenet_v3", design={"name": "interpolated"})
    assert round(1 - cut / base, 3) == 0.385


DESIGNS = {
    "plain": {"name": "plain"},
    "global": {**GLOBAL, "stages": (0, 1)},
    "interpolated": {"name": "interpolated", "stages": (0, 1)},
    "out_tile": sharing("out_tile", 2, stages=(1,), modulate=True),
    "global block": {**GLOBAL, "stages": (0, 1), "kept": 1, "initial": "block"},
    "global next": {
        **GLOBAL,
        "stages": (1,),
        "kept": 1,
        "initial": "next",
        "per_stage": {1: {"dt": 0.1}},
    },
    "in_tile": sharing("in_tile", 2, stages=(1,)),
    "blueprint_low": sharing("blueprint_low", 2, stages=(1,)),
    "looped": {"name": "looped"},
}
HOSTS = {
    "resnet": {"name": "resnet", "blocks": (2, 2), "widths": (8, 16), "drop_path": 0.1},
    "bottleneck": {"name": "resnet", "blocks": (2, 2), "widths": (4, 8), "bottleneck": True},
    "densenet": {"name": "densenet", "blocks": (2, 2), "growth": 4, "stem_width": 8},
}


#: Designs that find nothing to change there, which is refused.
IDLE = {("interpolated", "densenet"), ("looped", "bottleneck"), ("looped", "densenet")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("design", "host"), [(d, h) for d in DESIGNS for h in HOSTS if (d, h) not in IDLE]
)
def test_every_design_trains_in_every_host(host, design):
    model = build(3, **HOSTS[host], design=DESIGNS[design])
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    variables = jax.jit(model.init)(jax.random.key(1), x)

    @jax.jit
    def gradient(params):
        def loss(params):
            y, state = model.apply(
                {**variables, "params": params},
                x,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(2)},
            )
            return jnp.sum(y**2), (y, state)

        return jax.grad(loss, has_aux=True)(params)

    grads, (y, state) = gradient(variables["params"])
    assert y.shape == (4, 3)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
    before = {"batch_stats": variables["batch_stats"]}
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state, before)
    assert min(jax.tree.leaves(moved)) > 0  # every running statistic has seen the batch
    dead = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(grads)
        if not jnp.abs(g).max() > 0
    ]
    assert not dead


def test_a_looped_stage_has_one_block_whatever_its_depth():
    sizes = {
        parameters(name="resnet", blocks=(n,), widths=(8,), design={"name": "looped"})
        for n in (2, 3, 5)
    }
    assert len(sizes) == 1
    cost = [
        macs(name="resnet", blocks=(n,), widths=(8,), design={"name": "looped"}) for n in (2, 4)
    ]
    assert cost[1] - cost[0] == 2 * 2 * 9 * 8 * 8 * 32 * 32


def tied(factor, share_shortcut=True, **fields):
    model = build(
        depth=18,
        name="resnet",
        widths=(16, 32, 64, 128),
        design=sharing("out_tile", factor, share_shortcut=share_shortcut, **fields),
    )
    x = jax.random.normal(jax.random.key(0), (64, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    keys = iter(jax.random.split(jax.random.key(2), 500))
    moved = jax.tree.map(
        lambda p: p + 0.1 * jnp.abs(jax.random.normal(next(keys), p.shape)), variables
    )
    return model, {**variables, "batch_stats": moved["batch_stats"]}, x


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2, 4])
def test_a_tied_network_folds_into_a_narrow_one(factor):
    model, variables, x = tied(factor)
    narrow = build(name="resnet", depth=18, widths=(16, 32 // factor, 64 // factor, 128 // factor))
    folded = fold_output_tiles(variables, factor)
    wanted = jax.tree.map(jnp.shape, dict(shapes(narrow, 8)[0]))
    assert jax.tree.map(jnp.shape, folded) == wanted
    ours, theirs = (jax.jit(m.apply)(v, x) for m, v in ((narrow, folded), (model, variables)))
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * float(jnp.abs(theirs).max()))
    np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.slow
def test_networks_whose_copies_differ_are_not_folded():
    _, variables, _ = tied(2, share_shortcut=False)
    with pytest.raises(ValueError, match="shortcut of full width"):
        fold_output_tiles(variables, 2)
    _, variables, _ = tied(2, modulate=True)
    with pytest.raises(ValueError, match="modulates the copies"):
        fold_output_tiles(variables, 2)
    with pytest.raises(ValueError, match="no tiled outputs"):
        fold_output_tiles({"params": {"stem": {"kernel": 0}}}, 2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "resnet"}, "needs depth, or blocks and widths"),
        ({"name": "resnet", "depth": 33}, "6 n \\+ 2, not 33"),
        ({"name": "resnet", "blocks": (1,), "widths": (8, 8)}, "do not fit 2 widths"),
        ({"name": "resnet", "depth": 20, "stem": "tiny"}, "stem must be one of small, large"),
        ({"name": "resnet", "depth": 20, "activation": "rellu"}, "did you mean 'relu'"),
        ({"name": "wide_resnet", "depth": 32}, "6 n \\+ 4"),
        ({"name": "densenet", "compression": 0}, "compression in \\(0, 1\\]"),
        ({"name": "mobilenet_v2", "strides": (1, 2)}, "needs 8 numbers"),
        ({"name": "mobilenet_v2", "width": 0}, "width must be positive"),
        ({"name": "xception", "divide": 3}, "must divide 256"),
        ({"name": "resnet", "depth": 20, "design": {"name": "globe"}}, "did you mean 'global'"),
        ({"name": "resnet", "depth": 20, "design": {**GLOBAL, "dtt": 1}}, "no field 'dtt'"),
        (
            {"name": "resnet", "depth": 20, "design": {**GLOBAL, "initial": "next"}},
            "initial='next' needs kept",
        ),
        (
            {"name": "resnet", "depth": 20, "design": {**GLOBAL, "initial": "next", "kept": 3}},
            "leaves none",
        ),
        (
            {"name": "resnet", "depth": 20, "design": {**GLOBAL, "kept": (1, 2)}},
            "2 numbers for 3 stages",
        ),
        ({"name": "resnet", "depth": 20, "design": sharing("tile", 2)}, "mode must be one of"),
    ],
)
def test_impossible_networks_are_refused_in_a_sentence(spec, message):
    with pytest.raises(ConfigError, match=message):
        shapes(build(**spec))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"design": sharing("out_tile", 3, stages=(1,))}, "factor 3 does not divide the 16 output"),
        ({"design": sharing("in_tile", 3, stages=(1,))}, "factor 3 does not divide the 8 input"),
        ({"design": {"name": "interpolated", "stride": 16}}, "smaller than the anchors' stride"),
    ],
)
def test_widths_and_sizes_that_do_not_fit_are_refused_in_a_sentence(spec, message):
    model = build(name="resnet", blocks=(2, 2), widths=(8, 16), **spec)
    with pytest.raises(ConfigError, match=message):
        shapes(model, 8)


def test_sequences_are_refused():
    with pytest.raises(ValueError, match=r"a convolutional model takes .* give images as bytes"):
        build(name="resnet", depth=20).init(jax.random.key(0), jnp.zeros((2, 8, 8)))


@pytest.mark.slow
def test_computes_in_the_asked_type_with_float32_parameters():
    for design in ("plain", "interpolated", "out_tile", "global"):
        model = build(3, **HOSTS["resnet"], design=DESIGNS[design], dtype="bfloat16")
        x = jnp.ones((2, 8, 8, 1))
        variables = jax.jit(model.init)(jax.random.key(1), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        assert model.apply(variables, x).dtype == jnp.bfloat16


def test_channels_are_rounded_to_eighths_never_down_by_more_than_a_tenth():
    assert [divisible(c) for c in (3, 16, 18, 20, 23.9, 33, 144)] == [8, 16, 24, 24, 24, 32, 144]


@pytest.mark.slow
def test_kernels_of_mobile_networks_are_drawn_by_their_fan_out():
    """Of grey images too, whose stem looks like a depthwise kernel."""
    model = build(name="mobilenet_v2", width=2.0)
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))["params"]
    stem = params["stem"]["conv0"]["conv"]["kernel"]
    block = params["stages_2_1"]["body"]
    assert stem.shape == (3, 3, 1, 64)
    np.testing.assert_allclose(stem.std(), (2 / (9 * 64)) ** 0.5, rtol=0.1)
    np.testing.assert_allclose(block["depthwise"]["conv"]["kernel"].std(), (2 / 9) ** 0.5, rtol=0.1)
    project = block["project"]["conv"]["kernel"]
    np.testing.assert_allclose(project.std(), (2 / project.shape[-1]) ** 0.5, rtol=0.1)
