"""`qdq profile`: engine files in, the table on screen, JSON and the picture in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from engines.onnxruntime.build import OnnxRuntimeSettings
from engines.openvino.build import OpenVINOSettings
from engines.profile.feeds import token_feeds
from engines.profile.layers import Profiler
from engines.profile.onnxruntime import OnnxRuntimeProfiler
from engines.profile.openvino import OpenVINOProfiler
from engines.profile.peak import measure_peak
from engines.profile.picture import draw_profile
from engines.profile.report import layer_report, profile_report
from engines.profile.table import render_profile
from qdq.base.artifacts import to_json, write_json
from qdq.base.config import choice
from qdq.errors import ConfigError

ENGINES = ("openvino", "onnxruntime")


@dataclass(frozen=True)
class ProfileSettings:
    """Shape, runtime and extent of a profile; all engines of one run share them.

    `static` compiles OpenVINO's engines for exactly this batch and sequence, as a runner that knows its shape does.
    """

    batch: int = 40
    sequence: int = 128
    threads: int = 0
    precision_hint: str = "f32"
    rounds: int = 10
    static: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("sequence", 1), ("threads", 0), ("rounds", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name}: {getattr(self, name)} must be at least {least}")


@dataclass(frozen=True)
class Subject:
    """An engine file to profile, under the name the table and the picture show."""

    label: str
    file: Path
    engine: str
    static: bool = False


def profile_command(
    subjects: Sequence[Subject],
    settings: ProfileSettings,
    output: Path | None,
    as_json: bool,
    progress: Callable[[int, int], None],
) -> str:
    """Profile every subject and return the text to print; `output` gets profile.json, layers.json and profile.png.

    `progress` gets finished and all rounds. Raises BuildError when an engine cannot be loaded or run.
    """
    profilers = [_open(subject, settings) for subject in subjects]
    feeds = [token_feeds(subject.file, settings.batch, settings.sequence) for subject in subjects]
    # Engines take turns, so that a busy moment of the machine meets all of them; the first round is the warm-up.
    for number in range(settings.rounds + 1):
        progress(number, settings.rounds + 1)
        for profiler, batch in zip(profilers, feeds, strict=True):
            profiler.run(batch)
    profiles = {
        subject.label: (subject.engine, profiler.result())
        for subject, profiler in zip(subjects, profilers, strict=True)
    }
    report = profile_report(profiles, measure_peak(settings.threads), asdict(settings))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "profile.json", report)
        write_json(output / "layers.json", layer_report(profiles))
        draw_profile(report, output / "profile.png")
    return to_json(report) if as_json else render_profile(report)


def subjects_of(files: Sequence[str], engine: str | None, static: bool) -> list[Subject]:
    """``FILE`` or ``LABEL=FILE`` as typed; the label is the folder's name unless one is given.

    `engine` runs the .onnx files (None: onnxruntime); .xml files are OpenVINO's. Raises ConfigError naming what is no
    engine file and labels that are used twice.
    """
    found: dict[str, Subject] = {}
    for text in files:
        given, equals, rest = text.partition("=")
        path = Path(rest if equals else text)
        label = given if equals else path.resolve().parent.name
        if label in found:
            raise ConfigError(f"two files are called '{label}'; name them, LABEL=FILE")
        if not path.is_file():
            raise ConfigError(f"{path}: is not a file; give an engine, such as build/<model>/openvino/model.xml")
        if path.suffix not in (".xml", ".onnx"):
            raise ConfigError(f"{path}: is neither an OpenVINO IR (.xml) nor an ONNX file; give a CPU engine's file")
        chosen = "openvino" if path.suffix == ".xml" else choice(engine or "onnxruntime", ENGINES, "--engine")
        found[label] = Subject(label, path, chosen, static)
    return list(found.values())


def _open(subject: Subject, settings: ProfileSettings) -> Profiler:
    if subject.engine == "onnxruntime":
        return OnnxRuntimeProfiler(subject.file, OnnxRuntimeSettings(settings.threads))
    shape = (settings.batch, settings.sequence) if subject.static else None
    return OpenVINOProfiler(subject.file, OpenVINOSettings(settings.threads, settings.precision_hint, shape=shape))
