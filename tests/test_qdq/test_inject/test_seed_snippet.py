"""The code of QDQBERT's documentation runs as written on an injected model.

The blocks are verbatim copies from the documentation page (Apache License 2.0, NVIDIA and Hugging Face, 2021).
"""

from __future__ import annotations

import doctest
import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from pytorch_quantization import nn as quant_nn
from pytorch_quantization.tensor_quant import QuantDescriptor

from qdq.calibrate.calibrate import freeze_weights
from qdq.calibrate.qdqbert import MethodCalibrator, QDQBertForSequenceClassification
from qdq.errors import ConfigError, ExportError
from qdq.inject import inject, quantizers
from qdq.inject.quantizer import folded
from qdq.inject.spec import PLACEMENTS, named_spec
from qdq.inject.statistics import MaxCalibrator
from qdq.loading.model import LoadedModel

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
NAMES = ("input_ids", "attention_mask", "token_type_ids")  # in the order of forward's parameters
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


@pytest.mark.document_row("003/5")
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


@pytest.mark.document_row("003/5")
def test_ranges_are_the_largest_magnitudes_fed_in_full_precision(load_tiny: LoadTiny, encode: Encode) -> None:
    loaded = load_tiny("bert")
    batch = encode(loaded)
    inject(loaded.model, named_spec("linear"))
    with torch.no_grad():
        states = loaded.model.get_submodule("bert.embeddings")(batch["input_ids"])
        execute(CALIBRATION, {"model": loaded.model, "x": batch["input_ids"]})
    point = quantizers(loaded.model)["bert.encoder.layer.0.attention.self.key.input_quantizer"]
    assert float(point.amax) == float(states.abs().max())


@pytest.mark.document_row("003/4")
@pytest.mark.usefixtures("default_descriptors")
def test_default_descriptors_decide_the_quantizers_of_a_model_made_afterwards(
    tiny_checkpoint: Callable[..., Path], load_tiny: LoadTiny, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_checkpoint("bert")
    execute(DEFAULTS, {})
    points = quantizers(QDQBertForSequenceClassification.from_pretrained(folder))
    assert {point.axis for point in points.values() if point.layout == "weight"} == {0}
    assert {type(point.calibrator) for point in points.values()} == {MaxCalibrator}
    quant_nn.QuantLinear.set_default_quant_desc_input(QuantDescriptor(num_bits=8, calib_method="histogram"))
    quant_nn.QuantLinear.set_default_quant_desc_weight(QuantDescriptor(num_bits=4, axis=None))
    points = quantizers(QDQBertForSequenceClassification.from_pretrained(folder))
    for point in points.values():
        assert point.axis is None
        assert point.num_bits == (4 if point.layout == "weight" else 8)
        assert isinstance(point.calibrator, MethodCalibrator) == (point.layout != "weight")
    # A model that a spec is injected into follows the spec, and says so
    inject(load_tiny("bert").model, named_spec("qdqbert"))
    assert "weights of 4 bits (the spec: 8), one scale per tensor of a weight (the spec: one scale" in caplog.text


@pytest.mark.usefixtures("default_descriptors")
@pytest.mark.parametrize(
    ("role", "options", "message"),
    [
        ("input", {"axis": (0,)}, "set_default_quant_desc_input: axis (0,) is not supported; give None"),
        ("weight", {"axis": (1,)}, "set_default_quant_desc_weight: axis (1,) is not supported; give None, or 0"),
        ("input", {"num_bits": 16}, "num_bits 16 is outside 2..8"),
        ("input", {"calib_method": "mean"}, "calib_method 'mean' is unknown; valid: max, histogram"),
        ("weight", {"narrow_range": True}, "narrow_range is not supported"),
        ("input", {"unsigned": True}, "unsigned is not supported"),
        ("input", {"amax": 2.0}, "amax is not supported"),
    ],
)
def test_descriptors_that_a_graph_cannot_hold_are_refused(
    role: str, options: dict[str, Any], message: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    getattr(quant_nn.QuantLinear, f"set_default_quant_desc_{role}")(QuantDescriptor(**options))
    with pytest.raises(ConfigError, match=re.escape(message)):
        QDQBertForSequenceClassification.from_pretrained(tiny_checkpoint("bert"))


@pytest.mark.document_row("003/2", "003/4", "003/5", "003/6")
@pytest.mark.usefixtures("default_descriptors")
@pytest.mark.parametrize("options", [{}, {"dynamo": True}], ids=["default", "dynamo"])
def test_the_page_from_the_defaults_to_onnx(
    options: dict[str, Any], tiny_checkpoint: Callable[..., Path], load_tiny: LoadTiny, encode: Encode, tmp_path: Path
) -> None:
    batch = encode(load_tiny("bert", num_hidden_layers=1))
    execute(DEFAULTS, {})
    model = QDQBertForSequenceClassification.from_pretrained(tiny_checkpoint("bert", num_hidden_layers=1))
    with torch.no_grad():
        execute(CALIBRATION, {"model": model, "x": batch["input_ids"]})
        expected = model(**batch).logits

    def export(*_: Any) -> None:
        torch.onnx.export(model, tuple(batch[name] for name in NAMES), tmp_path / "model.onnx", **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        execute(EXPORT, {"torch": type("Torch", (), {"onnx": type("Onnx", (), {"export": export})})})
    graph = onnx.load(tmp_path / "model.onnx").graph
    counts = Counter(node.op_type for node in graph.node)
    # Of the 20 points four quantize a tensor that another one quantizes alike
    assert (counts["QuantizeLinear"], counts["DequantizeLinear"]) == (16, 16)
    assert not {"Round", "Clip"} & counts.keys()
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert {node.input[1], node.input[2]} <= constants
    options_of_run = onnxruntime.SessionOptions()
    options_of_run.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # node by node
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options_of_run)
    feed = {given.name: batch[name].numpy() for given, name in zip(session.get_inputs(), NAMES, strict=True)}
    torch.testing.assert_close(torch.from_numpy(session.run(None, feed)[0]), expected, rtol=0, atol=2e-3)


@pytest.mark.document_row("003/6")
def test_exporters_without_the_nodes_are_refused(load_tiny: LoadTiny, encode: Encode, tmp_path: Path) -> None:
    loaded = load_tiny("bert")
    batch = encode(loaded)
    inject(loaded.model, named_spec("qdqbert"))
    with torch.no_grad():
        execute(CALIBRATION, {"model": loaded.model, "x": batch["input_ids"]})
    arguments = tuple(batch[name] for name in NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ExportError, match=r"Round and Clip in place of QuantizeLinear.*dynamo=True"):
            torch.onnx.export(loaded.model, arguments, tmp_path / "model.onnx", dynamo=False)
        with folded(loaded.model), pytest.raises(ExportError, match="Round and Clip"):
            torch.onnx.export(loaded.model, arguments, tmp_path / "model.onnx", dynamo=False)
    assert not list(tmp_path.iterdir())


def test_a_point_without_a_range_is_not_exported(load_tiny: LoadTiny, encode: Encode, tmp_path: Path) -> None:
    loaded = load_tiny("bert", num_hidden_layers=1)
    inject(loaded.model, named_spec("qdqbert"))
    arguments = tuple(encode(loaded)[name] for name in NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception, match="no calibrated amax; run calibration before export"):
            torch.onnx.export(loaded.model, arguments, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
