"""Time several built engines in one interleaved run: `qdq build`'s folders in, ratios to the first one out.

python examples/compare_engines.py full=build/minilm-mrpc/openvino narrow=build/width-0.6667/openvino \
    --tokenizer ../shared/models/minilm-mrpc --out docs/results/compression/pruned-speed.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import AutoTokenizer

from engines.bench import BenchSettings, Contestant, bench
from engines.openvino import OpenVINORunner, OpenVINOSettings
from qdq.base.artifacts import write_json
from qdq.base.edge import Parser, run_script
from qdq.base.versions import versions
from qdq.text.data import bundled, read_records
from qdq.text.workload import workload_of_shape


def main() -> None:
    """Parse the command line, run the benchmark, write the report."""
    parser = Parser(description=__doc__)
    parser.add_argument("engines", nargs="+", metavar="NAME=FOLDER", help="OpenVINO engine folders")
    parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer they share")
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    records, _ = read_records(bundled(pairs=True, heldout=True))
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    feeds = workload_of_shape(tokenizer, records, inputs, (options.batch, options.sequence), 5)
    if unnamed := [entry for entry in options.engines if "=" not in entry]:
        parser.error(
            f"argument NAME=FOLDER: '{unnamed[0]}' has no name; write one in front of it, such as int8={unnamed[0]}"
        )
    named = dict(entry.split("=", 1) for entry in options.engines)
    built = OpenVINOSettings(options.threads, shape=(options.batch, options.sequence))  # as `qdq compile` times it
    contestants = [
        Contestant(name, "openvino", OpenVINORunner(Path(folder) / "model.xml", built))
        for name, folder in named.items()
    ]
    settings = BenchSettings(
        options.batch, options.sequence, budget_s=options.seconds, threads=options.threads, bases=(contestants[0].name,)
    )
    report = bench(contestants, feeds, settings, versions())
    write_json(options.out, report)


if __name__ == "__main__":
    sys.exit(run_script(main))
