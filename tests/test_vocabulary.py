"""A name of a public class means one thing in the whole package."""

import ast
from collections import defaultdict
from pathlib import Path

import jaxeff

ROOT = Path(jaxeff.__file__).parent


def classes(path):
    """Names of the public classes of a module."""
    return [
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]


def test_no_two_public_classes_have_one_name():
    homes = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        for name in classes(path):
            homes[name].append(path.relative_to(ROOT).as_posix())
    assert len(homes) > 200
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}
