"""Batches of texts of unequal length: grouped so that little is padding, run, and read back text by text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from engines.pieces import LEAST_TOKENS
from engines.serving.form import TextForm
from engines.serving.tokens import Tokens, batch, real
from engines.types import Runner

WASTE = 1.25  # a text joins a group until it is this much longer than the group's shortest
Row = Mapping[str, NDArray[Any]]  # outputs of one text by name


def groups(lengths: Sequence[int], most: int, packed: bool) -> list[list[int]]:
    """Texts by number, at most `most` together: sorted by length, or, when the engine packs them itself, as they come.

    A group ends where a text is much longer than its shortest, unless it holds too few tokens to be worth a call.
    """
    if packed:
        return [list(range(start, min(start + most, len(lengths)))) for start in range(0, len(lengths), most)]
    found: list[list[int]] = []
    for text in sorted(range(len(lengths)), key=lengths.__getitem__):
        group = found[-1] if found else []
        enough = sum(lengths[other] for other in group) >= LEAST_TOKENS
        if not group or len(group) == most or (enough and lengths[text] > WASTE * lengths[group[0]]):
            found.append([])
        found[-1].append(text)
    return found


def run(runner: Runner, form: TextForm, samples: Sequence[Sequence[Tokens]], most: int) -> list[Row]:
    """Outputs of every sample, which is one text, or as many as it has choices; of tokens only the real ones.

    Samples of unequal many choices run apart. Raises BuildError as the runner does.
    """
    outputs: list[Row] = [{}] * len(samples)
    for count in sorted({len(sample) for sample in samples}):
        places = [place for place, sample in enumerate(samples) if len(sample) == count]
        lengths = [max(map(len, samples[place])) for place in places]
        for group in groups(lengths, max(1, most // count), form.packed):
            chosen = [places[index] for index in group]
            for place, row in zip(chosen, _call(runner, form, [samples[place] for place in chosen]), strict=True):
                outputs[place] = row
    return outputs


def _call(runner: Runner, form: TextForm, samples: Sequence[Sequence[Tokens]]) -> list[Row]:
    """Outputs of samples that go together, from one call."""
    rows = [row for sample in samples for row in sample]
    longest = max(map(len, rows))
    width = next((bucket for bucket in form.buckets if bucket >= longest), longest)
    feeds = batch(rows, form, width)
    if form.choices:
        results = runner({name: array.reshape(len(samples), -1, width) for name, array in feeds.items()})
        return [{name: values[index] for name, values in results.items()} for index in range(len(samples))]
    results = runner(feeds)
    return [_own(results, index, row, width, form) for index, row in enumerate(rows)]


def _own(results: Mapping[str, NDArray[Any]], index: int, row: Tokens, width: int, form: TextForm) -> Row:
    """Outputs of one row; per token where the engine has a value for each."""
    columns = real(row, width, form)
    return {
        name: values[index][columns] if name in form.by_token else values[index] for name, values in results.items()
    }
