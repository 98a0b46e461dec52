"""The quickstarts and the notebook run as they stand, on a tiny model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
SMALL = {"samples": 16, "batch": 2, "sequence": 32, "threads": 1, "bench_seconds": 0.2, "target": "onnxruntime"}


@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_the_quickstart_runs(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import qdq

    page = (ROOT / name).read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert len(code.splitlines()) <= 20
    shutil.move("tiny-bert", "my-bert")
    rows = [json.loads(line) for line in Path("text.jsonl").read_text(encoding="utf-8").splitlines()]
    table = ["label\tsentence1\tsentence2", *(f"{row['label']}\t{row['text']}\t{row['text']}" for row in rows)]
    for name in ("train.tsv", "dev.tsv"):
        Path(name).write_text("\n".join(table) + "\n", encoding="utf-8")
    real = qdq.compile
    monkeypatch.setattr(qdq, "compile", lambda *model, **options: real(*model, **{**SMALL, **options}))
    exec(compile(code, name, "exec"), {"__name__": "quickstart"})
    shown = capsys.readouterr().out
    assert "(6, 6)" in shown and "Metric(name='accuracy'" in shown and "'score'" in shown


def test_the_notebook_runs(
    as_embedder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads((ROOT / "examples" / "python_api.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and not [cell for cell in notebook["cells"] if cell.get("outputs")]
    monkeypatch.chdir(tmp_path)
    place: dict[str, Any] = {"__name__": "notebook"}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for index, cell in enumerate(cells):
        exec(compile(cell, f"cell {index}", "exec"), place)
        if index == 0:  # a tiny model in the place of the bundled one
            model = as_embedder(tmp_path / "embedder")
            place |= {"model": str(model), "options": SMALL}
    assert place["vectors"].shape == (3, 32) and place["compiled"].report.is_file()
    assert "calibrate" in capsys.readouterr().out
