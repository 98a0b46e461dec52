"""The sentence-transformers head of a folder: from token states to one sentence embedding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from qdq.errors import ModelError
from qdq.load.source import read_json, read_object

Mode = Literal["cls", "mean", "max", "mean_sqrt_len"]
MODES: dict[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}

OUT_OF_REACH = 1.0e4  # more than any LayerNorm output, and a value FP16 has


@dataclass(frozen=True)
class Pooling:
    """Token states to one sentence embedding, as sentence-transformers' Pooling and Normalize modules compute it."""

    mode: Mode
    normalize: bool

    def apply(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, S, H] states and [B, S] mask to [B, H]; padded positions do not count."""
        pooled = self._pool(states, attention_mask[:, :, None].to(states.dtype))
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.mode == "cls":
            return states[:, 0]
        if self.mode == "max":
            return (states + (mask - 1.0) * OUT_OF_REACH).amax(dim=1)
        length = mask.sum(dim=1).clamp(min=1.0)  # a row without tokens gives zeros
        return (states * mask).sum(dim=1) / (length if self.mode == "mean" else length.sqrt())


def read_pooling(folder: Path) -> Pooling | None:
    """The pooling head a folder describes, or None without one. Raises ModelError for a head we cannot compute."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return None
    entries = read_json(modules)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ModelError(f"{modules}: is not a list of sentence-transformers modules; copy the checkpoint again")
    # Only Transformer -> Pooling (-> Normalize) can be computed
    kinds = [str(entry.get("type", "")).rpartition(".")[2] for entry in entries]
    unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if unknown:
        raise ModelError(
            f"{modules}: sentence-transformers module '{unknown[0]}' is not supported (Transformer, Pooling and "
            "Normalize are); remove modules.json to compile the bare encoder"
        )
    if "Pooling" not in kinds:
        return None
    # Exactly one of Pooling's modes is on
    settings = read_object(folder / entries[kinds.index("Pooling")].get("path", "1_Pooling") / "config.json")
    active = [mode for key, mode in MODES.items() if settings.get(key)]
    if len(active) != 1:
        raise ModelError(f"{folder}: pooling must be exactly one of {', '.join(MODES)}; found {active or 'none'}")
    return Pooling(active[0], "Normalize" in kinds)
