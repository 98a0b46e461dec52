"""The model as its own library runs it: what engines are compared with.

Nothing of `qdq.loading.model` is used. Configuration, class, weights, tokenizer and head are read from the folder anew,
by transformers' own class as it is, and by sentence-transformers where its files lie there and it is installed (else by
`qdq.loading.pooling`, which is tested against it). So a mistake in our reading of a checkpoint shows as a difference.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import ModelError, ParityError
from qdq.loading.kinds import SENTENCE_EMBEDDING, TASKS, Task, detect_task
from qdq.loading.leftovers import foreign_prefix
from qdq.loading.pooling import LIBRARY, read_chain
from qdq.loading.source import read_config, weight_files

if TYPE_CHECKING:
    from torch import Tensor

    from qdq.base.types import Feeds, Outputs

# Two FP32 runs of one model differ by the order of their sums: at most 1e-5 of the largest output on every family's
# tests. Another activation, position or head differs by whole percents.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Reference:
    """A runner, as every engine's: feeds in, named float32 arrays out.

    Attributes:
        library: what computes it, for people.
        run: named tensors to named tensors.
        encode: texts (or pairs) and the most tokens to ids, as the library itself makes them.
    """

    library: str
    run: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    encode: Callable[[str, str | None, int], list[int]]

    def __call__(self, feeds: Feeds) -> Outputs:
        """Feeds by the names of the model's inputs, int64 [B, S] or [B, N, S]."""
        import torch

        with torch.inference_mode():
            found = self.run({name: torch.from_numpy(array) for name, array in feeds.items()})
        return {name: value.float().numpy() for name, value in found.items()}


def open_reference(folder: Path, task: str, allow_pickle: bool = False, model_class: str | None = None) -> Reference:
    """The model of a checkpoint folder, as its library runs it for `task`, or a class of the user's own by itself.

    Raises ModelError when the library itself cannot load it.
    """
    from qdq.loading.model import quiet_transformers
    from qdq.loading.probe import UNREADABLE

    try:
        with quiet_transformers():
            if model_class is not None:
                return _own(folder, TASKS[task], allow_pickle, model_class)
            return _opened(folder, task, allow_pickle)
    except UNREADABLE as error:
        raise ModelError(
            f"{folder}: its own library cannot load it for {task} ({error!r}), so there is nothing to compare an "
            "engine with; copy the checkpoint again"
        ) from error


