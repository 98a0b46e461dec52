"""`qdq load`: what a served model answers under load, how fast, and whether every answer is the engine's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import to_json, write_json
from qdq.base.option import check, option
from qdq.cli.query import MODEL, SERVER, TIMEOUT, TRUNCATION
from qdq.errors import ConfigError

if TYPE_CHECKING:
    from engines.client import Address, Call, Client, ModelInfo, TextRow
    from qdq.base.screen import Screen
    from qdq.cli.judge import Direct, Judge

DIRECT_SECONDS = 1.0  # of direct calls of the engine before and after a load, to compare its CPU time with
SHOWN = 3  # messages of one load, most frequent first
FAILED = 1


@dataclass(frozen=True)
class LoadOptions:
    """Options of `qdq load`."""

    url: str = option(MISSING, SERVER, metavar="URL", positional=True)
    data: str | None = option(None, "text to send, as it is (default: bundled English text)", metavar="DATA")
    text_columns: tuple[str, ...] = option((), " (default: detected)", metavar="A[,B]")
    samples: int = option(512, "most rows of it", within=(1, 1_000_000))
    clients: tuple[int, ...] = option((1, 8, 32), "requests under way at once, one load after the other", metavar="N,M")
    seconds: float = option(10.0, "of each load", metavar="S", positive=True)
    requests: int | None = option(None, "end each load after this many (default: by time)", within=(1, 1_000_000))
    check: str | None = option(
        None, "work directory whose engine every answer is compared with (default: not compared)", metavar="DIR"
    )
    model: str | None = option(None, MODEL)
    truncation: str = option("cut", "texts of more tokens than the engine was built for", choices=TRUNCATION)
    timeout: float = option(60.0, TIMEOUT, metavar="S", positive=True)
    out: str | None = option(None, "folder for load.json and load.png (default: not written)", metavar="DIR")


def load(options: LoadOptions, as_json: bool, screen: Screen) -> tuple[str, int]:
    """The report as text or JSON; the exit code is 1 when an answer was wrong or a request was refused.

    Raises QdqError.
    """
    from engines.client import draw_load, render_load

    report = measure(options, screen)
    text = to_json(report) if as_json else render_load(report)
    if options.out is not None:
        folder = Path(options.out)
        written = (write_json(folder / "load.json", report), draw_load(report, folder / "load.png"))
        text += "" if as_json else "\n" + "".join(f"{path}\n" for path in written)
    failed = any(run["errors"] or run.get("check", {}).get("wrong") for run in report["runs"])
    return text, FAILED if failed else 0


def measure(
    options: LoadOptions, screen: Screen, judge: Judge | None = None, direct: float = DIRECT_SECONDS
) -> dict[str, Any]:
    """Run every load and return the report. Raises QdqError.

    `judge`, if it is given, has prepared the same rows; the engine by itself runs for `direct` seconds before and after
    each load, 0 for never.
    """
    from engines.bench.machine import machine
    from engines.client import choose_model, connect, feeds_of, parse_address, takes_text

    check(options)
    address = parse_address(options.url)
    with connect(address, options.timeout) as client:
        model = choose_model(client, options.model)
        # The rows, and the engine's own answers to them.
        rows = rows_of(options, model)
        judge = judge or _judge(options, model, rows, screen)
        if takes_text(model):
            feeds = [feeds_of(model, row) for row in rows]
        elif judge is None:
            raise ConfigError(
                f"model '{model.name}' takes token ids; --check DIR names a work directory to make them by"
            )
        else:
            feeds = [judge.feeds(model, number) for number in range(len(rows))]
        # The loads.
        runs = [
            _load(options, (client, address, model), feeds, count, (judge, direct), screen) for count in options.clients
        ]
    report = {
        "url": str(address),
        "model": model.name,
        "texts": len(rows),
        "data": options.data or "bundled English text",
        "truncation": options.truncation,
        "runs": runs,
        "machine": machine(),
    }
    if judge is not None:
        report["check"] = {"engine": judge.engine, "rule": judge.rule, "tolerance": judge.tolerance}
    return report


def _load(
    options: LoadOptions,
    server: tuple[Client, Address, ModelInfo],
    feeds: Sequence[Any],
    clients: int,
    engine: tuple[Judge | None, float],
    screen: Screen,
) -> dict[str, Any]:
    """One load and its figures; `engine` is the judge, and the seconds for which it runs by itself."""
    from engines.client import (
        LoadSettings,
        batches_between,
        cpu_seconds,
        figures_of,
        local_server,
        run_load,
        small_outputs,
        takes_text,
    )

    # The load, between two readings of what the server counts.
    client, address, model = server
    judge, seconds = engine
    process = local_server(address)
    settings = LoadSettings(clients, options.seconds, options.timeout, options.requests)
    wanted = small_outputs(model) if judge is None else judge.outputs(model)
    parameters = {"truncation": options.truncation} if takes_text(model) else {}
    beside = [_direct(judge, seconds, screen)] if judge is not None and seconds else []
    with screen.stage("load", undisturbed=True, lasting=options.seconds) as stage:
        before, cpu = client.statistics(model.name), None if process is None else cpu_seconds(process)
        calls = run_load(address, model, feeds, settings, wanted, parameters)
        spent = None if process is None or cpu is None else (cpu_seconds(process) or 0.0) - cpu
        after = client.statistics(model.name)
        figures = figures_of(calls)
        stage.say(f"clients: {clients}; {figures['answered']} answers, {figures['texts_per_s']:.0f} a second")
    # The figures, every answer against the engine's, and the engine by itself, before and after.
    answered = max(figures["answered"], 1)
    report = {
        "clients": clients,
        **figures,
        "batches": batches_between(before, after),
        "cpu_ms_per_text": None if spent is None else 1000 * spent / answered,
        "cut": sum(bool(call.outputs and "CUT" in call.outputs and call.outputs["CUT"].any()) for call in calls),
        "messages": _messages([call.message for call in calls if call.outputs is None]),
    }
    if judge is not None:
        report["check"] = checked = _checked(judge, calls)
        report["messages"] += checked.pop("messages")
        if seconds:
            beside.append(_direct(judge, seconds, screen))
            report["direct_cpu_ms_per_text"] = fmean(one.cpu_ms_per_text for one in beside)
    return report


def _direct(judge: Judge, seconds: float, screen: Screen) -> Direct:
    """The engine by itself for so many seconds."""
    with screen.stage("engine", undisturbed=True, lasting=seconds) as stage:
        stage.say("its own time for these texts")
        return judge.direct(seconds)


def _checked(judge: Judge, calls: Sequence[Call]) -> dict[str, Any]:
    """Answers that are right and wrong; of all how many are the engine's to rounding, and the furthest from it."""
    from qdq.cli.judge import ROUNDING

    answers = [(call.row, call.outputs) for call in calls if call.outputs is not None]
    wrong = [f"wrong: {difference}" for answer in answers if (difference := judge.differs(*answer))]
    away = [judge.away(*answer) for answer in answers]
    return {
        "right": len(answers) - len(wrong),
        "wrong": len(wrong),
        "same": sum(distance <= ROUNDING for distance in away),
        "furthest": max(away, default=0.0),
        "messages": _messages(wrong),
    }


