"""The command line, as a user would run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxeff
from jaxeff.eval import read_history, read_report

REPOSITORY = Path(__file__).parents[1]
CONFIG = REPOSITORY / "configs" / "irnn.py"
SMALL = ("--config.model.cell.features=8", "--config.train.num_steps=20")


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def environment(shared_dir):
    return {
        **os.environ,
        "PYTHONPATH": str(Path(jaxeff.__file__).parents[1]),
        "JAX_PLATFORMS": "cpu",
        "JAXEFF_DATA_DIR": str(shared_dir / "jaxeff_data"),
    }


@pytest.fixture(scope="session")
def python(environment):
    def python(*arguments, folder):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return python


@pytest.fixture(scope="session")
def run(python, tmp_path_factory):
    """Runs the command in a folder of its own unless another is given."""

    def run(*options, folder=None):
        folder = folder or tmp_path_factory.mktemp("command")
        return python("-m", "jaxeff.main", *options, folder=folder)

    return run


@pytest.fixture(scope="session")
def trained(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    result = run(f"--config={CONFIG}:quick", "--workdir=work", *SMALL, folder=folder)
    assert result.returncode == 0, result.stderr
    return folder / "work", result.stdout


def test_training_says_what_it_does(trained):
    _, out = trained
    lines = out.splitlines()
    assert lines[0] == "training irnn with seed 0; results go to work"
    assert any(x.startswith("data     digits") and "1350 train, 150 val" in x for x in lines)
    assert any(x.startswith("devices  ") and "cpu, 1 process(es)" in x for x in lines)
    assert any("20 steps of 64 examples with bptt" in x for x in lines)
    assert any(x.startswith("step 20/20  eta 0:00  ") and "loss" in x for x in lines)
    assert lines[-1] == "report     work/report.md"


@pytest.mark.slow
def test_training_shows_a_table_of_the_parameters_that_adds_up(trained):
    workdir, out = trained
    rows = [line.split() for line in out.splitlines()]
    counts = {row[0]: int(row[-1]) for row in rows if row and row[0].startswith(("cell_", "read"))}
    assert counts["cell_0/U"] == 64
    assert counts["readout/kernel"] == 80
    (total,) = (int(row[-1]) for row in rows if row and row[0] == "total")
    assert total == sum(counts.values())
    assert read_report(workdir)["model"]["parameters"] == total


def test_training_leaves_a_complete_folder(trained):
    workdir, _ = trained
    names = {path.name for path in workdir.iterdir()}
    assert {
        *("config.json", "report.json", "report.md", "learning_curve.png", "metrics.csv"),
        *("tensorboard", "checkpoints", "model"),
    } == names
    assert (workdir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
    assert (workdir / "checkpoints" / "20").is_dir()


def test_report_of_a_training_agrees_with_its_history(trained):
    workdir, out = trained
    report = read_report(workdir)
    last = read_history(workdir)[-1]
    assert last["step"] == 20
    assert report["metrics"]["train"]["loss"] == last["train/loss"]
    assert report["metrics"]["validation"]["loss"] == last["validation/loss"]
    assert report["training"]["steps"] == 20
    assert report["training"]["best_step"] == 20
    assert report["training"]["epochs"] == pytest.approx(20 * 64 / 1350)
    assert report["seed"] == 0
    assert report["data"]["sizes"] == {"train": 1350, "validation": 150, "test": 297}
    assert report["config"]["model"]["cell"]["features"] == 8
    assert report["command"].startswith("python -m jaxeff.main --config=")
    assert "--config.train.num_steps=20" in report["command"]
    assert f"accuracy {report['metrics']['test']['accuracy']:.4f}" in out
    text = (workdir / "report.md").read_text()
    for artifact in report["artifacts"].values():
        assert (workdir / artifact).exists()
        assert artifact in text


@pytest.mark.slow
def test_evaluation_reproduces_the_test_metrics(run, trained):
    workdir, _ = trained
    before = (workdir / "report.json").read_text()
    options = (f"--config={CONFIG}:quick", f"--workdir={workdir}", *SMALL)
    result = run(*options, "--mode=eval")
    assert result.returncode == 0, result.stderr
    report, again = read_report(workdir), read_report(workdir / "eval")
    for split in ("validation", "test"):
        assert again["metrics"][split] == report["metrics"][split]
    assert (workdir / "report.json").read_text() == before
    assert f"accuracy {report['metrics']['test']['accuracy']:.4f}" in result.stdout


@pytest.mark.slow
def test_benchmark_writes_a_report_without_training(run, tmp_path):
    result = run(
        f"--config={CONFIG}:quick", f"--workdir={tmp_path / 'work'}", *SMALL, "--mode=bench"
    )
    assert result.returncode == 0, result.stderr
    report = read_report(tmp_path / "work" / "bench")
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"bench"}
    assert report["metrics"] == {}
    assert (
        set(report["cost"]["latency_ms"])
        == set(report["cost"]["compiled"])
        == {"batch_1", "batch_256"}
    )
    assert report["cost"]["macs_per_example"] >= 8 * (64 + 64) + 80
    assert report["extras"]["training_step_ms"]["median"] > 0
    assert "inference batch 1: " in result.stdout
    assert "training step " in result.stdout


def assert_one_sentence(result, *parts):
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
    assert result.stdout == ""


def test_mistake_is_one_sentence_and_status_two(run, tmp_path):
    result = run(f"--config={CONFIG}", "--config.train.num_step=3", folder=tmp_path)
    assert_one_sentence(result, "config.train has no field 'num_step'; did you mean 'num_steps'?")
    assert list(tmp_path.iterdir()) == []


def test_debugging_shows_the_cause_above_the_sentence(run, tmp_path):
    file = tmp_path / "own.py"
    file.write_text("def get_config():\n    return [].pop()\n")
    plain = run(f"--config={file}")
    assert_one_sentence(plain, "own.py, line 2 fails: IndexError: pop from empty list")
    result = run(f"--config={file}", "--debug")
    assert result.returncode == 2
    *above, line = result.stderr.strip().splitlines()
    assert line == plain.stderr.strip()
    assert above[0].startswith("Traceback")
    assert "    return [].pop()" in above


@pytest.mark.slow
def test_nothing_to_evaluate_is_one_sentence(run, tmp_path):
    options = (f"--config={CONFIG}", "--workdir=empty", "--mode=eval")
    assert_one_sentence(run(*options, folder=tmp_path), "empty holds no checkpoints")
    assert list(tmp_path.iterdir()) == []


OWN_MODEL = """
import flax.linen as nn
from jaxeff.config import base_config
from jaxeff.models import MODELS

