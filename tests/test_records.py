"""Records of benchmarks: what makes a run stale, whose machine a line names, and damaged files."""

import ast
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxeff import data
from jaxeff.errors import DataError
from jaxeff.eval import write_report
from jaxeff.train import launch

ROOT = Path(__file__).parents[1]
NAMES = ("record_files", "record_keys", "recorded", "records")


@pytest.fixture(scope="module")
def modules():
    """The scripts' modules."""
    with pytest.MonkeyPatch.context() as patched:
        for folder in ("benchmarks", "docs"):
            patched.syspath_prepend(str(ROOT / folder))
        yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def recorded(modules, monkeypatch, tmp_path):
    """The module, with trainings that only count: the n-th has an accuracy of n / 100."""
    module, made = modules["recorded"], []

    def run(config, workdir):
        made.append(Path(workdir))
        values = {"loss": 1.0, "accuracy": len(made) / 100}
        (workdir / "metrics.csv").write_text("step,validation/loss\n1,0.5\n")
        return write_report(workdir, {**REPORT, "metrics": dict.fromkeys(SPLITS, values)})

    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "keep_compiled", lambda: None)
    monkeypatch.setattr(module, "made", made, raising=False)
    return module


SPLITS = ("train", "validation", "test")
REPORT = {
    "name": "counted",
    "status": "completed",
    "command": "counted",
    "seed": 0,
    "data": {"name": "adding", "description": "numbers", "sizes": {"train": 8}},
    "model": {"name": "sequence", "parameters": 3, "macs_per_example": 4},
    "cost": {"parameters": 3, "macs_per_example": 4},
    "training": {"steps": 2, "updates": 2, "weights": "live", "epochs": 1.0, "seconds": 2.0},
    "environment": {"cpu": "first", "jax": "0", "python": "3"},
    "config": {"data": {"name": "digits"}},
}
ARGUMENT = "adding,cell=lstm,quick"
OVERRIDES = ["train.num_steps=2", "data.length=5", "data.num_validation=4", "data.num_test=4"]


def test_a_finished_run_is_used_again_under_its_own_config_alone(recorded, tmp_path):
    base = tmp_path / "runs" / "0"

    def accuracy(*overrides):
        config = recorded.config_of(ARGUMENT, [*OVERRIDES, *overrides], "fptt")
        return recorded.train(config, base)["metrics"]["test"]["accuracy"]

    assert accuracy() == 0.01
    assert accuracy() == 0.01
    assert accuracy("optim.learning_rate=0.5") == 0.02
    assert accuracy("data.num_train=9") == 0.03
    assert accuracy("devices.cpu=3") == 0.01  # where a run runs is not what it is
    assert accuracy() == 0.01
    assert len({path.name for path in recorded.made}) == 3
    assert all(path.parent == base.parent for path in recorded.made)


