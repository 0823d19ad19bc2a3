"""C as one of the formats of an export."""

import shutil

import jax
import numpy as np
import pytest

import jaxeff
from jaxeff import ode
from jaxeff.exporting import ExportError
from jaxeff.models import SequenceModel, create_model

X = np.asarray(jax.random.normal(jax.random.key(0), (5, 6, 3)))


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("cell", [ode.TARNN(4), pytest.param(ode.LSTM(4), marks=pytest.mark.slow)])
def test_a_step_in_c_is_compared_with_the_model(cell, tmp_path):
    model = SequenceModel(cell, num_outputs=2)
    variables = jax.jit(model.init)(jax.random.key(1), X)
    for precision, least, most in (("float32", 0, 1e-5), ("int8", 1e-5, 0.05)):
        folder = tmp_path / precision
        report = jaxeff.export(
            model, variables, X, folder, to="c", precision=precision, rounds=1, batch_sizes=(1, 3)
        )
        whole, step = report.rows
        assert "it has only steps of recurrent models; use 'step'" in whole.failure
        assert step.files == ["step.c", "step.h"]
        assert {path.suffix for path in folder.iterdir()} <= {".c", ".h", ".json", ".md"}
        assert len(list(folder.glob("*.c"))) == 1  # nothing of the comparison is left
        assert step.batch_sizes == [1, 3]
        assert least <= step.difference < most
        assert step.extras["constant_bytes"] > 0


def test_what_is_no_step_is_refused(tmp_path):
    model = create_model("mlp", num_classes=2)
    variables = jax.jit(model.init)(jax.random.key(1), X)
    with pytest.raises(ExportError, match="'model' cannot be written as C: it has only steps"):
        jaxeff.export(model, variables, X, tmp_path, to="c")
