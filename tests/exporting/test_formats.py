"""Files answer in their own runtimes as the model does."""

import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxeff
from jaxeff import ode
from jaxeff.errors import ConfigError, UserError
from jaxeff.exporting import Entry, ExportError, Input, Options, entries, verify, write_entries
from jaxeff.exporting.formats import require_package
from jaxeff.models import MODELS, SequenceModel
from jaxeff.ops import strided

TEXT = {"layers": 2, "width": 8, "heads": 2, "hidden": 16, "vocabulary": 20, "positions": 16}
NETWORK = {"name": "resnet", "depth": 8, "widths": (4, 4, 4)}
POSED = {"name": "autoencoder", "size": 8, "latents": 2, "pose": {"name": "rotation"}}


class Twofold(nn.Module):
    """A model that does not return one array."""

    @nn.compact
    def __call__(self, x):
        return x, x


def small(cell=None, layers=1):
    return SequenceModel(cell or ode.GRU(5), num_outputs=3, num_layers=layers)


def within_tolerance(report, tolerance=1e-5):
    assert not report.failures
    for row in report.rows:
        assert row.difference <= tolerance * max(1.0, row.scale), row


def test_a_program_is_read_by_jax_alone(exportable, options, tmp_path):
    model = small(ode.Elman(5))
    source = exportable(model, 3, 6, 4, facts={"classes": ["a", "b", "c"]})
    report = write_entries(entries(model, source), tmp_path, options("stablehlo"))
    within_tolerance(report)
    whole = export.deserialize(bytearray((tmp_path / "sequence.stablehlo").read_bytes()))
    longer = jax.random.normal(jax.random.key(1), (5, 11, 4))
    expected = model.apply(source.variables, longer)
    np.testing.assert_allclose(whole.call(longer)[0], expected, atol=1e-6)
    step = export.deserialize(bytearray((tmp_path / "step.stablehlo").read_bytes()))
    facts = json.loads((tmp_path / "step.json").read_text())
    assert facts["classes"] == ["a", "b", "c"]
    assert facts["files"] == {"stablehlo": ["step.stablehlo"]}
    shapes = [each["shape"] for each in facts["inputs"]]
    assert shapes == [["batch", 4], ["batch", 5]]
    state = [jnp.zeros((5, 5))]
    for t in range(longer.shape[1]):
        outputs, *state = step.call(longer[:, t], *state)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    assert "| step | stablehlo |" in (tmp_path / "report.md").read_text()


def test_a_program_has_other_convolutions_on_cpus_than_on_other_devices(tmp_path):
    """XLA convolves channels by themselves slowly on CPUs, and well on the others."""
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)
    network = nn.Conv(3, (3, 3), feature_group_count=3)
    variables = network.init(jax.random.key(0), x)
    entry = Entry(
        "e",
        lambda x: (network.apply(variables, x),),
        {"x": Input(("b", 6, 6, 3))},
        ("y",),
        {"x": x},
    )
    options = Options(rounds=0, batch_sizes=(1, 3))
    (row,) = write_entries([entry], tmp_path, options).rows
    assert row.files == ["e.stablehlo"]
    program = export.deserialize(bytearray((tmp_path / "e.stablehlo").read_bytes()))
    here = jax.jit(program.call).lower(x).compile().as_text()
    assert " convolution(" not in here
    assert "stablehlo.convolution(" in program.mlir_module()  # of other platforms
    np.testing.assert_allclose(program.call(x)[0], entry.function(x)[0], atol=1e-5)


@pytest.mark.parametrize("name", ["stablehlo", "onnx"])
def test_transposed_convolutions_of_any_batch(name, options, tmp_path):
    for shape in ((5, 4), (3, 4, 5)):
        x = np.random.default_rng(0).normal(size=(4, *shape, 3)).astype(np.float32)
        kernel = np.random.default_rng(1).normal(size=(*(3,) * len(shape), 3, 2)).astype(np.float32)

        def function(x, kernel=kernel):
            return (strided.transposed_conv(x, kernel, 2, 1, 1),)

        entry = Entry("e", function, {"x": Input(("batch", *shape, 3))}, ("y",), {"x": x})
        (row,) = write_entries([entry], tmp_path, options(name, batch_sizes=(1, 3))).rows
        assert row.files == [f"e.{name}"]
        assert row.difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["litert", "onnx"])
