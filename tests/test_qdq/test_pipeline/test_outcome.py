"""The resolved configuration on the screen: in words, and every other option that is not at its default."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from qdq.pipeline.options import CompileOptions
from qdq.pipeline.outcome import SAID, show
from qdq.pipeline.run import Run


def rows(options: CompileOptions) -> dict[str, str]:
    """Rows that `show` prints of resolved options."""
    shown: dict[str, str] = {}
    screen: Any = SimpleNamespace(row=shown.__setitem__, line=lambda: None)
    work = SimpleNamespace(path=Path("work"))
    show(cast("Run", SimpleNamespace(options=options, keeps_spec=False, work=work, screen=screen, rivals=())))
    return shown


def test_defaults_are_said_in_words_alone() -> None:
    shown = rows(CompileOptions(task="fill-mask", target="openvino", placement="auto", threads=1, streams=1))
    assert list(shown) == ["model", "target", "placement", "calibration", "evaluation", "benchmark", "out"]
    assert shown["target"] == "openvino, 1 thread, precision hint f32"
    assert shown["calibration"] == "clip, at most 128 texts of the bundled English text"


def test_every_other_option_is_shown_when_it_was_changed() -> None:
    shown = rows(CompileOptions(smoothing=False, body="bf16", buckets=(32, 128), mode="throughput", streams=2))
    assert shown["also"] == "smoothing off, mode throughput, body bf16, buckets 32,128"
    assert shown["target"].startswith("auto, 0 threads for each of 2 requests at once")
    assert set(SAID) <= CompileOptions().as_json().keys()
