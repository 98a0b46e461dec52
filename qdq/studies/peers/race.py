"""Our CPU engines beside the tools a user would pick instead: one checkpoint, one data set, one interleaved run.

``python -m qdq.studies.peers.race --model M --calibration TRAIN --eval-data DEV --json OUT`` (`make bench-peers` does
so in an environment that has NNCF). Written, per contestant: at every shape the latency and its ratios to NNCF and to
ONNX Runtime FP32 (medians of per-round ratios, see engines.bench), accuracy, agreement, logit cosine and MSE against
torch FP32, bytes of weights, the memory a running one needs, and seconds from the checkpoint (ours) or from the FP32
ONNX file (the tools, which all share one export) to the first answer. What was built and checked stays in --work.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import atomic_folder, write_json
from qdq.base.config import choice
from qdq.base.screen import Screen, Stage
from qdq.errors import ConfigError, QdqError
from qdq.pipeline.workdir import WorkDirectory
from qdq.studies.peers.build import OURS, TORCH, Builder, Peer, build_all, version_of
from qdq.studies.peers.memory import measure_memory, open_peer
from qdq.studies.peers.options import RANDOM, PeerOptions, Shape
from qdq.studies.peers.table import NNCF, render_peers

if TYPE_CHECKING:
    from engines.types import Feeds, Outputs, Runner
    from qdq.studies.peers import Opening

WORKLOAD_BATCHES = 5
PAUSE_S = 0.02  # longer than ONNX Runtime's threads spin after a call


@dataclass
class _Cached:
    """The reference's outputs, computed once per batch; it is loaded when first asked."""

    opening: Opening
    outputs: dict[int, Outputs] = field(default_factory=dict)

    @cached_property
    def run(self) -> Runner:
        return open_peer(self.opening, (0, 0))

    def __call__(self, feeds: Feeds) -> Outputs:
        key = id(feeds)
        if key not in self.outputs:
            self.outputs[key] = self.run(feeds)
        return self.outputs[key]


def bench_peers(options: PeerOptions) -> dict[str, Any]:
    """Build, check and time every contestant; the object `render_peers` shows. Raises QdqError."""
    from engines.openvino import has_bf16
    from qdq.studies.peers import NO_BF16, TOOLS

    if options.precision_hint == "bf16" and not has_bf16():
        raise ConfigError(f"--precision-hint: {NO_BF16}; leave it out")
    names = [*OURS, *TORCH, *TOOLS]
    for name in options.only:
        choice(name, names, "contestant")
    chosen = [name for name in names if not options.only or name in options.only]
    if options.model == RANDOM:
        options = replace(options, model=str(random_bert_base(options.work.with_name("bert-base-random"))))
    screen = Screen()
    with WorkDirectory(options.work) as work:
        builder = Builder(options, work)
        _check_shapes(builder)
        peers, skipped = build_all(builder, chosen)
        with screen.stage("accuracy") as stage:
            rows = _rows(builder, peers, stage)
        races = []
        for shape in options.shapes:
            with screen.stage("x".join(map(str, shape)), undisturbed=True) as stage:
                races.append(_race(builder, peers, shape, stage))
    return {
        "model": builder.run.name,
        "precision_hint": options.precision_hint,
        "shapes": races,
        "rows": rows,
        "float_export_s": builder.float_export[1],
        "built_alone": True,  # reports from before 2026-11-22 were built one after another in one process
        "skipped": skipped,
    }


def random_bert_base(folder: Path) -> Path:
    """A classifier of BERT-base's shape with random weights (seed 0) and the default model's tokenizer, in `folder`.

    Biases and LayerNorms are random too: a trained model's are, and tools leave zeros and ones out of their files.
    For latency and agreement at that shape; its accuracy means nothing.
    """
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from qdq.load.source import default_folder

    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig())  # two classes
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=model.config.initializer_range)
    with atomic_folder(folder) as partial:
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(default_folder()).save_pretrained(partial)
    return folder


def _check_shapes(builder: Builder) -> None:
    """Before anything is built. Raises ConfigError for what the model or this machine cannot take."""
    from qdq.load.model import load_model
    from qdq.pipeline.stages.load import check_shape

    loaded = load_model(str(builder.options.folder), "text-classification")
    for shape in builder.options.shapes:
        check_shape(loaded, *shape)


