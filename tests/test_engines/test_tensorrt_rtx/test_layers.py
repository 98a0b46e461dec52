"""An account of an engine that is not understood in every part is an error that names the part, never less kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from engines.tensorrt_rtx.layers import Account
from qdq.errors import BuildError

VERSION = "1.7.1.116"


def tensor(name: str, shape: str, type: str) -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{shape}], Strides: [8,1], StrideOrder: [1,0], Datatype: {type}, "
        "Format: (Arbitrary) Format with stride order = [1,0] }"
    )


LAYERS = [
    "Name: __mye1_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, "
    "Metadata: ",
    f"Name: __myl_MulMinMaxRounCast_myl0_1, LayerType: kgen, Inputs: [ {tensor('x', '4,8', 'Half')}], "
    f"Constants: [ {tensor('s', '1', 'Half')}, {tensor('t', '', 'Float')}], Outputs: [ {tensor('q', '4,8', 'Int8')}], "
    "TacticName: __myl_MulMinMaxRounCast_0xab, StreamId: 0, Metadata: [ONNX Layer: a.quantize]",
    f"Name: b.MatMul_U3_myl0_2, LayerType: gemm, Inputs: [ {tensor('q', '4,8', 'Int8')}], "
    f"Constants: [ {tensor('w', '8,8', 'Int8')}], Outputs: [ {tensor('y', '4,8', 'Half')}], TacticName: STUB, "
    "StreamId: 1, EventId: 7, Metadata: [ONNX Layer: b.MatMul]\x1f[ONNX Layer: a [x].dequantize]",
]
REPLY = {
    "log": [
        [4, "After reformat layers: 1 layers"],
        [4, "Layers:\n" + "\n".join(LAYERS) + "\n\nI/O Tensors:\n Name: x\n"],
        [2, "a warning"],
    ],
    "gemms": [{"nodes": ["b.MatMul"], "types": ["half", "int8", "int8"], "alpha": 0.5}],
    "statements": {"function": 1, "runtime_fusion": 0},
    "attentions": {},
}


def account(change: Callable[[dict[str, Any]], None] = lambda reply: None, version: str = VERSION) -> Account:
    reply = copy.deepcopy(REPLY)
    change(reply)
    return Account(reply, version)


def edited(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(reply: dict[str, Any]) -> None:
        assert old in reply["log"][1][1]
        reply["log"][1][1] = reply["log"][1][1].replace(old, new)

    return change


def test_everything_is_read() -> None:
    quantize, gemm = account().kernels({"b.MatMul": 3, "a [x].dequantize": 2})
    assert (quantize.layer, gemm.layer) == (None, 2)
    assert (quantize.kind, gemm.kind) == ("quantize", "gemm")
    assert [str(item) for item in quantize.inputs + quantize.constants] == ["fp16 [4, 8]", "fp16 [1]", "fp32 []"]
    assert gemm.onnx == ("b.MatMul", "a [x].dequantize")
    assert gemm.bytes == 4 * 8 + 8 * 8 + 2 * 4 * 8
    (product,) = account().gemms()
    assert (product.operands, product.output, product.alpha) == (("int8", "int8"), "fp16", 0.5)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Layers:\n", "Kernels:\n", "0 tables of layers"),
        ("I/O Tensors:", "Bindings:", "no end"),
        ("LayerType: gemm", "Layer: gemm", "no layer: Name: b.MatMul"),
        ("StreamId: 1", "Stream: 1", "no layer: Name: b.MatMul"),
        ("Datatype: Int8", "Datatype: Int2", "unknown type Int2"),
        ("Datatype: Half", "Type: Half", "no tensor:"),
        ("[ONNX Layer: b.MatMul]", "[Node: b.MatMul]", r"no ONNX node: \[Node: b.MatMul\]"),
        (f"{LAYERS[1]}\n", "", r"numbered \[0, 2\]"),
        (f"\n{LAYERS[2]}", f"\n{LAYERS[2]}\n{LAYERS[2]}", r"numbered \[0, 1, 2, 2\]"),
        (f"\n{LAYERS[2]}", f"\n{LAYERS[2].replace('_myl0_2', '')}", r"counts \[1\] layers and lists 2"),
        ("LayerType: kgen", "LayerType: signal", "0 layers are kgen, its plan has 1"),
    ],
)
def test_what_is_not_understood_is_an_error(old: str, new: str, reason: str) -> None:
    with pytest.raises(BuildError, match=rf"TensorRT for RTX 1\.7\.1\.116 cannot be read: .*{reason}"):
        account(edited(old, new)).kernels({})


def test_the_end_of_the_table_cannot_be_lost() -> None:
    """The last layers leave no hole in the numbers; the plan's statements tell."""
    with pytest.raises(BuildError, match="0 layers are kgen, its plan has 1"):
        account(edited("\n".join(LAYERS[1:]), LAYERS[2].replace("_myl0_2", "_myl0_1"))).kernels({})


def test_two_tables_or_no_count() -> None:
    with pytest.raises(BuildError, match="2 tables of layers"):
        account(lambda reply: reply["log"].append(reply["log"][1])).kernels({})
    with pytest.raises(BuildError, match="counts no layers"):
        account(lambda reply: reply["log"].pop(0)).kernels({})


def test_products_are_read_strictly() -> None:
    with pytest.raises(BuildError, match=r"1 layers are gemm, its plan has 0 products"):
        account(lambda reply: reply["gemms"].clear()).kernels({})
    for types in (["half", "int8", "int2"], ["half", "int8", None], []):
        with pytest.raises(BuildError, match=r"product of \['b\.MatMul'\] has the types"):
            account(lambda reply, types=types: reply["gemms"][0].update(types=types)).gemms()


def test_another_version_is_told_which_one_is_read() -> None:
    with pytest.raises(BuildError, match=r"RTX 1\.8\.0\.1 cannot be read: .*; install 1\.7\.1"):
        account(edited("Layers:\n", "Kernels:\n"), "1.8.0.1").kernels({})