@MODELS.register("broken")
class Broken(nn.Module):
    num_outputs: int

    def __call__(self, inputs, train=False):
        return {}["kernel"]

def get_config():
    config = base_config()
    config.data.name = "digits"
    config.model = {"name": "broken"}
    return config
"""


@pytest.mark.slow
def test_a_bug_of_a_users_model_is_a_sentence_with_its_line_and_a_traceback_on_demand(
    run, tmp_path
):
    file = tmp_path / "own.py"
    file.write_text(OWN_MODEL)
    sentence = "KeyError: 'kernel' "
    assert_one_sentence(run(f"--config={file}"), "config.model", sentence, "own.py, line 11)")
    result = run(f"--config={file}", "--debug")
    assert 'return {}["kernel"]' in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: config.model")


@pytest.mark.slow
@pytest.mark.parametrize("cpu", [3, 8])
def test_evaluation_gives_the_same_on_any_number_of_devices(run, tmp_path, cpu):
    """Batches of 256 fill up to 258 on three devices."""
    options = ("--config.model.cell.features=8", "--config.train.num_steps=20")
    command = (f"--config={CONFIG}:quick", "--workdir=work", "--config.train.batch_size=48")
    folder = tmp_path / "one"
    folder.mkdir()
    first = run(*command, *options, "--config.devices.cpu=1", folder=folder)
    assert first.returncode == 0, first.stderr
    again = run(*command, *options, f"--config.devices.cpu={cpu}", "--mode=eval", folder=folder)
    assert again.returncode == 0, again.stderr
    before, after = read_report(folder / "work"), read_report(folder / "work" / "eval")
    for split in ("validation", "test"):
        assert after["metrics"][split]["accuracy"] == before["metrics"][split]["accuracy"]
        assert after["metrics"][split]["loss"] == pytest.approx(
            before["metrics"][split]["loss"], rel=1e-6
        )


@pytest.mark.slow
def test_configs_whose_batches_differ_run_on_many_cores(python, tmp_path):
    """As many devices as divide the batches of the teacher, of the student and of the run."""
    code = (
        "import sys\nfrom jaxeff.train import runtime\nruntime.cpu_cores = lambda: 8\n"
        f"sys.argv = ['main.py', '--config={REPOSITORY / 'configs' / 'disk.py'}:quick', "
        "'--config.train.num_steps=8', '--config.prerequisites.teacher.train.num_steps=8', "
        "'--config.prerequisites.student.train.num_steps=8', "
        "'--config.prerequisites.teacher.train.batch_size=64', '--workdir=work']\n"
        "from jaxeff.main import cli\ncli()\n"
    )
    result = python("-c", code, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "devices  4 x cpu" in result.stdout


@pytest.mark.slow
def test_folder_of_another_config_is_refused(run, trained):
    workdir, _ = trained
    options = (f"--config={CONFIG}:quick", f"--workdir={workdir}", *SMALL)
    result = run(*options, "--config.seed=1")
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert "config.seed was 0 and is now 1" in line


def test_help_names_the_options(run):
    result = run("--help")
    assert "--workdir" in result.stdout
    assert "--mode" in result.stdout
    assert "Traceback" not in result.stderr


IMPORT = """
import json, os, sys
folder, environment, argv = os.listdir(), dict(os.environ), list(sys.argv)
import jaxeff
light = sorted({"jax", "flax", "tensorflow", "sklearn", "matplotlib"} & sys.modules.keys())
from jax._src import xla_bridge
import jaxeff.train, jaxeff.main
print(json.dumps({
    "light": light,
    "started": bool(xla_bridge._backends),
    "unchanged": (folder, environment, argv) == (os.listdir(), dict(os.environ), sys.argv),
    "version": jaxeff.__version__,
}))
"""


def test_import_starts_no_device_and_leaves_the_process_alone(python, tmp_path):
    result = python("-c", IMPORT, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert found["version"] == jaxeff.__version__
    assert found["light"] == []
    assert not found["started"]
    assert found["unchanged"]


COMMAND_LINE = """
import sys
from jaxeff import main
try:
    main.cli()
finally:
    print("loaded", sorted({"jax", "flax", "optax", "orbax"} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ("--help", "USAGE"),
        ("--config.train.num_stepz=3", "config.train has no field 'num_stepz'"),
    ],
)
def test_help_and_misspelt_fields_are_answered_without_jax(python, tmp_path, argument, answer):
    config = f"--config={REPOSITORY / 'configs' / 'irnn.py'}"
    result = python("-c", COMMAND_LINE, config, argument, folder=tmp_path)
    assert answer in result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "loaded []"
