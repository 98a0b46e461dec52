"""Several texts in a row, and real tokens gathered: the same answers as the padded graph, whatever the lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.passes.base import load_graph
from export.passes.gather_tokens import gather_tokens
from export.passes.text_inputs import text_inputs
from export.passes.texts_in_rows import texts_in_rows
from qdq.errors import PassError

from .packed_graphs import HEADS_OF_TASKS, batch_of, encoder, lowered, outputs_of

COLUMNS = 24
PASSES = {"rows": texts_in_rows, "gather": gather_tokens}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The padded graph of every head under both rules of positions."""
    made = {}
    for head, (lines, outputs) in HEADS_OF_TASKS.items():
        for rule in ("columns", "padding"):
            folder = tmp_path_factory.mktemp(f"{head}-{rule}")
            made[head, rule] = encoder(folder / "source.onnx", lines, outputs, rule)
    return made


@pytest.mark.parametrize("form", PASSES)
@pytest.mark.parametrize("head", HEADS_OF_TASKS)
@pytest.mark.parametrize("rule", ["columns", "padding"])
def test_answers_are_those_of_the_padded_graph(
    form: str, head: str, rule: str, graphs: dict[tuple[str, str], Path]
) -> None:
    source = graphs[head, rule]
    path, packing = lowered(source, form)

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(lengths=st.lists(st.integers(0, COLUMNS), min_size=1, max_size=16), seed=st.integers(0, 9))
    def agree(lengths: list[int], seed: int) -> None:
        feeds = batch_of(lengths, COLUMNS, padding=1, seed=seed)
        expected = outputs_of(source, {name: array.astype(np.int64) for name, array in feeds.items()})
        batch = packing.pack(feeds)
        found = batch.unpack(outputs_of(path, batch.feeds))
        real = feeds["attention_mask"].astype(bool)
        for name, values in expected.items():
            assert found[name].shape == values.shape
            known = real if packing.outputs[name] == "token" else real.any(axis=1)
            np.testing.assert_allclose(found[name][known], values[known], rtol=0, atol=2e-5)
            assert not found[name][~known].any()

    agree()


@pytest.mark.parametrize("form", PASSES)
def test_holes_in_a_mask_stay_holes(form: str, graphs: dict[tuple[str, str], Path]) -> None:
    source = graphs["tags", "columns"]
    path, packing = lowered(source, form)
    feeds = batch_of([9, 20, 3], COLUMNS)
    feeds["attention_mask"][0, [0, 4, 5]] = 0  # one in front, two inside
    expected = outputs_of(source, {name: array.astype(np.int64) for name, array in feeds.items()})["logits"]
    batch = packing.pack(feeds)
    found = batch.unpack(outputs_of(path, batch.feeds))["logits"]
    real = feeds["attention_mask"].astype(bool)
    np.testing.assert_allclose(found[real], expected[real], rtol=0, atol=2e-5)
    assert not found[~real].any()


def test_rows_do_no_work_on_padding(graphs: dict[tuple[str, str], Path]) -> None:
    path, packing = lowered(graphs["classes", "columns"], "rows")
    feeds = packing.pack(batch_of([6] * 8, COLUMNS)).feeds
    assert {name: array.shape for name, array in feeds.items()} == {
        **dict.fromkeys(("input_ids", "segments", "positions"), (2, 24)),
        "first": (8,),
    }
    shapes = {value.name: [dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in _inputs(path)}
    cells = {name: ["rows", "sequence"] for name in ("input_ids", "segments", "positions")}
    assert shapes == {**cells, "first": ["texts"]}


def test_gathers_keep_the_callers_inputs(graphs: dict[tuple[str, str], Path]) -> None:
    path, packing = lowered(graphs["tags", "columns"], "gather")
    feeds = packing.pack(batch_of([6] * 8, COLUMNS)).feeds
    assert {name: array.shape for name, array in feeds.items()} == {
        **dict.fromkeys(("input_ids", "attention_mask", "where"), (8, 24)),
        "slots": (48,),
    }
    linears = [node for node in _float_graph(path) if node.op == "MatMul" and isinstance(node.inputs[1], gs.Constant)]
    tokens = [node.name for node in linears if node.name.endswith(("h", "out", "logits"))]
    assert len(tokens) == 5  # two of each block and the head


@pytest.mark.parametrize("form", PASSES)
def test_a_second_run_changes_nothing(form: str, graphs: dict[tuple[str, str], Path]) -> None:
    graph = load_graph(graphs["mean", "padding"])
    assert PASSES[form](graph).modified
    graph.cleanup().toposort()
    before = gs.export_onnx(graph).SerializeToString()
    assert not PASSES[form](graph).modified
    assert gs.export_onnx(graph).SerializeToString() == before


@pytest.mark.parametrize(
    ("rule", "expected"), [("columns", {"offset": 0, "padding": None}), ("padding", {"offset": 0, "padding": 1})]
)
def test_the_rule_of_positions_is_found_by_trying_it(
    rule: str, expected: dict[str, int | None], graphs: dict[tuple[str, str], Path]
) -> None:
    assert text_inputs(load_graph(graphs["tags", rule])).as_json()["positions"] == expected


@pytest.mark.parametrize("form", PASSES)
def test_a_node_that_mixes_tokens_is_refused_by_name(form: str, tmp_path: Path) -> None:
    head = "peak = ReduceMax <keepdims = 0> (last, ones)\nlogits = MatMul(peak, head)"  # pools padding, too
    source = encoder(tmp_path / "source.onnx", head, "float[batch, 3] logits")
    with pytest.raises(PassError, match=r"peak \(ReduceMax\) mixes the tokens"):
        lowered(source, form)


@pytest.mark.parametrize("form", PASSES)
def test_another_mask_is_refused(form: str, tmp_path: Path) -> None:
    path = encoder(tmp_path / "source.onnx", *HEADS_OF_TASKS["tags"])
    model = onnx.load(path)
    next(node for node in model.graph.node if node.name == "seen").attribute[0].i = onnx.TensorProto.FLOAT16
    onnx.save(model, path)
    with pytest.raises(PassError, match="attention_mask: expected one Cast to bool"):
        PASSES[form](load_graph(path))


def _inputs(path: Path) -> list[onnx.ValueInfoProto]:
    return list(onnx.load(path).graph.input)


def _float_graph(path: Path) -> list[gs.Node]:
    return list(load_graph(path).nodes)
