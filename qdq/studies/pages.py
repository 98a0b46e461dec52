"""README.md and the pages in docs/ with their generated parts: ``python -m qdq.studies.pages`` writes them anew.

Everything comes from the JSON that is there, mostly in docs/results/, so this measures nothing; whatever measures ends
with it, and a test checks that the pages are what it writes. The tables that need no page of their own are here, each
from the JSON of one kind of run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engines.estimate.model import VALIDATION
from qdq.base.artifacts import read_json, write_text
from qdq.pipeline.outcome import int8_text
from qdq.pipeline.verdict import verdict
from qdq.studies import accuracy_page, auto_page, compression_page, documents, estimate_page
from qdq.studies.linter.report import rule_tables, summary
from qdq.studies.markdown import filled, fixed, named, table
from qdq.studies.peers.compiled_table import render_compiled
from qdq.studies.peers.table import headline, instructions, render_peers, rows_of
from qdq.studies.rows_table import rows_table
from qdq.studies.serving_table import serving_tables
from qdq.studies.study import DOCS, RESULTS, ROOT, exit_code, load_results
from qdq.studies.table.page import render as documented_table
from qdq.studies.uie_page import uie_table

EXAMPLE = "all-MiniLM-L6-v2-openvino"  # the run that README.md shows
FULL, DEFAULT = "qdqbert", "auto"  # placements: what is proved, and what a user gets
LINTER, ROWS = "linter", "rows"  # results in docs/results/tensorrt/ that are no model's
SMALLEST = 0.05  # ms: groups below it in every column have no row of their own


def pages() -> dict[Path, str]:
    """The text of every page. Raises DataError when one lacks a marker."""
    compiled, peers = load_results(RESULTS), load_results(RESULTS / "peers")
    compressed = load_results(RESULTS / "compression")
    proofs = load_results(RESULTS / "tensorrt")
    linter, rows = proofs.pop(LINTER), proofs.pop(ROWS, None)
    profiles = sorted((RESULTS / "performance").glob("*/profile.json"))
    measured = {path.parent.name: cost_table(read_json(path)) for path in profiles}
    measured |= {
        "results": results_table(compiled),
        "peers": "\n\n".join(render_peers(peers[name]) for name in sorted(peers, reverse=True)),
    }
    # Parts of every page by the names of their markers.
    parts = {
        ROOT / "README.md": {
            "example": example_text(compiled[EXAMPLE]),
            "headline": headline(compiled[EXAMPLE], peers),
        },
        DOCS / "compression.md": {
            "table": documented_table(load_results(RESULTS / "table")),
            "auto": auto_page.auto_table(load_results(RESULTS / "auto")),
            "summary": compression_page.summary(compressed),
            "results": compression_page.sections(compressed),
        },
        DOCS / "performance.md": measured,
        DOCS / "tensorrt.md": {
            "prove": proof_table(proofs),
            "compiled": _compiled(),
            "rows": rows_table(rows),
            "tried": estimate_page.tried_table(read_json(RESULTS / "estimate" / "tried.json")),
        },
        DOCS / "triton.md": {"serving": serving_tables(load_results(RESULTS / "serving"))},
        DOCS / "uie.md": {"uie": uie_table(load_results(RESULTS / "uie"))},
        DOCS / "check.md": {"rules": rule_tables(), "prove": summary(linter)},
        DOCS / "estimate.md": {
            "validation": estimate_page.validation_tables(read_json(VALIDATION)),
            "lowering": estimate_page.lowering_tables(read_json(RESULTS / "estimate" / "lowering.json")),
        },
    }
    whole = {DOCS / "accuracy.md": accuracy_page.page(), DOCS / "documents.md": documents.page()}
    return {page: filled(page, part) for page, part in parts.items()} | whole


def _compiled() -> str:
    """Our TensorRT graph beside other tools', one table per model."""
    return "\n\n".join(render_compiled(report) for report in load_results(RESULTS / "compiled").values())


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per compiled model and target, then the machine and versions they were measured on."""
    headers = ["model", "target", "INT8 linears, attention matmuls", "INT8 ms", "x ORT FP32", "x own FP32"]
    headers += ["x torch FP32", "texts: x best FP32", "cosine to FP32", "accuracy FP32 → INT8"]
    bench = results[EXAMPLE]["benchmark"]
    machine = bench["machine"]
    return (
        f"{table(headers, (_row(name, result) for name, result in results.items()))}\n\n"
        f"Batch {bench['batch']} x sequence {bench['sequence']}, {rows_of(bench)}, p50, {bench['threads']} threads, "
        "contestants interleaved in one run; ratios are medians of per-round ratios. Texts: as they are, INT8 and the "
        "fastest FP32 contestant each fed padded or cropped batches, whichever suits it. "
        f"{machine['cpu']}, {machine['cores']} cores ({instructions(machine)}); "
        f"{named(bench['versions'], ('openvino', 'onnxruntime', 'torch', 'transformers'))}. "
        "Cosine and accuracy on text that was not calibrated on."
    )


def _row(name: str, result: Mapping[str, Any]) -> list[str]:
    int8, accuracy, target = result["build"]["int8"], result["accuracy"], result["target"]
    bench, metric = result["benchmark"], accuracy["metric"]
    entry = bench["contestants"]["int8"]
    return [
        name.removesuffix(f"-{target}"),
        target,
        ", ".join("/".join(map(str, int8[kind])) for kind in ("encoder_linear", "attention_matmul")),
        f"{entry['latency_ms']['p50']:.0f}",
        *(f"{entry['speedup'][base]:.2f}" for base in ("onnxruntime-fp32", f"{target}-fp32", "torch-fp32")),
        fixed(verdict(bench).texts if "texts" in bench else None, 2),
        fixed(accuracy["cosine_mean"], 4),
        f"{metric['fp32']:.4f} → {metric['int8']:.4f}" if metric else "–",
    ]


def example_text(result: Mapping[str, Any]) -> str:
    """The end of what `make engine` prints."""
    from engines.bench import render_table
    from engines.compare import relate

    parts = (int8_text(dict(result["build"])), relate(dict(result["accuracy"])), render_table(result["benchmark"]))
    return "```\n" + "\n".join(parts) + "```"


def cost_table(report: Mapping[str, Any]) -> str:
    """One row per engine of a profile.json object, one column per group, and what it was measured on."""
    profiles, machine, peak = report["profiles"], report["machine"], report["peak"]
    groups = [name for name in profiles[0]["groups"] if any(entry["groups"][name] >= SMALLEST for entry in profiles)]
    groups.sort(key=lambda name: -profiles[0]["groups"][name])
    rows = []
    for entry in profiles:
        gemm = entry["gemm"]["int8"]
        cells = [f"{entry['groups'][name]:.1f}" for name in groups]
        rows.append([entry["label"], *cells, f"{entry['layers_ms']:.1f}", f"{gemm['of_peak']:.0%}" if gemm else "–"])
    return (
        f"{table(['ms', *groups, 'all', 'INT8 gemm of peak'], rows)}\n\n"
        f"Batch {report['batch']} x sequence {report['sequence']}, {report['threads'] or machine['cores']} threads, "
        f"precision hint {report['precision_hint']}; {machine['cpu']}, {machine['cores']} cores; measured peak "
        f"{peak['int8']:.0f} Gop/s INT8 and {peak['fp32']:.0f} FP32."
    )


def proof_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Results of `qdq.studies.prove`: one row per fact, one column per model."""
    columns = [_proof_column(result) for result in results.values()]
    return table(["", *results], ([name, *(column[name] for column in columns)] for name in columns[0]))


