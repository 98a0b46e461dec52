"""Open what `qdq compile` (or compress --deploy) left in a work directory, to run it on raw text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from engines.interface import interface
from qdq.base.artifacts import read_json
from qdq.base.edge import Parser
from qdq.compress.deploy import DEPLOYMENT, ENGINES
from qdq.errors import ConfigError, DataError
from qdq.loading.source import read_config
from qdq.tasks.heads import Head, head_of

TARGETS = ("openvino", "onnxruntime", "tensorrt")


@dataclass(frozen=True)
class Engine:
    """A loaded engine with its tokenizer, the names of its inputs, its class names and the reading of its logits."""

    run: Any
    tokenizer: Any
    inputs: tuple[str, ...]
    labels: dict[int, str]  # empty when the checkpoint keeps transformers' default names
    head: Head

    def label(self, index: int) -> str:
        """Name of a class."""
        return self.labels.get(index, f"LABEL_{index}")


def open_engine(work: Path, target: str | None, threads: int = 0) -> Engine:
    """The engine of a work directory, of the best candidate for the output_dir of a deployed compression.

    Raises ConfigError when there is none, BuildError when it cannot be loaded.
    """
    if (work / DEPLOYMENT).is_file():
        work = work / ENGINES / read_json(work / DEPLOYMENT)["best"]
    built = [name for name in TARGETS if (work / name / "build.json").is_file()]
    if not built or (target is not None and target not in built):
        raise ConfigError(f"{work}: has {', '.join(built) or 'no'} engine; run 'qdq compile --out {work}' first")
    chosen = target or built[0]
    checkpoint = work / "checkpoint"
    config = read_config(checkpoint)
    names = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    inputs, _ = interface(work / chosen / "model.onnx")
    return Engine(
        _runner(work / chosen, chosen, threads),
        AutoTokenizer.from_pretrained(checkpoint),
        tuple(tensor.name for tensor in inputs),
        names,
        head_of(config, len(names) or 2),  # transformers writes no names where they are its own two
    )


def _runner(folder: Path, target: str, threads: int) -> Any:
    if target == "openvino":
        from engines.openvino import OpenVINORunner, OpenVINOSettings

        return OpenVINORunner(folder / "model.xml", OpenVINOSettings(threads))
    if target == "onnxruntime":
        from engines.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeSettings

        return OnnxRuntimeRunner(folder / "model.onnx", OnnxRuntimeSettings(threads))
    from engines.tensorrt import TensorRTRunner

    return TensorRTRunner(folder / "model.plan")


def arguments(description: str | None) -> Parser:
    """The flags the three scripts share."""
    parser = Parser(description=description)
    parser.add_argument(
        "--engine", type=Path, required=True, help="work directory of qdq compile, or output_dir of compress"
    )
    parser.add_argument("--target", choices=TARGETS, help="which of its engines (default: the first there is)")
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0, help="0 is all cores")
    return parser


def texts_of(texts: list[str] | None, file: Path | None) -> list[str]:
    """Texts of the command line, else the file's lines. Raises DataError for none."""
    found = list(texts or [])
    if file is not None:
        found += [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not found:
        raise DataError("no text; give --text TEXT … or --file FILE with one text per line")
    return found
