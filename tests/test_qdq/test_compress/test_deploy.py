"""Everything that compress() writes becomes an engine with a metric of its own: own classes, FP32, ONNX files."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from export.to_onnx import export_onnx
from qdq.base.artifacts import read_json
from qdq.base.screen import Screen
from qdq.calibrate.treatments import rounding
from qdq.compress import deploy as deploying
from qdq.compress.arguments import CompressionArguments
from qdq.compress.deploy import deploy, main
from qdq.compress.engine_module import EngineModule
from qdq.compress.trainer import CompressionTrainer
from qdq.errors import ConfigError, ModelError
from qdq.inject import inject
from qdq.inject.quantizer import folded
from qdq.inject.spec import named_spec
from qdq.loading.model import LoadedModel
from qdq.loading.own_class import import_class

Load = Callable[..., LoadedModel]
Encode = Callable[..., dict[str, Tensor]]
OWN = Path(__file__).resolve().parents[1] / "own_models.py"
SMALL: dict[str, Any] = {"batch": 2, "sequence": 32, "threads": 1, "bench_seconds": 0.2}
TARGET = "onnxruntime"
EXAMPLES = Path(__file__).resolve().parents[3] / "examples"

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


def arguments(folder: Path, **options: Any) -> CompressionArguments:
    values = {"algo_list": ["abs_max"], "report_to": "none", "disable_tqdm": True, "device": "cpu", **options}
    return CompressionArguments(output_dir=str(folder), **values)


def accuracy(model: nn.Module, loader: Any) -> float:
    """An evaluator that calls the model by position, as examples/custom_model.py does."""
    hits = [
        model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]).argmax(-1) == batch["labels"]
        for batch in loader
    ]
    return float(torch.cat(hits).float().mean())


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels)


@pytest.fixture(scope="module")
def own(load_tiny: Load, encode: Encode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a compression of a class of one's own: a quantized candidate and a pruned one in floating point."""
    folder, loaded = tmp_path_factory.mktemp("own"), load_tiny("bert", "feature-extraction", num_hidden_layers=1)
    torch.manual_seed(5)
    model = import_class(f"{OWN}:MeanClassifier")(loaded.model.config).eval()
    inputs = encode(loaded)
    with torch.no_grad():
        labels = model(**inputs).argmax(-1)
    names = ("input_ids", "attention_mask", "token_type_ids")
    data = TensorDataset(*(inputs[name] for name in names), labels)
    CompressionTrainer(
        model=model,
        args=arguments(folder, strategy="ptq,dynabert", width_mult_list=["1/2"], max_steps=1),
        train_dataset=data,
        eval_dataset=data,
        tokenizer=loaded.tokenizer,
        criterion=cross_entropy,
    ).compress(custom_evaluate=accuracy)
    return folder


