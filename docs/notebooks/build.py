"""Makes the notebooks of their sources and executes them, each with the package of this checkout.

    python docs/notebooks/build.py               # all of them, into docs/notebooks
    python docs/notebooks/build.py 04_abstain    # some
    python docs/notebooks/build.py --check       # writes nothing, and compares

The site shows the outputs that are written here: pictures and what is printed. Times among them are
those of the machine; build on a quiet one. Status 1 says that a cell failed, that a notebook took
more than three minutes or is larger than a page should be, or, of a check, that what is written has
other cells or other kinds of outputs than an execution gives.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbclient
import nbformat

FOLDER = Path(__file__).resolve().parent
CHECKOUT = FOLDER.parent.parent
SECONDS = 180
#: Largest size of a notebook with its pictures, in bytes.
BYTES = 250_000


def tidy(outputs: list) -> list:
    """Returns a cell's outputs without its standard error, and with its prints as one."""
    kept: list = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def execute(source: Path) -> nbformat.NotebookNode:
    """Returns the executed notebook of a source."""
    notebook = jupytext.read(source)
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=SECONDS, resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times differ from run to run
        if cell.cell_type == "code":
            cell.outputs = tidy(cell.outputs)
    return notebook


def form(notebook: nbformat.NotebookNode) -> list:
    """Returns what does not change from run to run: the sources, and the kinds of the outputs."""
    return [
        (cell.source, [(o.output_type, sorted(o.get("data", ()))) for o in cell.get("outputs", ())])
        for cell in notebook.cells
    ]


def problems(source: Path, check: bool) -> list[str]:
    """Executes a source and writes its notebook, or compares; returns what is wrong."""
    written, began = FOLDER / f"{source.stem}.ipynb", time.monotonic()
    try:
        notebook = execute(source)
    except (nbclient.exceptions.CellExecutionError, nbclient.exceptions.CellTimeoutError) as error:
        return [str(error)]
    seconds, size = time.monotonic() - began, len(nbformat.writes(notebook).encode())
    print(f"{source.stem}: {seconds:.0f} s, {size // 1000} kB", flush=True)
    faults = []
    if seconds > SECONDS:
        faults.append(f"takes {seconds:.0f} s, more than {SECONDS} s")
    if size > BYTES:
        faults.append(f"has {size:,} bytes, more than {BYTES:,}")
    if not check:
        nbformat.write(notebook, written)
    elif form(nbformat.read(written, as_version=4)) != form(notebook):
        faults.append(f"{written.name} is not what its source gives; run `make notebooks`")
    return faults


def main() -> int:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    names = [word for word in sys.argv[1:] if not word.startswith("--")]
    sources = sorted((FOLDER / "source").glob("*.py"))
    unknown = set(names) - {source.stem for source in sources}
    if unknown:
        print(f"there is no notebook {', '.join(sorted(unknown))}")
        return 2
    failed = False
    for source in sources:
        if not names or source.stem in names:
            for problem in problems(source, "--check" in sys.argv):
                print(f"{source.stem}: {problem}", flush=True)
                failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
