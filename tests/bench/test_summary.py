import json
import socket
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxeff.bench import count_parameters, environment, git_commit, parameter_table, summary

PARAMS = {
    "cell": {"kernel": jnp.full((3, 400), 2.0), "tau": jnp.zeros(())},
    "head": [jnp.array([1.0, 3.0], jnp.bfloat16)],
}


def test_count_takes_arrays_and_shapes():
    assert count_parameters(PARAMS) == 1203
    assert count_parameters(jax.eval_shape(lambda: PARAMS)) == 1203
    assert count_parameters({}) == 0


def test_table_has_a_row_per_leaf_and_the_total():
    lines = parameter_table(PARAMS).splitlines()
    cells = [line.split() for line in lines if not line.startswith("-")]
    assert cells == [
        ["name", "shape", "dtype", "count"],
        ["cell/kernel", "3×400", "float32", "1,200"],
        ["cell/tau", "scalar", "float32", "1"],
        ["head/0", "2", "bfloat16", "2"],
        ["total", "1,203"],
    ]
    assert parameter_table(jax.eval_shape(lambda: PARAMS)).splitlines() == lines


def test_table_with_statistics():
    rows = [line.split() for line in parameter_table(PARAMS, statistics=True).splitlines()]
    assert rows[2][-2:] == ["2", "0"]
    assert rows[4][-2:] == ["2", "1"]


def test_table_of_nothing_has_a_total():
    assert parameter_table({}).splitlines()[-1].split() == ["total", "0"]


def test_environment_says_what_a_result_depends_on_and_nobody_s_name():
    facts = environment()
    versions = {"jaxeff", "python", "jax", "jaxlib", "flax", "optax", "orbax", "numpy"}
    devices = {"backend", "device_kind", "device_count", "process_count"}
    # Exactly these: a new field may hold a host's or a user's name and must be looked at first.
    assert set(facts) == versions | devices | {"commit", "platform", "cpu", "cpu_cores"}
    assert all(facts[name] for name in versions | devices)
    assert facts["jax"] == jax.__version__
    assert facts["device_count"] == jax.device_count()
    assert facts["cpu_cores"] >= 1
    assert socket.gethostname() not in facts.values()
    assert str(Path.cwd()) not in json.dumps(facts)


@pytest.fixture
def git(tmp_path):
    """Runs git in a repository that holds one committed file, ``jaxeff/bench/summary.py``."""

    def run(*words):
        name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *name, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        run("init", "-q")
    except FileNotFoundError:
        pytest.skip("no git")
    source = tmp_path / "jaxeff" / "bench" / "summary.py"
    source.parent.mkdir(parents=True)
    source.write_text("one")
    run("add", ".")
    run("commit", "-q", "-m", "one")
    return run


def test_commit_of_a_checkout(monkeypatch, tmp_path, git):
    source = tmp_path / "jaxeff" / "bench" / "summary.py"
    monkeypatch.setattr(summary, "__file__", str(source))
    git("tag", "-a", "v1", "-m", "v1")  # must not take the commit's place
    assert git_commit() == git("rev-parse", "HEAD")
    source.write_text("two")
    assert git_commit() == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_no_commit_for_a_copy_inside_somebody_else_s_checkout(monkeypatch, tmp_path, git):
    package = tmp_path / "site-packages" / "jaxeff" / "bench"
    package.mkdir(parents=True)
    monkeypatch.setattr(summary, "__file__", str(package / "summary.py"))
    assert git_commit() is None


def test_no_commit_when_git_cannot_tell(monkeypatch, tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "jaxeff" / "bench").mkdir(parents=True)
    monkeypatch.setattr(summary, "__file__", str(tmp_path / "jaxeff" / "bench" / "summary.py"))
    assert git_commit() is None
