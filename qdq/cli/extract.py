"""`qdq extract`: what a schema names, out of texts, by a UIE model or an engine of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.cores import available_cores
from qdq.base.artifacts import write_text
from qdq.base.choices import INFORMATION_EXTRACTION, PRECISION_HINTS
from qdq.base.option import check, option
from qdq.cli.contestants import contestants, model_for
from qdq.errors import ConfigError, ModelError
from qdq.pipeline.options import MANY
from qdq.text.data import TextSource, read_records
from qdq.uie.prompts import LANGUAGES, language_named
from qdq.uie.schema import typed_schema

if TYPE_CHECKING:
    from qdq.base.screen import Screen
    from qdq.uie.extract import Extraction


@dataclass(frozen=True)
class ExtractOptions:
    """Options of `qdq extract` as typed."""

    what: str = option(
        MISSING,
        "UIE checkpoint (hub id or folder), .onnx, .xml or .plan file, or a work directory (its engine)",
        metavar="WHAT",
        positional=True,
    )
    schema: str = option(
        MISSING, 'JSON such as {"人名": ["职位"]}, a .json file, or names with commas between', metavar="SCHEMA"
    )
    text: tuple[str, ...] = option((), "a text; several times for several", metavar="TEXT", repeated=True)
    data: str | None = option(None, "file, folder or datasets:NAME with texts (default: --text)", metavar="DATA")
    text_columns: tuple[str, ...] = option((), "column of the text (default: detected)", metavar="A")
    samples: int | None = option(None, "first texts to use (default: all)", within=(1, MANY))
    model: str | None = option(
        None, "whose tokenizer to use (default: of WHAT, or the checkpoint beside the file)", metavar="ID"
    )
    schema_lang: str = option("ch", "language of the schema", choices=LANGUAGES)
    position_prob: float = option(0.5, "probability above which a token starts or ends an answer", metavar="P")
    sequence: int = option(512, "tokens; longer texts are cut into parts", within=(8, MANY))
    batch: int = option(16, "prompts in a batch", within=(1, 4096))
    threads: int = option(0, " (default: 0, which is all cores)")
    precision_hint: str = option("f32", "what OpenVINO computes outside INT8", metavar="P", choices=PRECISION_HINTS)
    out: str | None = option(None, "write the results as JSON lines (default: standard output)", metavar="FILE")


def extract(options: ExtractOptions, screen: Screen) -> str:
    """The results as JSON lines, one text each, in their order. Raises QdqError."""
    check(options)
    if not 0 < options.position_prob < 1:
        raise ConfigError(f"--position-prob: is {options.position_prob}; give a probability between 0 and 1")
    schema = typed_schema(options.schema)  # before the model, which takes seconds
    texts = _texts(options)
    extraction = open_extraction(options, schema, screen)
    with screen.stage("extract") as stage:
        results = []
        for first in range(0, len(texts), options.batch):
            results += extraction(texts[first : first + options.batch])
            stage.progress(min(first + options.batch, len(texts)), len(texts))
        stage.say(f"{len(texts)} text{'s' if len(texts) != 1 else ''}")
    lines = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
    if options.out is not None:
        write_text(Path(options.out), lines)
        return f"{options.out}\n"
    return lines


def open_extraction(options: ExtractOptions, schema: Any, screen: Screen) -> Extraction:
    """The model or engine with its tokenizer. Raises ModelError for one that is no UIE."""
    from qdq.loading.model import load_model
    from qdq.pipeline.run import prepare_torch
    from qdq.uie.extract import Extraction, Reader

    threads = options.threads or available_cores()
    prepare_torch(threads)
    with screen.stage("load") as stage:
        loaded = load_model(options.model or model_for(options.what))
        stage.say(loaded.name)
    if loaded.task.name != INFORMATION_EXTRACTION:
        raise ModelError(
            f"{options.what}: is a model for {loaded.task.name}; give a UIE checkpoint, or an engine of one"
        )
    entries = contestants(options.what, threads, options.precision_hint)
    name = list(entries)[-1]  # of a work directory an engine, where there is one
    screen.row("model", name)
    sequence = min(options.sequence, loaded.max_sequence, int(loaded.tokenizer.model_max_length))
    reader = Reader(
        entries[name](), loaded.tokenizer, loaded.inputs, sequence, options.batch, limit=options.position_prob
    )
    return Extraction(reader, schema, language_named(options.schema_lang))


def _texts(options: ExtractOptions) -> Sequence[str]:
    if bool(options.text) == (options.data is not None):
        raise ConfigError("give texts: --text TEXT (several times for several), or --data FILE")
    if options.data is None:
        return options.text
    records, _ = read_records(TextSource(options.data, options.text_columns), options.samples)
    return [record.pair if record.pair is not None and record.spans is not None else record.text for record in records]
