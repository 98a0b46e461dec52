"""AutoCompression: the Python form of an automatic compression.

    ac = AutoCompression("my-mrpc", train_loader, save_dir="out", config="afqmc.yaml", eval_callback=evaluate)
    ac.compress()
    ac.export_onnx("quant_model.onnx", deploy_backend="tensorrt")

Source of the signature: paddleslim.auto_compression.AutoCompression.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from qdq.auto.config import Configuration, read_config
from qdq.auto.default import STEPS_OF_DEFAULT, default_configuration
from qdq.auto.graph import File, run_graph
from qdq.auto.inputs.data import MOST_BATCHES, Rows, loader_rows
from qdq.auto.inputs.models import find_model
from qdq.auto.inputs.texts import LABEL, NoText, write_texts
from qdq.auto.output import copy_texts, export_graph
from qdq.auto.search.command import search
from qdq.auto.search.material import FEWEST
from qdq.auto.search.settings import SearchSettings, seconds
from qdq.auto.session import Materials
from qdq.auto.strategy import REPORT, Result, run_strategies
from qdq.base.artifacts import atomic_path, write_json
from qdq.base.config import choice
from qdq.base.screen import Screen
from qdq.calibrate.checkpoint import load_checkpoint
from qdq.compress.datasets import lengths_of
from qdq.compress.evaluators import CustomEvaluate, logits_of
from qdq.compress.onnx_file import OnnxModule, read_graph
from qdq.errors import ConfigError
from qdq.inject.widths import blocks
from qdq.loading.model import load_model

HARDWARE = {"gpu": "tensorrt", "cpu": "openvino"}  # what the exported graph is lowered for
HELD_OUT = 10  # of so many training rows one chooses and judges in a search, where no others are given
PHONES = ("SD625", "SD710", "RK3288")


class AutoCompression:
    """One model, compressed as a configuration says.

    Args:
        model_dir: a checkpoint folder, an ONNX file or the folder of one (`qdq.auto.inputs.models`).
        train_dataloader: torch's DataLoader, or anything that gives batches; labels are optional.
        model_filename, params_filename: file names in `model_dir`.
        save_dir: the final model lies here under its input's names.
        config: a YAML file or its content. Without one the strategy is found by measuring engines, where the rows are
            text (`qdq.auto.inputs.texts`); with TrainConfig alone, or where they are not, `qdq.auto.default` decides.
        input_shapes: [batch, sequence], or one such list for each input by name: shapes of the exported graph.
        target_speedup: share by which the default strategy shall be faster, more than 0.7.
        eval_callback: ``(exe, program, feed_names, fetch_list) -> float`` or ``(model, loader) -> float``, larger is
            better; None is the built-in evaluator of the model's class.
        eval_dataloader: data that decides; None is the first 5000 batches of the training data.
        deploy_hardware: gpu or cpu, for which the graph is exported, and engines are built and raced.
        budget: time of a search by measurement, in seconds or as text such as "30m".
        max_drop: points of the metric that its engine may lose.

    Raises ConfigError for everything that is wrong in these, ModelError for a model that cannot be loaded.
    """

    def __init__(  # noqa: PLR0913  # the documented signature
        self,
        model_dir: str,
        train_dataloader: Any,
        model_filename: str | None = None,
        params_filename: str | None = None,
        save_dir: str = "./output",
        config: str | Path | Mapping[str, Any] | None = None,
        input_shapes: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
        target_speedup: float | None = None,
        eval_callback: Callable[..., Any] | None = None,
        eval_dataloader: Any = None,
        deploy_hardware: str = "gpu",
        budget: str | float = SearchSettings.budget,
        max_drop: float = SearchSettings.max_drop,
    ) -> None:
        # What was typed
        self.configuration = read_config({} if config is None else config)
        self.save_dir = Path(save_dir)
        self.backend = _backend(deploy_hardware)
        self.shape = _shape(input_shapes)
        if target_speedup is not None and self.configuration.strategies:
            names = ", ".join(self.configuration.strategies)
            raise ConfigError(f"target_speedup: chooses a strategy, and {names} is configured; leave one of them out")
        self.target_speedup = target_speedup
        self.budget = seconds(budget) if isinstance(budget, str) else float(budget)
        self.max_drop = max_drop
        # Model and data
        self.source = find_model(str(model_dir), model_filename, params_filename, "model_dir")
        self.loaded = None if self.source.onnx else load_model(self.source.name)
        model: Any = OnnxModule(read_graph(Path(self.source.name))) if self.loaded is None else self.loaded.model
        self.outputs = model.outputs if self.loaded is None else self.loaded.outputs
        self.rows = _rows(train_dataloader, eval_dataloader, model)
        self.given_eval = eval_dataloader is not None
        self.evaluate = None if eval_callback is None else self._evaluator(eval_callback)

    def compress(self) -> Result:
        """Run it; a run that was killed continues. Raises what `run_strategies` raises, or the search does."""
        tokenizer = None if self.loaded is None else self.loaded.tokenizer
        if self.loaded is None:
            file = File(self.source, None, self.rows, self.save_dir, self.evaluate)
            return run_graph(self.configuration, file, Screen())
        materials = Materials(
            self.loaded.model, tokenizer, self.rows, self.save_dir, source=self.source, evaluate=self.evaluate
        )
        if self.configuration.strategies:
            return run_strategies(self.configuration, materials)
        screen = Screen()
        try:
            settings = self._search()
        except NoText as reason:
            screen.row("strategy", f"PaddleSlim's rule, because a search by measurement cannot be: {reason}")
            return run_strategies(self._default(), materials, screen, STEPS_OF_DEFAULT)
        return self._take(search(settings, screen))

    def _search(self) -> SearchSettings:
        """The search for a strategy; raises NoText with the reason where there can be none."""
        loaded, folder = self.loaded, self.save_dir / "search"
        assert loaded is not None  # an ONNX file without strategies is refused
        reasons = {
            "TrainConfig is given, and a search trains in its own way": self.configuration.train is not None,
            "target_speedup is given": self.target_speedup is not None,
            "eval_callback is a metric of the caller's": self.evaluate is not None,
        }
        for reason, holds in reasons.items():
            if holds:
                raise NoText(reason)
        rows = self._sides()
        if len(rows["dev"]) < FEWEST:
            raise NoText(f"{len(rows['dev'])} rows are fewer than the {FEWEST} that choose and judge")
        (train, columns), (dev, others) = (
            write_texts(rows[side], self.rows.labels, loaded, folder / "data", side) for side in ("train", "dev")
        )
        if columns != others:
            raise NoText("one loader has pairs of texts, and the other one single texts")
        longest = max(lengths_of(rows["train"]) + lengths_of(rows["dev"]))
        batch, sequence = self.shape or (SearchSettings.batch, max(SearchSettings.sequence, longest))
        return SearchSettings(
            model=self.source.name,
            train=str(train),
            dev=str(dev),
            text_columns=columns,
            label_column=LABEL,
            target=self.backend,
            budget=self.budget,
            max_drop=self.max_drop,
            batch=batch,
            sequence=min(sequence, loaded.max_sequence),
            save_dir=str(folder),
        )

    def _sides(self) -> dict[str, Any]:
        """Rows to train on, and rows that choose and judge; without an eval_dataloader every tenth is held out."""
        if self.given_eval:
            return {"train": self.rows.train, "dev": self.rows.dev}
        held = set(range(0, len(self.rows.train), HELD_OUT))
        parts = {"train": set(range(len(self.rows.train))) - held, "dev": held}
        return {side: Subset(self.rows.train, sorted(numbers)) for side, numbers in parts.items()}

    def _take(self, report: Mapping[str, Any]) -> Result:
        """The result of a search: its engine's checkpoint in `save_dir`, and the metrics on rows that chose nothing."""
        checkpoint = Path(report["deployed"]) / "checkpoint"
        for file in sorted(checkpoint.iterdir()):
            with atomic_path(self.save_dir / file.name) as partial:
                shutil.copyfile(file, partial)
        if self.source.files is not None:
            copy_texts(self.source.files, self.save_dir)
        chosen = next(one for one in report["engines"] if one["name"] == report["chosen"])
        baseline, metric = (float(one["judging"]["value"]) for one in (report["fp32"], chosen))
        notes = {"why": report["why"], "faster": chosen["ratio"], "engine": str(report["deployed"])}
        step = {"step": "search", "name": report["chosen"], "metric": metric, "notes": notes}
        result = Result(baseline, metric, self.save_dir, (step,), load_checkpoint(self.save_dir)[0].model)
        write_json(self.save_dir / REPORT, result.as_json())
        return result

    def export_onnx(self, model_name: str = "quant_model.onnx", deploy_backend: str | None = None) -> Path:
        """Write the result as ``save_dir/ONNX/model_name``; see `qdq.auto.output.export_graph`.

        `deploy_backend` is a target such as tensorrt or openvino, without one that of deploy_hardware.
        """
        return export_graph(self.save_dir, model_name, deploy_backend or self.backend, self.shape)

    def _default(self) -> Configuration:
        assert self.loaded is not None  # an ONNX file without strategies is refused
        return default_configuration(self.configuration, blocks(self.loaded.model)[0].heads, self.target_speedup)

    def _evaluator(self, function: Callable[..., Any]) -> CustomEvaluate:
        """A callback of either form as ``(model, loader) -> float``. Raises ConfigError for another one."""
        parameters = inspect.signature(function).parameters.values()
        count = sum(parameter.default is parameter.empty for parameter in parameters)
        if count == 2:
            return function
        if count != 4:
            raise ConfigError(
                f"eval_callback: takes {count} arguments; it is called with (exe, program, feed_names, fetch_list), or "
                "(model, loader)"
            )
        feeds = list(self.rows.labels.without(self.rows.collate([self.rows.dev[0]])))
        return lambda model, loader: function(Executor(), model, feeds, list(self.outputs))


