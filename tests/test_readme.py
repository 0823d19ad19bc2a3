import importlib.util
import re
import sys
from pathlib import Path

import pytest
from absl import flags

from jaxeff import main, train
from jaxeff.errors import ConfigError
from jaxeff.train.check import check

ROOT = Path(__file__).resolve().parent.parent


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(language):
    """The code of README.md in a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def commands():
    """The trainings of README.md, as lists of arguments."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.split()[3:] for line in lines if line.startswith("python -m jaxeff.main")]


@pytest.mark.slow
def test_the_snippets_and_commands_of_the_readme_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXEFF_DATA_DIR", str(tmp_path / "data"))
    for arguments in commands():
        config, workdir, mode = parsed(arguments)
        config.train.num_steps = config.train.eval_every = 20
        train.run(config, workdir, mode)
    assert (tmp_path / "runs" / "small" / "export" / "report.md").exists()
    scope = {}  # a reader goes on from the snippet before
    for snippet in blocks("python"):
        exec(snippet, scope)
    assert scope["answers"].labels.shape == (100,)
    assert list((tmp_path / "runs" / "mine" / "files").glob("*.c"))
    assert scope["scores"].shape == (2, 10)
    assert scope["logits"].shape == (8, 10)
    assert scope["outputs"].shape == (28, 8, 64)


def parsed(arguments):
    values = flags.FlagValues()
    main.define(values)
    return main.parse(["main", *arguments], values)


def test_the_commands_of_the_readme_are_understood():
    modes = []
    for arguments in commands():
        config, workdir, mode = parsed(arguments)
        check(config)
        assert workdir.startswith("runs/")
        modes.append(mode)
    assert modes == ["train", "export"]


def test_the_readme_is_short_and_names_every_system():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    linked = {row.split("](")[1].split(")")[0] for row in lines if row.startswith("| [")}
    assert linked == {f"docs/systems/{p.name}" for p in (ROOT / "docs" / "systems").glob("*.md")}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_configs_are_complete_and_name_their_command(path):
    module = load(path)
    check(module.get_config())
    assert module.get_config("quick").train.num_steps <= 500
    assert f"--config=configs/{path.name}" in module.__doc__
    with pytest.raises(ConfigError, match="'nothing_like_it' is unknown"):
        module.get_config("nothing_like_it")


def test_tables_have_a_maker_and_the_check_sees_a_stale_one(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    tables = load(ROOT / "docs" / "tables.py")
    for page in tables.PAGES:
        for name in re.findall(r"<!-- table ([A-Za-z ]+) -->", (ROOT / page).read_text()):
            assert name in tables.TABLES
    stale = "<!-- table headlines -->\n| old |\n<!-- end -->"
    assert tables.fill(stale) != stale


@pytest.mark.slow
def test_workers_take_turns_and_tell_their_times(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from workers import Worker, take_turns

    worker = str(ROOT / "benchmarks" / "jax_worker.py")
    workers = {"a": Worker([sys.executable, worker, "flax", "2", "3", "1", "4"])}
    results = take_turns(workers, rounds=2, calls=2)
    workers["a"].close()
    assert set(results) == {"a/RNN", "a/LSTM", "a/GRU"}
    assert all(0 < r["min_ms"] <= r["ms"] <= r["max_ms"] for r in results.values())
