"""A run's export, by the command's job and from what `jaxeff.load` returns."""

import json

import jax
import numpy as np
import pytest
from jax import export

import jaxeff
from jaxeff import config_files
from jaxeff.config import distinctive
from jaxeff.data import preprocessing, tokens
from jaxeff.data.tokens import Words
from jaxeff.errors import CheckpointError, ConfigError, UserError
from jaxeff.exporting import FORMATS, entries
from jaxeff.models import MODELS
from jaxeff.programs.rewriting import primitives
from jaxeff.serving import TextModel
from jaxeff.train import experiment, exports, prerequisites, run, trained_model

CONFIGS = (
    "irnn.py",
    "tarnn.py",
    "fptt.py:copy",
    "images.py:model=mobilenet_v3",
    "global_cnn.py",
    "si_cnn.py",
    "shared_conv.py",
    "dcl.py",
    "selective.py:method=selectivenet",
    "selective.py:method=gamblers",
    "hybrid.py",
    "hybrid.py:early_exit",
    "disk.py",
    "avae.py",
    "avae3d.py",
    "bottleneck.py",
)
#: Files that an export writes beside those of its formats.
DESCRIBED = {"report.json", "report.md", "preprocessing.json"}


def quickest(argument):
    """The config of a run of two steps, and its prerequisites of two each."""
    config = config_files.load(f"configs/{argument}{',' if ':' in argument else ':'}quick")
    config.devices.cpu = 1
    for one in (config, *config.prerequisites.values()):
        one.train.num_steps, one.optim.warmup_steps = 2, 0
    config.export.update({"to": ",".join(installed()), "batch_sizes": [2], "rounds": 0})
    return config


def installed():
    """Names of the formats, but C, whose packages are there."""
    names = []
    for name in ("stablehlo", "litert", "onnx"):
        try:
            FORMATS[name]().require()
        except UserError:
            continue
        names.append(name)
    return names


def contents(folder):
    """Names of the files in a folder, with what is said of each entry."""
    names = {path.name for path in folder.iterdir()}
    described = {name for name in names if name.endswith(".json")} - DESCRIBED - {"tokenizer.json"}
    return names, {name: json.loads((folder / name).read_text()) for name in described}


@pytest.mark.slow
@pytest.mark.parametrize("argument", CONFIGS)
def test_every_config_is_exported_by_the_job_and_from_its_saved_model(argument, tmp_path):
    config = quickest(argument)
    run(config, tmp_path)
    run(config, tmp_path, "export")
    rows = json.loads((tmp_path / "export" / "report.json").read_text())["rows"]
    assert [row["failure"] for row in rows if row["failure"]] == []
    assert {row["format"] for row in rows} == set(installed())
    for row in rows:
        assert row["difference"] <= 1e-5 * max(1.0, row["scale"]), row
    names, facts = contents(tmp_path / "export")
    assert names >= DESCRIBED | {file for row in rows for file in row["files"]}
    model = jaxeff.load(tmp_path / "model")
    options = {"batch_sizes": [2], "rounds": 0}
    jaxeff.export(model, folder=tmp_path / "again", to="stablehlo", **options)
    again, described = contents(tmp_path / "again")
    assert again == {name for name in names if not name.endswith((".onnx", ".tflite"))}
    for name, known in facts.items():
        known["files"] = {"stablehlo": known["files"]["stablehlo"]}
        assert described[name] == known


@pytest.fixture
def posed():
    """The config of a small autoencoder whose poses are searched."""
    config = config_files.load("configs/avae.py:quick")
    config.devices.cpu = 1
    config.model.update({"size": 8, "latents": 2})
    config.data.update({"size": 8, "scale": 1.0})
    config.algorithm.evaluation = {"starts": 2, "method": "screen"}
    return config


def untrained(config):
    """The model of a config with ones for parameters, and its algorithm."""
    built = experiment.build(config, prerequisites.untrained(config))
    shapes = jax.eval_shape(built.algorithm.init_state, jax.random.key(0), built.example)
    ones = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), (shapes.params, shapes.model_state))
    chosen = dict(zip(("params", "model_state"), ones, strict=True))
    return trained_model.from_experiment(built, chosen, config, None)


