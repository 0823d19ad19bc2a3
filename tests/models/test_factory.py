"""Models by name: what the names build, and what is said of those that there are not."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxeff
from jaxeff.errors import ConfigError
from jaxeff.models import MODELS
from jaxeff.ode import CELLS

CONFIGS = Path(__file__).parents[2] / "configs"


def config_file(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def from_config(config):
    section = config.model.to_dict()
    return MODELS.build({**section, "axis_name": ""}, "model", num_outputs=10)


@pytest.mark.parametrize(
    ("file", "suffix"), [("images", ""), ("global_cnn", "_global"), ("si_cnn", "_interpolated")]
)
def test_names_mean_the_models_of_the_config_files(file, suffix):
    module = config_file(file)
    for name in module.MODELS:
        if f"{name}{suffix}" not in jaxeff.list_models():
            assert (name, suffix) == ("densenet_bc", "_interpolated")  # refused, see test_designs
            continue
        model = jaxeff.create_model(f"{name}{suffix}", num_classes=10)
        assert model == from_config(module.get_config(f"model={name}"))


def test_every_name_builds_and_patterns_select_them():
    names = jaxeff.list_models()
    assert set(CELLS) < set(names)
    for name in names:
        jaxeff.create_model(name, num_classes=10)
    assert jaxeff.list_models("*global*") == [n for n in names if n.endswith("_global")] != []


def test_fields_are_merged_into_those_of_the_name():
    model = jaxeff.create_model("irnn", num_classes=6, cell={"features": 3}, dtype=jnp.bfloat16)
    assert (model.cell.features, model.num_outputs, model.dtype) == (3, 6, jnp.bfloat16)
    shape = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x)[0], jnp.ones((2, 5, 4))
    )
    assert (shape.shape, shape.dtype) == ((2, 6), jnp.bfloat16)
    assert jaxeff.create_model("irnn", num_classes=6, cell={"name": "gru", "features": 3}).cell == (
        jaxeff.ode.GRU(3)
    )
    coarse = jaxeff.create_model("resnet20_interpolated", num_classes=6, design={"stride": 3})
    assert coarse.stages[0][0].body.stride == 3
    by_registry = jaxeff.create_model("resnet", num_classes=10, depth=20)
    assert by_registry == jaxeff.create_model("resnet20", num_classes=10)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet32_globl", {}, r"^unknown model 'resnet32_globl'; did you mean resnet32_global or"),
        ("?", {}, r"^unknown model '\?'; jaxeff.list_models\(\) has all$"),
        ("resnet20", {"dpth": 8}, r"^create_model\('resnet20'\): dpth: .*did you mean 'depth'"),
        ("resnet20", {"depth": 9}, r"^create_model\('resnet20'\): depth must be one of"),
        ("irnn", {"cell": {"features": 0}}, r"^create_model\('irnn'\): .*features"),
    ],
)
def test_what_there_is_not_is_said_in_a_sentence(name, fields, message):
    with pytest.raises(ConfigError, match=message):
        jaxeff.create_model(name, num_classes=10, **fields)
