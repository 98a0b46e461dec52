"""What of a model's TensorRT graph can be proved without a GPU: ``python -m qdq.studies.proof`` (`make proof`).

For the bundled model, for minilm-mrpc where it lies beside the repository, and for BERT-base with random weights: the
linter's verdict, what taking away each point breaks, what FP16 costs per node, and the task metric of the FP16 body
against the FP32 body. Results go to docs/results/tensorrt/ and into docs/tensorrt.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qdq.base.artifacts import read_json, write_json, write_text
from qdq.errors import DeployError
from qdq.pipeline.run import CANONICAL

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "tensorrt"
PAGE = ROOT / "docs" / "tensorrt.md"
MARKS = ("<!-- proof:begin, written by `make proof` -->", "<!-- proof:end -->")
SHARED = ROOT.parent / "shared"

FULL, DEFAULT = "qdqbert", "auto"  # placements: what is proved, and what a user gets
TARGET, SM, SEQUENCE = "trt11", 75, 128
BATCH = 8  # texts whose nodes are compared one by one
RANDOM = "bert-base-random"
MRPC = (
    *("--model", str(SHARED / "models" / "minilm-mrpc"), "--calibration", str(SHARED / "data" / "mrpc" / "train.tsv")),
    *("--eval-data", str(SHARED / "data" / "mrpc" / "dev.tsv")),
)


def prove(out: Path, options: Sequence[str]) -> dict[str, Any]:
    """Compile a model for TensorRT in `out` as far as the graph, and judge that graph. `options` are qdq's.

    What is up to date there is kept. Raises DeployError when a stage fails; its message is on the screen.
    """
    graph = _compiled(out, options, FULL)
    found = {
        "lint": _lint(graph),
        "removals": _removals(graph, out / "placement.json"),
        "fp16": _half_precision(out, graph),
    }
    if (metric := _metric(out, graph)) is not None:
        chosen = out / DEFAULT
        found["fp16"]["metric"] = {FULL: metric, DEFAULT: _metric(chosen, _compiled(chosen, options, DEFAULT))}
    return found


def _compiled(out: Path, options: Sequence[str], placement: str) -> Path:
    from qdq.cli.main import AS_FAR_AS_POSSIBLE, DONE, main

    graph = out / "tensorrt" / "model.onnx"
    code = main(["compile", *options, "--out", str(out), "--target", "tensorrt", "--placement", placement])
    if code not in (DONE, AS_FAR_AS_POSSIBLE) or not graph.is_file():
        raise DeployError(f"{out}: qdq compile failed; its message is above")
    return graph


def _lint(graph: Path) -> dict[str, Any]:
    """Findings, and how many of the encoder's linears, attentions and residual adds are predicted on INT8."""
    from export.lint import lint
    from export.lint.command import read_model

    report = lint(read_model(graph), TARGET, SM, SEQUENCE)
    encoder = [layer for layer in report.layers if layer.layer is not None]
    kinds = {
        "linears": [layer for layer in encoder if layer.role],
        "attentions": [layer for layer in encoder if "attention" in layer.kind or layer.kind == "unfused"],
        "residual adds": [layer for layer in encoder if layer.kind == "residual_add"],
    }
    return {
        "target": TARGET,
        "sm": SM,
        "findings": dict(report.counts()),
        "int8": {name: [sum(x.precision == "int8" for x in found), len(found)] for name, found in kinds.items()},
        "fused_attentions": sum(layer.kind == "int8_fused_attention" for layer in encoder),
        "layers": len({layer.layer for layer in encoder}),
    }


def _removals(graph: Path, placement: Path) -> dict[str, Any]:
    """Every placed point taken away alone: how many fusions each breaks, and which points break another number than 1.

    The pair in front of an attention's output linear is also the one behind its second BMM, so it breaks two.
    """
    from export.lint import broken_fusions
    from export.lint.command import read_model

    points = [point["name"] for point in read_json(placement)["points"] if point["placed"]]
    broken = broken_fusions(read_model(graph), points, SM, SEQUENCE)
    counts = Counter(len(found) for found in broken.values())
    several = {point.partition(".layer.")[2].partition(".")[2] for point in points if len(broken[point]) != 1}
    return {"points": len(points), "breaking": {str(n): counts[n] for n in sorted(counts)}, "not_one": sorted(several)}


