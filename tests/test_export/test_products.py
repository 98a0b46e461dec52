"""Measured sizes of products, against the products themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.inventory import inventory
from export.products import measure_products
from export.unoptimized import open_unoptimized, run
from qdq.errors import PassError


def test_every_linear_of_the_encoder_is_measured_before_its_bias(tiny: Any, canonical: Path) -> None:
    batches, done = [tiny.feeds(2, 6, 1), tiny.feeds(3, 9, 2)], list[int]()
    found = measure_products(canonical, iter(batches), done.append)
    model = onnx.load(canonical)
    assert list(found) == list(inventory(model).encoder_linear)  # attention's multiplications are no linears
    assert done == [1, 2]
    for name in found:
        node = next(node for node in model.graph.node if node.name == name)
        edges = [node.output[0], node.input[0]]
        model.graph.output.extend(onnx.ValueInfoProto(name=edge) for edge in edges)
        session = open_unoptimized(model.SerializeToString(), canonical.parent)
        values = [run(session, batch, edges) for batch in batches]
        del model.graph.output[-2:]
        product, tokens = (np.concatenate([pair[i].reshape(-1, pair[i].shape[-1]) for pair in values]) for i in (0, 1))
        assert np.array_equal(found[name].largest, np.abs(product).max(axis=0))
        np.testing.assert_allclose(found[name].energy, (product**2).mean(axis=0), rtol=1e-5)
        assert found[name].input == pytest.approx((tokens**2).sum(axis=1).mean(), rel=1e-5)


def test_no_batches_and_no_file_are_errors_and_a_float_graph_has_no_products(tmp_path: Path, canonical: Path) -> None:
    with pytest.raises(PassError, match="no batches to measure products on"):
        measure_products(canonical, [])
    with pytest.raises(PassError, match="cannot be read as ONNX"):
        measure_products(tmp_path / "missing.onnx", [])
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", [value], [])
    graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1]))
    onnx.save(onnx.helper.make_model(graph), tmp_path / "float.onnx")
    assert measure_products(tmp_path / "float.onnx", []) == {}
