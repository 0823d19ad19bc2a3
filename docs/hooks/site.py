"""Hooks of the documentation site: equations, and links to files outside of it as code.

A link that leads out of the docs (to an example or a config) has no page, so its target is shown.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import equations

_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_OUTSIDE = re.compile(
    r"\[([^\]]+)\]\((?:\.\./)+((?:examples|configs|benchmarks|tests|jaxeff)[^)]*)\)"
)


def on_page_markdown(markdown, **_):
    """Returns a page's text with MathML and without links that leave the docs."""
    parts = _CODE.split(_OUTSIDE.sub(r"\1 (`\2`)", markdown))
    return "".join(part if _CODE.fullmatch(part) else equations.in_markdown(part) for part in parts)