def test_a_step_in_another_runtime(name, exportable, options, tmp_path):
    model = small(ode.TARNN(5))
    step = entries(model, exportable(model, 2, 8, 4))[1]
    within_tolerance(write_entries([step], tmp_path, options(name)), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stablehlo", "litert", "onnx"])
def test_padded_sequences(name, exportable, options, tmp_path):
    model = small(ode.TARNN(5))
    mask = np.arange(8) < np.array([[8], [5], [3]])
    source = exportable(model, 3, 8, 4, mask=mask.astype(np.float32))
    (whole, _) = entries(model, source)
    within_tolerance(write_entries([whole], tmp_path, options(name)))


@pytest.mark.parametrize("name", ["stablehlo", "litert", "onnx"])
@pytest.mark.parametrize(
    ("spec", "shape", "names"),
    [
        ({"name": "early_exit", "backbone": NETWORK}, (8, 8, 3), ("stage_0", "stage_1", "stage_2")),
        ({"name": "hybrid", "base": NETWORK, "expert": NETWORK}, (8, 8, 3), None),
        (POSED, (8, 8, 1), ("encoder", "decoder")),
    ],
)
@pytest.mark.slow
def test_parts_of_models(name, spec, shape, names, exportable, options, tmp_path):
    model = MODELS.build(spec, num_outputs=3)
    parts = entries(model, exportable(model, 3, *shape))
    assert tuple(part.name for part in parts) == (names or ("base", "router", "expert"))
    within_tolerance(write_entries(parts, tmp_path, options(name)))


@pytest.mark.slow
def test_exits_have_the_scores_of_their_thresholds(exportable):
    model = MODELS.build({"name": "early_exit", "backbone": NETWORK}, num_outputs=3)
    budgets = {"0.5": {"thresholds": [-0.9]}}
    source = exportable(model, 3, 8, 8, 3, results={"early_exits": {"budgets": budgets}})
    parts = entries(model, source)
    assert [part.outputs for part in parts] == [("outputs", "scores", "map")] * 2 + [("outputs",)]
    logits, scores, _ = jax.jit(parts[0].function)(source.inputs)
    np.testing.assert_allclose(scores, -jax.nn.softmax(logits).max(-1), rtol=1e-6)
    assert parts[0].metadata["plans"] == budgets


@pytest.mark.parametrize("name", ["stablehlo", "litert", "onnx"])
@pytest.mark.slow
def test_texts_have_a_program_per_length(name, exportable, options, tmp_path):
    model = MODELS.build({"name": "encoder", "shape": TEXT, "cuts": ((1, 2),)}, num_outputs=3)
    tokens = np.random.default_rng(0).integers(0, 20, (3, 12)).astype(np.int32)
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    source = jaxeff.exporting.Exportable(variables, tokens, mask=tokens > 2)
    parts = entries(model, source)
    assert [part.name for part in parts] == ["length_8", "length_12"]
    within_tolerance(write_entries(parts, tmp_path, options(name)))


@pytest.mark.parametrize("precision", ["int8", "int16x8", "int8_dynamic"])
@pytest.mark.slow
def test_integers_keep_a_state_in_its_range(precision, exportable, options, tmp_path):
    model = small(ode.Elman(8))
    step = entries(model, exportable(model, 4, 30, 4))[1]
    report = write_entries([step], tmp_path, options("litert", precision=precision))
    (row,) = report.rows
    # A clipped state is off by a third of its range.
    assert row.difference < {"int8": 0.12, "int16x8": 0.03, "int8_dynamic": 0.06}[precision]
    assert row.files == [f"step_batch1_{precision}.tflite"]


def test_a_comparison_sees_what_is_wrong(exportable):
    model = small(ode.Elman(5))
    step = entries(model, exportable(model, 2, 6, 4))[1]

    def drifting(*arrays):
        outputs, state = jax.jit(step.function)(*arrays)
        return outputs, state + 1e-3

    right = verify.compare(step, jax.jit(step.function), 2)
    assert right.largest < 1e-6 < 1e-3 < verify.compare(step, drifting, 2).largest


def test_refusals_are_sentences(exportable, options, tmp_path):
    with pytest.raises(UserError, match=r"^nothing is not installed; pip install 'jaxeff\[x\]'$"):
        require_package("nothing", ["1."], "pip install 'jaxeff[x]'")
    with pytest.raises(UserError, match=r"numpy 2\.\S+ is installed, whose interface may differ"):
        require_package("numpy", ["1."], "pip install numpy")
    model = small()
    parts = entries(model, exportable(model, 2, 3, 4))
    with pytest.raises(ConfigError, match="'stablehlo' has float32, not 'int8'"):
        write_entries(parts, tmp_path, options("stablehlo", precision="int8"))
    with pytest.raises(ConfigError, match="unknown export format 'stablehlp'; did you mean"):
        write_entries(parts, tmp_path, jaxeff.exporting.Options(to=("stablehlp",)))
    with pytest.raises(ValueError, match="entry 'e' has no examples of x"):
        Entry("e", lambda x: (x,), {"x": Input(("batch", 2))}, ("y",), {})


X = np.ones((2, 3), np.float32)


def on_rows(function, name="f", **fields):
    """An entry of a function of rows of three numbers."""
    return Entry(
        name, lambda x: (function(x),), {"x": Input(("batch", 3))}, ("y",), {"x": X}, **fields
    )


def looped(x):
    return jax.lax.fori_loop(0, 40, lambda _, x: jnp.sin(x), x)


def noisy(x):
    return x + jax.random.normal(jax.random.key(0), x.shape)


def called(x):
    return jax.pure_callback(np.sin, x, x)


@pytest.mark.parametrize(
    ("name", "function", "sentence"),
    [
        ("litert", jnp.sort, "LiteRT: it has no operation stablehlo.sort; export it to stablehlo"),
        ("litert", looped, r"it has no loops \(tfl.while\) but those of at most 32 steps; export"),
        ("onnx", noisy, "its runtime does not compute BitCast; export it to stablehlo"),
        (
            "stablehlo",
            called,
            r"it calls Python while it runs \(pure_callback\); write that in JAX$",
        ),
    ],
)
def test_an_operation_that_a_format_lacks_is_named(name, function, sentence, options, tmp_path):
    with pytest.raises(ExportError, match=sentence):
        write_entries([on_rows(function)], tmp_path, options(name))
    assert not list(tmp_path.iterdir())


def test_what_one_format_lacks_another_takes(options, tmp_path):
    both = Options(("stablehlo", "litert"), batch_sizes=(1,), rounds=0)
    options("litert")
    report = write_entries([on_rows(jnp.sort)], tmp_path, both)
    assert len(report.failures) == 1
    assert "## Not written" in (tmp_path / "report.md").read_text()
    parts = [on_rows(jnp.sort, "whole", instead="part"), on_rows(jnp.sort, "part")]
    with pytest.raises(ExportError, match="'part' cannot be written as LiteRT: it has no"):
        write_entries(parts, tmp_path / "litert", options("litert"))


def test_jax_is_as_it_was_after_an_export_to_onnx(options, tmp_path):
    before = jnp.cumsum
    within_tolerance(write_entries([on_rows(jnp.sin)], tmp_path, options("onnx")))
    assert jnp.cumsum is before
    jnp.cumsum(X, 1)


def test_a_repeated_constant_is_not_in_the_file(options, tmp_path):
    row = np.arange(200, dtype=np.float32)
    entry = on_rows(lambda x: x.sum() + jnp.broadcast_to(row, (200, 200)))
    report = write_entries([entry], tmp_path, options("onnx"))
    within_tolerance(report)
    assert report.rows[0].bytes < 10_000


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"to": 5}, "config.export.to must be names of formats .*, not 5"),
        ({"to": []}, "config.export.to must be names of formats"),
        ({"batch_sizes": 5}, r"export.batch_sizes must be whole numbers, such as \(1, 8\), not 5"),
        ({"batch_sizes": "a"}, r"must be whole numbers, such as \(1, 8\), not 'a'"),
        ({"batch_sizes": (0,)}, "batch_sizes: each must be a whole number of at least 1, not 0"),
        ({"threads": 0}, "config.export.threads must be a whole number of at least 1, not 0"),
        ({"rounds": "a"}, "config.export.rounds must be a whole number of at least 0, not 'a'"),
        ({"inputs": X[:0]}, "export needs at least one example of the model's inputs"),
        ({"inputs": X[:, :2]}, r"MLP does not take these variables and inputs \(2, 2\): Scope"),
        ({"inputs": X * np.nan}, "the model's own outputs are NaN or infinite on the examples"),
        ({"variables": {}}, "MLP does not take these variables and inputs"),
        ({"folder": "/dev/null/files"}, "/dev/null/files: cannot be written .*; make it writable"),
        ({"model": Twofold()}, "Twofold returns a tuple instead of one array; register what of it"),
    ],
)
def test_what_cannot_be_exported_is_a_sentence(fields, sentence, tmp_path):
    model = fields.pop("model", None) or jaxeff.create_model("mlp", num_classes=2)
    inputs, folder = fields.pop("inputs", X), fields.pop("folder", tmp_path)
    variables = fields.pop("variables", None)
    if variables is None:
        variables = model.init(jax.random.key(0), X)
    with pytest.raises(UserError, match=sentence):
        jaxeff.export(model, variables, inputs, folder, **{"rounds": 0, **fields})


