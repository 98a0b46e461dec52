"""AutoCompression on tiny models: every strategy, its files, and both forms of a callback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from torch.utils.data import DataLoader
from transformers import default_data_collator

import qdq
from qdq.auto.command import evaluate_file, run_file
from qdq.auto.compression import AutoCompression
from qdq.auto.inputs.texts import NoText
from qdq.auto.search.job import run
from qdq.auto.strategy import REPORT
from qdq.base.artifacts import read_json
from qdq.base.screen import Screen
from qdq.calibrate.checkpoint import load_checkpoint
from qdq.errors import ConfigError
from qdq.loading.model import load_model
from qdq.text.data import read_records

pytestmark = pytest.mark.usefixtures("light_collections")  # a training ends with a full one

Compressing = Callable[..., AutoCompression]
SHORT: dict[str, Any] = {
    "train_iter": 6,
    "eval_iter": 3,
    "learning_rate": 1e-4,
    "optimizer_builder": {"optimizer": {"type": "AdamW"}, "weight_decay": 0.01},
}


@pytest.mark.document_row("004/7", "004/9", "004/16")
def test_prune_distil_and_quantize(compressing: Compressing, tmp_path: Path) -> None:
    """Steps in their order, quantization last and with a tenth of the rate; the result is a checkpoint."""
    config = {
        "QuantPost": {"batch_nums": 2},
        "Prune": {"pruned_ratio": 0.5},
        "Distillation": None,
        "TrainConfig": SHORT,
    }
    result = compressing(config).compress()
    assert [row["step"] for row in result.steps] == ["prune", "ptq"]
    assert result.baseline == 1.0 and 0 <= result.metric <= 1
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["metric"] == result.metric and report["steps"][0]["notes"]["width"] == "1/2"
    again, spec, _ = load_checkpoint(tmp_path / "out")
    assert again.model.config.num_attention_heads == 1 and spec.linear and spec.residual == ()
    assert spec.matmul == ("q", "k", "a", "v")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_quantization_aware_training_after_pruning(compressing: Compressing, tmp_path: Path) -> None:
    config = {"QuantAware": {"use_pact": True}, "Prune": {"pruned_ratio": 0.5}, "Distillation": None}
    result = compressing(config | {"TrainConfig": SHORT}).compress()
    assert [row["step"] for row in result.steps] == ["prune", "qat"]
    record = json.loads((tmp_path / "out" / "training" / "width-0.5-qat" / "training.json").read_text())
    first = json.loads((tmp_path / "out" / "training" / "dynabert" / "training.json").read_text())
    assert float(record["learning_rate"]) == pytest.approx(float(first["learning_rate"]) / 10)
    assert (first["max_steps"], record["max_steps"]) == ("6", "1")  # a tenth, and at least one
    assert load_checkpoint(tmp_path / "out")[1].linear


def test_distillation_alone_from_another_teacher(
    compressing: Compressing, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    teacher = tiny_checkpoint("bert", "text-classification", num_hidden_layers=3)
    result = compressing({"Distillation": {"teacher_model_dir": str(teacher)}, "TrainConfig": SHORT}).compress()
    assert [row["step"] for row in result.steps] == ["distill"]
    made = load_model(str(tmp_path / "out"))
    assert made.model.config.num_hidden_layers == 2


@pytest.mark.document_row("004/10")
def test_nothing_configured_is_the_default_strategy(compressing: Compressing) -> None:
    """A quarter of the width and more where heads do not divide, then INT8 as the outputs' movement decides."""
    result = compressing({"TrainConfig": SHORT}).compress()
    assert [row["step"] for row in result.steps] == ["prune", "trial"]
    assert result.steps[0]["notes"]["width"] == "1/2"
    assert result.steps[1]["notes"]["trial"]["decision"] in ("kept", "searched", "trained")


