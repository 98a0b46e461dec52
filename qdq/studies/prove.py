"""Facts about TensorRT graphs that can be proved without a GPU: ``python -m qdq.studies.prove`` (`make prove`).

First the linter: more than 200 graphs go through it and through NVIDIA's compiler, and where the two differ is
printed, with the reason. Then, for the bundled model, for minilm-mrpc where it lies beside the repository, and for
BERT-base with random weights: the linter's verdict, what taking away each point breaks, what FP16 costs per node, the
task metric of the FP16 body against the FP32 body, and the engines that the compiler makes for five compute
capabilities. Results go to docs/results/tensorrt/ and into docs/check.md and docs/tensorrt.md.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qdq.base.artifacts import read_json, write_json
from qdq.base.config import choice
from qdq.errors import BuildError
from qdq.pipeline.run import CANONICAL
from qdq.studies import pages
from qdq.studies.models import MRPC, batches, random_bert_base
from qdq.studies.pages import DEFAULT, FULL, LINTER
from qdq.studies.study import RESULTS, SHARED, exit_code, parser

TARGET, SM, SEQUENCE = "trt11", 75, 128
CAPABILITIES, SHAPE = (75, 80, 86, 89, 120), (40, SEQUENCE)  # that every graph is compiled for, and in which shape
BATCH = 8  # texts whose nodes are compared one by one
RANDOM = "bert-base-random"
MODELS: Mapping[str, dict[str, Any]] = {
    "all-MiniLM-L6-v2": {},
    MRPC.model: MRPC.typed(SHARED),
    RANDOM: {"samples": 16},
}


def prove(out: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Compile a model for TensorRT in `out` as far as the graph, and judge that graph. `options`: of CompileOptions.

    What is up to date there is kept. Raises QdqError.
    """
    graph = _compiled(out, options, FULL)
    found: dict[str, Any] = {
        "lint": _lint(graph),
        "removals": _removals(graph, out / "placement.json"),
        "fp16": _half_precision(out, graph),
        "compiled": {FULL: built_for(graph)},
    }
    if (metric := _metric(out, graph)) is not None:
        chosen = out / DEFAULT
        decided = _compiled(chosen, options, DEFAULT)
        found["fp16"]["metric"] = {FULL: metric, DEFAULT: _metric(chosen, decided)}
        found["compiled"][DEFAULT] = built_for(decided)
    return found


def _compiled(out: Path, options: Mapping[str, Any], placement: str) -> Path:
    from qdq.base.screen import Screen
    from qdq.pipeline.compile import compile_model
    from qdq.pipeline.options import CompileOptions

    compile_model(CompileOptions(**options, out=str(out), target="tensorrt", placement=placement), Screen())
    return out / "tensorrt" / "model.onnx"


def _lint(graph: Path) -> dict[str, Any]:
    """Findings, and how many of the encoder's linears, attentions and residual adds are predicted on INT8."""
    from export.lint import lint
    from export.lint.command import read_model

    report = lint(read_model(graph), TARGET, SM, SEQUENCE)
    # The layers of the encoder by what users ask about.
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
        "int8": {
            name: [_linears(x for x in found if x.precision == "int8"), _linears(found)]
            for name, found in kinds.items()
        },
        "fused_attentions": sum(layer.kind == "int8_fused_attention" for layer in encoder),
        "layers": len({layer.layer for layer in encoder}),
    }


