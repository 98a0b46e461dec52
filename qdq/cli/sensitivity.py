"""`qdq sensitivity`: rank the points of a calibrated checkpoint, or of a model that is calibrated for it here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.cores import available_cores
from qdq.base.artifacts import sha256_tree, to_json, write_json
from qdq.base.choices import PLACEMENTS
from qdq.base.option import check, option
from qdq.cli.contestants import model_for
from qdq.errors import ConfigError
from qdq.loading.kinds import CHOICES
from qdq.loading.source import is_checkpoint, resolve, short_name
from qdq.pipeline.options import HEADER, LABEL_COLUMN, LABELS, MANY
from qdq.text.data import Record, TextSource, bundled, read_records

if TYPE_CHECKING:
    from qdq.base.screen import Screen
    from qdq.loading.model import LoadedModel

CALIBRATION_TEXTS = 128
SHOWN = 15  # rows of each table on the screen
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class SensitivityOptions:
    """Options of `qdq sensitivity` as typed. Give training rows as `data`: what is chosen by them is not tested."""

    what: str = option(
        MISSING,
        "checkpoint/ or work directory of a run, or a model to inject and calibrate here",
        metavar="WHAT",
        positional=True,
    )
    data: str | None = option(
        None, "training text to compare answers on (default: bundled English text)", metavar="DATA"
    )
    text_columns: tuple[str, ...] = option((), " (default: detected)", metavar="A[,B]")
    label_column: str | None = option(None, LABEL_COLUMN)
    header: tuple[str, ...] = option((), HEADER, metavar="A,B")
    labels: tuple[str, ...] = option((), LABELS, metavar="A,B")
    placement: str = option("qdqbert", "of a model that is calibrated here", choices=PLACEMENTS)
    samples: int = option(64, "texts", within=(1, MANY))
    skip: int = option(0, "rows of DATA to pass over; they calibrate a model", within=(0, MANY))
    sequence: int = option(128, "tokens; longer texts are cut", within=(4, MANY))
    batch: int = option(16, "rows per batch", within=(1, MANY))
    metric: bool = option(False, "score the task metric of every trial too; needs labels")
    out: str | None = option(None, "folder of the results (default: build/<model name>/sensitivity)", metavar="DIR")
    threads: int = option(0, " (default: 0, which is all cores)")


def run(options: SensitivityOptions, as_json: bool, screen: Screen) -> str:
    """Run or resume the study and return the text for standard output. Raises QdqError."""
    report, folder = sensitivity(options, screen)
    files = f"\n{folder / 'sensitivity.json'}\n{folder / 'sensitivity.png'}\n"
    return to_json(report) if as_json else render(report) + files


def sensitivity(options: SensitivityOptions, screen: Screen) -> tuple[dict[str, Any], Path]:
    """Run or resume the study; returns the report and the folder it was written to. Raises QdqError."""
    from qdq.pipeline.run import prepare_torch
    from qdq.placing.sensitivity.probe import Probe
    from qdq.placing.sensitivity.report import Journal, plot, study
    from qdq.tasks.loading import EvaluationSettings, evaluation_of

    check(options)
    prepare_torch(options.threads or available_cores())
    place = resolve(model_for(options.what))[0]
    folder = Path(options.out or Path("build") / short_name(options.what) / "sensitivity")
    # A calibrated model with text to run.
    records, source = _texts(options)
    loaded = _quantized(options, place, records, screen)
    settings = EvaluationSettings(options.sequence, options.batch, overlap=-1, required=options.metric)
    evaluation = evaluation_of(records[options.skip :], loaded, settings, source)
    if options.metric and not evaluation.labelled:
        raise ConfigError(f"--metric: {evaluation.reason}; give labelled text to --data, or leave --metric out")
    probe = Probe(loaded.module(), evaluation)
    # The study, resumed when the same one was interrupted.
    decisive = {**asdict(options), "out": None, "threads": None}
    identity = {**decisive, "model": sha256_tree(place), "texts": list(map(repr, records))}
    journal = Journal(folder / "sensitivity.partial.json", identity)
    with screen.stage("sensitivity") as stage:
        report = study(probe, journal, options.metric, source, stage.progress)
        stage.say(f"{len(report['points'])} points and {len(report['groups'])} groups over {source}")
    write_json(folder / "sensitivity.json", report)
    plot(report, folder / "sensitivity.png")
    journal.close()
    return report, folder


def _texts(options: SensitivityOptions) -> tuple[list[Record], str]:
    columns = (options.text_columns, options.label_column, options.header, options.labels)
    source = bundled() if options.data is None else TextSource(options.data, *columns)
    records, _ = read_records(source, options.skip + options.samples)
    if len(records) <= options.skip:
        raise ConfigError(f"--skip: {source.path} has {len(records)} rows, none behind the first {options.skip}")
    behind = f" behind the first {options.skip}" if options.skip else ""
    name = options.data or "bundled English text"
    return records, f"{len(records) - options.skip} texts of {name}{behind}"


def _quantized(options: SensitivityOptions, place: Path, records: list[Record], screen: Screen) -> LoadedModel:
    """The injected model with its amax: the checkpoint's own, or calibrated on the same source's first rows."""
    if is_checkpoint(place):
        from qdq.calibrate.checkpoint import load_checkpoint

        return load_checkpoint(place)[0]
    import torch

    from qdq.calibrate.algorithms import Algorithm
    from qdq.calibrate.calibrate import calibrate, default_percentile
    from qdq.inject import inject
    from qdq.inject.spec import named_spec
    from qdq.loading.model import load_model
    from qdq.text.encode import calibration_batches

    # The rows that the study passes over calibrate; without such rows, those it compares on.
    loaded, spec = load_model(str(place)), named_spec(options.placement)
    inject(loaded.model, spec)
    texts = records[: options.skip] or records
    choices = CHOICES if loaded.task.choices else None
    feeds = calibration_batches(
        loaded.tokenizer, texts[:CALIBRATION_TEXTS], loaded.inputs, options.sequence, choices=choices
    )
    batches = [{name: torch.from_numpy(array) for name, array in feed.items()} for feed in feeds]
    with screen.stage("calibrate") as stage:
        algorithm = Algorithm("percentile", default_percentile(spec))
        calibrate(loaded.module(), batches, spec, algorithm, stage.progress)
        stage.say(f"{options.placement}, {algorithm.label}")
    return loaded


def render(report: Mapping[str, Any]) -> str:
    """The most damaging groups and points, at most 80 columns where names allow."""
    everything = report["everything"]
    lines = [
        f"everything quantized: divergence {everything['divergence']:.5f} ({report['divergence']}), "
        f"output error {everything['mse']:.4g}",
        f"over {report['source']}",
    ]
    if everything["metric"] is not None:
        lines.append(f"metric {report['floating']['metric']:.4f} in FP32, {everything['metric']:.4f} quantized")
    for title, entries in (("groups", report["groups"]), ("points", report["points"])):
        lines += ["", f"{title:<7}   damage     gain  SNR dB  {_metric_head(entries)}", *map(_line, entries[:SHOWN])]
        if len(entries) > SHOWN:
            lines.append(f"  and {len(entries) - SHOWN} more, see sensitivity.json")
    note = "damage: divergence with only this quantized; gain: what leaving only this out takes off the whole's"
    return "\n".join([*lines, "", note]) + "\n"


def _metric_head(entries: Sequence[Entry]) -> str:
    return "points -/+  " if entries and "metric_damage_points" in entries[0] else ""


def _line(entry: Entry) -> str:
    text = f"       {entry['damage']:9.5f} {entry['gain']:+8.5f} {entry['snr_db']:7.1f}  "
    if "metric_damage_points" in entry:
        text += f"{-entry['metric_damage_points']:+5.2f} {entry['metric_gain_points']:+5.2f}  "
    return text + (f"{entry['name']} ({entry['points']} points)" if entry["kind"] == "group" else entry["name"])
