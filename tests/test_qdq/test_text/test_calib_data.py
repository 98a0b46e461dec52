"""The bundled texts are what README and manifest say: enough, distinct, disjoint, readable by the project's reader."""

import json
import re
import statistics
from pathlib import Path

import pytest

from qdq.base.artifacts import sha256_file
from qdq.text.data import Record, bundled, read_records

FOLDER = Path(__file__).resolve().parents[3] / "calib_data"
LEAST_ROWS = {"texts.jsonl": 256, "pairs.jsonl": 64, "heldout.jsonl": 64, "heldout_pairs.jsonl": 32}


def words(text: str) -> str:
    """What makes two texts the same text: their words, whatever the punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def all_records(heldout: bool) -> list[Record]:
    return [r for pairs in (False, True) for r in read_records(bundled(pairs, heldout))[0]]


def test_the_manifest_names_every_data_file_with_its_rows_and_hash() -> None:
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    listed = {entry["name"]: entry for entry in manifest["files"]}
    assert set(listed) == {path.name for path in FOLDER.glob("*.jsonl")} == set(LEAST_ROWS)
    for name, least in LEAST_ROWS.items():
        rows = (FOLDER / name).read_text(encoding="utf-8").splitlines()
        assert listed[name]["rows"] == len(rows) >= least
        assert listed[name]["sha256"] == sha256_file(FOLDER / name)
        assert listed[name]["language"] == "en"


def test_the_readme_tells_the_same_row_counts() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for entry in json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))["files"]:
        assert re.search(rf"\| `{entry['name']}` \| {entry['rows']} ", readme), entry["name"]


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("heldout", [False, True])
def test_every_row_is_usable_and_has_just_the_documented_columns(pairs: bool, heldout: bool) -> None:
    records, columns = read_records(bundled(pairs, heldout))
    assert (columns.text, columns.pair, columns.label) == ("text", "pair" if pairs else None, None)
    assert columns.skipped == 0
    assert all((record.pair is not None) == pairs for record in records)


def test_no_text_occurs_twice_or_in_both_calibration_and_evaluation() -> None:
    texts = [words(part) for held in (False, True) for r in all_records(held) for part in (r.text, r.pair) if part]
    assert len(texts) == len(set(texts))


def test_lengths_are_those_of_real_text() -> None:
    lengths = [len(record.text.split()) for record in read_records(bundled())[0]]
    assert min(lengths) >= 3
    assert 60 <= max(lengths) <= 90
    assert 18 <= statistics.mean(lengths) <= 26
    assert statistics.stdev(lengths) > 10


def test_texts_are_written_out_not_stamped_from_templates() -> None:
    texts = [words(record.text).split() for record in (*all_records(False), *all_records(True))]
    openings = [tuple(text[:4]) for text in texts if len(text) >= 8]
    assert len(set(openings)) > 0.98 * len(openings)
    assert len({word for text in texts for word in text}) > 2500
