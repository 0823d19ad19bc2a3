"""Checks the links of the built site: every page, file and anchor that one leads to is there.

    python docs/links.py build/site

Pages, pictures, style sheets and scripts are looked at; addresses of other sites are not.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit


class Page(HTMLParser):
    """The links and the anchors of a page.

    Args:
      text: of the page.

    Attributes:
      links: addresses, in order.
      anchors: that links can lead to.
    """

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.anchors = {"", "__top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects what a tag leads to, and what leads to it."""
        for name, value in attrs:
            if name in ("href", "src") and value is not None:
                self.links.append(value)
            elif name == "id" or (name == "name" and tag == "a"):
                self.anchors.add(value or "")


def broken(site: Path) -> list[str]:
    """Returns a sentence for each link within a site that leads nowhere."""
    pages = {path: Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    sentences = []
    for path, page in pages.items():
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            address, anchor = urldefrag(link)
            root = site if address.startswith("/") else path.parent
            target = (root / unquote(urlsplit(address).path).lstrip("/")).resolve()
            target = path if not address else target / "index.html" if target.is_dir() else target
            where = path.relative_to(site)
            if not target.exists():
                sentences.append(f"{where}: {link} leads to no file")
            elif target in pages and unquote(anchor) not in pages[target].anchors:
                sentences.append(f"{where}: {link} leads to no anchor of that page")
    return sentences


def main() -> int:
    site = Path(sys.argv[1]).resolve()
    if not (site / "index.html").exists():
        print(f"{site} is no site; build it with `make site`")
        return 2
    sentences = broken(site)
    print("\n".join(sentences) or "all links lead somewhere")
    return int(bool(sentences))


if __name__ == "__main__":
    sys.exit(main())