def test_code_and_machine_and_data_make_a_run_stale(recorded, modules, monkeypatch):
    keys, config = modules["record_keys"], recorded.config_of(ARGUMENT, OVERRIDES, "fptt")
    before = keys.key(config)
    assert keys.key(config) == before
    for name, other in (
        ("code_digest", lambda _: "other"),
        ("machine", lambda: {"cpu": "other"}),
        ("data_of", lambda _: {}),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(keys, name, other)
            assert keys.key(config) != before, name
    assert keys.key(config) == before


def test_prerequisites_count(recorded, modules):
    configs = [recorded.config_of(ARGUMENT, OVERRIDES, "fptt") for _ in range(2)]
    for config, rate in zip(configs, (0.1, 0.2), strict=True):
        required = recorded.config_of(ARGUMENT, OVERRIDES, "fptt")
        required.optim.learning_rate, required.name = rate, "teacher"
        with config.prerequisites.unlocked():
            config.prerequisites.teacher = required
    base = recorded.RUNS / "0"
    for config in configs:
        recorded.train(config, base)
        recorded.train(config, base)
    assert len(recorded.made) == 4  # each with a teacher of its own
    links = [(recorded.folder_of(c, base) / "teacher").resolve() for c in configs]
    assert links[0] != links[1]
    assert links == [recorded.folder_of_required(c.prerequisites.teacher) for c in configs]
    # A link that leads elsewhere, as after a move of the checkout, is made anew.
    link = recorded.folder_of(configs[0], base) / "teacher"
    link.unlink()
    link.symlink_to(base / "gone")
    recorded.provide(configs[0], link.parent)
    assert link.resolve() == links[0]


def test_comments_do_not_count_as_code(modules, tmp_path):
    keys = modules["record_keys"]

    def digest(text, name="a.py"):
        keys.code_digest.cache_clear()
        for path in tmp_path.iterdir():
            path.unlink()
        (tmp_path / name).write_text(text)
        return keys.code_digest(tmp_path)

    plain = digest("def f(x):\n    return x + 1\n")
    assert digest('"""Doc."""\ndef f(x):  # adds\n    """Adds."""\n    return (x + 1)\n') == plain
    assert digest("def f(x):\n    return x + 2\n") != plain
    assert digest("def f(x):\n    return x + 1\n", "b.py") != plain
    keys.code_digest.cache_clear()


def test_every_pixel_and_label_counts(modules):
    digest = modules["record_keys"].digest

    def dataset(change=None, name="train"):
        images = np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1)
        labels = np.arange(10, dtype=np.int32)
        if change is not None:
            change(images, labels)
        ones = np.ones(1, np.float32)
        split = data.base.ArraySplit(images, labels, np.arange(10), ones, 0 * ones)
        return data.Dataset("own", "classification", 10, 10, (2, 2, 1), {name: split}, "own")

    plain = digest(dataset())
    assert digest(dataset()) == plain
    assert digest(dataset(lambda images, _: images.__setitem__((9, 1, 1, 0), 200))) != plain
    assert digest(dataset(lambda _, labels: labels.__setitem__(9, 0))) != plain
    assert digest(dataset(name="test")) != plain


def lines(recorded, out, monkeypatch, *words, **changes):
    """Runs a script of two lines with words of a command line, and returns its record."""
    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    specs = {
        "one": (ARGUMENT, [*OVERRIDES, *changes.get("one", [])], "fptt"),
        "other": (ARGUMENT, [*OVERRIDES, "train.num_steps=3"], "fptt"),
    }
    recorded.run(specs, out.stem)
    return json.loads(out.read_text())


def test_every_line_keeps_its_own_machine(recorded, monkeypatch, capsys):
    out = recorded.RESULTS / "table.json"
    record = lines(recorded, out, monkeypatch, "one")
    monkeypatch.setitem(REPORT, "environment", {"cpu": "second", "jax": "1", "python": "3"})
    record = lines(recorded, out, monkeypatch)
    assert "environment" not in record
    found = {name: line["environment"]["cpu"] for name, line in record["lines"].items()}
    assert found == {"one": "first", "other": "second"}
    assert len(recorded.made) == 6
    assert all(line["command"].startswith("python -m") for line in record["lines"].values())


def test_a_line_whose_command_is_the_same_but_not_its_config_is_made_again(
    recorded, modules, monkeypatch, capsys
):
    """As where the config's file has new defaults."""
    out = recorded.RESULTS / "table.json"
    first = lines(recorded, out, monkeypatch, "one")["lines"]["one"]
    assert lines(recorded, out, monkeypatch, "one")["lines"]["one"] == first
    make = recorded.config_of

    def changed(*spec):
        config = make(*spec)
        config.optim.learning_rate = 0.7
        return config

    monkeypatch.setattr(recorded, "config_of", changed)
    again = lines(recorded, out, monkeypatch, "one")["lines"]["one"]
    assert again["command"] == first["command"]
    assert (first["test"], again["test"]) == ([0.01, 0.02, 0.03], [0.04, 0.05, 0.06])
    assert again["key"] != first["key"]


def test_lines_of_older_records_stand_by_their_command(recorded, monkeypatch, capsys):
    out = recorded.RESULTS / "table.json"
    record = lines(recorded, out, monkeypatch, "one")
    del record["lines"]["one"]["key"]
    out.write_text(json.dumps({**record, "environment": {"cpu": "never its own"}}))
    kept = lines(recorded, out, monkeypatch)
    assert kept["lines"]["one"] == record["lines"]["one"]
    assert "environment" not in kept
    assert len(recorded.made) == 6
    anew = lines(recorded, out, monkeypatch, "one", "--again")
    assert anew["lines"]["one"]["key"]
    assert len(recorded.made) == 6  # by the same runs