def _half_precision(out: Path, graph: Path) -> dict[str, Any]:
    """FP16 against FP32, node by node on identical inputs, and ranges."""
    from export.node_by_node import node_errors

    _, batches, _ = _texts(out)
    passes = {step["pass"]: step for step in read_json(graph.with_name("passes.json"))["passes"]}
    errors = node_errors(graph, _int32(max(batches, key=lambda feeds: feeds["input_ids"].shape[1]), BATCH))
    worst = max(errors, key=lambda error: error.ulp)
    largest = max(errors, key=lambda error: error.largest)
    return {
        "nodes": len(errors),
        "worst_ulp": worst.ulp,
        "worst_op": worst.op,
        "largest": largest.largest,
        "largest_op": largest.op,
        "kept_in_fp32": [item["name"] for item in passes["half_body"]["declined"]],
    }


def _texts(out: Path) -> tuple[Any, list[Any], list[int] | None]:
    """The model, batches of its evaluation text, and the labels when the text has them."""
    from qdq.calibrate.checkpoint import read_spec
    from qdq.load.model import load_model
    from qdq.pipeline.options import CompileOptions
    from qdq.pipeline.stages.load import VERIFY_BATCH
    from qdq.pipeline.texts import calibration_texts, evaluation_texts
    from qdq.tasks.labels import class_indices
    from qdq.text.encode import encode_batch

    loaded = load_model(str(out / "checkpoint"), task=read_spec(out / "checkpoint")[1]["task"])
    typed = read_json(out / "manifest.json")["options"]
    text = ("calibration", "eval_data", "samples", "eval_samples", "sequence")
    options = CompileOptions(**{name: typed[name] for name in text})
    task = loaded.task.name
    records = evaluation_texts(options, task, calibration_texts(options, task)).records
    labels = class_indices(records, loaded.labels, len(loaded.labels), required=False)[0] if loaded.labels else None
    batches = [
        encode_batch(loaded.tokenizer, records[start : start + VERIFY_BATCH], loaded.inputs, SEQUENCE, pad_to="longest")
        for start in range(0, len(records), VERIFY_BATCH)
    ]
    return loaded, batches, labels


def _int32(feeds: Mapping[str, Any], rows: int | None = None) -> dict[str, Any]:
    return {name: array[:rows].astype("int32") for name, array in feeds.items()}


def _metric(out: Path, fp16_body: Path) -> dict[str, Any] | None:
    """Accuracy of the FP32 and the FP16 body in ONNX Runtime without optimizations, how often they answer alike, and
    how far each is from the floating-point model; None without labels.
    """
    import numpy as np

    from engines.compare import compare
    from export.passes import LowerOptions, lower
    from export.unoptimized import open_unoptimized, run
    from qdq.load.runner import TorchRunner

    loaded, batches, labels = _texts(out)
    if labels is None:
        return None
    lower(out / CANONICAL, "tensorrt", out / "fp32-body", options=LowerOptions("fp32"))
    fp32_body = out / "fp32-body" / "model.onnx"

    def runner(graph: Path) -> Any:
        session = open_unoptimized(str(graph), graph.parent)
        names = [value.name for value in session.get_outputs()]

        def call(feeds: Mapping[str, Any]) -> dict[str, Any]:
            results = run(session, _int32(feeds), names)
            return {name: value.astype(np.float32) for name, value in zip(names, results, strict=True)}

        return call

    task, floating = loaded.task.name, TorchRunner(loaded.module())
    report = compare(runner(fp32_body), runner(fp16_body), batches, task, labels)
    apart = {body: compare(floating, runner(body), batches, task, labels) for body in (fp32_body, fp16_body)}
    metric = report["metric"]
    return {
        "texts": report["samples"],
        "fp32_body": metric["fp32"],
        "fp16_body": metric["int8"],
        "points_lost": 100 * (metric["fp32"] - metric["int8"]),
        "agreement": report["agreement"],
        "floating": apart[fp16_body]["metric"]["fp32"],
        "fp32_body_mse": apart[fp32_body]["logit_mse"],
        "fp16_body_mse": apart[fp16_body]["logit_mse"],
    }


