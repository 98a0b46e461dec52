"""`qdq.load`: a compiled engine that answers token arrays, and stands where a transformers model is expected."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from qdq.api.token_engine import TokenEngine
from qdq.base.config import choice
from qdq.errors import ConfigError, WorkError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers.utils.generic import ModelOutput

    from qdq.api.answers import Answer

PRECISIONS = ("int8", "fp32")
EMBEDDING, STATES = "sentence_embedding", "last_hidden_state"
Arrays = Mapping[str, Any]


def load(
    folder: str | os.PathLike[str],
    *,
    target: str | None = None,
    precision: str = "int8",
    threads: int = 0,
    streams: int = 0,
) -> Engine:
    """Open what a compile has built.

    >>> engine = qdq.load("build/my-bert")
    >>> engine({"input_ids": ids, "attention_mask": mask})["logits"]        # NumPy in, NumPy out
    >>> transformers.pipeline("ner", model=engine, tokenizer=engine.tokenizer)("a text")
    >>> engine.encode(["a text", "another one"])                             # of an embedding model

    Args:
        folder: a compile's work directory, or the folder of one of its targets.
        target: whose engine; None is the one that the last compile ended with.
        precision: ``int8``, or ``fp32`` for the float model of the same compile in the same runtime, to compare with.
        threads: of one request; 0 is all cores.
        streams: callers that may call at the same time, each on `threads` threads; 0 is one at a time.

    Raises WorkError when there is no such engine, BuildError when it cannot be loaded, Unavailable when this machine
    lacks its runtime.
    """
    from engines.cores import available_cores, numa_nodes
    from engines.targets import TARGETS, EngineOptions
    from qdq.api.work import open_work
    from qdq.base.packing import FULL
    from qdq.pipeline.run import FLOAT

    # The file.
    choice(precision, PRECISIONS, "precision")
    work = open_work(folder, target)
    runtime = TARGETS[work.target]
    floating = precision == "fp32"
    if floating and runtime.gpu:
        raise ConfigError(f"precision: the float model of {work.target} is a plan of its own; see 'qdq variants'")
    file = work.folder / FLOAT if floating else work.folder / work.target / runtime.engine
    if not file.is_file():
        raise WorkError(f"{file}: is not built; run 'qdq build --out {work.folder} --target {work.target}'")
    # The engine, with what was measured about it.
    full = (work.report("benchmark") or {}).get("unpacked_from", FULL)
    options = EngineOptions(
        threads or available_cores(),
        str(work.manifest["options"].get("precision_hint", "f32")) if not floating else "f32",
        streams=streams,
        nodes=numa_nodes(),
        full=float(full),
    )
    return Engine(work, runtime.open(file, options), precision)


class Engine(TokenEngine):
    """A compiled model, ready to answer. Made by `load`.

    Called with NumPy arrays it returns NumPy arrays by name. Called with torch tensors it returns a `ModelOutput`, as a
    transformers model does, so it can be the model of ``transformers.pipeline`` for text classification, token
    classification, fill-mask and feature extraction. `encode` makes sentence embeddings, `answer` answers questions.

    A model with a sentence-transformers head computes embeddings inside the engine and has no token states any more. As
    a transformers model it returns the embedding as a ``last_hidden_state`` [B, 1, H] of one position, which gives the
    same vector under mean, CLS and first-token pooling.

    Attributes:
        path: the work directory.
        target: the runtime.
        precision: ``int8`` or ``fp32``.
        name: the model's short name.
        task: the task, such as ``text-classification``.
    """

    def __call__(self, feeds: Arrays | None = None, /, **named: Any) -> Any:
        """Answer a batch.

        ``engine(feeds)`` or ``engine(input_ids=..., attention_mask=...)``, arrays [B, S] of whole numbers. A missing
        attention mask is all ones, missing token types are zeros. Torch tensors are answered with a `ModelOutput`,
        everything else with a dictionary of float32 arrays, one for each name in `outputs`.

        Raises ConfigError for an input that a compiled graph has not, BuildError for shapes it does not take.
        """
        given = {**(feeds or {}), **named}
        if any(type(value).__module__.partition(".")[0] == "torch" for value in given.values()):
            return self.forward(**given)
        return self.run(given)

    def encode(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        *,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> NDArray[np.float32]:
        """Embeddings [N, H] of texts, [H] of a single one, as ``SentenceTransformer.encode`` makes them.

        Pooling, normalization and the default prompt are those of the model's sentence-transformers files.

        Args:
            sentences: one text or several.
            prompt_name: one of the model's prompts; None is its default one.
            prompt: text to put in front of every sentence instead.
            batch_size: texts in a batch; texts of similar length share one.
            normalize_embeddings: scale to length 1, whatever the model says.
            truncate_dim: keep the leading values only.

        Raises ConfigError for a model of another task, an unknown prompt, or a prompt that the graph cannot leave out.
        """
        import numpy as np

        from qdq.api.embedding import embeddings

        texts = [sentences] if isinstance(sentences, str) else sentences
        found = embeddings(self, texts, (prompt_name, prompt), batch_size)
        found = found if truncate_dim is None else found[:, :truncate_dim]
        if normalize_embeddings:
            found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return found[0] if isinstance(sentences, str) else found

    def answer(self, question: str, context: str, *, longest: int | None = None) -> Answer:
        """The span of `context` that answers `question`; contexts of any length, in overlapping windows.

        `longest`: most tokens of an answer, None is 30, or 50 for Chinese. Raises ConfigError for a model of another
        task.
        """
        from qdq.api.answers import answer

        return answer(self, question, context, longest)

    # What transformers asks of a model.

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **options: Any,
    ) -> ModelOutput:
        """Answer tensors as a transformers model does: a `ModelOutput` of float32 tensors on the CPU."""
        import torch
        from transformers.utils.generic import ModelOutput

        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        arrays = {
            name: value.cpu().numpy() if isinstance(value, torch.Tensor) else value
            for name, value in {**given, **options}.items()
        }
        found = {name: torch.from_numpy(value) for name, value in self.run(arrays).items()}
        if EMBEDDING in found:
            found = {STATES: found[EMBEDDING][:, None], **found}
        return ModelOutput(**found)  # type: ignore[no-untyped-call]

    @property
    def device(self) -> torch.device:
        """The CPU, where tensors go in and come out; the runtime may compute elsewhere."""
        import torch

        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the outputs."""
        import torch

        return torch.float32

    name_or_path = property(lambda self: str(self.path))
    base_model_prefix = property(lambda self: str(self.config.model_type))
    input_modalities = ("text",)
    generation_config = None

    def to(self, *_: Any, **__: Any) -> Self:
        """Return itself: an engine stays where it was built for, and takes tensors of any device."""
        return self

    def eval(self) -> Self:
        """Return itself: an engine is never in training."""
        return self

    def can_generate(self) -> bool:
        """Return False: an encoder generates no text."""
        return False
