"""PTQ of an ONNX file through compress(): the graph computes what fake quantization of its linears does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from export.to_onnx import export_onnx
from qdq.compress.arguments import CompressionArguments
from qdq.compress.onnx_file import OnnxModule
from qdq.compress.trainer import CompressionTrainer
from qdq.errors import ConfigError, DataError
from qdq.inject import QuantSpec, inject
from qdq.inject.quantizer import folded
from qdq.loading.model import LoadedModel

Load = Callable[..., LoadedModel]
Encode = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def graph(load_tiny: Load, encode: Encode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded = load_tiny()
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    inject(loaded.model, QuantSpec(placement="linear", linear=False, matmul=(), residual=()))
    with folded(loaded.model):
        export_onnx(loaded.module(), encode(loaded, 2), loaded.outputs, path)
    return path


def rows(load_tiny: Load, encode: Encode) -> list[dict[str, torch.Tensor]]:
    loaded = load_tiny()
    inputs = encode(loaded)
    with torch.no_grad():
        labels = loaded.model(**inputs).logits.argmax(-1)
    return [{**{name: inputs[name][i] for name in inputs}, "labels": labels[i]} for i in range(len(labels))]


def run(graph: Path, folder: Path, data: Any, strategy: str = "ptq", **options: Any) -> Any:
    values: dict[str, Any] = {"algo_list": ["abs_max"], "batch_num_list": [None], "report_to": "none", "device": "cpu"}
    arguments = CompressionArguments(
        output_dir=str(folder), strategy=strategy, input_infer_model_path=str(graph), **{**values, **options}
    )
    return CompressionTrainer(args=arguments, eval_dataset=data).compress()


@pytest.mark.document_row("000/30")
def test_a_file_is_quantized_as_the_module_would_be(
    graph: Path, load_tiny: Load, encode: Encode, tmp_path: Path
) -> None:
    result = run(graph, tmp_path, rows(load_tiny, encode), batch_size_list=[4], placement="linear")
    assert result.baseline == 1.0
    assert result.best.notes["linears"] == 14  # 6 per layer, the pooler and the head: a file has no zones
    made = onnx.load(tmp_path / result.best.name / "model.onnx")
    onnx.checker.check_model(made)
    inputs = encode(load_tiny())
    expected = _fake_quantized(load_tiny(), inputs)
    found = OnnxModule(made)(**inputs)["logits"]
    assert torch.allclose(found, expected, atol=2e-3)  # a code more or less where rounding differs
    plain = load_tiny().model(**inputs).logits
    assert (found - plain).abs().max() > 1e-3


def _fake_quantized(loaded: LoadedModel, inputs: dict[str, torch.Tensor], matmul: tuple[str, ...] = ()) -> torch.Tensor:
    from qdq.calibrate.algorithms import Algorithm
    from qdq.calibrate.calibrate import calibrate

    spec = QuantSpec(placement="linear", matmul=matmul, residual=(), enable_layers=r"(pooler|classifier)")
    inject(loaded.model, spec)
    calibrate(loaded.model, [inputs], spec, Algorithm("max"))
    with torch.no_grad():
        logits: torch.Tensor = loaded.model(**inputs).logits
    return logits


def test_attention_products_are_quantized_as_the_placement_says(
    graph: Path, load_tiny: Load, encode: Encode, tmp_path: Path
) -> None:
    """Operands by their roles: the products of queries and keys alone, all four, and the module's own codes of them."""
    data, found = rows(load_tiny, encode), {}
    for placement in ("linear", "linear+qk", "qdqbert"):
        result = run(graph, tmp_path / placement, data, placement=placement)
        made = onnx.load(tmp_path / placement / result.best.name / "model.onnx")
        found[placement] = sum(node.op_type == "QuantizeLinear" for node in made.graph.node)
    assert found == {"linear": 10, "linear+qk": 14, "qdqbert": 18}  # two layers: four operands, two products each
    inputs = encode(load_tiny())
    expected = _fake_quantized(load_tiny(), inputs, ("q", "k", "a", "v"))
    assert torch.allclose(OnnxModule(made)(**inputs)["logits"], expected, atol=6e-3)


