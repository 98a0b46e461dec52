"""Equal multiplications of one tensor become one; everything else stays as it is."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_graphsurgeon as gs
import onnxruntime as ort

from export.passes.share_factors import share_factors

TEXT = """<ir_version: 10, opset_import: ["": 20]>
g (float[B,2] x, float[B,2] y) => (float[B,2] a, float[B,2] b, float[B,2] c, float[B,2] d)
<float[2] f = {0.5, 3.0}, float[2] g2 = {0.5, 3.0}, float[2] h = {0.5, 2.0}>
{ p = Mul(x, f) a = Relu(p) q = Mul(g2, x) b = Neg(q) r = Mul(x, h) c = Abs(r) s = Mul(y, f) d = Exp(s) }"""


def graph(text: str = TEXT) -> gs.Graph:
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = node.output[0]
    return gs.import_onnx(model)


def run(g: gs.Graph) -> list[np.ndarray]:
    session = ort.InferenceSession(gs.export_onnx(g).SerializeToString())
    feeds = {"x": np.array([[1, -2]], np.float32), "y": np.array([[3, 4]], np.float32)}
    found: list[np.ndarray] = session.run(None, feeds)
    return found


def test_equal_factors_of_one_tensor_are_merged() -> None:
    expected, after = run(graph()), graph()
    result = share_factors(after)
    assert result.changed == ("q",)  # other factors and other tensors are left alone
    after.cleanup().toposort()
    assert sum(node.op == "Mul" for node in after.nodes) == 3
    assert all(np.array_equal(left, right) for left, right in zip(run(after), expected, strict=True))
    assert not share_factors(after).modified


def test_a_product_that_is_an_output_is_declined() -> None:
    text = TEXT.replace("float[B,2] b,", "float[B,2] q,").replace("b = Neg(q)", "")
    result = share_factors(graph(text))
    assert not result.modified
    assert [(item.name, item.reason) for item in result.declined] == [
        ("q", "same as p, but its output is one of the graph's")
    ]