def _opened(folder: Path, task: str, allow_pickle: bool) -> Reference:
    chain = read_chain(folder) if task == "feature-extraction" else None
    if chain is not None and importlib.util.find_spec(LIBRARY) is not None:
        return _sentence_transformers(folder)
    encoder = _transformers(folder, TASKS[task], allow_pickle)
    if chain is None:
        return encoder
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    pooling = chain.prepare(tokenizer)

    def run(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        states = encoder.run(tensors)["last_hidden_state"]
        return {SENTENCE_EMBEDDING: pooling.apply(states, tensors["attention_mask"])}

    def encode(text: str, pair: str | None, most: int) -> list[int]:
        return _ids(tokenizer, chain.prompt + text, pair, min(most, tokenizer.model_max_length))

    return Reference(f"{encoder.library} and the head of its modules.json", run, encode)


def require_equal(reference: Outputs, ours: Outputs, library: str, name: str) -> float:
    """Largest difference of our floating-point model's outputs to `library`'s, as a share of the largest output.

    Raises ParityError naming the model beyond `TOLERANCE`: then its checkpoint is read in another way here than there.
    """
    import numpy as np

    worst = 0.0
    for key, expected in reference.items():
        if key not in ours or ours[key].shape != expected.shape:
            shape = list(ours[key].shape) if key in ours else "nothing"
            raise ParityError(f"{name}: '{key}' is {list(expected.shape)} in {library} and {shape} here; {_REPORT}")
        size = float(np.abs(expected).max()) or 1.0
        worst = max(worst, float(np.abs(ours[key] - expected).max()) / size)
    if not worst <= TOLERANCE:  # NaN too
        raise ParityError(
            f"{name}: {library} computes other outputs than this tool's floating-point model of the same checkpoint "
            f"(they differ by {worst:.1%} of the largest one), so no engine of it can be right; {_REPORT}"
        )
    return worst


_REPORT = "do not use the engine; where the checkpoint changed since, compile again, else report its config.json"


def require_same_tokens(reference: Reference, texts: Sequence[tuple[str, str | None, list[int]]], most: int) -> None:
    """Raise ParityError for a text (with its pair) whose ids here are not those of the library, cut to `most`."""
    for text, pair, ids in texts:
        expected = reference.encode(text, pair, most)
        if ids != expected:
            raise ParityError(
                f"{text[:60]!r}: is {len(ids)} tokens here, {ids[:8]} ..., and {len(expected)} in {reference.library}, "
                f"{expected[:8]} ...; {_REPORT}"
            )


def _transformers(folder: Path, task: Task, allow_pickle: bool) -> Reference:
    """The class the checkpoint names, else the task's, exactly as `from_pretrained` makes it.

    Relative positions, which transformers 5 has no code for, are computed as transformers 4 wrote them.
    """
    import torch
    import transformers
    from transformers import AutoTokenizer

    import qdq.loading.pruned  # noqa: F401  # the Auto classes then know our own width-pruned models
    from qdq.inject.relative import KEY, KINDS, model_class, relative_class
    from qdq.loading.declared import KERNELS

    # The model, with the one help that a foreign prefix needs
    values = read_config(folder)
    cls = _named_class(values, task) or task.auto()
    if values.get(KEY) in KINDS:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        named = _named_class(values, task)
        cls = relative_class(named) if named else model_class(task.auto(), config)
    options: dict[str, Any] = {"local_files_only": True, "dtype": torch.float32, "output_loading_info": True}
    options["use_safetensors"] = weight_files(folder, allow_pickle)[0].suffix == ".safetensors"
    if any(key in values for key in KERNELS):  # one of them may not be installed
        options["attn_implementation"] = "eager"
    model, info = cls.from_pretrained(folder, **options)
    prefix = foreign_prefix(folder, info["unexpected_keys"], info["missing_keys"], model.base_model_prefix)
    if prefix:
        model, info = cls.from_pretrained(folder, key_mapping={f"^{re.escape(prefix)}": ""}, **options)
    missing = [key for key in info["missing_keys"] if "pooler." not in key]
    if missing:
        raise ModelError(
            f"{folder}: transformers' {type(model).__name__} finds no weights for {missing[0]} and {len(missing) - 1} "
            "more, so there is nothing to compare an engine with; copy the checkpoint again"
        )
    # Its own tokenizer, and its outputs by their names
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def run(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = model(**tensors, return_dict=True, output_hidden_states=False, output_attentions=False)
        return {name: getattr(found, name) for name in task.outputs}

    def encode(text: str, pair: str | None, most: int) -> list[int]:
        return _ids(tokenizer, text, pair, min(most, tokenizer.model_max_length))

    heads = f"{type(model.base_model).__name__} and UIE's heads"  # which transformers has no class for
    return Reference(f"transformers' {type(model).__name__ if ':' not in task.auto_class else heads}", run, encode)


def _own(folder: Path, task: Task, allow_pickle: bool, model_class: str) -> Reference:
    """The user's class as its own `from_pretrained` and forward make it."""
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from qdq.loading.own_class import class_for, forward_inputs, import_class, original_class, outputs_of

    named = import_class(model_class)
    cls = class_for(named, AutoConfig.from_pretrained(folder, local_files_only=True), folder)
    safe = weight_files(folder, allow_pickle)[0].suffix == ".safetensors"
    model = cls.from_pretrained(folder, local_files_only=True, dtype=torch.float32, use_safetensors=safe)
    model.train(False)
    tokenizer, takes = AutoTokenizer.from_pretrained(folder, local_files_only=True), forward_inputs(named)

    def run(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return outputs_of(model(**{name: value for name, value in tensors.items() if name in takes}), task, cls)

    def encode(text: str, pair: str | None, most: int) -> list[int]:
        return _ids(tokenizer, text, pair, most)

    return Reference(f"{original_class(named).__name__} of {model_class.rpartition(':')[0]}", run, encode)


def _named_class(values: Mapping[str, Any], task: Task) -> Any:
    """transformers' class of the checkpoint's architecture, when that is the task's and there is one."""
    import transformers

    for name in values.get("architectures") or ():
        name = name.replace("QDQBert", "Bert")  # transformers 5 dropped it; the parameters are BERT's
        if detect_task([name], name) is task and not name.endswith("ForPreTraining"):
            return getattr(transformers, name, None)
    return None


def _ids(tokenizer: Any, text: str, pair: str | None, most: int) -> list[int]:
    ids: list[int] = tokenizer(text, pair, truncation=True, max_length=most, verbose=False)["input_ids"]
    return ids


def _sentence_transformers(folder: Path) -> Reference:
    """The whole chain, by sentence-transformers' own modules."""
    from importlib.metadata import version

    from sentence_transformers import SentenceTransformer

    chain = SentenceTransformer(str(folder), device="cpu", local_files_only=True).eval()
    # What `encode` does around the modules: the default prompt in front, and only the leading values of the result
    prompt = chain.prompts.get(chain.default_prompt_name) if chain.default_prompt_name else None
    extra = {} if not prompt else {"prompt_length": chain.preprocess(["."], prompt=prompt)["prompt_length"]}

    def run(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {SENTENCE_EMBEDDING: chain({**tensors, **extra})[SENTENCE_EMBEDDING][:, : chain.truncate_dim]}

    limit = chain.max_seq_length

    def encode(text: str, pair: str | None, most: int) -> list[int]:
        chain.max_seq_length = min(most, limit)
        ids: list[int] = chain.preprocess([text if pair is None else (text, pair)], prompt=prompt)["input_ids"][
            0
        ].tolist()
        return ids

    return Reference(f"sentence-transformers {version('sentence-transformers')}", run, encode)
