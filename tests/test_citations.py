"""`jaxeff.cite`: the entries of what a model is built of, and of nothing else."""

import importlib
import re
from pathlib import Path

import pytest

import jaxeff
from jaxeff import citations, selective
from jaxeff.errors import UserError
from jaxeff.models import MODELS, mobilenet
from jaxeff.ode import CELLS
from jaxeff.train.algorithms import ALGORITHMS
from jaxeff.train.objectives import OBJECTIVES


def keys(target) -> list[str]:
    return re.findall(r"^@\w+\{(.*?),$", jaxeff.cite(target), re.MULTILINE)


def test_every_named_module_class_setting_and_key_exists():
    tables = [citations.OF_MODULES, citations.OF_CLASSES, citations.OF_SETTINGS]
    tables.append(mobilenet.REFERENCES)
    named = {key for table in tables for keys in table.values() for key in keys}
    by_classes = {"he2016resnet", "zagoruyko2016wide", "huang2017densenet", "chollet2017xception"}
    assert named | by_classes == set(citations.entries())
    for module in citations.OF_MODULES:
        importlib.import_module(module)
    for path in citations.OF_CLASSES:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path
    assert set(mobilenet.REFERENCES) == set(mobilenet.TABLES)
    for section, name in citations.OF_SETTINGS:
        registry = {"objective": OBJECTIVES, "algorithm": ALGORITHMS}[section]
        assert name in registry or name == "disk"


def test_entries_are_complete_bibtex():
    for key, text in citations.entries().items():
        assert text.count("{") == text.count("}"), key
        for field in ("title", "author", "year"):
            assert re.search(rf"^  {field} = \{{.+\}},?$", text, re.MULTILINE), (key, field)


@pytest.mark.parametrize("name", [name for name in CELLS if name != "rnn"])
def test_every_cell_has_a_source(name):
    assert keys(CELLS[name])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tarnn", ["kag2021tarnn"]),
        ("resnet32", ["he2016resnet"]),
        ("resnet32_global", ["he2016resnet", "kag2022global"]),
        ("wrn_40_4_global", ["kag2022global", "zagoruyko2016wide"]),
        ("efficientnet_b0_interpolated", ["kag2023thesis", "tan2019efficientnet"]),
        ("densenet_bc", ["huang2017densenet"]),
        ("xception", ["chollet2017xception"]),
    ],
)
def test_models_cite_their_host_and_their_layers(name, expected):
    fields = {"cell": {"features": 4}} if name == "tarnn" else {}
    assert keys(jaxeff.create_model(name, num_classes=10, **fields)) == expected


def test_a_run_cites_its_algorithm_and_objective_too():
    assert keys(jaxeff.load("digits-fptt-lstm")) == ["hochreiter1997lstm", "kag2021fptt"]
    assert "kag2023disk" in keys(jaxeff.load("digits-disk"))


def test_parts_of_a_model_are_cited():
    small = {"name": "resnet", "depth": 8}
    hybrid = MODELS.build({"name": "hybrid", "base": small, "expert": small}, num_outputs=10)
    assert keys(hybrid) == ["he2016resnet", "kag2023hybrid"]
    assert keys([jaxeff.IRNNCell(4), jaxeff.TARNNCell(4)]) == ["kag2020irnn", "kag2021tarnn"]
    assert keys(jaxeff.unroll_parallel) == ["gonzalez2024elk", "lim2024deer"]
    assert keys(selective.calibrate.learn_then_test) == ["angelopoulos2021ltt"]


def test_own_classes_name_their_entries():
    entry = "@misc{mine,\n  title = {Mine}\n}"

    class Cell(jaxeff.TARNNCell):
        references = (entry,)

    assert jaxeff.cite(Cell) == entry
    assert keys(Cell(4)) == ["kag2021tarnn", "mine"]


def test_a_mistyped_key_is_refused():
    class Cell(jaxeff.TARNNCell):
        references = ("kag2021tarn",)

    with pytest.raises(UserError, match="'kag2021tarn' in the attribute `references`"):
        jaxeff.cite(Cell)


@pytest.mark.parametrize("target", [3, "tarnn", None, {}])
def test_what_has_no_source_is_refused(target):
    way = "give the model itself" if isinstance(target, str) else "give its class"
    with pytest.raises(UserError, match=f"source to cite; {way}"):
        jaxeff.cite(target)


def test_the_citation_file_lists_the_papers():
    def plain(title):
        return title.translate(str.maketrans("", "", "{}\\")).replace('"', "")

    text = (Path(__file__).parents[1] / "CITATION.cff").read_text("utf-8")
    for entry in citations.entries().values():
        assert plain(re.search(r"title = \{(.*)\}", entry)[1]) in text
