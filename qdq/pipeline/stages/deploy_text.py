"""The text model of stage 9: everything a server has to know of a loaded model, to take strings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.packed import packing_beside
from engines.targets import TARGETS
from qdq.base.artifacts import read_json
from qdq.base.choices import INFORMATION_EXTRACTION
from qdq.errors import DeployError
from qdq.loading.pooling import PROMPT
from qdq.pipeline.run import Run

if TYPE_CHECKING:
    from engines.serving.form import TextForm
    from engines.types import BuiltEngine
    from qdq.base.screen import Stage
    from qdq.loading.model import LoadedModel
    from qdq.text.data import Record

CHARACTERS = 64  # of a text for each token the engine takes; a token of ordinary text has four
MATRYOSHKA = ("matryoshka_dimensions", "matryoshka_dims")  # keys of config.json
NEXT = ("IsNext", "NotNext")  # the classes of next-sentence prediction, as BERT's authors call them


def refusal(loaded: LoadedModel) -> str | None:
    """Return why a model cannot take strings on a server, None when it can."""
    if not loaded.tokenizer.is_fast:
        return "its tokenizer has no fast form (tokenizer.json), so clients send token ids"
    if loaded.token_level is not None and set(loaded.outputs) != set(loaded.task.outputs):
        return f"its class returns {', '.join(loaded.outputs)} of its own, so clients read them themselves"
    return None


def text_form(run: Run, engine: BuiltEngine) -> TextForm:
    """The form of the run's model around its engine."""
    from engines.serving.form import TextForm
    from qdq.base.tags import has_entities
    from qdq.tasks.heads import head_of_model
    from qdq.text.encode import has_types

    # Of the model: its tokenizer, classes and head; of the run: the engine's options
    loaded, options = run.reference, run.options
    tokenizer, head = loaded.tokenizer, head_of_model(loaded.model)
    sequence = min(options.sequence, tokenizer.model_max_length)
    labels = loaded.labels or (NEXT if loaded.task.name == "next-sentence-prediction" else ())
    return TextForm(
        task=loaded.task.name,
        engine=options.target,
        files=tuple(file.name for file in engine.files),
        threads=0 if TARGETS[options.target].gpu else options.threads,
        hint=options.precision_hint,
        inputs=loaded.inputs,
        types={info.name: info.dtype for info in engine.inputs},
        outputs=loaded.outputs,
        sequence=sequence,
        characters=CHARACTERS * sequence,
        packed=_packs(run, engine),
        typed=has_types(tokenizer, loaded.inputs),
        pad={"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id},
        pad_left=tokenizer.padding_side == "left",
        sample=_fitting_sample(loaded, run.evaluation.records, sequence),
        prompt=getattr(tokenizer, PROMPT, ""),
        labels=labels,
        head=head.kind,
        activation=head.activation,
        thresholds=head.thresholds if head.kind == "multi-label" else (),
        entities=has_entities(labels),
        pooled=loaded.pooling is not None or loaded.task.name != "feature-extraction",
        normalized=loaded.pooling is None or loaded.pooling.normalize,
        dimensions=_dimensions(loaded.model.config),
        mask=tokenizer.mask_token_id if loaded.task.name == "fill-mask" else None,
        buckets=options.buckets if TARGETS[options.target].gpu else (),
        queue_size=options.queue_size,
    )


def embedding_of(loaded: LoadedModel) -> tuple[str, ...]:
    """A sentence on the model's own pooling, () without one."""
    if loaded.pooling is None:
        return ()
    length = ", of length 1" if loaded.pooling.normalize else ""
    return (f"EMBEDDING is one vector per text ({loaded.pooling.mode} pooling){length}",)


def require_profile(target: Path, batch: int, sequence: int) -> None:
    """Raise DeployError unless the plan in `target` takes batches of this size, as its build.json says of its profile.

    Its model's dims cannot say so, and the server would fail with every batch that is larger.
    """
    settings = read_json(target / "build.json")["settings"]
    for what, value in (("batch", batch), ("sequence", sequence)):
        most = settings.get(f"{what}_max")
        if most is not None and value > most:
            raise DeployError(
                f"--{what}: the plan in {target} takes at most {most} and {value} were to be served; deploy with "
                f"--{what} {most}, or build it again"
            )


def profiled_buckets(target: Path, buckets: tuple[int, ...], stage: Stage) -> tuple[int, ...]:
    """`buckets` when the plan in `target` has an optimization profile for each, as its build.json says; else ()."""
    built = tuple(read_json(target / "build.json")["settings"].get("buckets", ()))
    if buckets and buckets != built:
        listed = ",".join(map(str, buckets))
        stage.say(f"the plan has no profile for each bucket; 'qdq build --buckets {listed}' gives it those")
    return buckets if buckets == built else ()


def tokenizer_of(loaded: LoadedModel) -> str:
    """The text of its tokenizer.json, as the tokenizer in memory is: lower-casing as the model's files say.

    Without cutting and padding, which are whatever the last call in this process asked for.
    """
    found = json.loads(loaded.tokenizer.backend_tokenizer.to_str())
    return json.dumps(found | {"truncation": None, "padding": None}, ensure_ascii=False)


def _packs(run: Run, engine: BuiltEngine) -> bool:
    """True for an engine that leaves padding out itself."""
    return (
        bool(engine.settings.get("packing", read_json(run.target / "build.json")["settings"].get("packing")))
        or packing_beside(run.lowered) is not None
    )


def _fitting_sample(loaded: LoadedModel, records: Sequence[Record], sequence: int) -> dict[str, tuple[str, ...]]:
    """The first sample that the engine takes; when all are too long, the first one with half of its words, and so on.

    A server is tried with it, and would refuse one of too many tokens for good.
    """
    tokenizer, task = loaded.tokenizer, loaded.task.name
    prompt = getattr(tokenizer, PROMPT, "")

    def fits(sample: Mapping[str, tuple[str, ...]]) -> bool:
        first, *others = sample.values()
        pairs = [(first[0], text) for text in others[0]] if others else [(first[0], None)]
        tokens = (tokenizer(prompt + one, two, verbose=False)["input_ids"] for one, two in pairs)
        return all(len(ids) <= sequence for ids in tokens)

    samples = [_sample(task, record) for record in records]
    if fitting := next(filter(fits, samples), None):
        return fitting
    sample = samples[0]
    while not fits(sample) and any(" " in text for texts in sample.values() for text in texts):
        sample = {name: tuple(map(_half, texts)) for name, texts in sample.items()}
    return sample


def _half(text: str) -> str:
    words = text.split()
    return " ".join(words[: (len(words) + 1) // 2])


def _sample(task: str, record: Record) -> dict[str, tuple[str, ...]]:
    """A text of the run, one string per input of the served model."""
    pair = record.pair or record.text
    if task == "question-answering":
        return {"QUESTION": (record.text,), "CONTEXT": (pair,)}
    if task == INFORMATION_EXTRACTION:
        return {"PROMPT": (record.text,), "CONTEXT": (pair,)}
    if task == "multiple-choice":
        return {"TEXT": (record.text,), "CHOICES": (pair, record.text)}
    if task == "next-sentence-prediction":
        return {"TEXT": (record.text,), "TEXT_PAIR": (pair,)}
    if task == "text-classification" and record.pair is not None:
        return {"TEXT": (record.text,), "TEXT_PAIR": (record.pair,)}
    return {"TEXT": (record.text,)}


def _dimensions(config: Any) -> tuple[int, ...]:
    found = next((value for key in MATRYOSHKA if (value := getattr(config, key, None))), ())
    return tuple(int(size) for size in found)
