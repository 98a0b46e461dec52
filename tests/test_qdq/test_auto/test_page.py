"""docs/auto.md: its configuration, its commands and its program run on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader
from transformers import default_data_collator

from qdq.auto.config.reading import SECTIONS
from qdq.cli.main import main

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "auto.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.usefixtures("light_collections")  # a training ends with a full one


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    return str(found)


def test_every_section_and_key_is_on_the_page() -> None:
    from dataclasses import fields

    from qdq.auto import config

    for name in SECTIONS:
        assert f"`{name}`" in PAGE, name
    ours = ("Global", "TrainConfig", "Distillation", "QuantAware", "QuantPost", "HyperParameterOptimization")
    keys = {field.name for name in ours for field in fields(getattr(config, name))} - {"sparse_model"}
    assert [key for key in sorted(keys) if f"`{key}`" not in PAGE] == []


def test_the_page_runs(
    tiny_checkpoint: Callable[..., Path],
    rows: Callable[..., Any],
    sentences: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint(), tmp_path / "my-mrpc")
    (tmp_path / "data").mkdir()
    for side in ("train", "dev"):
        lines = [f"{index % 2}\t{text}" for index, text in enumerate(sentences[:8])]
        (tmp_path / "data" / f"{side}.tsv").write_text("\n".join(["label\tsentence", *lines]) + "\n")
    (tmp_path / "run.yaml").write_text(block("yaml"))
    # Commands; a compile and a search have tests of their own
    asked: list[Any] = []
    monkeypatch.setattr(
        "qdq.auto.search.command.search", lambda settings, screen: asked.append(settings) or {"deployed": "x"}
    )
    for line in block("bash").splitlines():
        words = shlex.split(line)
        if words[1] == "auto":
            assert main(words[1:]) == 0
    assert (asked[0].budget, asked[0].max_drop, asked[0].target) == (1800.0, 0.5, "openvino")
    report = json.loads((tmp_path / "out" / "mrpc" / "auto_compression.json").read_text())
    assert [row["step"] for row in report["steps"]] == ["prune", "ptq"]
    # The program
    data = rows(8)
    names: dict[str, Any] = {
        "train_dataloader": DataLoader(data, 4, collate_fn=default_data_collator),
        "eval_dataloader": DataLoader(data, 4, collate_fn=default_data_collator),
        "evaluate": None,
    }
    exec(compile(block("python"), "auto.md", "exec"), names)
    assert names["result"].steps[0]["step"] == "qat"
    assert (tmp_path / "out" / "python" / "ONNX" / "quant_model.onnx").is_file()
