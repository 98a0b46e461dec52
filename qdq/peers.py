"""Our CPU engines beside the tools a user would pick instead: one checkpoint, one data set, one interleaved run.

``python -m qdq.peers --model M --calibration TRAIN --eval-data DEV --json OUT`` (`make bench-peers` does so in an
environment that has NNCF). Written: per contestant the latency and its ratio to ONNX Runtime FP32 (median of per-round
ratios, see engines.bench), accuracy, agreement and logit MSE against torch FP32, bytes of weights, and seconds from the
checkpoint (ours) or from the FP32 ONNX file (the tools, which all share one export) to the first call.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.artifacts import atomic_folder, atomic_path, write_json
from qdq.config import choice
from qdq.errors import ConfigError, QdqError, Unavailable

if TYPE_CHECKING:
    from engines.peers import Built, Material
    from engines.types import Feeds, Outputs, Runner
    from qdq.model import LoadedModel

OURS = {"qdq-openvino": "openvino", "qdq-onnxruntime": "onnxruntime"}  # contestant: target
TORCH = ("torch-fp32", "torch-dynamic")
REFERENCE = "torch-fp32"
RANDOM = "random:bert-base"
WORKLOAD_BATCHES = 5


@dataclass(frozen=True)
class PeerOptions:
    """What is compared. `only` names contestants (all when empty); times are per batch x sequence."""

    model: str
    calibration: str | None = None
    eval_data: str | None = None
    work: Path = Path("build/peers")
    only: tuple[str, ...] = ()
    batch: int = 40
    sequence: int = 128
    samples: int = 128
    eval_samples: int = 512
    rounds: int = 10
    threads: int = 0
    hint: str = "f32"


@dataclass
class _Cached:
    """The reference's outputs, computed once per batch."""

    run: Runner
    outputs: dict[int, Outputs] = field(default_factory=dict)

    def __call__(self, feeds: Feeds) -> Outputs:
        key = id(feeds)
        if key not in self.outputs:
            self.outputs[key] = self.run(feeds)
        return self.outputs[key]


def bench_peers(options: PeerOptions) -> dict[str, Any]:
    """Build, check and time every contestant; the object `render_peers` shows. Raises QdqError."""
    from engines.bench import BenchSettings, Contestant, bench
    from engines.peers import TOOLS
    from qdq.encode import workload_of_shape

    names = [*OURS, *TORCH, *TOOLS]
    for name in options.only:
        choice(name, names, "contestant")
    chosen = [name for name in names if not options.only or name in options.only]
    if options.model == RANDOM:
        options = replace(options, model=str(random_bert_base(options.work.with_name("bert-base-random"))))
    run, prepared_s = _prepared(options)
    threads = run.options.threads
    contestants, skipped = _build_all(options, chosen, run, prepared_s)
    accuracy = _accuracies(run, contestants)
    evaluation, loaded = run.evaluation, run.reference
    shape = (options.batch, options.sequence)
    feeds = workload_of_shape(loaded.tokenizer, evaluation.records, loaded.inputs, shape, WORKLOAD_BATCHES)
    settings = BenchSettings(*shape, budget_s=None, warmup=2, samples=options.rounds, threads=threads)
    race = [Contestant(name, built.engine, built.run) for name, built in contestants.items()]
    report = bench(race, feeds, settings, {**run.versions, **_version("nncf")})
    rows = {
        name: {"bytes": built.bytes, "build_s": built.build_s, "accuracy": accuracy[name]}
        for name, built in contestants.items()
    }
    return {"benchmark": report, "rows": rows, "skipped": skipped, "model": run.name, "hint": options.hint}


def random_bert_base(folder: Path) -> Path:
    """A classifier of BERT-base's shape with random weights (seed 0) and the default model's tokenizer, in `folder`.

    For latency and agreement at that shape; its accuracy means nothing.
    """
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from qdq.source import default_folder

    torch.manual_seed(0)
    with atomic_folder(folder) as partial:
        BertForSequenceClassification(BertConfig()).save_pretrained(partial)  # two classes
        AutoTokenizer.from_pretrained(default_folder()).save_pretrained(partial)
    return folder


def _prepared(options: PeerOptions) -> tuple[Any, float]:
    """Our checkpoint and graphs, calibrated and exported once for both engines, and the seconds that took."""
    from qdq.pipeline import run_stage
    from qdq.screen import Screen

    begin = time.perf_counter()
    for stage in ("calibrate", "export"):
        run_stage(stage, _typed(options, "openvino"), Screen())
    return _opened(options, "openvino"), time.perf_counter() - begin


