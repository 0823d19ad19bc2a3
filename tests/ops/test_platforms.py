"""Which form of a function is traced, and for which platform."""

import functools
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import pytest

import jaxeff.affine.pose_search  # noqa: F401 its form is looked for below
from jaxeff.errors import ConfigError
from jaxeff.ops import cpu, forward_mode, platform
from jaxeff.ops.platforms import CPU_FORMS, current_platform, has_cpu_form, is_forward_mode
from jaxeff.train.parallel import DeviceMap

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the default is the CPU")


@has_cpu_form(f"{__name__}.{__name__}")
def form():
    """Not a form that exists."""


CPU_FORMS.popitem()


signature = functools.partial(inspect.signature, eval_str=True)


def traced_platform():
    seen = []

    @jax.jit
    def function(x):
        seen.append((current_platform(), is_forward_mode()))
        return x

    return function, seen


def test_a_program_is_traced_anew_for_another_platform():
    function, seen = traced_platform()
    function(1.0)
    with platform("reference"):
        function(1.0)
        function(1.0)
        with platform("tpu"), forward_mode():
            function(1.0)
    function(1.0)
    assert seen == [("cpu", False), ("reference", False), ("tpu", True)]


def test_only_programs_for_cpus_look_for_the_other_form():
    for name in ("reference", "gpu", "tpu"):
        with platform(name):
            form()
    with pytest.raises(ModuleNotFoundError), platform("cpu"):
        form()


@pytest.mark.parametrize("how", ["shard_map", "pmap"])
def test_a_mapped_step_is_traced_for_its_devices(how):
    seen = []

    def step(batch, axis_name):
        seen.append(current_platform())
        return jax.lax.pmean(batch.sum(), axis_name)

    devices = DeviceMap(how, jax.devices()[:1])
    mapped = devices.map(step, replicated=0)
    for around in ("tpu", "reference"):  # plain JAX is what one asks for anywhere
        with platform(around):
            jax.eval_shape(mapped, devices.shard(jnp.ones((2, 3))))
    assert list(dict.fromkeys(seen)) == ["cpu", "reference"]


def test_every_form_exists_under_the_name_of_its_reference():
    names = {module.name for module in pkgutil.iter_modules(cpu.__path__)}
    for path, reference in CPU_FORMS.items():
        module, name = path.rsplit(".", 1)
        found = getattr(importlib.import_module(module), name)
        assert signature(found) == signature(reference)
        names.discard(module.rsplit(".", 1)[1])
    helpers = {"native", "volumes", "windows"}
    assert names == helpers | {"row_code", "row_combined", "row_operations", "row_program"}


def test_an_unknown_platform_is_refused():
    expected = "platform must be one of cpu, gpu, tpu, reference, not 'referense'"
    with pytest.raises(ConfigError, match=expected), platform("referense"):
        pass