class Executor:
    """Paddle's executor as callbacks use it: ``exe.run(program, feed={…}, fetch_list=[…])`` gives arrays."""

    def run(
        self, program: nn.Module, feed: Mapping[str, Any], fetch_list: Sequence[str], return_numpy: bool = True
    ) -> list[Any]:
        """Outputs of `program` for arrays by name, in their order; tensors without `return_numpy`."""
        device = next((parameter.device for parameter in program.parameters()), torch.device("cpu"))
        tensors = {name: torch.as_tensor(np.asarray(value)).to(device) for name, value in feed.items()}
        with torch.no_grad():
            output = logits_of(program(**tensors))
        each = list(output) if isinstance(output, tuple) else [output]
        if len(each) < len(fetch_list):
            raise ConfigError(f"eval_callback: fetches {', '.join(fetch_list)}; the model has {len(each)} outputs")
        return [one.float().cpu().numpy() if return_numpy else one for one in each[: len(fetch_list)]]


def _rows(train: Any, dev: Any, model: Any) -> Rows:
    found, collate, size = loader_rows(train, model, "train_dataloader")
    if dev is None:
        decided, dev_collate, _ = loader_rows(train, model, "train_dataloader", MOST_BATCHES)
    else:
        decided, dev_collate, _ = loader_rows(dev, model, "eval_dataloader")
    return Rows(found, decided, collate, size, dev_collate=dev_collate)


def _backend(hardware: str) -> str:
    if hardware in PHONES:
        raise ConfigError(
            f"deploy_hardware: {hardware}: PaddleSlim predicts latencies of this chip from a table; engines here are "
            "measured, on gpu or cpu"
        )
    return HARDWARE[choice(hardware, HARDWARE, "deploy_hardware")]


def _shape(given: Sequence[int] | Mapping[str, Sequence[int]] | None) -> tuple[int, int] | None:
    """Batch and sequence of `input_shapes`. Raises ConfigError for inputs of different shapes."""
    if given is None:
        return None
    each = {tuple(shape) for shape in given.values()} if isinstance(given, Mapping) else {tuple(given)}
    found = next(iter(each), ())
    if len(each) != 1 or len(found) != 2 or not all(isinstance(size, int) and size > 0 for size in found):
        raise ConfigError(f"input_shapes: {given} is no batch and sequence that all inputs have; write [40, 128]")
    return int(found[0]), int(found[1])