def _typed(options: PeerOptions, target: str) -> dict[str, Any]:
    """The options of a compile run, as typed."""
    typed: dict[str, Any] = {
        "model": options.model,
        "calibration": options.calibration,
        "eval_data": options.eval_data,
        "task": "text-classification",
        "placement": "linear+qk",
        "out": str(options.work),
        "target": target,
        "batch": options.batch,
        "sequence": options.sequence,
        "samples": options.samples,
        "eval_samples": options.eval_samples,
        "threads": options.threads,
        "precision_hint": options.hint,
    }
    return {name: value for name, value in typed.items() if value is not None}


def _opened(options: PeerOptions, target: str) -> Any:
    """A Run over the work directory, for its texts and its reference model."""
    from qdq.options import CompileOptions, resolve
    from qdq.run import Run
    from qdq.screen import Screen
    from qdq.source import short_name
    from qdq.workdir import WorkDirectory

    name = short_name(options.model)
    resolved = resolve(CompileOptions(**_typed(options, target)), name)
    with WorkDirectory(options.work) as work:
        return Run(resolved, work, Screen(), name)


def _build_all(
    options: PeerOptions, chosen: Sequence[str], run: Any, prepared_s: float
) -> tuple[dict[str, Built], dict[str, str]]:
    """Every contestant that can be built here, and the reason for every other."""
    from engines.peers import build_tool

    folder = options.work / "tools"
    folder.mkdir(parents=True, exist_ok=True)
    material = _material(options, run, folder)
    built: dict[str, Built] = {}
    skipped: dict[str, str] = {}
    for name in chosen:
        try:
            if name in OURS:
                built[name] = _ours(options, OURS[name], prepared_s)
            elif name in TORCH:
                built[name] = _torch(name, run.reference, material)
            else:
                built[name] = build_tool(name, material)
        except Unavailable as error:
            skipped[name] = str(error)
    return built, skipped


def _ours(options: PeerOptions, target: str, prepared_s: float) -> Built:
    from engines.peers import Built
    from qdq.engine import open_engine
    from qdq.pipeline import run_stage
    from qdq.screen import Screen

    begin = time.perf_counter()
    for stage in ("lower", "build"):
        run_stage(stage, _typed(options, target), Screen())
    run = _opened(options, target)
    runner = open_engine(run)
    seconds = prepared_s + time.perf_counter() - begin  # a whole compile, as a user of one target has it
    weights = "model.bin" if target == "openvino" else "engine.onnx*"
    return Built(target, runner, sum(file.stat().st_size for file in run.target.glob(weights)), seconds)


def _material(options: PeerOptions, run: Any, folder: Path) -> Material:
    """One plain FP32 export and the same calibration texts for every tool."""
    from engines.peers import Material
    from qdq.encode import encode_batch
    from qdq.source import resolve

    loaded, records = run.reference, run.calibration.records
    feeds = [
        encode_batch(loaded.tokenizer, records[start : start + 8], loaded.inputs, options.sequence)
        for start in range(0, len(records), 8)
    ]
    model = folder / "fp32.onnx"
    export_plain(resolve(options.model)[0], feeds[0], model)
    return Material(model, feeds, folder, run.options.threads, options.hint)