def _messages(messages: Sequence[str]) -> list[str]:
    return [f"{count} x {message}" for message, count in Counter(messages).most_common(SHOWN)]


def _judge(options: LoadOptions, model: ModelInfo, rows: Sequence[TextRow], screen: Screen) -> Judge | None:
    """The engine to compare with, when one is asked for, with its own answers to the rows."""
    from engines.client import takes_text
    from qdq.cli.judge import Judge

    if options.check is None:
        return None
    with screen.stage("engine") as stage:
        judge = Judge(Path(options.check), model.name, takes_text(model))
        judge.prepare(rows, stage.progress)
        stage.say(f"its own answers to {len(rows)} texts")
    return judge


def rows_of(options: LoadOptions, model: ModelInfo) -> list[TextRow]:
    """Rows of the data in the form that the model takes."""
    from engines.client import TextRow
    from engines.client.texts import CHOICES, CONTEXT, TEXT_PAIR
    from qdq.loading.kinds import CHOICES as COUNT
    from qdq.text.data import TextSource, bundled, read_records
    from qdq.text.encode import choice_records

    names = {tensor.name for tensor in model.inputs}
    paired = bool(names & {CONTEXT, CHOICES})
    source = TextSource(options.data, options.text_columns) if options.data else bundled(pairs=paired, heldout=True)
    records, _ = read_records(source, options.samples)
    if CHOICES in names:
        groups = choice_records(records, COUNT)
        return [TextRow(group[0].text, None, tuple(one.pair or "" for one in group)) for group in groups]
    keeps = bool(names & {CONTEXT, TEXT_PAIR}) or not all(tensor.datatype == "BYTES" for tensor in model.inputs)
    return [TextRow(record.text, record.pair if keeps else None) for record in records]
