"""One damaged checkpoint: load it, run it, and compare it with what its own library makes of the same folder."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qdq.errors import ParityError, QdqError
from qdq.studies.fuzz.checkpoints import TEXTS

if TYPE_CHECKING:
    from qdq.base.types import Outputs

SECONDS = 10  # of computing; a load of these models takes hundredths
SEQUENCE = 16

# refused: one of our errors, with its reason
# same, other: loaded, with the outputs of the whole checkpoint or others, and the library agrees
# wrong: the library computes something else; unknown: it cannot load what we load
# internal: another exception, or no end
Kind = Literal["refused", "same", "other", "wrong", "unknown", "internal"]
FAULTS: tuple[Kind, ...] = ("wrong", "unknown", "internal")


@dataclass(frozen=True)
class Verdict:
    """The outcome for one checkpoint, with the message or the traceback behind it."""

    kind: Kind
    said: str = ""


class Endless(BaseException):
    """Something took too long; no `except Exception` on the way makes another error of it."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise Endless in what computes for longer; main thread only."""

    def stop(_signal: int, _frame: Any) -> None:
        raise Endless(f"no end after {seconds} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        # One that is on its way already would end the process by its default action
        signal.signal(signal.SIGVTALRM, signal.SIG_IGN if before == signal.SIG_DFL else before)


def judge(folder: Path, whole: Outputs | None = None) -> Verdict:
    """Load and run the checkpoint in `folder`; `whole` are the outputs before it was damaged."""
    try:
        with limited(SECONDS):
            return _judged(folder, whole)
    except QdqError as error:
        return Verdict("refused", str(error))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001  # what this study counts; panics of libraries in Rust are no Exception
        return Verdict("internal", traceback.format_exc(limit=-6))


def outputs_of(folder: Path) -> Outputs:
    """Outputs of our floating-point model for `TEXTS`. Raises QdqError for a checkpoint that is refused."""
    return _run(folder)[2]


def _run(folder: Path) -> tuple[Any, Any, Outputs]:
    from qdq.loading.model import load_model
    from qdq.loading.runner import TorchRunner
    from qdq.text.data import Record
    from qdq.text.encode import encode_batch

    loaded = load_model(str(folder))
    feeds = encode_batch(loaded.tokenizer, [Record(text) for text in TEXTS], loaded.inputs, SEQUENCE)
    return loaded, feeds, TorchRunner(loaded.module())(feeds)


def _judged(folder: Path, whole: Outputs | None) -> Verdict:
    import numpy as np

    from qdq.errors import ModelError
    from qdq.loading.reference import open_reference, require_equal, require_same_tokens
    from qdq.text.data import Record
    from qdq.text.encode import tokenize

    # Beside the model before it was damaged
    loaded, feeds, ours = _run(folder)
    same = whole is not None and ours.keys() == whole.keys()
    same = same and all(np.array_equal(ours[name], whole[name]) for name in ours)  # type: ignore[index]
    # Beside what its library makes of the damaged one
    try:
        reference = open_reference(folder, loaded.task.name)
    except ModelError as error:
        return Verdict("unknown", str(error))
    try:
        ids = [tokenize(loaded.tokenizer, Record(text), loaded.inputs, SEQUENCE)["input_ids"] for text in TEXTS]
        require_same_tokens(reference, [(text, None, row) for text, row in zip(TEXTS, ids, strict=True)], SEQUENCE)
        if all(np.isfinite(values).all() for values in ours.values()):
            require_equal(reference(feeds), ours, reference.library, loaded.name)
    except ParityError as error:
        return Verdict("wrong", str(error))
    return Verdict("same" if same else "other")
