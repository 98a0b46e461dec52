"""`qdq auto`: a configuration file run and scored, and the search that a file or the command line asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qdq.auto.config import read_config
from qdq.cli.auto import settings_of
from qdq.cli.main import main
from qdq.errors import ConfigError


@pytest.fixture
def configured(tiny_checkpoint: Callable[..., Path], sentences: tuple[str, ...], tmp_path: Path) -> Callable[..., Path]:
    """`configured(sections)`: a file whose Global names a tiny classifier and eight rows on which it is half right."""

    def write(**sections: Any) -> Path:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        rows = [{"sentence": text, "label": index % 2} for index, text in enumerate(sentences[:8])]
        for side in ("train", "dev"):
            (data / f"{side}.json").write_text("\n".join(map(json.dumps, rows)) + "\n")
        options = {"model_dir": str(tiny_checkpoint()), "train_data": str(data), "dev_data": str(data), "batch_size": 4}
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump({"Global": options, **sections}))
        return file

    return write


def test_a_configuration_is_run_and_scored(
    configured: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options are taken with underscores, too, as the document types them."""
    file = configured(QuantPost={"batch_nums": 1})
    assert main(["auto", f"--config_path={file}", f"--save_dir={tmp_path / 'out'}", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["steps"][0]["step"] == "ptq" and (tmp_path / "out" / "quant_spec.json").is_file()
    assert main(["auto", "--config-path", str(file), "--eval"]) == 0
    assert capsys.readouterr().out.startswith(f"accuracy: {report['baseline']:.4f}\n")
    assert main(["auto", "--config-path", str(file), "--eval", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == report["baseline"]


def test_without_strategies_a_search_is_asked_for(
    configured: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "qdq.auto.search.command.search", lambda settings, screen: asked.append(settings) or {"deployed": "x"}
    )
    file = configured()
    assert main(["auto", "--config_path", str(file), "--budget", "2m", "--max_drop", "1", "--target", "openvino"]) == 0
    assert capsys.readouterr().out == "x\n"
    (settings,) = asked
    assert (settings.budget, settings.max_drop, settings.target, settings.sequence) == (120.0, 1.0, "openvino", 128)
    assert settings.train.endswith("train.json") and settings.dev.endswith("dev.json")
    assert main(["auto", "--model", "m", "--train", "a", "--dev", "b", "--save-dir", "s"]) == 0
    assert (asked[1].model, asked[1].budget, asked[1].save_dir) == ("m", 1800.0, "s")


def test_what_does_not_go_together(configured: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    file = str(configured(QuantPost=None))
    for words, message in (
        (["--eval"], "--eval scores the model of a configuration; give --config-path FILE"),
        (["--model", "m"], "--train is missing; give --model, --train, --dev, or --config-path"),
        (["--config-path", file, "--budget", "3m"], "--budget is of a search"),
        (["--config-pth", file], "unknown option --config-pth; did you mean '--config-path'?"),
    ):
        assert main(["auto", *words]) == 2
        assert message in capsys.readouterr().err
    training = read_config(configured(TrainConfig={"epochs": 1}))
    with pytest.raises(ConfigError, match="TrainConfig: a search trains in its own way"):
        settings_of(training, {"budget": 60.0})
    with pytest.raises(ConfigError, match=r"--model: Global of .* names it"):
        settings_of(read_config(configured()), {"model": "other"})
