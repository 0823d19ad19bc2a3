"""What editors and type checkers see of the package."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxeff

ROOT = Path(jaxeff.__file__).parents[1]
PROGRAM = Path(__file__).parent / "helpers" / "typed_program.py"


def seen_by_type_checkers():
    """Returns where each name of the package is imported from for a type checker."""
    tree = ast.parse(Path(jaxeff.__file__).read_text("utf-8"))
    blocks = [
        node.body
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imports = [node for body in blocks for node in body if isinstance(node, ast.ImportFrom)]
    return {alias.asname: (node.module, alias.name) for node in imports for alias in node.names}


def test_every_name_of_the_package_has_a_type():
    homes = {name: (home, name) for name, home in jaxeff._HOMES.items()}
    modules = {name: ("jaxeff", name) for name in jaxeff._MODULES}
    assert seen_by_type_checkers() == homes | modules


@pytest.mark.slow
def test_a_newcomers_program_is_typed(tmp_path):
    pytest.importorskip("mypy")
    # As with an installed package: strict for the program, silent about what it imports.
    options = ["--strict", "--follow-imports=silent", "--ignore-missing-imports"]
    options += [f"--cache-dir={tmp_path / 'cache'}", "--config-file=", "--python-version=3.12"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(PROGRAM)],
        env=os.environ | {"MYPYPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_newcomers_program_runs(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(PROGRAM), str(tmp_path / "files")]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=300)
    assert (tmp_path / "files" / "report.json").exists()
