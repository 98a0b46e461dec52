"""Each stage as a command of its own: from the previous stage's files, with the earlier options, to the same bytes."""

from __future__ import annotations

import gc
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from engines.cores import available_cores
from engines.targets import TARGETS, Runtime
from engines.types import BuiltEngine
from qdq.base.screen import Screen
from qdq.errors import BuildError, WorkError
from qdq.pipeline.compile import run_stage

Qdq = Callable[..., Any]
CheckpointFactory = Callable[..., Path]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by relative name; timings are left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "benchmark.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def without_manifest(folder: Path) -> dict[str, bytes]:
    """Without the pages, too: they are of the last run's target, and show timings."""
    mine = ("manifest.json", "report.html", "README.md")
    return {name: content for name, content in contents(folder).items() if name not in mine}


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_every_stage_of_a_target_starts_from_the_files_before_it(workplace: Path, qdq: Qdq, target: str) -> None:
    """Neither the model nor any option is given again; the model's folder is not even there any more."""
    before = without_manifest(workplace / "work")
    shutil.rmtree(workplace / "work" / target)
    shutil.rmtree(workplace / "tiny-bert")
    for stage in ("lower", "build", "verify", "deploy"):
        ran = qdq(stage, "--out", "work", "--target", target)
        assert ran.code == 0, ran.err
        assert "warning" not in ran.err
    assert without_manifest(workplace / "work") == before
    options = read(workplace / "work" / "manifest.json")["options"]
    assert (options["batch"], options["sequence"], options["calibration"]) == (2, 32, "text.jsonl")


