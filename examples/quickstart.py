"""Load, inject, calibrate and export the bundled model from Python: the first four stages of `qdq compile`, by hand.

    python examples/quickstart.py build/quickstart/model.qdq.onnx

Ranges are the plain maximum here; `qdq compile` also changes weights where that keeps accuracy (docs/calibration.md).
"""

import sys
from pathlib import Path

import torch

from export.to_onnx import export_onnx
from qdq.base.edge import Parser, run_script
from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrate import calibrate
from qdq.inject import inject
from qdq.inject.quantizer import folded
from qdq.inject.spec import named_spec
from qdq.loading.model import load_model
from qdq.text.data import bundled, read_records
from qdq.text.encode import encode_batch


def main(path: Path, model: str | None = None, texts: int = 32) -> Path:
    """Write the quantized graph of `model` (None: the bundled encoder) to `path`, calibrated on bundled text."""
    loaded = load_model(model)
    spec = named_spec("linear+qk")
    placement = inject(loaded.model, spec)

    records, _ = read_records(bundled(), limit=texts)
    feeds = [encode_batch(loaded.tokenizer, records[n : n + 8], loaded.inputs, 64) for n in range(0, len(records), 8)]
    batches = [{name: torch.from_numpy(array) for name, array in feed.items()} for feed in feeds]
    table = calibrate(loaded.module(), batches, spec, algorithm_named("max"))

    path.parent.mkdir(parents=True, exist_ok=True)
    with folded(loaded.model):
        export_onnx(loaded.module(), batches[0], loaded.outputs, path)
    sys.stdout.write(f"{len(placement.placed)} points, {table.samples} texts: {path}\n")
    return path


def command() -> None:
    """Run `main` on the path of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, default=Path("build/quickstart/model.qdq.onnx"))
    main(parser.parse_args().path)


if __name__ == "__main__":
    sys.exit(run_script(command))