def test_a_damaged_report_is_made_again(recorded, tmp_path):
    config = recorded.config_of(ARGUMENT, OVERRIDES, "fptt")
    base = tmp_path / "runs" / "0"
    recorded.train(config, base)
    (recorded.folder_of(config, base) / "report.json").write_text('{"metrics": ')
    assert recorded.train(config, base)["metrics"]["test"]["accuracy"] == 0.02


def test_a_command_line_with_another_option_measures_nothing(modules, monkeypatch, capsys):
    words = modules["record_files"].words
    monkeypatch.setattr(sys, "argv", ["table.py", "digits", "--shard=0/2", "avae", "--again"])
    assert words("--shard=", "--again") == ["digits", "avae"]
    for option in ("--agian", "--again=1", "--shard"):
        monkeypatch.setattr(sys, "argv", ["table.py", option])
        with pytest.raises(SystemExit, match=f"no option {option}; there are --shard=, --again"):
            words("--shard=", "--again")
    monkeypatch.setattr(sys, "argv", ["table.py", "--help"])
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "What it measures.")
    with pytest.raises(SystemExit) as left:
        words("--again")
    assert left.value.code == 0
    assert capsys.readouterr().out == "What it measures."


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"lines": {}} and more'])
def test_a_damaged_record_is_named_and_stays(modules, tmp_path, text):
    files, path = modules["record_files"], tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(DataError, match="is no record") as caught, files.locked_record(path):
        pytest.fail("it was opened")
    assert str(path) in str(caught.value)
    assert path.read_text() == text


def test_an_error_leaves_a_record_as_it_was(modules, tmp_path, monkeypatch):
    files, path = modules["record_files"], tmp_path / "folder" / "table.json"
    with files.locked_record(path) as record:
        record["lines"] = {"a": 1}
    before = path.read_text()
    assert json.loads(before) == {"lines": {"a": 1}}
    with pytest.raises(ZeroDivisionError), files.locked_record(path) as record:
        record["lines"] = 1 / 0 * record.clear()
    assert path.read_text() == before

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"), files.locked_record(path) as record:
        record["lines"] = {}
    assert path.read_text() == before


#: Records whose parts are measured one by one, with what leads to them.
BY_PARTS = {
    "cnn_speed": lambda r: r["made"].values(),
    "routing_speed": lambda r: r["pairs"].values(),
    "bottleneck_results": lambda r: [
        *(part for name, part in r["rotten_tomatoes_short"].items() if name != "accuracy"),
        *r["rotten_tomatoes_short"]["accuracy"].values(),
    ],
}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda p: p.stem
)
def test_committed_figures_have_their_command_and_machine(path):
    record = json.loads(path.read_text())
    assert record["command"].startswith("python benchmarks/")
    if path.stem in BY_PARTS:
        parts = list(BY_PARTS[path.stem](record))
    elif "environment" in record:  # all of it is measured by one command
        parts = [record]
    else:
        parts = [*record["lines"].values(), *record.get("made", {}).values()]
    for part in parts:
        assert part["command"].startswith("python ")
        assert {"cpu", "cpu_cores", "python", "jax", "jaxlib"} <= set(part["environment"])
    measured = {"update_ms", "times"} & set(record)
    assert measured <= set(record.get("made", {}))


def test_several_machines_are_all_told(modules):
    records = modules["records"]
    one = {"cpu": "A", "cpu_cores": 2, "python": "3.11", "jax": "0.10"}
    other = {**one, "cpu": "B"}
    lines = {"x": {"environment": one}, "y": {"environment": one}}
    assert records.told({"lines": lines}) == "A, 2 core(s), Python 3.11, jax 0.10"
    lines["z"] = {"environment": {**other, "torch": "2"}}
    assert records.told({"lines": lines}) == (
        "A, 2 core(s), Python 3.11, jax 0.10 (2 lines); "
        "B, 2 core(s), Python 3.11, jax 0.10, torch 2 (1 lines)"
    )
    assert records.mebibytes(3 * 2**20, 1) == "3.0"
    assert records.mebibytes(None, 1) == "–"


def test_scripts_of_tables_stamp_what_they_write():
    """Every script that writes a record says where and by what it was made."""
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        text = path.read_text()
        if '"results"' in text and "__main__" in text:
            words = {getattr(node, "id", "") for node in ast.walk(ast.parse(text))}
            assert words & {"stamp", "run", "bench", "environment"}, path.name