def test_bench_alone_has_enough_samples_for_p99(workplace: Path, qdq: Qdq) -> None:
    """In throughput mode: as many batches at once as there are cores."""
    ran = qdq("bench", "--out", "work", "--target", "onnxruntime", "--mode", "throughput", "--threads", "1")
    assert ran.code == 0, ran.err
    bench = read(workplace / "work/onnxruntime/benchmark.json")
    assert (bench["threads"], bench["streams"]) == (1, available_cores())
    assert bench["budget_s"] is None
    assert all(entry["samples"] == 100 for entry in bench["contestants"].values())
    assert all(entry["latency_ms"]["p99"] > 0 for entry in bench["contestants"].values())
    assert "int8 " in ran.out


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_serving_shapes(workplace: Path, qdq: Qdq, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shape the model takes is timed, the others are named; the policies run the same texts."""
    monkeypatch.setattr("qdq.pipeline.stages.shapes.SECONDS", 0.01)
    monkeypatch.setattr("qdq.pipeline.stages.shapes.BATCHES", (1, 3))
    monkeypatch.setattr("qdq.pipeline.stages.shapes.SEQUENCES", (16, 32, 100_000))
    ran = qdq("shapes", "--out", "work", "--target", target)
    assert ran.code == 0, ran.err
    found = read(workplace / "work" / target / "shapes.json")
    assert [(item["batch"], item["sequence"]) for item in found["shapes"]] == [(1, 16), (3, 16), (1, 32), (3, 32)]
    assert all(item["contestants"]["int8"]["samples"] >= 3 for item in found["shapes"])
    assert [item["sequence"] for item in found["skipped"]] == [100_000, 100_000]
    assert "beyond the" in found["skipped"][0]["reason"]
    batching = found["batching"]
    assert batching["fixed"]["speedup"] == 1 and batching["fixed"]["widths"] == [32]
    assert 0 <= batching["bucketed"]["padding_share"] <= batching["fixed"]["padding_share"] < 1
    assert all(row["sequences_per_s"] > 0 for row in batching.values())
    assert "bucketed" in ran.out and "skipped: --sequence" in ran.out


def test_inject_and_calibrate_give_the_same_bytes_again(workplace: Path, qdq: Qdq) -> None:
    before = without_manifest(workplace / "work")
    for stage in ("inject", "calibrate"):
        ran = qdq(stage, "--out", "work")
        assert ran.code == 0, ran.err
        assert "warning" not in ran.err
    assert without_manifest(workplace / "work") == before


def test_calibrate_and_inject_can_come_first(workplace: Path, qdq: Qdq, small: tuple[str, ...]) -> None:
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--target", "openvino", *small)
    assert qdq("inject", *source, "--out", "fresh").code == 0
    assert sorted(p.name for p in Path("fresh").iterdir()) == [".lock", "manifest.json", "placement.json"]
    assert read(Path("fresh/placement.json"))["points"] == read(Path("work/placement.json"))["points"]
    assert qdq("calibrate", *source).code == 0
    assert contents(Path("build/tiny-bert/checkpoint")) == contents(Path("work/checkpoint"))


def test_a_later_stage_says_what_it_leaves_behind(workplace: Path, qdq: Qdq) -> None:
    ran = qdq("calibrate", "--out", "work", "--target", "openvino", "--placement", "linear", "--json")
    outcome = json.loads(ran.out)
    assert outcome["warnings"] == [
        "older than what they are made from: export, openvino/lower, openvino/build, openvino/verify, openvino/bench, "
        "openvino/deploy; 'qdq compile' renews them"
    ]
    ran = qdq("lower", "--out", "work")  # recalls --placement linear; export has not run since
    assert ran.code == 0
    assert "export, openvino/lower" in ran.err


def test_a_changed_canonical_graph_is_told_to_the_other_target(workplace: Path, qdq: Qdq) -> None:
    graph = onnx.load("work/model.qdq.onnx")
    graph.doc_string = "another one"
    onnx.save(graph, "work/model.qdq.onnx")
    ran = qdq("lower", "--out", "work", "--target", "openvino")
    warned = [line for line in " ".join(ran.err.split()).split("warning: ") if line.startswith("work/onnxruntime was")]
    assert len(warned) == 1
    assert "was made from another model.qdq.onnx than the present one; renew it with --target onnxruntime" in warned[0]


@pytest.mark.parametrize(
    ("stage", "typed", "decider"),
    [
        ("bench", ("--placement", "qdqbert"), "calibrate"),
        ("lower", ("--calibration", "other.txt"), "calibrate"),
        ("build", ("--samples", "5"), "calibrate"),
        ("verify", ("--precision-hint", "bf16"), "build"),
    ],
)
def test_a_later_stage_cannot_change_what_is_decided(
    workplace: Path, qdq: Qdq, stage: str, typed: tuple[str, str], decider: str
) -> None:
    before = contents(workplace / "work")
    ran = qdq(stage, "--out", "work", *typed)
    assert ran.code == 2
    assert ran.err.startswith(f"qdq: {typed[0]}: this work directory was made with ")
    assert f"run 'qdq compile' or 'qdq {decider}' with it" in ran.err
    assert contents(workplace / "work") == before


def test_what_is_typed_counts_even_when_it_is_a_default(workplace: Path, qdq: Qdq) -> None:
    """The earlier run had batch 2; a typed 40 is not mistaken for "nothing typed"."""
    assert qdq("deploy", "--out", "work", "--target", "openvino", "--batch", "40").code == 0
    assert "max_batch_size: 40" in Path("work/openvino/model_repository/tiny-bert/config.pbtxt").read_text()


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_triton_backends(workplace: Path, qdq: Qdq, target: str, backend: str) -> None:
    ran = qdq("deploy", "--out", "work", "--target", target, "--triton-backend", backend)
    assert ran.code == 0, ran.err
    assert (
        f'backend: "{backend}"' in (workplace / "work" / target / "raw_repository/tiny-bert/config.pbtxt").read_text()
    )
    text = (workplace / "work" / target / "model_repository/tiny-bert/config.pbtxt").read_text()
    assert 'backend: "python"' in text and "TYPE_STRING" in text  # beside it, as always


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_an_engine_with_int32_inputs_answers_the_same(workplace: Path, qdq: Qdq, target: str) -> None:
    folder = workplace / "work" / target
    before = (folder / "accuracy.json").read_bytes()
    for stage, *typed in (("lower", "--input-dtype", "int32"), ("build",), ("verify",), ("deploy", "--raw-inputs")):
        ran = qdq(stage, "--out", "work", "--target", target, *typed)
        assert ran.code == 0, ran.err
    assert (folder / "accuracy.json").read_bytes() == before
    config = (folder / "raw_repository/tiny-bert/config.pbtxt").read_text()
    assert "TYPE_INT32" in config and "TYPE_INT64" not in config


def test_triton_buckets_as_documented(workplace: Path, qdq: Qdq) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "triton.md").read_text(encoding="utf-8")
    command = re.findall(r"^qdq (deploy .*--buckets .*)$", page, flags=re.MULTILINE)[0]
    typed = command.replace("build/my-bert", "work").replace("32,64,128", "8,16,32").split()
    ran = qdq(*typed, "--target", "onnxruntime")
    assert ran.code == 0, ran.err
    folder = workplace / "work" / "onnxruntime" / "raw_repository"
    assert sorted(path.name for path in folder.iterdir()) == ["tiny-bert_s16", "tiny-bert_s32", "tiny-bert_s8"]
    assert (folder / "tiny-bert_s8/warmup/input_ids.bin").stat().st_size == 8 * 8
    assert qdq("deploy", "--out", "work", "--target", "onnxruntime", "--buckets", "", "--raw-inputs").code == 0
    assert [path.name for path in folder.iterdir()] == ["tiny-bert"]
    assert qdq("deploy", "--out", "work", "--target", "onnxruntime", "--no-raw-inputs").code == 0
    assert not folder.exists()  # nobody is served an old model of it


def test_models_are_released_when_their_stage_is_done(
    workplace: Path, qdq: Qdq, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the graphs are written one model is left: neither the injected one nor the floating-point one."""
    from export import check

    def models() -> set[int]:
        return {id(item) for item in gc.get_objects() if type(item) is BertForSequenceClassification}

    def counted(path: Path, points: list[str]) -> Any:
        alive.append(len(models() - before))
        return check_file(path, points)

    alive: list[int] = []
    check_file = check.check_file
    monkeypatch.setattr(check, "check_file", counted)
    gc.collect()
    before = models()
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--out", "fresh", "--placement", "linear")
    ran = qdq("compile", *source, "--target", "onnxruntime", *small)
    assert ran.code == 0, ran.err
    assert alive == [1]


def test_an_engine_without_a_report_is_a_build_error(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_report(lowered: Path, folder: Path, names: Any) -> BuiltEngine:
        return BuiltEngine("openvino", (lowered,), (), (), None, {})

    silent = replace(TARGETS["openvino"], runtime=lambda _: Runtime(no_report, lambda _: pytest.fail("opened")))
    monkeypatch.setitem(TARGETS, "openvino", silent)  # type: ignore[arg-type]  # a dictionary, declared read-only
    with pytest.raises(BuildError, match="reported no precisions; build it again"):
        run_stage("build", {"out": "work", "target": "openvino"}, Screen())


def test_a_stage_without_an_earlier_run(workplace: Path, qdq: Qdq) -> None:
    ran = qdq("build", "--out", "nowhere")
    assert ran.code == 1
    assert ran.err == (
        "qdq: nowhere: is not the work directory of an earlier run; run 'qdq compile' first, or name --out\n"
    )
    assert not Path("nowhere").exists()
    with pytest.raises(WorkError, match="is not the work directory"):
        run_stage("build", {"out": "nowhere"}, Screen())
    assert "build/all-MiniLM-L6-v2: is not the work directory" in qdq("bench").err
    assert "build/tiny-bert: is not the work directory" in qdq("bench", "--model", "tiny-bert").err


def test_a_stage_whose_input_is_missing(workplace: Path, qdq: Qdq) -> None:
    Path("work/openvino/model.onnx").unlink()
    ran = qdq("build", "--out", "work", "--target", "openvino")
    assert ran.code == 1
    assert "work/openvino/model.onnx does not exist; run the stage that writes it first" in ran.err


def check_variants(qdq: Qdq) -> None:
    """`qdq variants`: the same model without Q/DQ in FP16 and FP32, each with what a GPU machine needs to build it."""
    import onnx

    ran = qdq("variants", "--out", "work", "--target", "tensorrt", "--refit", "--json")
    outcome = json.loads(ran.out)
    assert ran.code == outcome["exit_code"] == 3
    assert "run: python fp16/build_engine.py and python fp32/build_engine.py" in outcome["missing"]
    for body, kind in (("fp16", onnx.TensorProto.FLOAT16), ("fp32", onnx.TensorProto.FLOAT)):
        folder = Path("work/tensorrt", body)
        assert f"work/tensorrt/{body}" in outcome["artifacts"]
        assert {path.name for path in folder.iterdir()} == {
            *("model.onnx", "passes.json", "build_engine.py", "trtexec.sh"),
        }
        script = (folder / "build_engine.py").read_text()
        assert "REFIT, STRIP_WEIGHTS = True, False" in script and "OPTIMIZATION_LEVEL = 5" in script  # recalled
        graph = onnx.load(folder / "model.onnx").graph
        assert not {node.op_type for node in graph.node} & {"QuantizeLinear", "DequantizeLinear"}
        matrices = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 2}
        assert matrices - {onnx.TensorProto.INT64} == {kind}
        assert {value.type.tensor_type.elem_type for value in graph.input} == {onnx.TensorProto.INT32}
    ran = qdq("variants", "--out", "work", "--target", "openvino")
    assert ran.code == 2 and "variants are for NVIDIA GPUs, this run is for openvino" in ran.err


def test_tensorrt_goes_as_far_as_this_machine_can(workplace: Path, qdq: Qdq, small: tuple[str, ...]) -> None:
    from engines.tensorrt import probe

    if probe().ready:
        pytest.skip("this machine builds TensorRT engines")
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--out", "work", "--placement", "linear+qk")
    builder = ("--optimization-level", "5", "--workspace-gib", "2", "--timing-cache", "shared.cache")
    portable = ("--version-compatible", "--hardware-compatibility", "same_compute_capability")
    ran = qdq("compile", *source, "--target", "tensorrt", *small, *builder, *portable, "--json")
    assert ran.code == 3, ran.err
    outcome = json.loads(ran.out)
    assert outcome["exit_code"] == 3
    for sentence in probe().missing:
        assert sentence in outcome["missing"]
        assert sentence in ran.err
    assert "python build_engine.py" in outcome["missing"]
    for name in ("model.onnx", "passes.json", "build_engine.py", "trtexec.sh"):
        assert f"work/tensorrt/{name}" in outcome["artifacts"]
        assert Path("work/tensorrt", name).is_file()
    script = Path("work/tensorrt/build_engine.py").read_text()
    for line in ("OPTIMIZATION_LEVEL = 5", "WORKSPACE_GIB = 2.0", "VERSION_COMPATIBLE = True"):
        assert f"\n{line}\n" in script
    assert '"same_compute_capability"' in script.replace("'", '"') and "'shared.cache'" in script
    assert qdq("verify", "--out", "work", "--target", "tensorrt").code == 1
    ran = qdq("build", "--out", "work", "--target", "tensorrt", "--strip-weights")
    assert ran.code == 2 and "'qdq variants --strip-weights'" in ran.err
    check_variants(qdq)


# What the model brings


def test_the_spec_file_is_applied(workplace: Path, qdq: Qdq, small: tuple[str, ...]) -> None:
    Path("spec.yaml").write_text("placement: qdqbert\nclip_gelu: 0.25\ndisable_keywords: [attention.output]\n")
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--target", "openvino", *small)
    ran = qdq("calibrate", *source, "--spec", "spec.yaml", "--out", "spec")
    assert ran.code == 0, ran.err
    activations = read(Path("spec/calibration.json"))["activations"]
    clipped = [amax["amax"] for name, amax in activations.items() if name.endswith("0.output.dense.input_quantizer")]
    assert clipped == [0.25]
    assert not any("attention.output" in name for name in activations)
    reasons = {point["reason"] for point in read(Path("spec/placement.json"))["points"] if not point["placed"]}
    assert any("disable_keywords" in reason for reason in reasons)


def test_a_qdqbert_checkpoint_brings_its_amax(workplace: Path, qdq: Qdq, small: tuple[str, ...]) -> None:
    """model_type qdqbert, weights as BERT's, amax of all twenty points beside them."""
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--target", "openvino", *small)
    assert qdq("calibrate", *source, "--placement", "qdqbert", "--out", "bert").code == 0
    shutil.copytree("bert/checkpoint", "qdqbert")
    Path("qdqbert/quant_spec.json").unlink()
    config = read(Path("qdqbert/config.json"))
    names = ["QDQBertForSequenceClassification"]
    Path("qdqbert/config.json").write_text(json.dumps(config | {"model_type": "qdqbert", "architectures": names}))
    ran = qdq("calibrate", "--model", "qdqbert", "--target", "openvino", *small, "--placement", "qdqbert")
    assert ran.code == 0, ran.err
    assert "amax taken from the checkpoint" in ran.err
    imported = read(Path("build/qdqbert/calibration.json"))
    assert imported["algorithm"] == "imported"
    measured = read(Path("bert/calibration.json"))
    assert imported["activations"].keys() == measured["activations"].keys()
    queries = [name for name in imported["activations"] if name.endswith("matmul_q_input_quantizer")]
    for name, value in imported["activations"].items():  # QDQBERT's q is not divided by sqrt(16) yet
        expected = measured["activations"][name]["amax"] * (0.25 if name in queries else 1)
        assert value["amax"] == pytest.approx(expected, rel=1e-3)

    state = load_file("qdqbert/model.safetensors")
    gone = next(key for key in state if key.endswith("matmul_k_input_quantizer._amax"))
    save_file(
        {key: value for key, value in state.items() if key != gone}, "qdqbert/model.safetensors", {"format": "pt"}
    )
    ran = qdq("calibrate", "--model", "qdqbert", "--target", "openvino", *small, "--placement", "qdqbert")
    assert ran.code == 1
    assert "brings amax, but none for 1 of " in ran.err
    assert "matmul_k_input_quantizer" in ran.err
    assert "give --calibration (CALIB=)" in ran.err


@pytest.mark.slow
def test_our_own_checkpoint_keeps_spec_and_amax(workplace: Path, qdq: Qdq, small: tuple[str, ...]) -> None:
    """Compiled again from checkpoint/ alone, the canonical graph is the same to the byte."""
    shutil.copytree("work/checkpoint", "mine")
    ran = qdq("compile", "--model", "mine", "--target", "onnxruntime", *small, "--out", "again")
    assert ran.code == 0, ran.err
    assert read(Path("again/calibration.json"))["algorithm"] == "imported"
    assert Path("again/model.qdq.onnx").read_bytes() == Path("work/model.qdq.onnx").read_bytes()
    assert read(Path("again/placement.json"))["points"] == read(Path("work/placement.json"))["points"]
    assert Path("again/onnxruntime/model.onnx").read_bytes() == Path("work/onnxruntime/model.onnx").read_bytes()


def test_our_own_checkpoint_is_calibrated_anew_on_request(workplace: Path, qdq: Qdq, small: tuple[str, ...]) -> None:
    ran = qdq("calibrate", "--model", "work/checkpoint", "--calibration", "text.jsonl", *small, "--out", "again")
    assert ran.code == 0, ran.err
    assert read(Path("again/calibration.json")) == read(Path("work/calibration.json"))
    ran = qdq("calibrate", "--model", "work/checkpoint", *small, "--placement", "linear", "--out", "linear")
    assert ran.code == 0, ran.err
    assert read(Path("linear/calibration.json"))["algorithm"] == "search"
    assert not any("matmul" in name for name in read(Path("linear/calibration.json"))["activations"])
