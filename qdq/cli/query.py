"""`qdq query`: ask a served text model, over HTTP or gRPC, and print its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import to_json
from qdq.base.option import check, option
from qdq.errors import ConfigError

if TYPE_CHECKING:
    from engines.client import ModelInfo, TextRow
    from qdq.base.screen import Screen

SERVER = "http://HOST:PORT or grpc://HOST:PORT of a Triton server"
MODEL = "name of the model (default: the one that takes text)"
TIMEOUT = "seconds to wait for an answer"
TRUNCATION = ("error", "cut")
AT_ONCE = 8  # requests under way, so that the server can form batches of the rows of a file


@dataclass(frozen=True)
class QueryOptions:
    """Options of `qdq query`."""

    url: str = option(MISSING, SERVER, metavar="URL", positional=True)
    text: tuple[str, ...] = option(
        (), "texts, or questions; each is a request of its own (default: --file)", metavar="TEXT", positional=True
    )
    file: str | None = option(
        None, "ask every row of a file or folder of text, TSV, CSV or JSON lines (default: TEXT)", metavar="DATA"
    )
    pair: str | None = option(
        None, "second text of each TEXT, or the context of questions (default: none)", metavar="TEXT"
    )
    choice: tuple[str, ...] = option(
        (), "one answer to choose among; give it once per answer (default: none)", metavar="TEXT", repeated=True
    )
    text_columns: tuple[str, ...] = option((), "of --file (default: detected)", metavar="A[,B]")
    samples: int | None = option(None, "first rows of --file to ask (default: all)", within=(1, 1_000_000))
    model: str | None = option(None, MODEL)
    truncation: str = option("error", "texts of more tokens than the engine was built for", choices=TRUNCATION)
    dimensions: int | None = option(None, "shorter embeddings, for models trained for it (default: the model's own)")
    outputs: tuple[str, ...] = option((), "outputs to ask for (default: all but logits)", metavar="A,B")
    timeout: float = option(60.0, TIMEOUT, metavar="S", positive=True)


def query(options: QueryOptions, as_json: bool, screen: Screen) -> tuple[str, int]:
    """The answers as text or JSON, and the exit code: 1 when a text was refused. Raises QdqError."""
    from engines.client import choose_model, connect, parse_address

    check(options)
    address, rows = parse_address(options.url), rows_of(options)
    with connect(address, options.timeout) as client:
        model = choose_model(client, options.model)
    if options.file is None:
        found = _ask(options, model, rows, lambda *_: None)
    else:
        with screen.stage("query") as stage:
            found = _ask(options, model, rows, stage.progress)
            stage.say(f"{len(rows)} texts to {model.name}")
    code = int(any("error" in answer for answer in found))
    return (to_json(found) if as_json else _text(rows, found)), code


def rows_of(options: QueryOptions) -> list[TextRow]:
    """The rows to ask about. Raises ConfigError for none, DataError for a file that cannot be used."""
    from engines.client import TextRow

    rows = [TextRow(text, options.pair, options.choice) for text in options.text]
    if options.file is None:
        if not rows:
            raise ConfigError("there is no text; give TEXT, or --file with rows of text")
        return rows
    if rows:
        raise ConfigError("TEXT and --file both say what to ask; give one")
    return file_rows(options.file, options.text_columns, options.samples, options.choice)


def file_rows(path: str, columns: tuple[str, ...], samples: int | None, choices: tuple[str, ...] = ()) -> list[TextRow]:
    """The rows of a file of text as requests, pairs where it has them. Raises DataError, ConfigError."""
    from engines.client import TextRow
    from qdq.text.data import TextSource, read_records

    records, _ = read_records(TextSource(path, columns), samples)
    return [TextRow(record.text, record.pair, choices) for record in records]


def _ask(
    options: QueryOptions, model: ModelInfo, rows: Sequence[TextRow], progress: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """The answer of every row, or its error with the status; `progress` gets answered and all rows."""
    from engines.client import Refused, answer_of, connect, feeds_of, parse_address, small_outputs

    feeds = [feeds_of(model, row) for row in rows]
    wanted = options.outputs or small_outputs(model)
    parameters: dict[str, str | int] = {} if options.truncation == "error" else {"truncation": options.truncation}
    if options.dimensions is not None:
        parameters["dimensions"] = options.dimensions

    # Every client takes each AT_ONCE-th row; the answers are counted as they come.
    found: dict[int, dict[str, Any]] = {}
    lock = Lock()

    def ask(start: int) -> None:
        with connect(parse_address(options.url), options.timeout) as client:
            for number in range(start, len(feeds), AT_ONCE):
                try:
                    answer = answer_of(client.infer(model, feeds[number], wanted, parameters))
                except Refused as error:
                    answer = {"error": str(error), "status": error.status}
                with lock:
                    found[number] = answer
                    progress(len(found), len(feeds))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(ask, range(min(AT_ONCE, len(feeds)))))
    return [found[number] for number in range(len(feeds))]


def _text(rows: Sequence[TextRow], answers: Sequence[dict[str, Any]]) -> str:
    """Answers alone for one text, with the texts before them for several."""
    from engines.client import answer_text

    said = [f"error: {answer['error']}" if "error" in answer else answer_text(answer) for answer in answers]
    if len(rows) == 1:
        return f"{said[0]}\n"
    pairs = zip(rows, said, strict=True)
    return "".join(f"{_short(row.text)}\n  {one.replace(chr(10), chr(10) + '  ')}\n" for row, one in pairs)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 76 else f"{line[:75]}…"
