"""Reports survive the way to JSON and back, and a wrong one is refused by the name of its field."""

import copy
import dataclasses
import json
import re
from pathlib import Path

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxeff.errors import DataError
from jaxeff.eval import REPORT_SCHEMA, read_report, validate, write_report
from jaxeff.eval.plain import to_plain

REPORT = {
    "schema_version": 1,
    "name": "smnist_irnn",
    "status": "completed",
    "command": "jaxeff train --config=smnist_irnn.py",
    "seed": 3,
    "data": {"name": "smnist", "description": "rows | of digits", "sizes": {"train": 50_000}},
    "model": {"name": "irnn", "parameters": 12_345, "parameter_table": "name  count\nw      3"},
    "metrics": {
        "test": {"loss": 0.25, "accuracy": 0.9876},
        "train": {"loss": 0.125},
        "shifted": {"accuracy": 0.5},
    },
    "cost": {
        "parameters": 12_345,
        "macs_per_example": 29_888,
        "flops_per_example": 62_464,
        "uncounted": ["while"],
        "compile_seconds": 0,
        "latency_ms": {
            "batch_128": {"median": 2.5, "p95": 3.0},
            "batch_1": {"median": 0.5, "p95": 0.75, "min": 0.25, "repeats": 50},
        },
        "step_memory_bytes": {"temp": 3 * 2**20, "step": None},
    },
    "training": {
        "steps": 100,
        "epochs": 2.5,
        "seconds": 12.5,
        "best_step": 80,
        "resumed": 1,
        "waiting_for_data": 0.25,
    },
    "environment": {"python": "3.11.7", "jax": "0.10.2", "cpu": None},
    "config": {"seed": 3, "optim": {"name": "adam", "clip": None}, "sizes": [1, 2], "empty": {}},
    "artifacts": {"learning curve": "plots/learning curve.png", "history": "metrics.csv"},
    "extras": {"coverage": {"0.9": 0.99}},
}


def changed(path, value):
    """Returns the report with the field at the dotted path replaced, or removed if it is ...."""
    report = copy.deepcopy(REPORT)
    *parents, last = path.split(".")
    section = report
    for name in parents:
        section = section[name]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return report


def test_round_trip(tmp_path):
    assert write_report(tmp_path / "run", REPORT) == REPORT
    assert read_report(tmp_path / "run") == REPORT
    assert read_report(tmp_path / "run" / "report.json") == REPORT
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["report.json", "report.md"]


def test_json_is_sorted_and_does_not_depend_on_the_order_given(tmp_path):
    write_report(tmp_path / "a", REPORT)
    write_report(tmp_path / "b", dict(reversed(REPORT.items())))
    text = (tmp_path / "a" / "report.json").read_text()
    assert text == (tmp_path / "b" / "report.json").read_text()
    assert text == json.dumps(REPORT, indent=2, sort_keys=True) + "\n"


def test_optional_sections_are_filled_in(tmp_path):
    short = {key: value for key, value in REPORT.items() if key not in ("cost", "artifacts")}
    del short["schema_version"], short["extras"]
    written = write_report(tmp_path, short)
    assert (written["schema_version"], written["cost"]) == (1, {})
    assert (written["artifacts"], written["extras"]) == ({}, {})


def test_values_of_libraries_become_plain(tmp_path):
    @dataclasses.dataclass
    class Figures:
        curve: np.ndarray
        where: Path

    config = ml_collections.ConfigDict({"dtype": jnp.float32, "model": {"units": (3, 4)}})
    config.copy_of_units = config.get_ref("model")
    report = {
        **REPORT,
        "seed": np.int64(3),
        "config": config,
        "metrics": {"test": {"loss": jnp.float32(0.5), "error": jnp.bfloat16(0.25)}},
        "extras": {"figures": Figures(np.arange(2), Path("a") / "b"), "n": {5: np.bool_(True)}},
    }
    write_report(tmp_path, report)
    read = read_report(tmp_path)
    assert read["seed"] == 3
    assert read["config"]["dtype"] == "float32"
    assert read["config"]["model"] == {"units": [3, 4]}
    assert read["metrics"] == {"test": {"loss": 0.5, "error": 0.25}}
    assert read["extras"] == {"figures": {"curve": [0, 1], "where": "a/b"}, "n": {"5": True}}


