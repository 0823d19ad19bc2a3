"""The notebooks are those of their sources, with outputs that a page can show.

`docs/notebooks/build.py --check` executes them, in CI.
"""

import base64
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
SOURCES = sorted((FOLDER / "source").glob("*.py"))


def cells(source):
    return json.loads((FOLDER / f"{source.stem}.ipynb").read_text("utf-8"))["cells"]


def outputs(source):
    return [output for cell in cells(source) for output in cell.get("outputs", [])]


def as_source(cell):
    """A cell as the source has it."""
    text = "".join(cell["source"])
    if cell["cell_type"] == "code":
        return f"# %%\n{text}"
    return "# %% [markdown]\n" + "\n".join(f"# {line}".rstrip() for line in text.split("\n"))


def test_every_source_has_a_notebook_and_a_place_on_the_site():
    assert len(SOURCES) == 10
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {path.stem for path in SOURCES}
    navigation = (FOLDER.parent.parent / "mkdocs.yml").read_text("utf-8")
    for source in SOURCES:
        assert f": notebooks/{source.stem}.ipynb\n" in navigation


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_is_that_of_its_source(source):
    expected = re.split(r"^(?=# %%)", source.read_text("utf-8"), flags=re.MULTILINE)
    assert [as_source(cell) for cell in cells(source)] == [text.rstrip() for text in expected[1:]]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_shows_results_and_neither_logs_nor_paths(source):
    kinds = {output["output_type"] for output in outputs(source)}
    assert "stream" in kinds
    assert kinds <= {"stream", "display_data", "execute_result"}
    printed = "".join("".join(o["text"]) for o in outputs(source) if o["output_type"] == "stream")
    assert len(printed) < 4000
    assert not re.search(r"Warning|Traceback|/tmp|/home|/root|^step \d+/", printed, re.MULTILINE)
    assert {o["name"] for o in outputs(source) if o["output_type"] == "stream"} == {"stdout"}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_has_pictures_and_is_small(source):
    pictures = [o["data"]["image/png"] for o in outputs(source) if "image/png" in o.get("data", {})]
    assert pictures
    assert max(len(base64.b64decode(picture)) for picture in pictures) < 60_000
    assert (FOLDER / f"{source.stem}.ipynb").stat().st_size < 250_000


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_axes_of_a_notebook_have_names(source):
    """A picture of a curve, bars or points names what is drawn along both axes."""
    for cell in re.split(r"^# %%.*$", source.read_text("utf-8"), flags=re.MULTILINE):
        if re.search(r"\.(plot|bar|hist|scatter|loglog)\(", cell):
            assert re.search(r"xlabel", cell), cell
            assert re.search(r"ylabel|sharey", cell), cell