def built_for(graph: Path, capabilities: Sequence[int] = CAPABILITIES) -> dict[str, Any]:
    """Compute capability -> what NVIDIA's compiler makes of a lowered graph at batch 40 x sequence 128.

    Raises Unavailable without the compiler, BuildError when it refuses the graph.
    """
    from engines.tensorrt_rtx import Compiler, Shapes, coverage

    found = {}
    for capability in capabilities:
        with Compiler() as compiler:  # one process each: its memory is that of one compilation
            built = compiler.compile(graph, (capability,), Shapes.fixed(*SHAPE))
        covered = coverage(built, graph)
        encoder = [counts for layer, counts in built.per_layer().items() if layer is not None]
        kernels, megabytes = encoder[len(encoder) // 2]
        found[str(capability)] = {
            "linears": covered.int8_linears,
            "attentions": covered.int8_attentions,
            "fp32_scales": covered.fp32_scales,
            "kernels": len(built.kernels),
            "megabytes": round(built.megabytes, 2),
            "middle_layer": {"kernels": kernels, "megabytes": round(megabytes, 2)},
            "peak_mb": round(built.peak_mb),
        }
    return found


def _linears(layers: Iterable[Any]) -> int:
    """Number of layers, those counted as several that compute several linears of the checkpoint."""
    return sum(layer.linears for layer in layers)


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

    feeds = max(_texts(out)[1], key=lambda feeds: feeds["input_ids"].shape[1])
    passes = {step["pass"]: step for step in read_json(graph.with_name("passes.json"))["passes"]}
    errors = node_errors(graph, _int32(feeds, BATCH))
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
    from qdq.loading.model import load_model
    from qdq.pipeline.options import CompileOptions
    from qdq.pipeline.stages.load import VERIFY_BATCH
    from qdq.pipeline.texts import calibration_texts, evaluation_texts
    from qdq.tasks.gold import gold_of

    loaded = load_model(str(out / "checkpoint"), task=read_spec(out / "checkpoint")[1]["task"])
    typed = read_json(out / "manifest.json")["options"]
    text = ("calibration", "eval_data", "samples", "eval_samples", "sequence")
    options = CompileOptions(**{name: typed[name] for name in text})
    task = loaded.task.name
    records = evaluation_texts(options, task, calibration_texts(options, task)).records
    gold = gold_of(records, loaded)
    labels = gold.values if loaded.labels else None
    return loaded, batches(loaded, gold.records, (VERIFY_BATCH, SEQUENCE), "longest"), labels


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
    from qdq.loading.runner import TorchRunner

    loaded, feeds, labels = _texts(out)
    if labels is None:
        return None
    # The same calibrated graph with an FP32 body, so that the bodies differ in nothing but their type.
    lower(out / CANONICAL, "tensorrt", out / "fp32-body", options=LowerOptions("fp32"))
    fp32_body = out / "fp32-body" / "model.onnx"

    def runner(graph: Path) -> Any:
        session = open_unoptimized(str(graph), graph.parent)
        names = [value.name for value in session.get_outputs()]

        def call(feeds: Mapping[str, Any]) -> dict[str, Any]:
            results = run(session, _int32(feeds), names)
            return {name: value.astype(np.float32) for name, value in zip(names, results, strict=True)}

        return call

    # Both bodies beside each other, then each beside the floating-point model.
    task, floating = loaded.task.name, TorchRunner(loaded.module())
    report = compare(runner(fp32_body), runner(fp16_body), feeds, task, labels)
    apart = {body: compare(floating, runner(body), feeds, task, labels) for body in (fp32_body, fp16_body)}
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


def prove_linter() -> dict[str, Any]:
    """Compile every graph of `qdq.studies.linter.cases`, print where linter and compiler differ, and return the record.

    Raises Unavailable without the compiler, BuildError for a difference or a rule's claim that has no reason.
    """
    from engines.tensorrt_rtx import Compiler
    from qdq.studies.linter.cases import all_cases
    from qdq.studies.linter.report import recorded
    from qdq.studies.linter.verdicts import Judge

    with Compiler() as compiler:
        judge = Judge(compiler)
        result = recorded([judge.judge(case) for case in all_cases()], compiler.version)
    for entry in result["differences"]:
        listed = "; ".join(entry["differences"])
        sys.stdout.write(f"{entry['graph']} (SM {entry['sm']}): {listed}\n    {entry['reason'] or 'NO REASON'}\n")
    unexplained = [entry["graph"] for entry in result["differences"] if not entry["reason"]]
    sys.stdout.write(f"{len(result['differences'])} of {result['graphs']} graphs differ\n")
    if unexplained or result["broken_claims"]:
        raise BuildError(
            f"linter and compiler differ without a reason: {'; '.join([*unexplained, *result['broken_claims']])}; "
            "correct the rule, or name the reason in qdq/studies/linter/expected.py"
        )
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Prove the linter and the models named (default: all that are here), then rewrite the tables."""
    command = parser("prove", __doc__)
    command.add_argument("names", nargs="*", metavar="NAME", help=", ".join((LINTER, *MODELS)))
    command.add_argument("--out", type=Path, default=Path("build/prove"), help="work directories")
    typed = command.parse_args(arguments)
    for name in typed.names or (LINTER, *MODELS):
        place = RESULTS / "tensorrt" / f"{choice(name, (LINTER, *MODELS), 'name')}.json"
        if name == LINTER:
            write_json(place, prove_linter())
        elif name != MRPC.model or SHARED.is_dir():  # else its result stays as it is
            options = MODELS[name]
            if name == RANDOM:
                options = {**options, "model": str(random_bert_base(typed.out / RANDOM / "model"))}
            write_json(place, prove(typed.out / name / "work", options))
    pages.main()


if __name__ == "__main__":
    sys.exit(exit_code(main))