def _rows(builder: Builder, peers: Mapping[str, Peer], stage: Stage) -> dict[str, Any]:
    """Per contestant what does not depend on the shape: accuracy.json, bytes, memory, seconds."""
    feeds, labels = _evaluation(builder)
    options, run = builder.options, builder.run
    texts = [[record.text, record.pair, record.label] for record in run.evaluation.records]
    reference = _Cached(builder.reference)
    rows = {}
    for done, (name, peer) in enumerate(peers.items()):
        stage.progress(done, len(peers))
        inputs = {
            "files": dict(peer.files),
            "opening": {**peer.opening.as_json(), "model": ""},
            "shape": list(options.shapes[0]),
            "versions": dict(run.versions),
        }
        accuracy = builder.kept(
            f"accuracy-{name}",
            {**inputs, "texts": texts},
            lambda peer=peer: (_accuracy(reference, peer, feeds, labels, options.shapes[0]), ()),  # type: ignore[misc]
        )
        memory = builder.kept(
            f"memory-{name}",
            inputs,
            lambda peer=peer: ({"peak": measure_memory(peer.opening, feeds[0])}, ()),  # type: ignore[misc]
        )
        rows[name] = {
            "bytes": peer.bytes,
            "build_s": peer.build_s,
            **({} if peer.compile_s is None else {"compile_s": peer.compile_s}),
            "peak_rss_bytes": memory["peak"],
            "accuracy": accuracy,
        }
    return rows


def _evaluation(builder: Builder) -> tuple[list[Feeds], list[int] | None]:
    """Batches of the first shape from the evaluation texts, the last one with what is left, and the texts' classes."""
    from qdq.tasks.labels import class_indices
    from qdq.text.encode import encode_batch

    loaded, records = builder.run.reference, builder.run.evaluation.records
    batch, sequence = builder.options.shapes[0]
    feeds: list[Feeds] = [
        encode_batch(loaded.tokenizer, records[start : start + batch], loaded.inputs, sequence)
        for start in range(0, len(records), batch)
    ]
    return feeds, class_indices(records, loaded.labels, len(loaded.labels), required=False)[0]


def _accuracy(
    reference: Runner, peer: Peer, feeds: Sequence[Feeds], labels: Sequence[int] | None, shape: Shape
) -> dict[str, Any]:
    from engines.compare import compare

    return compare(reference, open_peer(peer.opening, shape), feeds, "text-classification", labels)


def _race(builder: Builder, peers: Mapping[str, Peer], shape: Shape, stage: Stage) -> dict[str, Any]:
    """benchmark.json of all contestants at one shape."""
    from engines.bench import BenchSettings, Contestant, bench
    from qdq.text.encode import workload_of_shape

    run, loaded = builder.run, builder.run.reference
    feeds = workload_of_shape(loaded.tokenizer, run.evaluation.records, loaded.inputs, shape, WORKLOAD_BATCHES)
    settings = BenchSettings(
        *shape,
        budget_s=None,
        warmup=2,
        samples=builder.options.rounds_of(shape),
        threads=run.options.threads,
        pause_s=PAUSE_S,
        bases=NNCF,
    )
    runners = [
        Contestant(name, "torch" if name in TORCH else peer.opening.engine, open_peer(peer.opening, shape))
        for name, peer in peers.items()
    ]
    return bench(runners, feeds, settings, {**run.versions, **version_of("nncf")}, stage.progress)


def _shapes(text: str) -> tuple[Shape, ...]:
    found = [re.fullmatch(r"(\d+)x(\d+)", part) for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of BATCHxSEQUENCE such as 40x128,1x128")
    return tuple((int(match[1]), int(match[2])) for match in found if match)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 done, 1 failed, 2 usage."""
    parser = argparse.ArgumentParser(
        prog="python -m qdq.studies.peers.race", description=(__doc__ or "").split("\n")[0]
    )
    defaults = PeerOptions("")
    parser.add_argument("--model", required=True, help=f"sequence-classification checkpoint, or {RANDOM}")
    parser.add_argument("--json", required=True, type=Path, help="where the report goes")
    for name in ("calibration", "eval-data"):
        parser.add_argument(f"--{name}", help="file or folder (default: bundled text)")
    parser.add_argument("--work", type=Path, default=defaults.work, help="work directory (default: build/peers)")
    parser.add_argument("--only", nargs="*", default=(), metavar="NAME", help="contestants (default: all)")
    parser.add_argument("--precision-hint", choices=("f32", "bf16"), default="f32", help="of OpenVINO outside INT8")
    parser.add_argument(
        "--shapes", type=_shapes, default=defaults.shapes, metavar="BxS,...", help="batch x sequence (default: 40x128)"
    )
    for name in ("samples", "eval_samples", "rounds", "threads"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name), metavar="N")
    typed = vars(parser.parse_args(arguments))
    path = typed.pop("json")
    try:
        report = bench_peers(PeerOptions(**{**typed, "only": tuple(typed["only"])}))
        write_json(path, report)
    except QdqError as error:
        sys.stderr.write(f"qdq.studies.peers.race: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    sys.stdout.write(render_peers(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