@pytest.mark.document_row("000/43", "000/44")
def test_codes_and_biases_are_chosen_as_for_a_module(
    graph: Path, load_tiny: Load, encode: Encode, tmp_path: Path
) -> None:
    data, plain = rows(load_tiny, encode), load_tiny().model(**encode(load_tiny())).logits
    errors, codes = {}, {}
    treated: dict[str, dict[str, Any]] = {
        "round": {},
        "gptq": {"round_type": "gptq"},
        "adaround": {"round_type": "adaround"},
        "bias": {"bias_correction": True},
    }
    for name, options in treated.items():
        result = run(graph, tmp_path / name, data, placement="linear", weight_quantize_type="abs_max", **options)
        made = onnx.load(tmp_path / name / result.best.name / "model.onnx")
        onnx.checker.check_model(made)
        codes[name] = [tensor.raw_data for tensor in made.graph.initializer if tensor.name.endswith(".codes")]
        errors[name] = float((OnnxModule(made)(**encode(load_tiny()))["logits"] - plain).detach().square().mean())
    assert codes["gptq"] != codes["round"] != codes["adaround"]
    assert codes["bias"] == codes["round"]
    assert errors["gptq"] < errors["round"] != errors["bias"]
    assert errors["adaround"] < 2 * errors["round"]  # of random weights in few steps: near, not always nearer


def test_the_default_strategy_is_reduced_to_its_ptq_part(
    graph: Path, load_tiny: Load, encode: Encode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(graph, tmp_path, rows(load_tiny, encode), "dynabert+ptq").best.name == "abs_max-4xall"
    assert "strategy dynabert+ptq: an ONNX file can be quantized only, so of it ptq is done" in capsys.readouterr().err


@pytest.mark.document_row("000/31")
def test_inputs_become_int32_when_asked(graph: Path, load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    data = rows(load_tiny, encode)
    found = []
    for kind in ("int64", "int32"):
        result = run(graph, tmp_path / kind, data, input_dtype=kind)
        made = onnx.load(tmp_path / kind / result.best.name / "model.onnx")
        types = {onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type) for value in made.graph.input}
        assert types == {kind.upper()}
        found.append(OnnxModule(made)(**encode(load_tiny()))["logits"])
    assert torch.equal(*found)


def test_files_and_strategies_that_do_not_fit(graph: Path, load_tiny: Load, encode: Encode, tmp_path: Path) -> None:
    data = rows(load_tiny, encode)
    with pytest.raises(ConfigError, match=r"can be quantized, not trained or pruned; strategy is dynabert\+qat"):
        run(graph, tmp_path, data, "dynabert+qat")
    with pytest.raises(ConfigError, match="smoothing: needs a module"):
        run(graph, tmp_path, data, smoothing=True)
    with pytest.raises(ConfigError, match="dynamic ranges need a module"):
        run(graph, tmp_path, data, placement="dynamic")
    with pytest.raises(ConfigError, match=r"there is no .*no.onnx and no"):
        run(tmp_path / "no.onnx", tmp_path, data)
    (tmp_path / "damaged.onnx").write_bytes(b"no graph")
    with pytest.raises(ConfigError, match="cannot be read as ONNX"):
        run(tmp_path / "damaged", tmp_path, data)
    (tmp_path / "inference.pdmodel").write_bytes(b"paddle")
    for typed in ("inference", "inference.pdmodel"):
        with pytest.raises(ConfigError, match=r"is a Paddle model; convert it first: paddle2onnx --model_dir"):
            run(tmp_path / typed, tmp_path, data)
    with pytest.raises(DataError, match="has no column 'attention_mask'"):
        run(graph, tmp_path, [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in data])
    with pytest.raises(ConfigError, match="no built-in evaluator fits"):
        run(graph, tmp_path, [{key: value for key, value in row.items() if key != "labels"} for row in data])
    result = run(graph, tmp_path / "first", data)
    with pytest.raises(ConfigError, match="has QuantizeLinear nodes already"):
        run(tmp_path / "first" / result.best.name / "model.onnx", tmp_path / "second", data)