def test_target_speedup_decides_the_width(compressing: Compressing) -> None:
    assert compressing({}, target_speedup=1.1)._default().prune.pruned_ratio == 0.5  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="reached by INT8 alone"):
        compressing({}, target_speedup=0.6).compress()
    with pytest.raises(ConfigError, match=r"asks for 0.80 of 2 heads to be cut; give less than 1.20"):
        compressing({}, target_speedup=1.5).compress()
    with pytest.raises(ConfigError, match="chooses a strategy, and ptq is configured"):
        compressing({"QuantPost": None}, target_speedup=1.0)


@pytest.mark.parametrize("backend", [None, "onnxruntime"])
def test_the_exported_graph(backend: str | None, compressing: Compressing, tmp_path: Path) -> None:
    ac = compressing({"QuantPost": {"batch_nums": 1}}, input_shapes={"input_ids": [2, 16]})
    with pytest.raises(Exception, match="has no model; call compress"):
        ac.export_onnx()
    ac.compress()
    file = ac.export_onnx("quant_model.onnx", deploy_backend=backend)
    assert file == tmp_path / "out" / "ONNX" / "quant_model.onnx"
    graph = onnx.load(file).graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    assert [[size.dim_value for size in value.type.tensor_type.shape.dim] for value in graph.input] == [[2, 16]] * 3
    with pytest.raises(ConfigError, match="deploy_backend: unknown value 'tensorrtt'; did you mean"):
        ac.export_onnx(deploy_backend="tensorrtt")


def test_a_callback_in_paddles_form(compressing: Compressing) -> None:
    """`exe.run` on every model there is: the given one, and the quantized one."""
    seen: list[Any] = []

    def evaluate(exe: Any, program: Any, feed_names: list[str], fetch_list: list[str]) -> float:
        feed = {name: np.ones((2, 5), dtype=np.int64) for name in feed_names}
        (logits,) = exe.run(program, feed=feed, fetch_list=fetch_list)
        seen.append((feed_names, fetch_list, logits.shape))
        return 0.5

    result = compressing({"QuantPost": {"batch_nums": 1}}, labelled=False, eval_callback=evaluate).compress()
    assert result.metric == 0.5
    assert seen[0] == (["input_ids", "attention_mask", "token_type_ids"], ["logits"], (2, 2)) and len(seen) == 2
    with pytest.raises(ConfigError, match="takes 3 arguments"):
        compressing({"QuantPost": None}, eval_callback=lambda a, b, c: 1.0)


def test_data_without_labels(compressing: Compressing) -> None:
    """Distillation needs none: pruning takes the model's own answers for the importance of its heads."""
    config = {"Prune": {"pruned_ratio": 0.5}, "Distillation": None, "TrainConfig": SHORT}
    result = compressing(config, labelled=False, eval_callback=lambda model, loader: 0.25).compress()
    assert result.steps[0]["step"] == "prune" and result.metric == 0.25


def test_loaders_that_are_none_of_torchs(
    tiny_checkpoint: Callable[..., Path], rows: Callable[..., Any], tmp_path: Path
) -> None:
    """Batches of arrays, in a list of one as Paddle has them, from a function; the first 5000 of them decide."""
    data = rows(8)

    def loader() -> Any:
        for first in (0, 4):
            yield [{name: torch.stack([row[name] for row in data[first : first + 4]]).numpy() for name in data[0]}]

    ac = AutoCompression(
        str(tiny_checkpoint()), loader, save_dir=str(tmp_path), config={"QuantPost": {"batch_nums": 1}}
    )
    assert len(ac.rows.train) == len(ac.rows.dev) == 8 and ac.rows.batch_size == 4
    assert ac.compress().baseline == 1.0