def test_numbers_that_json_lacks_become_null_and_are_named(tmp_path):
    report = changed("metrics.test.loss", jnp.float32("nan"))
    report["extras"] = {"bounds": [1.0, -float("inf")]}
    write_report(tmp_path, report)
    read = read_report(tmp_path)
    assert read["metrics"]["test"]["loss"] is None
    assert read["extras"]["bounds"] == [1.0, None]
    assert read["non_finite"] == {"metrics.test.loss": "nan", "extras.bounds[1]": "-inf"}
    assert "not finite" in (tmp_path / "report.md").read_text()
    assert write_report(tmp_path, read)["non_finite"] == read["non_finite"]


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("name", ..., "report.name is missing"),
        ("training.steps", ..., "report.training.steps is missing"),
        ("status", "done", "report.status must be one of"),
        ("schema_version", 2, "report.schema_version must be one of"),
        ("seed", 1.5, "report.seed must be integer"),
        ("seed", True, "report.seed must be integer"),
        ("training.steps", -1, "report.training.steps must be at least 0"),
        ("training.seconds", "12", "report.training.seconds must be number or null"),
        ("model.parameters", None, "report.model.parameters must be integer"),
        ("metrics.test.loss", "low", "report.metrics.test.loss must be number"),
        ("metrics.test", 0.5, "report.metrics.test must be object"),
        ("cost.latncy_ms", {}, "report.cost.latncy_ms is no field.*did you mean 'latency_ms'"),
        ("cost.latency_ms.batch_1", {"median": 1.0}, "report.cost.latency_ms.batch_1.p95 is miss"),
        ("cost.uncounted", [1], r"report.cost.uncounted\[0\] must be string"),
        ("cost.step_memory_bytes.temp", 0.5, "report.cost.step_memory_bytes.temp must be integer"),
        ("artifacts.plot", "/tmp/plot.png", "report.artifacts.plot must be relative path"),
        ("artifacts.plot", "../plot.png", "report.artifacts.plot must be relative path"),
        ("artifacts.plot", "C:/plot.png", "report.artifacts.plot must be relative path"),
        ("config", None, "report.config must be object"),
        ("extra", {}, "report.extra is no field of a report; did you mean 'extras'"),
    ],
)
def test_a_wrong_field_is_named(path, value, complaint, tmp_path):
    report = changed(path, value)
    with pytest.raises(ValueError, match=complaint):
        validate(report)
    if path != "schema_version":
        with pytest.raises(ValueError, match=complaint):
            write_report(tmp_path, report)
        assert not list(tmp_path.iterdir())


def test_a_non_finite_number_does_not_pass_unconverted():
    with pytest.raises(ValueError, match=r"report\.metrics\.test\.loss"):
        validate(changed("metrics.test.loss", float("nan")))


def test_a_value_without_plain_form_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"report.extras.hooks\[0\] holds a function"):
        write_report(tmp_path, {**REPORT, "extras": {"hooks": [lambda: None]}})


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    write_report(tmp_path, REPORT)

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, {**REPORT, "name": "other"})
    assert read_report(tmp_path) == REPORT
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.json", "report.md"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [(None, "no report at"), ('{"name": ', "is not JSON"), ("{}", "report.schema_version")],
)
def test_reading_what_is_no_report(text, complaint, tmp_path):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError, match=complaint):
        read_report(tmp_path)


def test_markdown_shows_every_section(tmp_path):
    write_report(tmp_path, REPORT)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# smnist_irnn\n")
    for row in (
        "| metric | train | test | shifted |",
        "| loss | 0.125 | 0.25 |  |",
        "| accuracy |  | 0.9876 | 0.5 |",
        "| multiply-accumulates per example | 29,888 |",
        "| compile time (s) | 0 |",
        "| bounded or not counted | while |",
        "| batch 1 | 0.5 | 0.75 | 0.25 | 50 |",
        "| memory, temp (MiB) | 3.00 |",
        "| memory, step (MiB) | – |",
        "| best step | 80 |",
        "| jax | 0.10.2 |",
        "- status: **completed**",
        "- [history](<metrics.csv>)",
        "![learning curve](<plots/learning curve.png>)",
        '  name: "adam"',
        "  clip: null",
        "sizes: [1, 2]",
        "empty: {}",
    ):
        assert row in text.splitlines()
    assert text.index("| batch 1 |") < text.index("| batch 128 |")
    assert "![history]" not in text


def test_markdown_tables_have_even_rows(tmp_path):
    write_report(tmp_path, changed("environment.cpu", "a|b\nc"))
    tables = re.findall(r"(?:^\|.*\n)+", (tmp_path / "report.md").read_text(), re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


def test_the_smallest_report_renders(tmp_path):
    small = {key: REPORT[key] for key in ("name", "status", "command", "seed", "environment")}
    small |= {"data": {"name": "d"}, "model": {"name": "m", "parameters": 0}, "metrics": {}}
    write_report(tmp_path, small | {"training": {"steps": 0, "seconds": 0}, "config": {}})
    text = (tmp_path / "report.md").read_text()
    assert "## Training" in text
    assert "## Metrics" not in text


def test_every_field_is_documented():
    document = (Path(__file__).parents[2] / "docs" / "report.md").read_text()

    def fields(schema, prefix=""):
        for name, inner in schema.get("properties", {}).items():
            yield f"`{prefix}{name}`"
            yield from fields(inner, f"{prefix}{name}.")

    missing = [name for name in fields(REPORT_SCHEMA) if name not in document]
    assert not missing


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(deadline=None)
@given(plain_values)
def test_plain_values_always_fit_json(value):
    plain, lost = to_plain({"x": value})
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert to_plain(plain) == (plain, {})
    assert set(lost.values()) <= {"nan", "inf", "-inf"}


def test_records_of_one_kind_are_a_table(tmp_path):
    records = [{"operation": "all-reduce", "bytes": 4096}, {"operation": "all-gather", "bytes": 8}]
    extras = {"exchanged": {"bytes": 4104}, "collectives": records, "mixed": [{"a": 1}, {"b": 2}]}
    write_report(tmp_path, {**REPORT, "extras": extras})
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (
        "### collectives\n\n| operation | bytes |\n| --- | ---: |\n| all-reduce | 4,096 |" in text
    )
    assert 'mixed: [{"a": 1}, {"b": 2}]' in text
    assert "exchanged:\n  bytes: 4104" in text
