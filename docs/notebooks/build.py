"""Makes the notebooks of their sources and executes them, each with the package of this checkout.

    python docs/notebooks/build.py               # all of them, into docs/notebooks
    python docs/notebooks/build.py 04_abstain    # some
    python docs/notebooks/build.py --check       # execute alone, and write nothing

A cell that fails, or a notebook of more than three minutes, ends it with status 1.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbclient

FOLDER = Path(__file__).resolve().parent
LIMIT = 180


def execute(source: Path) -> tuple[object, float]:
    """Returns an executed notebook and its seconds."""
    notebook = jupytext.read(source)
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=LIMIT, resources=resources).execute()
        seconds = time.monotonic() - began
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times differ from run to run
        kept = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
        if "outputs" in cell:
            cell.outputs = kept
    return notebook, seconds


def main() -> int:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    names = [word for word in sys.argv[1:] if not word.startswith("--")]
    failed = []
    for source in sorted((FOLDER / "source").glob("*.py")):
        if names and source.stem not in names:
            continue
        try:
            notebook, seconds = execute(source)
        except nbclient.exceptions.CellExecutionError as error:
            print(f"{source.stem}: {error}", flush=True)
            failed.append(source.stem)
            continue
        print(f"{source.stem}: {seconds:.0f} s", flush=True)
        if seconds > LIMIT:
            failed.append(source.stem)
        if "--check" not in sys.argv:
            jupytext.write(notebook, FOLDER / f"{source.stem}.ipynb")
    if failed:
        print(f"failed, or took more than {LIMIT} s: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
