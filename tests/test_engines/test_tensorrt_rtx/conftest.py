"""One compiler for all tests, and the one-layer encoder with an FP16 body, as a lowered graph has it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.tensorrt_rtx import Compiler, Shapes
from engines.tensorrt_rtx.libraries import missing

from ..conftest import OPERANDS, EncoderWriter

SHAPE = Shapes.fixed(4, 16)
WriteHalf = Callable[..., Path]


@pytest.fixture(scope="session")
def compiler() -> Iterator[Compiler]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with Compiler() as started:
        yield started


@pytest.fixture
def write_half(tmp_path: Path) -> WriteHalf:
    """Write an encoder layer: ``write_half(name, operands, per_tensor, unnamed)``.

    `operands` are the quantized ones of its attention. Its weights have a scale per channel, with `per_tensor` one for
    the whole weight.
    """

    def write(
        name: str = "model.onnx",
        operands: Collection[str] = OPERANDS,
        float_inputs: Collection[str] = (),
        per_tensor: bool = False,
    ) -> Path:
        model = EncoderWriter(float_inputs, (), operands).model()
        halve(model)
        if per_tensor:
            one_scale_per_weight(model)
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return write


def halve(model: onnx.ModelProto) -> None:
    """FP16 for every float of the graph; its result stays FP32 behind a Cast."""
    for item in model.graph.initializer:
        if item.data_type == TensorProto.FLOAT:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float16), item.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    last = model.graph.node[-1]
    result, last.output[0] = last.output[0], f"{last.output[0]}.half"
    model.graph.node.append(helper.make_node("Cast", [last.output[0]], [result], name="graph.last", to=1))


def one_scale_per_weight(model: onnx.ModelProto) -> None:
    """The largest scale of a weight for all of it; what q, k and v share, so that they can be one product."""
    stored = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            del node.attribute[:]
            scale, zero_point = (stored[name] for name in node.input[1:])
            scale.CopyFrom(numpy_helper.from_array(np.float16(2e-3), scale.name))
            zero_point.CopyFrom(numpy_helper.from_array(np.int8(0), zero_point.name))
