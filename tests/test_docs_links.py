"""The links of the documentation, and the check of those of the built site."""

import re
import sys
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture
def links(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    yield __import__("links")
    sys.modules.pop("links")


def anchors(page):
    """The anchors of a page's titles, as Python-Markdown and GitHub make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", title)
        plain = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        yield re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def leads_nowhere(page):
    """The links of a page to files or anchors that are not there."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(<?([^)>:]+)>?\)", text):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in set(anchors(target))):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_links_of_a_page_lead_somewhere(page):
    assert list(leads_nowhere(page)) == []


def test_a_page_with_broken_links_is_noticed(tmp_path):
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# A title: `code` and **more**\n")
    page.write_text(
        "[a](other.md) [b](other.md#a-title-code-and-more) [c](nothing.md)\n"
        "[d](other.md#nothing) [e](#nothing) [f](https://example.org/nothing)\n"
    )
    assert list(leads_nowhere(page)) == ["nothing.md", "other.md#nothing", "#nothing"]


def test_the_check_of_a_site_sees_files_and_anchors(tmp_path, links):
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(
        '<h2 id="title">t</h2><a href="#title"><a href="sub/"><a href="sub/index.html#x"></a>'
        '<a href="#nothing"><img src="no.png"><a href="sub/index.html#y"><a href="https://a.b/c">'
        '<a href="mailto:a@b.c">'
    )
    (tmp_path / "sub" / "index.html").write_text('<p id="x"><a href="../index.html#title">')
    (tmp_path / "404.html").write_text('<a href="/sub/index.html"><a href="/nothing.html">')
    assert links.broken(tmp_path) == [
        "404.html: /nothing.html leads to no file",
        "index.html: #nothing leads to no anchor of that page",
        "index.html: no.png leads to no file",
        "index.html: sub/index.html#y leads to no anchor of that page",
    ]