# Rows about the two bodies of one placement.
BODIES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "accuracy: floating point, FP32 body, FP16 body": lambda m: (
        f"{m['floating']:.4f}, {m['fp32_body']:.4f}, {m['fp16_body']:.4f} ({m['texts']} texts)"
    ),
    "equal answers of both": lambda m: f"{m['agreement']:.4f}",
    "logit MSE to floating point: FP32 body, FP16 body": lambda m: (
        f"{m['fp32_body_mse']:.4f}, {m['fp16_body_mse']:.4f}"
    ),
}


def _proof_column(result: Mapping[str, Any]) -> dict[str, str]:
    lint, removals, half = result["lint"], result["removals"], result["fp16"]
    metrics = half.get("metric")
    breaking = ", ".join(f"{count} break {n}" for n, count in removals["breaking"].items())
    # The linter's predictions, the points one by one, the FP16 body, and what that body costs in accuracy.
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
        **{f"compiled ({placement})": _built(result["compiled"].get(placement)) for placement in (FULL, DEFAULT)},
    }


def _built(engines: Mapping[str, Mapping[str, Any]] | None) -> str:
    """Engines of one graph, one capability after the other; those that differ in nothing are said once."""
    if engines is None:
        return "–"
    said: dict[str, list[str]] = {}
    for capability, engine in sorted(engines.items(), key=lambda item: int(item[0])):
        layer = engine["middle_layer"]
        line = (
            "{}/{} INT8 products, {}/{} attentions, {}/{} FP32 scales, ".format(
                *engine["linears"], *engine["attentions"], *engine["fp32_scales"]
            )
            + f"{engine['kernels']} kernels, {engine['megabytes']:.0f} MB; a middle layer {layer['kernels']} and "
            f"{layer['megabytes']:.1f}"
        )
        said.setdefault(line, []).append(capability)
    return "; ".join(f"SM {', '.join(of)}: {line}" for line, of in said.items())


def main() -> None:
    """Write every page."""
    for path, text in pages().items():
        write_text(path, text)


if __name__ == "__main__":
    sys.exit(exit_code(main))
