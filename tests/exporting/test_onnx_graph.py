"""Simplified ONNX graphs compute what the converter's own graphs do."""

import jax
import numpy as np
import pytest

from jaxeff.exporting import Exportable, entries, write_entries
from jaxeff.models import MODELS

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")

SHAPE = {"layers": 3, "width": 8, "heads": 2, "hidden": 16, "vocabulary": 20, "positions": 16}


def simplified(model):
    """A model after simplification, as bytes."""
    from jaxeff.exporting.onnx_graph import simplified

    inferred = onnx.shape_inference.infer_shapes(model)
    changed = ir.to_proto(simplified(ir.from_proto(inferred)))
    onnx.checker.check_model(changed, full_check=True)
    return changed


def outputs(model, feed):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options).run(None, feed)


def operations(model):
    return [node.op_type for node in model.graph.node]


def parsed(text, shapes, **constants):
    """A model from its text, with shapes of values and with constants by name."""
    header = '<ir_version: 10, opset_import: ["" : 21]>\n'
    model = onnx.parser.parse_model(header + text)
    for name, shape in shapes.items():
        described = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        model.graph.value_info.append(described)
    for name, array in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


RNG = np.random.default_rng(0)


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 6}


@pytest.mark.parametrize(
    ("equation", "products"),
    [
        ("abcd,abed->abce", 1),
        ("abce,abed->abcd", 1),
        ("abc,cd->abd", 1),
        ("abc,dc->abd", 1),
        ("abc,ab->ac", 1),
        ("ab,abc->ac", 1),
        ("abc,abd->acd", 1),
        ("abc,abd->adc", 1),
        ("ab,cb->ca", 1),
        ("ab,ab->a", 1),
        ("abc,bcd->ad", 0),
        ("abc,abd->cad", 0),
        ("ab,cd->abcd", 0),
    ],
)
def test_contractions_are_products(equation, products):
    terms, out = equation.split("->")
    one, other = (random(*(SIZES[a] for a in term)) for term in terms.split(","))
    first = terms[0]  # its size is open

    def kind(term):
        return ",".join("n" if a == first else str(SIZES[a]) for a in term)

    left, right = terms.split(",")
    model = parsed(
        f"agraph (float[{kind(left)}] x, float[{kind(right)}] y) => (float[{kind(out)}] z)"
        f'{{ s = Einsum <equation = "{equation}"> (x, y)\n z = Neg (s) }}',
        {},
    )
    changed = simplified(model)
    assert operations(changed).count("MatMul") == products
    assert operations(changed).count("Einsum") == 1 - products
    expected = -np.einsum(equation, one.astype(float), other.astype(float))
    np.testing.assert_allclose(outputs(changed, {"x": one, "y": other})[0], expected, atol=1e-5)


def test_between_matrices_nothing_is_reshaped():
    """Dense, skip, normalisation, activation and dense, on sequences of rows."""
    shape = np.array([-1, 4, 6])
    model = parsed(
        """agraph (float[n,4,6] x) => (float[n,4,6] y) {
            f = Reshape (x, flat)
            g = Gemm (f, w, b)
            s = Reshape (g, shape)
            t = Add (x, s)
            u = LayerNormalization <axis = 2> (t, gain, b)
            v = Mul (u, half)
            k, l = Split <axis = 2, num_outputs = 2> (v)
            m = Concat <axis = 2> (l, k)
            o = Reshape (m, flat)
            p = Gemm (o, w, b)
            q = Reshape (p, shape)
            y = Tanh (q)
        }""",
        {name: ["n", 4, 6] for name in "sq"},
        w=random(6, 6),
        b=random(6),
        gain=random(6),
        half=np.full((1, 1, 6), 0.5, np.float32),
        flat=np.array([-1, 6]),
        shape=shape,
    )
    changed = simplified(model)
    kinds = operations(changed)
    assert kinds[: kinds.index("Split") + 1] == [
        "Reshape",
        "Gemm",
        "Add",
        "LayerNormalization",
        "Mul",
        "Split",
    ]
    x = random(5, 4, 6)
    for before, after in zip(outputs(model, {"x": x}), outputs(changed, {"x": x}), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-6)


def test_shapes_that_are_computed_become_constants():
    model = parsed(
        """agraph (float[n,4] x, float[n,1] y) => (float[n,2,2] z) {
            all = Shape (x)
            n = Gather (all, first)
            whole = Concat <axis = 0> (n, four)
            e = Expand (y, whole)
            w = Add (x, e)
            parts = Concat <axis = 0> (n, two, two)
            r = Reshape (w, parts)
            z = Neg (r)
        }""",
        {"r": ["n", 2, 2], "e": ["n", 4]},
        first=np.array([0]),
        four=np.array([4]),
        two=np.array([2]),
    )
    changed = simplified(model)
    assert operations(changed) == ["Add", "Reshape", "Neg"]
    x, y = random(3, 4), random(3, 1)
    expected = -(x + y).reshape(3, 2, 2)
    np.testing.assert_allclose(outputs(changed, {"x": x, "y": y})[0], expected, atol=1e-6)


def text_entry(**plan):
    """An exportable encoder with random weights, and ragged texts."""
    model = MODELS.build({"name": "encoder", "shape": SHAPE, **plan}, num_outputs=3)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 20, (3, 8)).astype(np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    variables = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(s.dtype), shapes)
    mask = np.arange(8) < np.array([[8], [3], [0]])
    return entries(model, Exportable(variables, tokens, mask=mask))[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"cuts": ((1, 3),)},
        {"cuts": ((1, 2), (2, 2)), "kind": "mean", "keep_first": 1},
        {"cuts": ((1, 2),), "kind": "conv", "pooled_queries": True},
        {"cuts": ((1, 2),), "kind": "attention"},
        {"cuts": ((1, 2),), "kind": "merge"},
    ],
)
def test_an_encoder_is_one_of_few_operations(plan, monkeypatch):
    from jaxeff.exporting import onnx as onnx_format

    entry = text_entry(**plan)
    content = onnx_format.converted(entry, {})
    monkeypatch.setattr("jaxeff.exporting.onnx_graph.STEPS", ())
    before = onnx_format.converted(entry, {})
    for batch in (1, 3, 4):
        feed = entry.batch(batch)
        expected = entry.function(*feed.values())[0]
        for each in (before, content):
            np.testing.assert_allclose(outputs(each, feed)[0], expected, atol=2e-5, rtol=1e-5)
    few, many = (operations(onnx.load_from_string(each)) for each in (content, before))
    assert len(few) < 0.6 * len(many)
    assert few.count("LayerNormalization") == 7
    assert few.count("Gelu") == 3
    assert "Dropout" not in few
    if "kind" not in plan:
        assert not {"Einsum", "Shape", "Expand"} & set(few)


@pytest.mark.slow
def test_weights_become_integers(options, tmp_path):
    report = write_entries([text_entry()], tmp_path, options("onnx", precision="int8_dynamic"))
    (row,) = report.rows
    assert row.files == ["length_8_int8_dynamic.onnx"]
    assert 1e-4 < row.difference / row.scale < 0.05
    model = onnx.load(tmp_path / row.files[0])
    products = [node.input[1] for node in model.graph.node if node.op_type == "MatMulInteger"]
    types = {each.name: each.data_type for each in model.graph.initializer}
    assert [types[name] for name in products] == [onnx.TensorProto.INT8] * (3 * 4 + 1)
