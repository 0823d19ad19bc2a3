"""A recurrent cell of one's own: from the documentation's few lines to a trained model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxeff.eval import read_report
from jaxeff.testing import check_cell

ROOT = Path(__file__).parents[1]
CONFIG = """
import my_cells
from jaxeff.config import base_config


def get_config():
    config = base_config()
    config.data.update(name="digits", view="rows")
    config.model = {"name": "sequence", "cell": {"name": "decaying_skip", "features": 16}}
    config.optim.update(name="adam", learning_rate=1e-2)
    config.train.update(batch_size=64, num_steps=60)
    return config
"""


@pytest.fixture
def example():
    """The cell of the documentation."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text[text.index("To **add a cell**") :], re.DOTALL)
    return code


def test_the_documented_cell_is_short_and_keeps_the_contract(example, tmp_path, monkeypatch):
    assert len([line for line in example.splitlines() if line.strip()]) <= 25
    assert len(set(re.findall(r"ode\.(\w+)", example))) <= 5
    (tmp_path / "my_cells.py").write_text(example)
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_cells

    check_cell(my_cells.DecayingSkip(4), backwards=("fused",))


@pytest.mark.slow
def test_the_documented_cell_is_trained_by_its_name(example, tmp_path):
    (tmp_path / "my_cells.py").write_text(example)
    (tmp_path / "my_config.py").write_text(CONFIG)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "jaxeff.main", "--config=my_config.py", "--workdir=run"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    assert read_report(tmp_path / "run")["metrics"]["test"]["accuracy"] > 0.5
