"""A run's export, by the command's job and from what `jaxeff.load` returns."""

import json

import pytest

import jaxeff
from jaxeff.config import distinctive
from jaxeff.errors import CheckpointError, ConfigError
from jaxeff.train import run


@pytest.mark.slow
def test_a_run_is_exported_and_goes_on(tiny_config, tmp_path):
    folder = tmp_path / "run"
    tiny_config.devices.cpu = 1
    tiny_config.train.update({"num_steps": 2, "eval_every": 2})
    tiny_config.export.update({"batch_sizes": [2], "rounds": 1})
    with pytest.raises(CheckpointError, match="checkpoint"):
        run(tiny_config, folder, "export")
    run(tiny_config, folder)
    tiny_config.export.to = "stablehlo"
    run(tiny_config, folder, "export")
    rows = json.loads((folder / "export" / "report.json").read_text())["rows"]
    assert {row["entry"] for row in rows} == {"sequence", "step"}
    assert all(row["difference"] < 1e-5 and not row["failure"] for row in rows)
    facts = json.loads((folder / "export" / "step.json").read_text())
    assert facts["classes"] == list(jaxeff.load(folder).class_names)
    tiny_config.export.to = "stablehlp"
    with pytest.raises(ConfigError, match="unknown export format 'stablehlp'; did you mean"):
        run(tiny_config, folder, "export")


def test_an_export_does_not_change_the_identity_of_a_run():
    required = {"seed": 1, "devices": {"cpu": 1}, "export": {"to": "onnx"}, "prerequisites": {}}
    fields = {"seed": 0, "devices": {}, "export": {}, "prerequisites": {"base": required}}
    kept = {"seed": 1, "devices": {"cpu": 1}, "prerequisites": {}}
    assert distinctive(fields) == {"seed": 0, "prerequisites": {"base": kept}}
