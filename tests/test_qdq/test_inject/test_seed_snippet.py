"""The code of QDQBERT's documentation runs as written on an injected model.

The blocks are verbatim copies from the documentation page (Apache License 2.0, NVIDIA and Hugging Face, 2021).
"""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_quantization import nn as quant_nn
from pytorch_quantization.tensor_quant import QuantDescriptor

from qdq.calibrate.calibrate import freeze_weights
from qdq.inject import inject, quantizers
from qdq.inject.spec import PLACEMENTS, named_spec
from qdq.load.model import LoadedModel

DEFAULTS = """\
>>> import pytorch_quantization.nn as quant_nn
>>> from pytorch_quantization.tensor_quant import QuantDescriptor

>>> # The default tensor quantizer is set to use Max calibration method
>>> input_desc = QuantDescriptor(num_bits=8, calib_method="max")
>>> # The default tensor quantizer is set to be per-channel quantization for weights
>>> weight_desc = QuantDescriptor(num_bits=8, axis=((0,)))
>>> quant_nn.QuantLinear.set_default_quant_desc_input(input_desc)
>>> quant_nn.QuantLinear.set_default_quant_desc_weight(weight_desc)
"""

CALIBRATION = """\
>>> # Find the TensorQuantizer and enable calibration
>>> for name, module in model.named_modules():
...     if name.endswith("_input_quantizer"):
...         module.enable_calib()
...         module.disable_quant()  # Use full precision data to calibrate

>>> # Feeding data samples
>>> model(x)
>>> # ...

>>> # Finalize calibration
>>> for name, module in model.named_modules():
...     if name.endswith("_input_quantizer"):
...         module.load_calib_amax()
...         module.enable_quant()

>>> # If running on GPU, it needs to call .cuda() again because new tensors will be created by calibration process
>>> model.cuda()

>>> # Keep running the quantized model
>>> # ...
"""

EXPORT = """\
>>> from pytorch_quantization.nn import TensorQuantizer

>>> TensorQuantizer.use_fb_fake_quant = True

>>> # Load the calibrated model
>>> ...
>>> # ONNX export
>>> torch.onnx.export(...)
"""

SEEDS = Path(__file__).resolve().parents[4] / "shared" / "seeds"
LoadTiny = Callable[..., LoadedModel]
Encode = Callable[..., dict[str, torch.Tensor]]


def execute(block: str, names: dict[str, Any]) -> None:
    """Run the examples of a documentation block one after another, but for the line that needs a GPU."""
    for example in doctest.DocTestParser().get_examples(block):
        if ".cuda()" not in example.source:
            exec(compile(example.source, "<documentation>", "exec"), names)


@pytest.fixture
def default_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put pytorch-quantization's class defaults back afterwards: the documentation changes them for the process."""
    for name in ("default_quant_desc_input", "default_quant_desc_weight"):
        monkeypatch.setattr(quant_nn.QuantLinear, name, getattr(quant_nn.QuantLinear, name))
    monkeypatch.setattr(quant_nn.TensorQuantizer, "use_fb_fake_quant", False)


@pytest.mark.skipif(not SEEDS.is_dir(), reason="the shared folder with the documentation page is not here")
def test_the_blocks_are_verbatim() -> None:
    page = next(SEEDS.glob("003*.txt")).read_text(encoding="utf-8")
    assert re.findall(r"```python\n(.*?)```", page, re.S) == [DEFAULTS, CALIBRATION, EXPORT]


@pytest.mark.parametrize("placement", [name for name in PLACEMENTS if name != "dynamic"])  # it calibrates nothing
def test_the_calibration_block_calibrates_every_activation_point(
    placement: str, load_tiny: LoadTiny, encode: Encode
) -> None:
    loaded = load_tiny("bert")
    batch = encode(loaded)
    with torch.no_grad():
        before = loaded.model(batch["input_ids"]).logits
    inject(loaded.model, named_spec(placement))
    with torch.no_grad():
        execute(CALIBRATION, {"model": loaded.model, "x": batch["input_ids"]})
        after = loaded.model(batch["input_ids"]).logits
    points = quantizers(loaded.model)
    activations = {name: point for name, point in points.items() if point.layout != "weight"}
    assert activations
    for point in activations.values():
        assert float(point.amax) > 0
        assert point._if_quant
        assert not point._if_calib
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, before, rtol=0, atol=0.1)  # logits spread over 0.8
    freeze_weights(loaded.model)  # the block leaves weight ranges to be taken from the weights, which is the same
    assert all(point.amax is not None for point in points.values())
    with torch.no_grad():
        assert torch.equal(loaded.model(batch["input_ids"]).logits, after)


def test_ranges_are_the_largest_magnitudes_fed_in_full_precision(load_tiny: LoadTiny, encode: Encode) -> None:
    loaded = load_tiny("bert")
    batch = encode(loaded)
    inject(loaded.model, named_spec("linear"))
    with torch.no_grad():
        states = loaded.model.get_submodule("bert.embeddings")(batch["input_ids"])
        execute(CALIBRATION, {"model": loaded.model, "x": batch["input_ids"]})
    point = quantizers(loaded.model)["bert.encoder.layer.0.attention.self.key.input_quantizer"]
    assert float(point.amax) == float(states.abs().max())


@pytest.mark.usefixtures("default_descriptors")
def test_default_descriptors_can_be_set_and_do_not_reach_injected_points(load_tiny: LoadTiny, encode: Encode) -> None:
    loaded, other, late = load_tiny("bert"), load_tiny("bert"), load_tiny("bert")
    batch = encode(loaded)
    inject(loaded.model, named_spec("qdqbert"))
    with torch.no_grad():
        before = loaded.model(**batch).logits
        execute(DEFAULTS, {})
        execute(EXPORT, {"torch": type("Stub", (), {"onnx": type("Stub", (), {"export": print})})})
        assert quant_nn.QuantLinear.default_quant_desc_weight.axis == (0,)
        assert torch.equal(loaded.model(**batch).logits, before)
        inject(other.model, named_spec("qdqbert"))
        assert torch.equal(other.model(**batch).logits, before)
        quant_nn.QuantLinear.set_default_quant_desc_input(QuantDescriptor(num_bits=3))
        inject(late.model, named_spec("qdqbert"))
        assert torch.equal(late.model(**batch).logits, before)