def export_plain(folder: Path, feeds: Feeds, path: Path) -> None:
    """The checkpoint in `folder` as other tools' users export it: torch's TorchScript exporter, eager attention.

    ONNX Runtime's and NNCF's own fusions are written for this form of the graph; ours would put them at a disadvantage.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        str(folder), attn_implementation="eager", dtype=torch.float32
    ).eval()
    names = list(feeds)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> Any:
            return self.model(**dict(zip(names, tensors, strict=True))).logits

    axes = {name: {0: "batch", 1: "sequence"} for name in names} | {"logits": {0: "batch"}}
    sample = tuple(torch.from_numpy(feeds[name][:2]) for name in names)
    with atomic_path(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and says so at length
        torch.onnx.export(
            Logits().eval(),
            sample,
            str(partial),
            dynamo=False,
            opset_version=17,
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
        )


def _torch(name: str, loaded: LoadedModel, material: Material) -> Built:
    import torch

    from engines.peers import Built
    from qdq.runner import TorchRunner

    begin = time.perf_counter()
    module = loaded.module()
    path = material.folder / f"{name}.pt"
    if name == "torch-dynamic":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.ao is deprecated in favour of torchao
            quantize: Any = torch.ao.quantization.quantize_dynamic
            module = quantize(module, {torch.nn.Linear}, dtype=torch.qint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a quantized state is a TypedStorage, whose use warns
        torch.save(module.state_dict(), path)
    runner = TorchRunner(module, material.threads)
    return Built("torch", runner, path.stat().st_size, time.perf_counter() - begin)


def _accuracies(run: Any, contestants: Mapping[str, Built]) -> dict[str, Any]:
    """accuracy.json objects of all contestants, on batches padded to the benchmark's sequence."""
    from engines.compare import compare
    from qdq.encode import encode_batch
    from qdq.runner import TorchRunner
    from qdq.tasks.labels import class_indices

    loaded, options, records = run.reference, run.options, run.evaluation.records
    batches = [
        encode_batch(loaded.tokenizer, records[start : start + options.batch], loaded.inputs, options.sequence)
        for start in range(0, len(records), options.batch)
    ]
    labels, _ = class_indices(records, loaded.labels, len(loaded.labels), required=False)
    reference = _Cached(TorchRunner(loaded.module(), options.threads))
    return {
        name: compare(reference, built.run, batches, "text-classification", labels)
        for name, built in contestants.items()
    }


def _version(package: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {package: version(package)}
    except PackageNotFoundError:
        return {}


def render_peers(report: Mapping[str, Any]) -> str:
    """The table as Markdown, fastest first, and what it was measured on."""
    bench, base = report["benchmark"], "onnxruntime-fp32"
    lines = ["| contestant | × ORT FP32 | ms | accuracy | agreement | logit MSE | MB | build s |", "|---|" + "--:|" * 7]
    entries = bench["contestants"]
    for name in sorted(entries, key=lambda name: entries[name]["latency_ms"]["p50"]):
        row, entry = report["rows"][name], entries[name]
        accuracy = row["accuracy"]
        cells = [
            f"**{name}**" if name in OURS else name,
            f"{entry['speedup'][base]:.2f}" if base in entry["speedup"] else "–",
            f"{entry['latency_ms']['p50']:.0f}",
            f"{accuracy['metric']['int8']:.4f}" if accuracy["metric"] else "–",
            f"{accuracy['agreement']:.4f}",
            f"{accuracy['logit_mse']:.5f}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['build_s']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    versions, machine = bench["versions"], bench["machine"]
    packages = ("openvino", "onnxruntime", "torch", "nncf")
    named = ", ".join(f"{name} {versions[name]}" for name in packages if name in versions)
    lines += ["", *(f"Not measured: {reason}." for reason in report["skipped"].values())]
    lines.append(
        f"{report['model']}, batch {bench['batch']} × sequence {bench['sequence']}, {bench['threads']} threads, "
        f"{bench['rounds']} interleaved rounds, OpenVINO's hint {report['hint']}; {machine['cpu']}, "
        f"{machine['cores']} cores; {named}. Agreement and logit MSE against torch FP32 over "
        f"{next(iter(report['rows'].values()))['accuracy']['samples']} texts."
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 done, 1 failed, 2 usage."""
    parser = argparse.ArgumentParser(prog="python -m qdq.peers", description=(__doc__ or "").split("\n")[0])
    defaults = PeerOptions("")
    parser.add_argument("--model", required=True, help=f"sequence-classification checkpoint, or {RANDOM}")
    parser.add_argument("--json", required=True, type=Path, help="where the report goes")
    for name in ("calibration", "eval-data"):
        parser.add_argument(f"--{name}", help="file or folder (default: bundled text)")
    parser.add_argument("--work", type=Path, default=defaults.work, help="work directory (default: build/peers)")
    parser.add_argument("--only", nargs="*", default=(), metavar="NAME", help="contestants (default: all)")
    parser.add_argument("--hint", choices=("f32", "bf16"), default="f32", help="OpenVINO's type outside INT8")
    for name in ("batch", "sequence", "samples", "eval_samples", "rounds", "threads"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name), metavar="N")
    typed = vars(parser.parse_args(arguments))
    path = typed.pop("json")
    try:
        report = bench_peers(PeerOptions(**{**typed, "only": tuple(typed["only"])}))
        write_json(path, report)
    except QdqError as error:
        sys.stderr.write(f"qdq.peers: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    sys.stdout.write(render_peers(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
