"""Token-type rows inside the position table: the same sums, one look-up less, and the reason where it stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest

from export.passes.fold_types import fold_types

IDS = np.array([[4, 1, 0], [2, 3, 1]])
TYPES = np.array([[0, 0, 1], [0, 1, 1]])
ORDERS = {  # as BERT adds, as others do
    "BERT": "s = Add(w, t) e = Add(s, p)",
    "positions first": "s = Add(p, w) e = Add(t, s)",
    "types and positions": "s = Add(t, p) e = Add(w, s)",
}


def parsed(rows: int, sums: str, more: str = "") -> gs.Graph:
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (int64[B,3] ids, int64[B,3] types) => (float[B,3,4] y) <int64[1,3] places = {{0, 1, 2}}> {{
            w = Gather(words, ids)
            t = Gather(kinds, types)
            p = Gather(positions, places)
            {sums}
            {more or "y = Identity(e)"}
        }}"""
    )
    for item in model.graph.node:
        item.name = item.output[0]
    for name, size in (("words", 5), ("kinds", rows), ("positions", 3)):
        values = rng.standard_normal((size, 4)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return gs.import_onnx(model)


def run(graph: gs.Graph, rows: int) -> np.ndarray:
    session = ort.InferenceSession(gs.export_onnx(graph).SerializeToString())
    feeds = {"ids": IDS, "types": TYPES * (rows > 1)}
    (result,) = session.run(None, {item.name: feeds[item.name] for item in session.get_inputs()})
    return np.asarray(result)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("order", ORDERS)
def test_the_sums_stay_and_the_look_up_goes(order: str, rows: int) -> None:
    graph = parsed(rows, ORDERS[order])
    expected = run(graph, rows)
    assert fold_types(graph).changed == ("t",)
    graph.cleanup().toposort()
    tables = {node.inputs[0].name for node in graph.nodes if node.op == "Gather"}
    assert tables == {"words", "positions"}
    assert [node.op for node in graph.nodes].count("Mul") == rows - 1
    onnx.checker.check_model(gs.export_onnx(graph), full_check=True)
    np.testing.assert_allclose(run(graph, rows), expected, rtol=0, atol=2e-6)  # three float32 sums of order 1
    assert not fold_types(graph).modified


@pytest.mark.parametrize(
    ("rows", "sums", "more", "reason"),
    [
        (3, ORDERS["BERT"], "", None),  # no table of types
        (2, "s = Add(w, t) e = Identity(s)", "y = Add(e, p)", "no position table of its own is added in the same sum"),
        (2, ORDERS["BERT"], "y = Add(e, t)", "its rows are not only added to others"),
        (2, ORDERS["BERT"], "q = Gather(positions, types) y = Add(e, q)", "no position table of its own"),
    ],
)
def test_what_stays_says_why(rows: int, sums: str, more: str, reason: str | None) -> None:
    graph = parsed(rows, sums, more)
    before = gs.export_onnx(graph).SerializeToString()
    result = fold_types(graph)
    assert not result.modified
    assert [item.name for item in result.declined] == (["t"] if reason else [])
    assert all(str(reason) in item.reason for item in result.declined)
    assert gs.export_onnx(graph).SerializeToString() == before
