"""The training step, compiled for devices that need not be there."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import jax
import pytest

from jaxeff import bench, config_files, train
from jaxeff.errors import ConfigError, TrainingError
from jaxeff.eval import read_report
from jaxeff.train import compile_ahead, launch
from jaxeff.train.parallel import METHODS, DeviceMap

MOST_ALL_REDUCES = 3
FAST = ("irnn",)
CONFIGS = Path(__file__).parents[2] / "configs"
LOCAL = "--config.model.axis_name="


@pytest.fixture(autouse=True)
def sources():
    """Operations say where in the sources they come from, by which forms for CPUs are known."""
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 10)
    yield
    jax.config.update("jax_traceback_in_locations_limit", before)


def few_reductions_outside_of_time(report):
    exchanged = report["extras"]["exchanged"]
    reduced = [c for c in report["extras"]["collectives"] if c["operation"] == "all-reduce"]
    assert exchanged["collectives"] == len(reduced) > 0
    assert len(reduced) <= MOST_ALL_REDUCES
    assert exchanged["in_loops_over_time"] == 0
    assert (exchanged["in_loops"] > 0) == (exchanged["updates_per_batch"] > 1)
    in_loops, updates = exchanged["in_loops"], exchanged["updates_per_batch"]
    assert exchanged["per_step"] == len(reduced) + in_loops * (updates - 1)
    # Kernels whose gradients are the same, as the TARNN's on its state, are exchanged once.
    assert exchanged["bytes"] >= 3 * report["model"]["parameters"]


@pytest.mark.parametrize("name", FAST)
def test_a_step_reduces_at_most_three_times(name, eight_devices):
    few_reductions_outside_of_time(eight_devices["compiled_ahead"][name])


@pytest.fixture
def compiled(start, tmp_path):
    """The report of the command line on a config, for eight CPU devices."""

    def compiled(name, *options):
        command = ("-m", "jaxeff.main", "--mode=compile", f"--config={CONFIGS / name}.py")
        options = ("--config.devices.topology=cpu:8", f"--workdir={tmp_path}", *options)
        program = start(sys.executable, *command, *options)
        assert program.wait(500) == 0, program.output
        return read_report(tmp_path / "compile")

    return compiled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("irnn", ("--config.parallel=pmap",)),
        ("tarnn", ()),
        ("fptt", ("--config.model.cell.features=8",)),
        ("images", (LOCAL, "--config.model.depth=8")),
        *((name, (LOCAL,)) for name in ("global_cnn", "si_cnn", "shared_conv", "selective")),
    ],
)
def test_a_step_of_other_configs_reduces_at_most_three_times(name, options, compiled):
    few_reductions_outside_of_time(compiled(name, *options))


@pytest.mark.slow
def test_synchronised_statistics_reduce_at_most_once_per_layer_and_direction(compiled):
    report = compiled("images", "--config.model.depth=8")
    layers = report["model"]["parameter_table"].count("norm/scale")
    assert layers == 9
    assert layers < report["extras"]["exchanged"]["collectives"] <= 2 * layers + 3


def test_a_report_says_what_the_devices_need(eight_devices):
    report = eight_devices["compiled_ahead"]["irnn"]
    topology, arithmetic = (report["extras"][name] for name in ("topology", "arithmetic"))
    assert (topology["name"], topology["devices"]) == ("cpu:8", 8)
    assert topology["fits"] is True
    assert arithmetic["flops_per_device"] == arithmetic["flops_per_step"] // 8
    memory = report["cost"]["step_memory_bytes"]
    assert memory["argument"] > 4 * report["model"]["parameters"]
    assert report["cost"]["compile_seconds"] > 0


def test_the_ways_to_map_a_step_have_the_same_arithmetic(tiny_config):
    counts = []
    for how in METHODS:
        built = train.build(tiny_config, devices=DeviceMap(how, jax.devices()[:1]))
        counts.append(bench.count(built.train_step(), *compile_ahead.arguments(built)))
    assert counts[0] == counts[1]
    forward = bench.cost_per_example(
        lambda variables, x: built.algorithm.forward(variables, {"inputs": x}, train=False)[0],
        {"params": built.state_shapes().params},
        built.example,
    )
    assert counts[0].macs > 2 * tiny_config.train.batch_size * forward.macs  # and two products back


@pytest.fixture
def on_one_device(tiny_config):
    tiny_config.devices.topology = "cpu:1"
    return tiny_config


def test_the_job_writes_a_report_of_its_own_and_trains_nothing(on_one_device, tmp_path):
    launch.run(on_one_device, tmp_path, "compile")
    assert {path.name for path in tmp_path.iterdir()} == {"compile"}
    report = read_report(tmp_path / "compile")
    assert report["extras"]["topology"]["name"] == "cpu:1"
    assert report["training"]["steps"] == 0


def test_a_topology_belongs_to_the_job_that_compiles(on_one_device, tmp_path):
    with pytest.raises(ConfigError, match="topology=cpu:1 is what --mode=compile compiles for"):
        launch.run(on_one_device, tmp_path, "train")
    on_one_device.devices.topology = ""
    with pytest.raises(ConfigError, match="topology is empty; --mode=compile needs the devices"):
        launch.run(on_one_device, tmp_path, "compile")


def test_a_batch_that_the_devices_do_not_divide_is_refused(tiny_config):
    devices = DeviceMap(devices=jax.devices()[:1] * 3)
    with pytest.raises(ConfigError, match="batch_size must be a positive multiple of the 3"):
        train.build(tiny_config, devices=devices)


def test_what_does_not_fit_is_one_sentence(on_one_device, tmp_path, monkeypatch):
    small = dataclasses.replace(bench.topology("cpu:1"), kind="v5e")
    chip = dataclasses.replace(compile_ahead.CHIPS["v5e"], memory_bytes=100_000)
    monkeypatch.setitem(compile_ahead.CHIPS, "v5e", chip)
    monkeypatch.setattr(bench, "topology", lambda name: small)
    with pytest.raises(TrainingError) as error:
        compile_ahead.compile_step(on_one_device, tmp_path)
    assert "bytes on each device, and one of cpu:1 has 100,000; lower" in str(error.value)
    assert "config.train.batch_size (now 64, 64 per device)" in str(error.value)
    assert read_report(tmp_path / "compile")["extras"]["topology"]["fits"] is False


def test_the_compilers_own_complaint_is_one_sentence(on_one_device, monkeypatch):
    """The text is that of XLA for TPUs."""
    text = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (33.5G) exceeds available HBM (15.75G)."
    )

    class Refusing:
        def lower(self, *arguments):
            return self

        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError(text)

    built = train.build(on_one_device)
    monkeypatch.setattr(type(built), "train_step", lambda self: Refusing())
    with pytest.raises(TrainingError) as error:
        compile_ahead.compiled(built, bench.topology("cpu:1"))
    assert f"needs {int(33.5 * 2**30):,} bytes" in str(error.value)
    assert f"has {int(15.75 * 2**30):,}; lower" in str(error.value)


def test_programs_for_other_platforms_have_no_forms_for_cpus(tiny_config, monkeypatch):
    """The mapped step as it is lowered for a TPU; on a CPU the same step has such forms."""
    tiny_config.data.update({"name": "digits", "view": ""})
    tiny_config.model = {"name": "resnet", "depth": 8}
    built = train.build(tiny_config, devices=DeviceMap(devices=jax.devices()[:1]))

    def text(platform):
        lowered = built.train_step().trace(*compile_ahead.arguments(built))
        return lowered.lower(lowering_platforms=(platform,)).as_text(debug_info=True)

    assert "convolution" in compile_ahead.cpu_forms(text("cpu"))
    monkeypatch.setattr(DeviceMap, "platform", "tpu")
    assert compile_ahead.cpu_forms(text("tpu")) == []


def test_shapes_are_those_of_the_topology_too(on_one_device, tmp_path, monkeypatch):
    """A kernel for TPUs is refused where the model is traced for this machine's CPU."""
    texts = []

    def lowered(built, target):
        traced = built.train_step().trace(*compile_ahead.arguments(built))
        texts.append(traced.lower(lowering_platforms=("tpu",)).as_text())
        raise TrainingError("that is all")

    on_one_device.model.driver = "kernel"
    monkeypatch.setattr(DeviceMap, "platform", "tpu")
    monkeypatch.setattr(compile_ahead, "compiled", lowered)
    with pytest.raises(TrainingError, match="that is all"):
        compile_ahead.compile_step(on_one_device, tmp_path)
    assert "tpu_custom_call" in texts[0]


#: The package that compiles for a topology, and the kind of its devices.
ELSEWHERE = {
    "v5e:2x4": ("libtpu", "aot-tpu", "TPU v5 lite"),
    "h100:8": ("jax_plugins", "aot-gpu", "NVIDIA H100 80GB HBM3"),
}


@pytest.mark.slow
@pytest.mark.parametrize("topology", ELSEWHERE)
@pytest.mark.parametrize(
    ("name", "driver"), [("irnn", "scan"), ("irnn", "kernel"), ("fptt", "scan")]
)
def test_a_step_compiles_for_accelerators(name, driver, topology, tmp_path):
    package, extra, kind = ELSEWHERE[topology]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; pip install 'jaxeff[{extra}]'")
    config = config_files.load(str(CONFIGS / f"{name}.py"))
    config.model.driver = driver
    config.devices.topology = topology
    report = launch.run(config, tmp_path, "compile")
    few_reductions_outside_of_time(report)
    assert report["extras"]["cpu_forms"] == []
    assert report["extras"]["topology"]["device_kind"] == kind
