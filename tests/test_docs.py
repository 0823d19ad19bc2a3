"""The pages of the documentation: their snippets, pictures and length."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from jaxeff.exporting.c import emulator

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
#: Packages that formats need.
FORMATS = {"litert": "litert_converter", "onnx": "jax2onnx"}
#: Pages whose snippets are run by tests of their own.
ELSEWHERE = {"architecture.md": "test_own_cell.py", "extending.md": "test_extending.py"}
#: Pages of results that have tables alone.
WITHOUT_PICTURE = {"index.md", "texts_integers.md"}
RUN = """
import jaxeff
from jaxeff.config_files import load

config = load("configs/irnn.py:quick")
config.train.num_steps = config.train.eval_every = 10
jaxeff.train.run(config, "{folder}")
"""
#: What a page takes for granted, by page: names of the reader's own, and a run.
BEFORE = {
    "export.md": RUN.format(folder="RUN")
    + """
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

config.export.rounds = 0
jaxeff.train.run(config, "RUN", "export")
loaded = jaxeff.load("RUN")
model, variables = loaded.model, loaded.variables
images = np.random.default_rng(0).integers(0, 256, (64, 8, 8)).astype(np.uint8)
inputs = loaded.preprocessed(images)["inputs"]
x, (state,) = inputs[:, 0], model.initial_carry(inputs)


class MyModel(nn.Module):
    @nn.compact
    def encode(self, x):
        return nn.Dense(3)(x)
""",
    "loading.md": """
import numpy as np
from safetensors.numpy import save_file

images = np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.uint8)
image = images[0]
shapes = {"weight_ih_l0": (512, 1), "weight_hh_l0": (512, 128), "bias_ih_l0": (512,)}
shapes |= {"bias_hh_l0": (512,), "head.weight": (10, 128), "head.bias": (10,)}
arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
save_file(arrays, "pytorch.safetensors")
""",
    "report.md": RUN.format(folder="runs/my_run"),
}


def name(path):
    return path.relative_to(DOCS).as_posix()


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text("utf-8"), re.DOTALL)


RUNNABLE = [page for page in PAGES if blocks(page, "python") and name(page) not in ELSEWHERE]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_the_snippets_of_a_page_run(page, monkeypatch, tmp_path):
    """They run as they are, one after the other."""
    monkeypatch.chdir(tmp_path)
    scope = {}
    for snippet in [BEFORE.get(name(page), ""), *blocks(page, "python")]:
        if "arm." not in snippet or emulator.available():
            exec(compile(_possible(snippet), str(page), "exec"), scope)
    for snippet in blocks(page, "c"):
        (tmp_path / "program.c").write_text(snippet)
        command = ["gcc", "-std=c99", "-Wall", "-Werror", "-fsyntax-only", "-Iexport", "program.c"]
        subprocess.run(command, check=True)


def _possible(snippet):
    """A snippet without the formats whose packages are not installed."""
    for format_name, package in FORMATS.items():
        if importlib.util.find_spec(package) is None:
            snippet = snippet.replace(f",{format_name}", "")
            snippet = snippet.replace(f'"{format_name}"', '"stablehlo"')
    return snippet


def test_pages_that_are_run_elsewhere_are_read_there():
    for page, test in ELSEWHERE.items():
        assert f'"{page}"' in (ROOT / "tests" / test).read_text("utf-8")


def test_results_are_short():
    for page in (DOCS / "results").glob("*.md"):
        assert len(page.read_text("utf-8").splitlines()) <= 120, page.name


def test_results_begin_with_a_picture():
    for page in (DOCS / "results").glob("*.md"):
        if page.name not in WITHOUT_PICTURE:
            assert "![" in page.read_text("utf-8").partition("\n|")[0], page.name


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