def test_a_loaded_autoencoder_searches_poses(posed, tmp_path):
    trained = untrained(posed)
    trained.save(tmp_path)
    again = jaxeff.load(tmp_path)
    batch = {"inputs": np.random.default_rng(0).random((3, 8, 8, 1), np.float32)}
    source, _ = exports.source_of(
        again.variables, again.dataset, batch, again.report, again.saved.algorithm
    )
    parts = {part.name: part for part in entries(again.model, source)}
    assert list(parts) == ["encoder", "decoder", "pose_search"]
    pose, loss = jax.eval_shape(parts["pose_search"].function, batch["inputs"])
    assert pose.shape == (3, 1)
    assert loss.shape == (3,)


def test_confidences_are_those_of_the_thresholds(tmp_path):
    config = config_files.load("configs/selective.py:method=gamblers,quick")
    config.devices.cpu = 1
    config.model = {"name": "mlp", "hidden": (4,)}
    trained = untrained(config)
    powers = {"selective": {"p_norm_power": 3, "confidences": {}}}
    algorithm, batch = trained.saved.algorithm, {"inputs": np.ones((3, 8, 8, 1), np.float32)}
    source, files = exports.source_of(
        trained.variables, trained.dataset, batch, {"extras": powers}, algorithm
    )
    (entry,) = entries(trained.model, source)
    names = ["not_abstaining", "softmax_response", "negative_entropy", "margin", "max-logit_p-norm"]
    assert list(entry.outputs) == ["outputs", *names]
    values = dict(zip(entry.outputs, entry.function(batch["inputs"]), strict=True))
    assert "sort" not in primitives(entry.function, batch["inputs"])  # which LiteRT lacks
    logits = algorithm.objective.class_logits(values["outputs"])
    expected = jaxeff.selective.confidence.max_logit_p_norm(logits, 3)
    np.testing.assert_allclose(values["max-logit_p-norm"], expected, rtol=1e-6)
    assert entry.metadata["selective"] == powers["selective"]
    assert set(files) == {"preprocessing.json"}


def test_a_text_model_is_exported_with_its_tokenizer(tmp_path):
    shape = {"layers": 1, "width": 4, "heads": 1, "hidden": 4, "vocabulary": 9, "positions": 8}
    network = MODELS.build({"name": "encoder", "shape": shape}, num_outputs=2)
    texts = ["a b c", "c d e f", "b unknown"]
    words = Words.of(texts[:2], 9)
    params = jax.jit(network.init)(jax.random.key(0), np.ones((1, 8), np.int32))["params"]
    TextModel(network, params, words, ("x", "y"), 8).save(tmp_path / "model")
    model = jaxeff.load(tmp_path / "model")
    with pytest.raises(UserError, match="give examples as inputs"):
        jaxeff.export(model, folder=tmp_path / "files", rounds=0)
    jaxeff.export(model, inputs=texts, folder=tmp_path / "files", rounds=0)
    facts = json.loads((tmp_path / "files" / "length_8.json").read_text())
    assert facts["tokenizer"] == "tokenizer.json"
    read = tokens.load(tmp_path / "files" / facts["tokenizer"])
    assert read.encode(texts, 8) == words.encode(texts, 8)
    batch = preprocessing.read(tmp_path / "files")(texts)
    np.testing.assert_array_equal(
        batch["inputs"], model.dataset.splits["test"].preprocess(texts)["inputs"]
    )
    program = export.deserialize(bytearray((tmp_path / "files/length_8.stablehlo").read_bytes()))
    outputs = program.call(*batch.values())[0]
    np.testing.assert_allclose(outputs, model.predict(texts).outputs, atol=1e-6)


def test_what_cannot_be_exported_is_a_sentence(tiny_config, tmp_path):
    with pytest.raises(CheckpointError, match="checkpoint"):
        run(tiny_config, tmp_path / "nothing", "export")
    tiny_config.export.to = "stablehlp"
    with pytest.raises(ConfigError, match="unknown export format 'stablehlp'; did you mean"):
        run(tiny_config, tmp_path / "nothing", "export")


def test_an_export_does_not_change_the_identity_of_a_run():
    required = {"seed": 1, "devices": {"cpu": 1}, "export": {"to": "onnx"}, "prerequisites": {}}
    fields = {"seed": 0, "devices": {}, "export": {}, "prerequisites": {"base": required}}
    kept = {"seed": 1, "devices": {"cpu": 1}, "prerequisites": {}}
    assert distinctive(fields) == {"seed": 0, "prerequisites": {"base": kept}}
