"""`qdq sensitivity`: rank the points of a calibrated checkpoint, or of a model that is calibrated for it here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import sha256_tree, write_json
from qdq.base.choices import PLACEMENTS
from qdq.base.config import choice
from qdq.base.screen import Screen
from qdq.cli.contestants import model_for
from qdq.errors import ConfigError
from qdq.load.kinds import CHOICES
from qdq.load.source import is_checkpoint, resolve, short_name
from qdq.pipeline.options import available_cores
from qdq.pipeline.run import prepare_torch
from qdq.text.data import Record, TextSource, bundled, read_records

if TYPE_CHECKING:
    from qdq.load.model import LoadedModel

CALIBRATION_TEXTS = 128


@dataclass(frozen=True)
class SensitivityOptions:
    """Options of `qdq sensitivity` as typed.

    Attributes:
        what: a calibrated checkpoint/, a work directory, or a model (then injected and calibrated with `placement`).
        data: text to compare answers on; None is bundled text. Use training rows: what is chosen by it is not tested.
        samples: texts.
        skip: rows of `data` to pass over, such as those that calibrated.
        metric: score the task metric of every trial too; `data` needs labels.
        out: folder of sensitivity.json, sensitivity.png and the journal; None is build/<model>/sensitivity.
    """

    what: str
    data: str | None = None
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    placement: str = "qdqbert"
    samples: int = 64
    skip: int = 0
    sequence: int = 128
    batch: int = 16
    metric: bool = False
    out: str | None = None
    threads: int = 0

    def validate(self) -> None:
        """Raise ConfigError for the first value that cannot be meant."""
        choice(self.placement, PLACEMENTS, "--placement")
        for name, least in (("samples", 1), ("skip", 0), ("sequence", 4), ("batch", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name}: {getattr(self, name)} is too small; give at least {least}")


def sensitivity(options: SensitivityOptions, screen: Screen) -> tuple[dict[str, Any], Path]:
    """Run or resume the study; returns the report and the folder it was written to. Raises QdqError."""
    from qdq.placing.sensitivity.probe import Probe
    from qdq.placing.sensitivity.report import plot
    from qdq.placing.sensitivity.study import Journal, study
    from qdq.tasks.loading import EvaluationSettings, evaluation_of

    options.validate()
    prepare_torch(options.threads or available_cores())
    place = resolve(model_for(options.what))[0]
    folder = Path(options.out or Path("build") / short_name(options.what) / "sensitivity")
    records, source = _texts(options)
    loaded = _quantized(options, place, records, screen)
    settings = EvaluationSettings(options.sequence, options.batch, overlap=-1, required=options.metric)
    evaluation = evaluation_of(records[options.skip :], loaded, settings, source)
    if options.metric and not evaluation.labelled:
        raise ConfigError(f"--metric: {evaluation.reason}; give labelled text to --data, or leave --metric out")
    probe = Probe(loaded.module(), evaluation)
    identity = {
        **asdict(options),
        "out": None,
        "threads": None,
        "model": sha256_tree(place),
        "texts": list(map(repr, records)),
    }
    journal = Journal(folder / "sensitivity.partial.jsonl", identity)
    with screen.stage("sensitivity") as stage:
        found = study(probe, journal, options.metric, (evaluation.samples, source), stage.progress)
        stage.say(f"{len(found.rows)} points and {len(found.groups)} groups over {source}")
    report = found.as_json()
    write_json(folder / "sensitivity.json", report)
    plot(report, folder / "sensitivity.png")
    journal.close()
    return report, folder


def _texts(options: SensitivityOptions) -> tuple[list[Record], str]:
    source = bundled() if options.data is None else TextSource(options.data, options.text_columns, options.label_column)
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
    from qdq.load.model import load_model
    from qdq.text.encode import calibration_batches

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
