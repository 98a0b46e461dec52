"""`python -m qdq.studies.rows`: kernels and megabytes of a TensorRT graph whose batch is not padded, by how full it is.

Compiles minilm-mrpc of ../shared in every form of the batch, for compute capability 7.5, and writes
docs/results/tensorrt/rows.json and the table of docs/tensorrt.md. Nothing is run.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import write_json
from qdq.studies import pages
from qdq.studies.models import MRPC, run_stages
from qdq.studies.study import RESULTS, add_places, exit_code, parser

if TYPE_CHECKING:
    from engines.tensorrt_rtx import Compiler

RECORD = RESULTS / "tensorrt" / "rows.json"
TARGET, CAPABILITY, BATCH, SEQUENCE = "tensorrt", 75, 40, 128
MIDDLE = 2  # of six layers
# Real tokens of a batch: every one, and 54 and 26 of 128, as MRPC's texts and short sentences have; then the rows that
# hold such texts, first-fit decreasing, and the length to which the batch could be cut if all were as long as that.
FILLS: Mapping[int, Mapping[str, int]] = {
    5120: {"rows": 40, "cropped": 128},
    2160: {"rows": 18, "cropped": 64},
    1040: {"rows": 9, "cropped": 32},
}


def measured(work: Path, shared: Path) -> dict[str, Any]:
    """The content of rows.json. Raises Unavailable without the compiler, QdqError when a stage fails."""
    from engines.tensorrt_rtx import Compiler

    typed = {**MRPC.typed(shared), "placement": "fused", "target": TARGET, "out": str(work), "batch": BATCH}
    run_stages(("calibrate", "export"), typed)
    with Compiler() as compiler:
        rows = [row for form in ("padded", "rows", "gather") for row in _rows(compiler, _lowered(work, form), form)]
        version = compiler.version
    return {"compiler": version, "model": MRPC.model, "batch": BATCH, "sequence": SEQUENCE, "rows": rows}


def _lowered(work: Path, form: str) -> Path:
    """The graph of a form, kept beside the others. The form is an option of the stage that lowers."""
    from qdq.base.screen import Screen
    from qdq.pipeline.compile import run_stage

    run_stage("lower", {"out": str(work), "target": TARGET, "batch_form": form}, Screen())
    kept = work / "forms" / form
    kept.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(work / TARGET / "model.onnx", kept / "model.onnx"))


def _rows(compiler: Compiler, graph: Path, form: str) -> Iterator[dict[str, Any]]:
    """One row per fill; padded graphs at their full and at a cropped length."""
    from engines.tensorrt_rtx import Shapes, coverage

    for tokens, fill in FILLS.items():
        for name in ("padded", "cropped") if form == "padded" else (form,):
            # Padding to 128 costs the same however full the batch is; cropping does not.
            if name == "padded" and tokens != BATCH * SEQUENCE:
                continue
            length = fill["cropped"] if name == "cropped" else SEQUENCE
            sizes = {"batch": BATCH, "choices": 2, "sequence": length, "texts": BATCH, "length": SEQUENCE}
            sizes |= {"rows": fill["rows"], "tokens": tokens}
            # One shape, so that bytes can be counted.
            shapes = Shapes.of({axis: (size, size, size) for axis, size in sizes.items()})
            compiled = compiler.compile(graph, (CAPABILITY,), shapes)
            found = coverage(compiled, graph)
            kernels, megabytes = compiled.per_layer()[MIDDLE]
            yield {
                "form": name,
                "tokens": tokens,
                "linears": list(found.int8_linears),
                "attentions": list(found.int8_attentions),
                "layer_kernels": kernels,
                "layer_megabytes": round(megabytes, 2),
                "kernels": len(compiled.kernels),
                "megabytes": round(compiled.megabytes, 2),
            }


def main() -> None:
    """Compile every form anew, then write the page."""
    options = parser("rows", __doc__)
    add_places(options, "rows")
    arguments = options.parse_args()
    write_json(RECORD, measured(arguments.work / MRPC.model, arguments.shared))
    pages.main()


if __name__ == "__main__":
    sys.exit(exit_code(main))
