"""An engine of a work directory with what belongs to it: its inputs, tokenizer and configuration."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from engines.types import Runner
    from qdq.api.work import Work

TOKENS = ("input_ids", "attention_mask", "token_type_ids")
ASKED = ("output_attentions", "output_hidden_states")  # of a transformers model; a graph has neither
HARMLESS = ("return_dict", "use_cache")


class TokenEngine:
    """A compiled model that answers token arrays.

    Attributes: see `qdq.Engine`.
    """

    def __init__(self, work: Work, runner: Runner, precision: str) -> None:
        """Not called by users; `load` does."""
        self.path = work.folder
        self.target = work.target
        self.precision = precision
        self.name = str(work.manifest["model"]["name"])
        self.task = str(work.manifest["options"]["task"])
        self._runner = runner

    def __repr__(self) -> str:
        """Name, task and runtime."""
        return f"<qdq.Engine {self.name}: {self.task}, {self.precision} in {self.target}>"

    def run(self, given: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
        """Answer a batch of NumPy arrays [B, S], as `qdq.Engine` says."""
        import numpy as np

        wanted = {name: np.asarray(given[name]) for name in TOKENS if given.get(name) is not None}
        # An option that asks for what the graph does not have must not pass unseen.
        for name, value in given.items():
            unmet = bool(value) if name in ASKED else name not in (*TOKENS, *HARMLESS)
            if value is not None and unmet:
                raise ConfigError(f"{self!r}: has no '{name}'; it takes {', '.join(self.inputs)}")
        if "input_ids" not in wanted:
            raise ConfigError(f"{self!r}: needs input_ids; encode texts with engine.tokenizer")
        ids = wanted["input_ids"]
        wanted.setdefault("attention_mask", np.ones_like(ids))
        wanted.setdefault("token_type_ids", np.zeros_like(ids))
        if "token_type_ids" not in self.inputs and wanted["token_type_ids"].any():
            raise ConfigError(f"{self!r}: has no token types, and some that were given are not 0")
        fitting = {name: np.ascontiguousarray(wanted[name], dtype=np.int64) for name in self.inputs}
        return dict(self._runner(fitting))

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        return self._interface[0]

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return self._interface[1]

    @cached_property
    def _interface(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        from engines.interface import interface
        from qdq.pipeline.run import CANONICAL

        inputs, outputs = interface(self.path / CANONICAL)
        return tuple(tensor.name for tensor in inputs), tuple(tensor.name for tensor in outputs)

    # Texts.

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, which cuts and lower-cases as the model's files say."""
        from qdq.api.reading import read_tokenizer

        return read_tokenizer(self.path / "checkpoint", self.config)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The model's configuration, with its class names in `id2label`."""
        from qdq.api.reading import read_configuration

        return read_configuration(self.path / "checkpoint", type(self))