def random_bert_base(folder: Path) -> Path:
    """BERT-base with random weights and the bundled model's tokenizer, which has BERT's vocabulary."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from qdq.load.source import default_folder

    if not (folder / "config.json").is_file():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            BertModel(BertConfig()).save_pretrained(folder)
        AutoTokenizer.from_pretrained(default_folder()).save_pretrained(folder)
    return folder


def render(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """docs/tensorrt.md with the table of results. Raises DeployError when a marker is missing."""
    head, begin, rest = page.partition(MARKS[0])
    _, end, tail = rest.partition(MARKS[1])
    if not begin or not end:
        raise DeployError(f"docs/tensorrt.md: has no '{MARKS[0]}' … '{MARKS[1]}'; restore the markers")
    return f"{head}{begin}\n{table(results)}\n{end}{tail}"


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per fact, one column per model."""
    columns = [_column(result) for result in results.values()]
    lines = [f"| | {' | '.join(results)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(column[name] for column in columns)} |" for name in columns[0]]
    return "\n".join(lines)


# Rows about the two bodies of one placement: what `_metric` measured.
BODIES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "accuracy: floating point, FP32 body, FP16 body": lambda m: (
        f"{m['floating']:.4f}, {m['fp32_body']:.4f}, {m['fp16_body']:.4f} ({m['texts']} texts)"
    ),
    "equal answers of both": lambda m: f"{m['agreement']:.4f}",
    "logit MSE to floating point: FP32 body, FP16 body": lambda m: (
        f"{m['fp32_body_mse']:.4f}, {m['fp16_body_mse']:.4f}"
    ),
}


def _column(result: Mapping[str, Any]) -> dict[str, str]:
    lint, removals, half = result["lint"], result["removals"], result["fp16"]
    metrics = half.get("metric")
    breaking = ", ".join(f"{count} break {n}" for n, count in removals["breaking"].items())
    return {
        f"`qdq check --target {lint['target']} --sm {lint['sm']}`: errors, performance findings": (
            f"{lint['findings']['error']}, {lint['findings']['performance']}"
        ),
        "predicted INT8 linears": "{} of {}".format(*lint["int8"]["linears"]),
        "predicted INT8 fused attentions": f"{lint['fused_attentions']} of {lint['layers']} layers",
        "residual adds on INT8": "{} of {}".format(*lint["int8"]["residual adds"]),
        "points taken away one by one, fusions broken": f"{removals['points']}: {breaking}",
        "FP16 nodes; worst error on identical inputs": (
            f"{half['nodes']}; {half['worst_ulp']:.1f} ulp ({half['worst_op']})"
        ),
        "largest magnitude (FP16 holds 65504)": f"{half['largest']:.4g} ({half['largest_op']})",
        "nodes kept in FP32": str(len(half["kept_in_fp32"])),
        **{
            f"{name} ({placement})": show(metrics[placement]) if metrics else "–"
            for placement in (FULL, DEFAULT)
            for name, show in BODIES.items()
        },
    }


def load_results() -> dict[str, Any]:
    """Result JSON by model name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prove the models named (default: all that are here), then rewrite the table."""
    parser = argparse.ArgumentParser(
        prog="python -m qdq.studies.proof", description="Prove TensorRT graphs without a GPU."
    )
    parser.add_argument("models", nargs="*", metavar="NAME", help="all-MiniLM-L6-v2, minilm-mrpc, bert-base-random")
    parser.add_argument("--out", type=Path, default=Path("build/proof"), help="work directories (default: %(default)s)")
    typed = parser.parse_args(arguments)
    known: dict[str, tuple[str, ...]] = {"all-MiniLM-L6-v2": (), "minilm-mrpc": MRPC, RANDOM: ("--samples", "16")}
    for name in typed.models or known:
        if name not in known:
            parser.error(f"unknown model '{name}'; choose from {', '.join(known)}")
        if name == "minilm-mrpc" and not SHARED.is_dir():
            continue  # its result stays as it is
        options = known[name]
        if name == RANDOM:
            options += ("--model", str(random_bert_base(typed.out / RANDOM / "model")))
        write_json(RESULTS / f"{name}.json", prove(typed.out / name / "work", options))
    write_text(PAGE, render(PAGE.read_text(encoding="utf-8"), load_results()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
