"""Dynamic quantization, end to end: fine-tune on MRPC, quantize, and compare size, accuracy, F1 and single-thread time.

    make walkthrough DATA=glue_data/MRPC                     fine-tune the bundled encoder first
    make walkthrough DATA=glue_data/MRPC MODEL=my-mrpc-bert  start from a fine-tuned checkpoint

Contestants: torch FP32, torch.ao's dynamic quantization, and our dynamic graph in ONNX Runtime and OpenVINO, all on one
thread and timed in one interleaved run. Two tables: the fine-tuned model with its scores, and a BERT-base shape with
random weights, whose size and time do not depend on what it learned. Everything goes to walkthrough.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetune_glue
import glue
import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from engines.bench import BenchSettings, Contestant, bench
from engines.bench.machine import machine
from engines.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeSettings
from engines.openvino import OpenVINORunner, OpenVINOSettings
from qdq.base.artifacts import write_json
from qdq.base.edge import Parser, run_script
from qdq.base.screen import Screen
from qdq.base.versions import versions
from qdq.calibrate.checkpoint import read_spec
from qdq.compress.torch_dynamic import WEIGHTS, load_dynamic, quantize_dynamic, save_dynamic
from qdq.loading.model import LoadedModel, load_model
from qdq.loading.runner import TorchRunner
from qdq.loading.source import read_config, resolve
from qdq.pipeline.compile import run_stage
from qdq.tasks.gold import gold_of
from qdq.text.encode import encode_batch

# Both engines come from one canonical graph.
STAGES = {"onnxruntime": ("calibrate", "export", "lower", "build"), "openvino": ("lower", "build")}
BATCH, SEQUENCE = 8, 128  # as in the walkthrough this follows
BENCH_SECONDS = 40.0


class Dynamic:
    """torch.ao's model as a runner."""

    def __init__(self, folder: Path) -> None:
        self._model = load_dynamic(folder)

    def __call__(self, feeds: Any) -> dict[str, Any]:
        with torch.inference_mode():
            return {"logits": self._model(**{k: torch.from_numpy(v) for k, v in feeds.items()}).logits.numpy()}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the walkthrough; returns what walkthrough.json holds."""
    parser = Parser(description=__doc__)
    parser.add_argument("--data_dir", required=True, help="folder with MRPC's train.tsv and dev.tsv")
    parser.add_argument("--model_name_or_path", default="all-MiniLM-L6-v2")
    parser.add_argument("--output_dir", default="build/walkthrough")
    parser.add_argument("--max_steps", type=int, default=-1, help="of the fine-tuning; -1 is one epoch")
    parser.add_argument("--base_layers", type=int, default=12, help="layers of the BERT-base shape; 0 leaves it out")
    parser.add_argument("--reuse", action="store_true", help="time the engines an earlier run left in output_dir")
    parser.add_argument("--bench_seconds", type=float, default=BENCH_SECONDS)
    options = parser.parse_args(arguments)
    # Everything is measured on one thread; the rows of the fine-tuned model are scored, too.
    torch.set_num_threads(1)
    out = Path(options.output_dir)
    folder, trained = fine_tuned(options, out)
    report: dict[str, Any] = {
        "machine": machine(),
        "versions": dict(versions()),
        "batch": BATCH,
        "sequence": SEQUENCE,
        "threads": 1,
        "model": Path(folder).name,
        "fine_tuned_here": trained,
        "rows": contest(folder, out / "engines", options, score=True),
    }
    # The BERT-base shape has random weights: only its sizes and times mean something.
    if options.base_layers:
        base = bert_base(out / "bert-base-shape", load_model(folder), options.base_layers)
        report |= {"base_layers": options.base_layers, "base_rows": contest(base, out / "base", options, score=False)}
    write_json(out / "walkthrough.json", report)
    sys.stdout.write(table(report) + "\n")
    return report


def fine_tuned(options: argparse.Namespace, out: Path) -> tuple[str, bool]:
    """The classifier's folder: the given one when it has a head, else the given encoder fine-tuned on the data."""
    folder, _ = resolve(options.model_name_or_path)
    if any(str(name).endswith("ForSequenceClassification") for name in read_config(folder).get("architectures") or []):
        return str(folder), False
    target = out / "finetuned"
    torch.set_num_threads(torch.get_num_interop_threads())
    flags = ["--model_name_or_path", str(folder), "--data_dir", options.data_dir, "--output_dir", str(target)]
    flags += ["--do_train", "--do_eval", "--learning_rate", "5e-5", "--num_train_epochs", "1.0"]
    finetune_glue.main([*flags, "--max_steps", str(options.max_steps), "--save_steps", "0"])
    torch.set_num_threads(1)
    return str(target), True


