"""Checks of a checkpoint's parts against each other, which its libraries leave to an error deep inside, or to luck."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from qdq.errors import ModelError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# What transformers, safetensors and torch raise on a folder whose files are damaged or contradict each other; a zero
# head count divides by zero, a null where a table belongs has no attribute, and so on.
UNREADABLE = (
    *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, ImportError),
    *(EOFError, AssertionError, MemoryError, SafetensorError, StrictDataclassError),
)
# Ends of the keys of config.json that are sizes of weights; layers that share theirs (ALBERT) may be more than tensors
SIZE_KEYS = ("_size", "_layers", "_embeddings", "_heads", "_groups", "dim")
SHARED_LAYERS = 1000
FLOATS = ("F64", "F32", "F16", "BF16")  # types of weights, as safetensors names them
ALIKE = {"roberta", "xlm-roberta", "camembert"}  # families whose classes compute the same
FIRST_TOKEN = ("text-classification", "multiple-choice", "next-sentence-prediction")  # tasks that answer from it
PANIC = "PanicException"  # of pyo3, which gives no other way to name it
SAMPLE = "a word, \u4e2d\U0001f600 and [MASK] zq"  # known pieces and unknown ones, in every tokenizer


def check_architecture(folder: Path, model_type: str, architectures: Sequence[str]) -> None:
    """Raise ModelError when transformers' class of the architecture is not of the family that model_type names.

    A bare encoder's weights have the same names in several families, so each class would load those of the others.
    """
    import transformers

    for name in architectures:
        cls = getattr(transformers, name.replace("QDQBert", "Bert"), None)
        expected = getattr(getattr(cls, "config_class", None), "model_type", None)
        if expected is not None and expected != model_type and not {expected, model_type} <= ALIKE:
            raise ModelError(
                f"{folder / 'config.json'}: model_type is '{model_type}', and {name} is a class of '{expected}'; set "
                "the one that the model was trained as"
            )


def check_sizes(folder: Path, config: PreTrainedConfig, weights: Sequence[Path]) -> None:
    """Raise ModelError for sizes in the configuration that its weights cannot have, before anything of them is built.

    A table of a billion rows, or as many layers, would take all memory or have no end before its weights are missed.
    """
    if weights[0].suffix != ".safetensors":
        return
    # The weights in all
    tensors = numbers = 0
    kinds: dict[str, str] = {}
    try:
        for file in weights:
            with safe_open(file, framework="pt") as handle:
                slices = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118
                shapes = [found.get_shape() for found in slices.values()]
                kinds |= {key: found.get_dtype() for key, found in slices.items()}
            tensors, numbers = tensors + len(shapes), numbers + sum(math.prod(shape) for shape in shapes)
    except UNREADABLE as error:
        raise ModelError(f"{file}: is damaged ({error}); copy the checkpoint again") from error
    if not tensors:
        return  # said by name, when they are missed
    packed = [key for key, kind in kinds.items() if key.endswith((".weight", ".bias")) and kind not in FLOATS]
    if packed:
        raise ModelError(
            f"{folder}: {packed[0]} is stored as {kinds[packed[0]]}, {len(packed)} tensors in all, so another library "
            "quantized or packed its weights; give the original floating-point ones"
        )
    # Each size by itself
    layers = max(tensors, SHARED_LAYERS)
    for key, value in config.to_dict().items():
        most = layers if key in ("num_hidden_layers", "n_layers") else numbers
        if key.endswith(SIZE_KEYS) and isinstance(value, int) and not 0 <= value <= most:
            raise ModelError(
                f"{folder / 'config.json'}: {key} is {value}, and its weights are {tensors} tensors of {numbers} "
                "numbers in all; copy both files again from one source"
            )


def check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, task: str) -> None:
    """Raise ModelError for a tokenizer that is loaded but cannot encode a text, or pads where `task` reads a token."""
    if tokenizer.padding_side == "left" and task in FIRST_TOKEN:
        raise ModelError(
            f"{folder / 'tokenizer_config.json'}: padding_side is left, and {task} reads the first token, which would "
            "be padding; set it to right"
        )
    most: Any = tokenizer.model_max_length
    if not isinstance(most, int | float) or not most >= 1:
        raise ModelError(f"{folder / 'tokenizer_config.json'}: model_max_length is {most!r}; give a number of tokens")
    try:
        ids = tokenizer(SAMPLE, verbose=False)["input_ids"]
    except BaseException as error:  # tokenizers raises Exception as it is, and its Rust code panics with no Exception
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise ModelError(
            f"{folder}: its tokenizer cannot encode a text ({error}); copy tokenizer.json again"
        ) from error
    if not all(isinstance(index, int) for index in ids):
        raise ModelError(f"{folder}: its tokenizer makes {ids[:3]} of a text, and no ids; copy tokenizer.json again")


def run_once(
    folder: Path, module: nn.Module, tokenizer: PreTrainedTokenizerBase, inputs: Sequence[str], choices: bool
) -> None:
    """Run a few tokens through the model. Raises ModelError for one that is whole and yet computes nothing."""
    import torch

    width = 2 + getattr(getattr(module, "pooling", None), "skipped", 0)  # more than the head leaves out
    shape = (1, 1, width) if choices else (1, width)
    feed = {name: torch.ones(shape, dtype=torch.int64) for name in inputs}
    feed["input_ids"] = feed["input_ids"] * (tokenizer.pad_token_id or 0)
    feed |= {"token_type_ids": torch.zeros(shape, dtype=torch.int64)} if "token_type_ids" in inputs else {}
    try:
        with torch.inference_mode():
            module(**feed)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"{folder}: the model cannot be run ({reason}); its config.json contradicts its weights, copy both again"
        ) from error