def test_an_onnx_file_is_quantized_under_its_name(
    compressing: Compressing, rows: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ac = compressing({"QuantPost": {"batch_nums": 1}})
    folder = tmp_path / "graph"
    folder.mkdir()
    ac.save_dir = folder
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((Path(ac.source.name) / name).read_bytes())
    (folder / "tokenizer.json").write_bytes((Path(ac.source.name) / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_bytes((Path(ac.source.name) / "tokenizer_config.json").read_bytes())
    graph = ac.export_onnx("inference.onnx", deploy_backend="openvino")
    (folder / "model.safetensors").unlink()
    graph.replace(folder / "inference.onnx")
    given = {"model_filename": "inference.pdmodel", "params_filename": "inference.pdiparams"}
    search = {"QuantPost": None, "HyperParameterOptimization": {"max_quant_count": 2, "batch_num": [1, 2]}}
    made = AutoCompression(str(folder), list(batches(rows(8))), save_dir=str(tmp_path / "out"), config=search, **given)  # type: ignore[arg-type]
    result = made.compress()
    assert len(result.steps[0]["notes"]["search"]) == 2
    quantized = onnx.load(tmp_path / "out" / "inference.onnx").graph
    assert "QuantizeLinear" in {node.op_type for node in quantized.node}
    assert (tmp_path / "out" / "config.json").is_file()  # its text files lie beside it
    assert made.export_onnx(deploy_backend="onnxruntime").is_file()
    with monkeypatch.context() as patch:  # started again, no setting is tried again
        patch.setattr("qdq.auto.graph._quantized", None)
        assert made.compress().as_json() == result.as_json()
    # The same by a configuration file, whose data are read with the config.json and the tokenizer beside the graph
    (tmp_path / "dev.tsv").write_text("label\tsentence\n0\tthe cat finds the blue house\n1\ta small dog\n")
    options = {"model_dir": str(folder), "dev_data": str(tmp_path / "dev.tsv"), **given}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"Global": options, "QuantPost": {"batch_nums": 1}}))
    before = evaluate_file(tmp_path / "run.yaml", Screen())
    by_file = run_file(tmp_path / "run.yaml", tmp_path / "file", Screen())
    assert by_file.baseline == next(iter(before.values())) and (tmp_path / "file" / "inference.onnx").is_file()
    # Files cannot be trained
    for config, message in (
        ({"Distillation": None}, "can be quantized (QuantPost) but not trained, and there is distill"),
        ({}, "and there is no strategy"),
        ({"QuantPost": {"weight_bits": 4}}, "weight_bits: needs a checkpoint folder"),
    ):
        with pytest.raises(ConfigError) as error:
            AutoCompression(str(folder), list(batches(rows(4))), config=config, **given).compress()  # type: ignore[arg-type]
        assert message in str(error.value)