def bert_base(folder: Path, like: LoadedModel, layers: int) -> str:
    """A BERT of base width with random weights, on the tokenizer of `like`."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=layers, vocab_size=30522))
    model.save_pretrained(folder)
    like.tokenizer.save_pretrained(folder)
    return str(folder)


def contest(folder: str, out: Path, options: argparse.Namespace, score: bool) -> list[dict[str, Any]]:
    """One row per contestant: MB, scores when asked, and time against torch FP32."""
    # The runners, and the texts as full batches of one shape.
    loaded = load_model(folder)
    runners, sizes = contestants(loaded, folder, out, options)
    records = glue.read(options.data_dir, "dev")
    feeds = [
        encode_batch(loaded.tokenizer, records[start : start + BATCH], loaded.inputs, SEQUENCE)
        for start in range(0, len(records) - BATCH + 1, BATCH)
    ]
    # Scores over all texts; times in one interleaved run over the first batches.
    scores = {name: evaluated(run, loaded, records) if score else {} for name, (_, run) in runners.items()}
    entries = [Contestant(name, engine, run) for name, (engine, run) in runners.items()]
    settings = BenchSettings(batch=BATCH, sequence=SEQUENCE, budget_s=options.bench_seconds, threads=1)
    timed = bench(entries, feeds[:5], settings, versions())["contestants"]
    whole = len(records) / BATCH / 1000
    return [
        {
            "name": name,
            "mb": sizes[name] / 1e6,
            "smaller": sizes["torch-fp32"] / sizes[name],
            **scores[name],
            "evaluation_s": timed[name]["latency_ms"]["p50"] * whole,
            "faster": timed[name]["speedup"]["torch-fp32"],
        }
        for name in runners
    ]


Run = Callable[[Any], dict[str, Any]]


def contestants(
    loaded: LoadedModel, folder: str, out: Path, options: argparse.Namespace
) -> tuple[dict[str, tuple[str, Run]], dict[str, int]]:
    """Name to (engine, runner), and name to bytes of what has to be shipped."""
    # torch: the model as it is, and quantized by torch.ao.
    if not (options.reuse and (out / "torch-dynamic" / WEIGHTS).is_file()):
        save_dynamic(quantize_dynamic(load_model(folder).model), out / "torch-dynamic")
    float32 = sum(4 * parameter.numel() for parameter in loaded.model.parameters())
    runners: dict[str, tuple[str, Run]] = {
        "torch-fp32": ("torch", TorchRunner(loaded.module(), 1)),
        "torch-dynamic": ("torch", Dynamic(out / "torch-dynamic")),
    }
    sizes = {"torch-fp32": float32, "torch-dynamic": (out / "torch-dynamic" / WEIGHTS).stat().st_size}
    # Ours: one canonical graph per kind of embedding tables, lowered and built for both CPU engines.
    for tables in (False, True):
        work = out / ("dynamic+embeddings" if tables else "dynamic")
        for target in ("onnxruntime", "openvino"):
            name = f"{target}-dynamic" + ("+embeddings" if tables else "")
            typed = {"model": folder, "target": target, "out": str(work), "placement": "dynamic", "threads": 1}
            typed |= {"embedding_tables": tables, "eval_data": str(Path(options.data_dir) / "dev.tsv")}
            typed |= {"batch": BATCH, "sequence": SEQUENCE}
            made = options.reuse and (work / target / "build.json").is_file()
            for stage in () if made else STAGES[target]:
                given = typed if stage == "calibrate" else {"out": str(work), "target": target, "threads": 1}
                run_stage(stage, given, Screen())
            if target == "openvino":
                runners[name] = (target, OpenVINORunner(work / target / "model.xml", OpenVINOSettings(1)))
                sizes[name] = sum((work / target / file).stat().st_size for file in ("model.xml", "model.bin"))
            else:
                runners[name] = (target, OnnxRuntimeRunner(work / target / "model.onnx", OnnxRuntimeSettings(1)))
                sizes[name] = (work / target / "model.onnx").stat().st_size
            assert read_spec(work / "checkpoint")[0].embedding_tables is tables
    return runners, sizes


def evaluated(run: Run, loaded: LoadedModel, records: list[Any]) -> dict[str, float]:
    """acc, f1 and their mean over the labelled records; acc alone for more than two classes."""
    gold = gold_of(records, loaded, required=True)
    predicted: list[int] = []
    for start in range(0, len(gold.records), BATCH):
        feed = encode_batch(loaded.tokenizer, gold.records[start : start + BATCH], loaded.inputs, SEQUENCE)
        predicted += np.argmax(run(feed)["logits"], -1).tolist()
    task = "mrpc" if len(gold.names) == 2 else ""
    return glue.glue_compute_metrics(task, np.array(predicted), np.array(gold.values))


def table(report: dict[str, Any]) -> str:
    """Both tables as text."""
    lines = [f"{report['model']}, batch {BATCH} x {SEQUENCE}, one thread"]
    lines += [f"{'contestant':<32}{'MB':>8}{'smaller':>9}{'acc':>8}{'f1':>8}{'mean':>8}{'faster':>8}"]
    for row in report["rows"]:
        scores = "".join(f"{row.get(key, float('nan')):8.4f}" for key in ("acc", "f1", "acc_and_f1"))
        lines.append(f"{row['name']:<32}{row['mb']:8.1f}{row['smaller']:8.2f}x{scores}{row['faster']:7.2f}x")
    for row in report.get("base_rows", []):
        lines.append(f"BERT-base {row['name']:<22}{row['mb']:8.1f}{row['smaller']:8.2f}x{row['faster']:31.2f}x")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_script(main))
