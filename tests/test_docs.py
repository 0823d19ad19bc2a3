"""The pages of the documentation: their snippets, commands and length."""

import re
from pathlib import Path

import pytest
from absl import flags

from jaxeff import main
from jaxeff.train.check import check

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
#: Pages whose snippets run as they are, one after the other.
RUNNABLE = [
    *sorted((DOCS / "systems").glob("*.md")),
    *sorted((DOCS / "guides").glob("*.md")),
    DOCS / "getting-started.md",
]


def name(path):
    return path.relative_to(DOCS).as_posix()


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text("utf-8"), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in RUNNABLE if blocks(p, "python")], ids=name)
def test_the_snippets_of_a_page_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for snippet in blocks(page, "python"):
        exec(compile(snippet, str(page), "exec"), scope)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_commands_of_a_page_are_understood(page):
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    for line in lines:
        if not line.startswith("python -m jaxeff.main") or "--config=my_" in line:
            continue
        line = re.sub(r"=[NIK]\b", "=1", line)  # numbers that a page leaves open
        values = flags.FlagValues()
        main.define(values)
        config, _, _ = main.parse(["main", *line.partition("#")[0].split()[3:]], values)
        if "HOST" not in line:
            check(config)


def test_results_are_short():
    for page in (DOCS / "results").glob("*.md"):
        assert len(page.read_text("utf-8").splitlines()) <= 120, page.name


def test_every_system_has_a_page_that_says_when_not_to_use_it():
    pages = sorted((DOCS / "systems").glob("*.md"))
    assert len(pages) == 12
    for page in pages:
        titles = re.findall(r"^## (.*)$", page.read_text("utf-8"), re.MULTILINE)
        assert {"Use", "Measured", "When not to use it"} <= set(titles), page.name
        assert blocks(page, "python"), page.name


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in PAGES:
        assert f": {name(page)}\n" in text, name(page)