def batches(data: list[dict[str, torch.Tensor]]) -> Any:
    for first in range(0, len(data), 4):
        yield {name: torch.stack([row[name] for row in data[first : first + 4]]) for name in data[0]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deploy_hardware": "SD710"}, "SD710: PaddleSlim predicts latencies of this chip"),
        ({"deploy_hardware": "tpu"}, "deploy_hardware: unknown value 'tpu'"),
        ({"input_shapes": [40]}, "is no batch and sequence"),
        ({"input_shapes": {"a": [1, 2], "b": [1, 3]}}, "is no batch and sequence"),
        ({"model_filename": "model.onnx"}, "there is no"),
        ({"params_filename": "other.safetensors", "model_filename": "config.json"}, "check params_filename"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str, compressing: Compressing) -> None:
    with pytest.raises(ConfigError, match=message):
        compressing({"QuantPost": None}, **options)


@pytest.mark.slow
def test_rows_of_a_loader_end_as_the_fastest_engine(
    compressing: Compressing, rows: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search itself, from loaders of token ids to a checkpoint, with real trainings, engines and race."""
    pytest.importorskip("openvino")
    # Jobs in this process, which has imported everything
    monkeypatch.setattr(
        "qdq.auto.search.command.launch", lambda _, folders, screen: [run(folder, screen) for folder in folders]
    )
    evaluation = DataLoader(rows(36), 4, collate_fn=default_data_collator)
    options = {"eval_dataloader": evaluation, "deploy_hardware": "cpu", "input_shapes": [4, 16]}
    ac = compressing(None, max_drop=100.0, budget="1h", **options)
    result = ac.compress()
    report = read_json(tmp_path / "out" / "search" / "report.json")
    (step,) = result.steps
    chosen = next(one for one in report["engines"] if one["name"] == step["name"])
    assert (result.baseline, result.metric) == (report["fp32"]["judging"]["value"], chosen["judging"]["value"])
    assert len(report["engines"]) > 1, "no other candidate was built and raced"
    assert step["notes"]["faster"] == chosen["ratio"]
    assert report["fp32"]["choosing"]["samples"] + report["fp32"]["judging"]["samples"] == 36
    # The checkpoint is that of the engine
    engine = qdq.load(step["notes"]["engine"])
    texts = ["the cat sees a dog", "a river"]
    tokens = {name: value[:, :16] for name, value in engine.tokenizer(texts, padding=True, return_tensors="pt").items()}
    with torch.no_grad():
        float_logits = load_checkpoint(tmp_path / "out")[0].model(**tokens).logits
    assert torch.allclose(torch.as_tensor(engine(**tokens).logits), float_logits, atol=0.05)


@pytest.mark.parametrize("hardware", ["gpu", "cpu"])
def test_nothing_configured_is_a_search_by_measurement(
    hardware: str,
    compressing: Compressing,
    rows: Callable[..., Any],
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loaders' rows as text, the shape and the target that were asked for; the checkpoint of the best engine."""
    made = compressing({"QuantPost": {"batch_nums": 1}}, save_dir=str(tmp_path / "engine" / "checkpoint"))
    made.compress()  # stands for what the search deploys
    asked: list[Any] = []

    def search(settings: Any, screen: Screen) -> dict[str, Any]:
        asked.append(settings)
        side = {"judging": {"value": 0.75}}
        engine = {"name": "width 1/2, ptq", "judging": {"value": 0.5}, "ratio": {"value": 1.5}}
        about = {"fp32": side, "engines": [engine], "chosen": "width 1/2, ptq", "why": "the fastest"}
        return about | {"deployed": str(tmp_path / "engine")}

    monkeypatch.setattr("qdq.auto.compression.search", search)
    evaluation = DataLoader(rows(36)[24:] + rows(36)[:12], 4, collate_fn=default_data_collator)
    options = {"eval_dataloader": evaluation, "deploy_hardware": hardware, "input_shapes": [4, 16], "budget": "2m"}
    ac = compressing(None, max_drop=1.5, **options)
    result = ac.compress()
    (settings,) = asked
    settings.validate()
    assert (settings.target, settings.batch, settings.sequence) == (ac.backend, 4, 16)
    assert (settings.budget, settings.max_drop, settings.model) == (120.0, 1.5, str(tiny_checkpoint()))
    records, _ = read_records(settings.source(settings.dev))
    assert len(records) == 24 and {record.label for record in records} <= {"0", "1"}
    assert (result.baseline, result.metric) == (0.75, 0.5) and result.steps[0]["name"] == "width 1/2, ptq"
    assert load_checkpoint(tmp_path / "out")[1].linear and (tmp_path / "out" / "tokenizer.json").is_file()
    assert ac.export_onnx(deploy_backend="openvino").is_file()


def test_reasons_for_the_rule_instead_of_a_search(compressing: Compressing, rows: Callable[..., Any]) -> None:
    def reason(config: Any = None, labelled: bool = True, **options: Any) -> str:
        data = options.pop("dev", None)
        loader = None if data is None else DataLoader(data, 4, collate_fn=default_data_collator)
        with pytest.raises(NoText) as error:
            compressing(config, labelled=labelled, eval_dataloader=loader, **options)._search()
        return str(error.value)

    assert reason({"TrainConfig": SHORT}) == "TrainConfig is given, and a search trains in its own way"
    assert reason() == "3 rows are fewer than the 20 that choose and judge"  # every tenth of 24
    assert reason(dev=rows(8)) == "8 rows are fewer than the 20 that choose and judge"
    assert reason(target_speedup=1.1) == "target_speedup is given"
    assert reason(dev=rows(24), eval_callback=lambda model, loader: 0.5) == "eval_callback is a metric of the caller's"
    assert reason(dev=rows(24), labelled=False) == "train row 0 has no class"
