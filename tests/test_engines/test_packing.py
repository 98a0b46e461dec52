"""Packing: every token in a place of its own, nothing else in any, and outputs back where their texts were."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.packed import PackedRunner, copy_into, packing_beside
from engines.packing import FILE, Packing, PackingError, first_fit
from qdq.errors import BuildError

ROW = 16
ROWS = Packing(
    form="rows",
    positions={"offset": 0, "padding": None},
    outputs={"ids": "token", "first_id": "text"},
    choices=False,
    first=True,
    inputs=("input_ids", "segments", "positions", "first", "cells", "attention_mask"),
    row=ROW,
    texts=12,
    rows=3,
    tokens=40,
)
GATHER = replace(ROWS, form="gather", inputs=("input_ids", "attention_mask", "slots", "where"))


def batch(mask: NDArray[np.bool_]) -> dict[str, NDArray[np.int64]]:
    """Ids that tell every place of a batch apart."""
    return {"input_ids": np.arange(1, mask.size + 1).reshape(mask.shape), "attention_mask": mask.astype(np.int64)}


def echo(feeds: Any) -> dict[str, NDArray[Any]]:
    """An engine whose outputs are the ids it was given, per token and of each text's first one."""
    ids = feeds["input_ids"]
    if "slots" not in feeds:
        return {"ids": ids, "first_id": ids.reshape(-1)[feeds["first"]][:, None]}
    spread = ids.reshape(-1)[feeds["slots"]][feeds["where"]]
    return {"ids": spread, "first_id": spread[:, :1]}


MASKS = st.lists(st.lists(st.booleans(), min_size=ROW, max_size=ROW), min_size=1, max_size=12).map(
    lambda rows: np.array(rows) & (np.arange(ROW) > 0) | (np.arange(ROW) == 0) & np.array(rows).any(axis=1)[:, None]
)


@settings(max_examples=60, deadline=None)
@given(mask=MASKS, form=st.sampled_from((ROWS, GATHER)))
def test_every_output_comes_back_to_its_text(mask: NDArray[np.bool_], form: Packing) -> None:
    feeds = batch(mask)
    found = PackedRunner(echo, form)(feeds)
    np.testing.assert_array_equal(found["ids"], np.where(mask, feeds["input_ids"], 0))
    np.testing.assert_array_equal(found["first_id"][:, 0], np.where(mask.any(axis=1), feeds["input_ids"][:, 0], 0))


