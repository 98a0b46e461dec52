"""Finished parts of a configured run, kept in its folder: a run that was killed and is started again repeats none.

Trainings have checkpoints of their own. Kept beside them are the model of a step that another one follows, the metric
of every setting that a search has tried, and the decision of the default strategy's trial.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdq.auto.config import Configuration
from qdq.auto.inputs.data import Rows
from qdq.base.artifacts import read_json, sha256_json, write_json
from qdq.base.versions import versions
from qdq.compress.datasets import digest_of
from qdq.compress.method import CompressedModel, Session
from qdq.compress.output import save
from qdq.loading.model import load_model

FOLDER, RECORD = "finished", "finished.json"


class Finished:
    """Parts of a run with these `inputs` that are whole; those of other inputs in the folder do not count.

    Args:
        folder: of the run.
        inputs: whatever decides the results, as JSON values.
        shared: several processes train together, where each one has to do what the others do: nothing is kept.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any], shared: bool = False) -> None:
        self._folder, self._shared = folder / "training" / FOLDER, shared
        self._record: dict[str, Any] = {"inputs": sha256_json(inputs), "parts": {}}
        path = self._folder / RECORD
        if path.is_file() and not shared and (found := read_json(path)).get("inputs") == self._record["inputs"]:
            self._record = found

    def part(self, name: str) -> Any:
        """The value that was kept under a name, None where there is none."""
        return self._record["parts"].get(name)

    def keep(self, name: str, value: Any) -> None:
        """Keep a JSON value; what is kept is on disk when this returns."""
        self._record["parts"][name] = value
        if not self._shared:
            write_json(self._folder / RECORD, self._record)

    def model(self, name: str, before: CompressedModel, device: Any) -> CompressedModel | None:
        """The float model that was kept under a name, made from `before`; None where there is none."""
        about, folder = self.part(name), self._folder / name
        if about is None or not folder.is_dir():
            return None
        model = load_model(str(folder)).model.to(device)
        return dataclasses.replace(before, model=model, **about)

    def keep_model(self, name: str, made: CompressedModel, session: Session) -> None:
        """Keep a float model with its metric."""
        if not self._shared:
            save(session, made, self._folder / name)
        self.keep(name, {"name": made.name, "metric": float(made.metric or 0.0), "notes": dict(made.notes)})


def inputs_of(configuration: Configuration, rows: Rows, model: str, baseline: float) -> dict[str, Any]:
    """Everything that decides the results of a run: its sections, its data, the given model's hash, and versions.

    The evaluator is known by the metric that it has given the model.
    """
    sections = dataclasses.replace(configuration, model=None, where="")
    return {
        "sections": repr(sections),
        "batch_size": rows.batch_size,
        "train": digest_of(rows.train),
        "dev": digest_of(rows.dev),
        "model": model,
        "baseline": baseline,
        "versions": versions(),
    }
