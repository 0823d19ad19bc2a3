"""Packages and modules need each other in one direction: an import never points upward."""

import ast
import graphlib
from pathlib import Path

import pytest

import jaxeff

ROOT = Path(jaxeff.__file__).parent

#: From the bottom to the top. A package may import what stands on a lower line, and what stands
#: before it on its own line.
FLOORS = (
    "version errors typing signals",
    "annotations registry arguments files config overrides config_files",
    "hub ops bench ode testing selective constraints affine distill hybrid",
    "eval data",
    "layers",
    "models",
    "programs",
    "quantize",
    "serving streaming exporting search",
    "analyses",
    "train",
    "main stream citations",
)
HEIGHTS = {
    name: (floor, place)
    for floor, names in enumerate(FLOORS)
    for place, name in enumerate(names.split())
}
MODULES = {
    ".".join(("jaxeff", *path.relative_to(ROOT).with_suffix("").parts)): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.name != "__init__.py"
}


def imported(path: Path) -> set[str]:
    """Returns the dotted names that a file imports, those for a type checker included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("jaxeff.")}


def upward(name: str, path: Path) -> list[str]:
    """Returns what a file of a package imports although it stands above it."""
    packages = {dotted.split(".")[1] for dotted in imported(path)} - {name, "__version__"}
    return [
        f"{path.relative_to(ROOT)} imports jaxeff.{other}"
        for other in sorted(packages)
        if HEIGHTS[other] > HEIGHTS[name]
    ]


def sort(modules: dict[str, Path]) -> list[str]:
    """Returns modules in the order of their imports.

    Raises:
      graphlib.CycleError: there is none.
    """
    needs = {
        module: {
            name
            for dotted in imported(path)
            for name in (dotted, dotted.rpartition(".")[0])
            if name in modules and name != module
        }
        for module, path in modules.items()
    }
    return list(graphlib.TopologicalSorter(needs).static_order())


def test_every_package_has_a_floor():
    names = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert names - {"__init__"} == set(HEIGHTS)


def test_imports_point_downward():
    arrows = [
        arrow
        for path in sorted(ROOT.rglob("*.py"))
        if path != ROOT / "__init__.py"
        for arrow in upward(path.relative_to(ROOT).with_suffix("").parts[0], path)
    ]
    assert not arrows, "\n".join(arrows)


def test_an_import_that_points_upward_is_seen():
    path = ROOT / "ode" / "scan.py"
    assert upward("ode", path) == []
    assert upward("errors", path)


@pytest.mark.parametrize("package", sorted({name.split(".")[1] for name in MODULES} - {"__init__"}))
def test_modules_of_a_package_form_no_circle(package):
    modules = {name: path for name, path in MODULES.items() if name.split(".")[1] == package}
    assert set(sort(modules)) == set(modules)


def test_a_circle_is_seen(tmp_path):
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("if TYPE_CHECKING:\n    from jaxeff.other import A\n")
    other.write_text("import jaxeff.one\n")
    with pytest.raises(graphlib.CycleError):
        sort({"jaxeff.one": one, "jaxeff.other": other})
