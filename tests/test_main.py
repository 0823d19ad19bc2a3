"""The command line, as a user would run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
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
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
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
        *("tensorboard", "checkpoints"),
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


MISTAKES = {
    "misspelt_field": (
        (f"--config={CONFIG}", "--config.train.num_step=3"),
        ["no field 'num_step'. Did you mean \"num_steps\""],
    ),
    "field_of_another_model": (
        (f"--config={CONFIG}", "--config.model.blocks=3"),
        ["the config has no field 'blocks'"],
    ),
    "wrong_type": ((f"--config={CONFIG}", "--config.train.num_steps=abc"), ["num_steps", "abc"]),
    "fraction_of_steps": (
        (f"--config={CONFIG}", "--config.train.num_steps=1.5"),
        ["num_steps", "1.5"],
    ),
    "impossible_value": (
        (f"--config={CONFIG}", "--config.train.num_steps=0"),
        ["config.train.num_steps must be at least 1, not 0"],
    ),
    "unknown_cell": (
        (f"--config={CONFIG}", "--config.model.cell.name=irn"),
        ["config.model.cell.name", "did you mean 'irnn'?"],
    ),
    "missing_config_file": (("--config=/nowhere/irnn.py",), ["/nowhere/irnn.py"]),
    "unknown_setting_of_the_config": ((f"--config={CONFIG}:quikc",), ["'quikc'", "'quick'"]),
    "no_config": ((), ["--config"]),
    "unknown_mode": ((f"--config={CONFIG}", "--mode=trian"), ["mode", "trian", "train"]),
    "unknown_flag": ((f"--config={CONFIG}", "--wrokdir=x"), ["wrokdir"]),
    "stray_argument": ((f"--config={CONFIG}", "train"), ["unexpected argument 'train'"]),
    "nothing_to_evaluate": (
        (f"--config={CONFIG}", "--workdir=empty", "--mode=eval"),
        ["empty holds no checkpoints"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_sentence_and_status_two(run, tmp_path, mistake):
    options, parts = MISTAKES[mistake]
    result = run(*options, folder=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "\\n" not in line
    for part in parts:
        assert part in line
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


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