@settings(max_examples=60, deadline=None)
@given(mask=MASKS)
def test_cells_hold_what_they_say(mask: NDArray[np.bool_]) -> None:
    feeds, made = batch(mask), ROWS.pack(batch(mask)).feeds
    for text, (ids, real) in enumerate(zip(feeds["input_ids"], mask, strict=True), start=1):
        own = made["segments"] == text
        assert made["input_ids"][own].tolist() == ids[real].tolist()
        assert made["positions"][own].tolist() == np.flatnonzero(real).tolist()
        spread = made["input_ids"].reshape(-1)[made["cells"][text - 1]]
        assert spread[made["attention_mask"][text - 1] == 1].tolist() == ids[real].tolist()
        assert len({int(row) for row in np.nonzero(own)[0]}) <= 1  # a text is in one row


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=30), width=st.integers(9, 20))
def test_texts_do_not_overlap(lengths: list[int], width: int) -> None:
    starts, rows = first_fit(np.array(lengths), width)
    cells = [cell for start, length in zip(starts, lengths, strict=True) for cell in range(start, start + length)]
    assert len(set(cells)) == len(cells) == sum(lengths) and max(cells, default=0) < rows * width
    assert all(
        start // width == (start + length - 1) // width for start, length in zip(starts, lengths, strict=True) if length
    )
    assert rows <= max(2 * -(-sum(lengths) // width), 1)  # any two rows hold more than one would


def test_few_tokens_make_one_short_row() -> None:
    assert ROWS.pack(batch(np.arange(ROW) < np.array([[3], [2]]))).feeds["input_ids"].shape == (1, 5)


def test_positions_are_counted_as_roberta_does() -> None:
    form = replace(ROWS, positions={"offset": 0, "padding": 1})
    feeds = {"input_ids": np.array([[0, 7, 1, 8, 2, 1, 1]]), "attention_mask": np.array([[1, 1, 1, 1, 1, 0, 0]])}
    assert form.pack(feeds).feeds["positions"].tolist() == [[2, 3, 1, 4, 5]]  # a padding id inside a text


def test_choices_are_texts_and_come_back_grouped() -> None:
    form = replace(ROWS, choices=True, outputs={"first_id": "text"})
    feeds = {"input_ids": np.arange(1, 13).reshape(2, 2, 3), "attention_mask": np.ones((2, 2, 3), np.int64)}
    batch_of_four = form.pack(feeds)
    assert batch_of_four.feeds["first"].shape == (4,)
    found = batch_of_four.unpack({"first_id": echo(batch_of_four.feeds)["first_id"]})
    assert found["first_id"].tolist() == [[1, 4], [7, 10]]


@pytest.mark.parametrize(
    ("form", "feeds", "message"),
    [
        (ROWS, batch(np.ones((13, 4), bool)), "13 texts; the engine takes 12 at most"),
        (ROWS, batch(np.arange(20) < np.array([[3], [17]])), "text 1 has 17 tokens, a row holds 16"),
        (GATHER, batch(np.arange(20) < np.array([[3], [7]])), "the batch has 20 columns, the engine takes 16"),
        (ROWS, batch(np.arange(8) > np.array([[-1], [2]])), "text 1 begins with padding"),
        (GATHER, batch(np.arange(8) > np.array([[2], [-1]])), "text 0 begins with padding"),
        (ROWS, {"input_ids": np.ones((1, 4))}, "lacks input.s. attention_mask"),
        (ROWS, {"input_ids": np.ones((1, 4)), "attention_mask": np.ones((1, 5))}, "expected inputs of one shape"),
        (ROWS, batch(np.ones((0, 4), bool)), "expected inputs of one shape"),
    ],
)
def test_what_does_not_fit_is_refused(form: Packing, feeds: dict[str, Any], message: str) -> None:
    with pytest.raises(PackingError, match=message):
        form.pack(feeds)
    with pytest.raises(BuildError, match=message):
        PackedRunner(echo, form)(feeds)


def test_left_padding_is_fine_where_no_first_token_is_read() -> None:
    mask = np.arange(8) > np.array([[2], [-1]])
    found = PackedRunner(echo, replace(ROWS, first=False))(batch(mask))
    np.testing.assert_array_equal(found["ids"], np.where(mask, batch(mask)["input_ids"], 0))


def test_the_file_beside_a_plan_says_its_form(tmp_path: Path) -> None:
    assert packing_beside(tmp_path / "model.plan") is None
    (tmp_path / FILE).write_text(json.dumps({**asdict(ROWS), "more": 1}), encoding="utf-8")
    read = packing_beside(tmp_path / "model.plan")
    assert read is not None and asdict(read) == {**asdict(ROWS), "inputs": list(ROWS.inputs)}
    (tmp_path / FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(BuildError, match="lower the model again"):
        packing_beside(tmp_path / "model.plan")


def test_the_copy_for_another_machine_goes_with_the_form(tmp_path: Path) -> None:
    (copy,) = copy_into(tmp_path, ROWS)
    code = "import sys, packing; print(packing.FILE, [name for name in sys.modules if name[:3] in ('qdq', 'eng')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ran.stdout.split() == [FILE, "[]"]
    assert copy_into(tmp_path, None) == [] and not copy.exists()


def test_profiles_have_the_forms_axes() -> None:
    assert ROWS.ranges() == {"rows": (1, 3, 12), "texts": (1, 12, 12), "length": (1, ROW, ROW)}
    assert GATHER.ranges() == {"tokens": (1, 40, 12 * ROW)}