def test_a_package_that_cannot_be_imported_is_named(monkeypatch, options):
    options("litert")
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(
        UserError, match=r"ai-edge-litert cannot be imported .*; pip install 'jaxeff"
    ):
        Options(("litert",)).formats()


@pytest.mark.parametrize(
    ("cost", "expected"),
    [(1e-6, (10, 5)), (0.1, (10, 5)), (0.25, (4, 5)), (2.0, (1, 2)), (60, (1, 1))],
)
def test_slow_programs_have_fewer_turns(cost, expected):
    assert verify.affordable(cost, 10) == expected


def test_a_model_is_exported_from_python(tmp_path):
    model = jaxeff.create_model("mlp", num_classes=3)
    inputs = np.ones((2, 4), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), inputs)
    report = jaxeff.export(model, variables, inputs, tmp_path, rounds=1, batch_sizes=(2,))
    assert report.rows[0].latency_ms[2].keys() == {"artifact", "jitted"}
    with pytest.raises(ConfigError, match="needs the model's variables and examples"):
        jaxeff.export(model, folder=tmp_path)


@pytest.mark.parametrize(("minimisers", "largest"), [((), 1e-3), (("pose",), 1e-6)])
def test_where_a_function_is_smallest_is_compared_by_squares(minimisers, largest):
    x = np.linspace(-1, 1, 4, dtype=np.float32)[:, None]
    entry = Entry(
        "search",
        lambda x: (x, x[:, 0] ** 2),
        {"x": Input(("batch", 1))},
        ("pose", "loss"),
        {"x": x},
        minimisers=minimisers,
    )
    assert verify.compare(entry, lambda x: [x + 1e-3, x[:, 0] ** 2]).largest == pytest.approx(
        largest, rel=1e-2
    )
    assert verify.compare(entry, lambda x: [x, x[:, 0] ** 2 + 1e-3]).largest > 9e-4
