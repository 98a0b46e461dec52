"""Tell sizes, constants and values apart in a recording, and refuse what torch must trace instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from export.record import Ref, Size, Unrecorded, record
from export.to_onnx import export_onnx

EXAMPLE = {"x": torch.arange(1, 17).reshape(2, 8)}


class Module(nn.Module):
    """One function of an int64 [B, S] input, with a parameter and a buffer."""

    def __init__(self, function: Callable[[Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.table = nn.Embedding(200, 4)
        self.register_buffer("positions", torch.arange(64)[None])
        self.function = function

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.function(self, x),)


def test_sizes_are_told_from_constants() -> None:
    recording = record(Module(lambda m, x: m.table(x).view(x.shape[0], -1, 2, 2)), EXAMPLE)
    embedding, view = recording.calls
    assert (embedding.function, embedding.module) == ("embedding", "table")
    assert view.arguments == (Ref(1), Size(("batch",)), -1, 2, 2)
    assert recording.tensors[2].shape == (Size(("batch",)), Size(("sequence",)), 2, 2)


def test_a_product_of_sizes_has_both_names() -> None:
    recording = record(Module(lambda m, x: m.table(x).flatten(0, 1)), EXAMPLE)
    assert recording.tensors[2].shape == (Size(("batch", "sequence")), 4)


def test_what_is_made_of_constants_is_one() -> None:
    recording = record(Module(lambda m, x: m.table(x) * (torch.ones(4) * 2).exp()), EXAMPLE)
    assert [call.function for call in recording.calls] == ["embedding", "mul"]


def test_a_change_in_place_is_a_new_tensor(tmp_path: Path) -> None:
    def function(module: Module, x: Tensor) -> Tensor:
        y = module.table(x) * 2
        y += 1
        return y

    module, path = Module(function).eval(), tmp_path / "m.onnx"
    assert export_onnx(module, EXAMPLE, ["y"], path) == ""
    (actual,) = onnxruntime.InferenceSession(path).run(None, {"x": EXAMPLE["x"].numpy()})
    np.testing.assert_array_equal(actual, module(EXAMPLE["x"])[0].detach().numpy())


def write_through_a_view(module: Module, x: Tensor) -> Tensor:
    y = module.table(x)
    y[:, 0].mul_(2)
    return y


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: m.table(x) * 2 if x.sum() > 3 else m.table(x), "reads the value of a tensor"),
        (lambda m, x: m.table(x) * x.float().mean().item(), "reads the value of a tensor"),
        (lambda m, x: m.table(x) * 2 if x.shape[1] > 12 else m.table(x), "decides by a tensor's size or value"),
        (
            lambda m, x: m.table(x) + m.positions[:, : x.shape[1] // 2, None][:, :1],
            "a size that is 5 for one input and 8 for another",
        ),
        (write_through_a_view, "changes a tensor that others see, too"),
        (lambda m, x: m.positions.float(), "an output does not depend on the inputs"),
    ],
)
def test_what_it_cannot_hold_is_refused(function: Callable[[Module, Tensor], Tensor], reason: str) -> None:
    with pytest.raises(Unrecorded, match=reason):
        record(Module(function), EXAMPLE)


def test_a_function_without_a_form_is_traced_by_torch_and_named(tmp_path: Path) -> None:
    module, path = Module(lambda m, x: torch.logaddexp(m.table(x), m.table(x))).eval(), tmp_path / "m.onnx"
    assert export_onnx(module, EXAMPLE, ["y"], path) == "the module calls logaddexp, which has no form here"
    (actual,) = onnxruntime.InferenceSession(path).run(None, {"x": EXAMPLE["x"].numpy()})
    np.testing.assert_allclose(actual, module(EXAMPLE["x"])[0].detach().numpy(), atol=1e-6)