@pytest.mark.document_row("000/5", "000/21", "000/46")
@pytest.mark.slow
def test_a_class_of_ones_own_is_compiled_verified_timed_and_served(
    own: Path, jsonl_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = ("--model-class", f"{OWN}:MeanClassifier", "--task", "text-classification", "--eval-data", str(jsonl_file))
    small = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    main([str(own), "--target", TARGET, *named, *small])
    rows = {row["name"]: row for row in read_json(own / "deployment.json")["engines"]}
    assert {name: row["precision"] for name, row in rows.items()} == {"abs_max-4x1": "int8", "width-0.5": "fp32"}
    for name, row in rows.items():
        assert row["metric_name"] == "accuracy" and 0 <= row["metric"] <= 1
        assert row["p50_ms"] > 0 and row["speedup"]["onnxruntime-fp32"] > 0
        assert (Path(row["triton"]) / name / "config.pbtxt").is_file()
        report = read_json(Path(row["work"]) / TARGET / "accuracy.json")
        assert report["cosine_mean"] > 0.99 and list(report["outputs"]) == ["logits"]
    monkeypatch.syspath_prepend(str(EXAMPLES))
    words = ["--engine", str(own), "--text", "the cat finds the blue house .", "a quiet garden"]
    found = importlib.import_module("infer_seq_cls").main(words)
    assert {answer["label"] for answer in found} <= {"LABEL_0", "LABEL_1"} and len(found) == 2
    library = read_json(own / "engines" / "abs_max-4x1" / TARGET / "accuracy.json")["reference"]["library"]
    assert library == f"MeanClassifier of {OWN}"


@pytest.mark.document_row("000/21")
def test_code_of_a_candidate_is_run_only_when_it_is_named(own: Path) -> None:
    with pytest.raises(ModelError, match=r"of the class MeanClassifier, code that is not run unless you name it"):
        deploy(own, [TARGET], Screen(), **SMALL)


@pytest.mark.slow
def test_a_span_class_goes_through_every_stage(
    load_tiny: Load, tmp_path: Path, text_file: Path, qdq: Callable[..., Any], small: tuple[str, ...]
) -> None:
    """Two probabilities for every token, compared where tokens are real, under names of their own."""
    loaded = load_tiny("bert", "feature-extraction", num_hidden_layers=1)
    import_class(f"{OWN}:Spans")(loaded.model.config).save_pretrained(tmp_path / "uie")
    loaded.tokenizer.save_pretrained(tmp_path / "uie")
    words = ("--model", tmp_path / "uie", "--model-class", f"{OWN}:Spans", "--task", "feature-extraction")
    out = tmp_path / "work"
    ran = qdq("compile", *words, "--calibration", text_file, "--target", "openvino", "--out", out, *small)
    assert ran.code == 0, ran.err
    report = read_json(out / "openvino" / "accuracy.json")
    assert sorted(report["outputs"]) == ["output_0", "output_1"] and report["cosine_mean"] > 0.99
    config = (out / "openvino" / "model_repository" / "uie" / "config.pbtxt").read_text()
    assert "output_0" in config and "output_1" in config
    assert qdq("verify", "--out", out).code == 0  # takes the class from the earlier run


@pytest.mark.slow
def test_the_metric_of_an_engine_is_its_own(
    load_tiny: Load, encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """compress(deploy=...) scores engines with its own evaluator: never the fake-quantized model."""
    loaded = load_tiny(num_hidden_layers=1)
    inputs = encode(loaded)
    with torch.no_grad():
        labels = loaded.model(**inputs).logits.argmax(-1)
    data = [{**{name: inputs[name][i] for name in inputs}, "labels": labels[i]} for i in range(len(labels))]
    seen = []

    def evaluate(model: nn.Module, loader: Any) -> float:
        seen.append(type(model).__name__)
        hits = [model(**{k: v for k, v in b.items() if k != "labels"}).logits.argmax(-1) == b["labels"] for b in loader]
        return float(torch.cat(hits).float().mean()) - 0.5 * isinstance(model, EngineModule)

    monkeypatch.setattr(deploying, "deploy", lambda *given, **options: deploy(*given, **{**options, **SMALL}))
    args = arguments(tmp_path, strategy="ptq", deploy=[TARGET])
    trainer = CompressionTrainer(loaded.model, args, eval_dataset=data, tokenizer=loaded.tokenizer)
    result = trainer.compress(custom_evaluate=evaluate)
    (row,) = read_json(tmp_path / "deployment.json")["engines"]
    assert seen[-1] == "EngineModule"
    assert row["candidate_metric"] == result.best.metric
    assert row["metric"] <= 0.5 < row["candidate_metric"]


@pytest.fixture(scope="module")
def graph(load_tiny: Load, encode: Encode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded = load_tiny()
    path = tmp_path_factory.mktemp("graph") / "inference.onnx"
    inject(loaded.model, named_spec("linear", linear=False))
    with folded(loaded.model):
        export_onnx(loaded.module(), encode(loaded, 2), loaded.outputs, path)
    return path


@pytest.mark.document_row("000/30", "000/43", "000/44")
@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_quantized_file_becomes_an_engine(
    graph: Path, target: str, load_tiny: Load, encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """directory/prefix, the default strategy, AdaRound, bias correction and attention products, then an engine."""
    monkeypatch.setattr(rounding, "ADAROUND_STEPS", 5)
    loaded = load_tiny()
    inputs = encode(loaded)
    with torch.no_grad():
        labels = loaded.model(**inputs).logits.argmax(-1)
    data = [{**{name: inputs[name][i] for name in inputs}, "labels": labels[i]} for i in range(len(labels))]
    args = arguments(
        tmp_path,
        algo_list=["hist"],
        input_infer_model_path=str(graph.with_suffix("")),
        round_type="adaround",
        bias_correction=True,
    )
    result = CompressionTrainer(args=args, eval_dataset=data, tokenizer=loaded.tokenizer).compress()
    assert result.baseline == 1.0
    report = deploy(tmp_path, [target], Screen(), **SMALL)
    (row,) = report["engines"]
    assert (row["precision"], row["metric_name"]) == ("int8", "accuracy")
    assert row["metric"] >= 0.75
    assert row["accuracy"]["cosine_mean"] > 0.98
    built = json.loads((Path(row["work"]) / target / "build.json").read_text())["int8"]
    assert built["encoder_linear"][0] >= 12, built["not_int8"]
    assert (Path(row["triton"]) / row["name"] / "config.pbtxt").is_file()


def test_a_gpu_target_says_what_to_do_instead(own: Path) -> None:
    report = deploy(
        own, ["tensorrt"], Screen(), **SMALL, model_class=f"{OWN}:MeanClassifier", task="text-classification"
    )
    pruned = next(row for row in report["engines"] if row["name"] == "width-0.5")
    assert "qdq variants" in pruned["missing"]
    with pytest.raises(ConfigError, match="--task"):
        deploy(own, [TARGET], Screen(), task="text-clasification")
