"""Damaged data files of every layout: read, or refused with a DataError; never another exception.

``QDQ_FUZZ=5000 pytest tests/test_qdq/test_text/test_data_fuzz.py`` makes that many files; the default is a sample.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from qdq.errors import ConfigError, DataError
from qdq.tasks.labels import class_indices, label_sets, numbers
from qdq.tasks.schemes import gold_tags
from qdq.text.data import Record, TextSource, read_records

FILES = int(os.environ.get("QDQ_FUZZ", "400"))
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
WORDS = ["the", "cat", "saw", "Anna", "Smith", "near", "Paris", ";", "a", "|", "big", ",", "old", "dog"]
TEXT_LAYOUTS = {
    "rows.jsonl": "".join(json.dumps({"text": f"{w} runs", "label": n % 2}) + "\n" for n, w in enumerate(WORDS)),
    "sets.jsonl": "".join(json.dumps({"text": w * 3, "labels": [n % 5]}) + "\n" for n, w in enumerate(WORDS)),
    "tags.jsonl": json.dumps({"tokens": WORDS, "ner_tags": [n % 5 for n in range(len(WORDS))]}) + "\n",
    "list.json": json.dumps([{"text": w, "label": 1.0} for w in WORDS]),
    "split.json": json.dumps({"columns": ["text", "label"], "data": [[w, 0] for w in WORDS]}),
    "columns.json": json.dumps({"text": {str(n): w for n, w in enumerate(WORDS)}}),
    "squad.json": json.dumps(
        {
            "data": [
                {
                    "paragraphs": [
                        {
                            "context": "a b c",
                            "qas": [{"id": "1", "question": "b?", "answers": [{"text": "b", "answer_start": 2}]}],
                        }
                    ]
                }
            ]
        },
        indent=1,
    ),
    "plain.csv": "text,label\n" + "".join(f'"{w} ""x"", y",{n % 2}\n' for n, w in enumerate(WORDS)),
    "semicolon.csv": "text;label\r\n" + "".join(f"{w} x;{n % 2}.0\r\n" for n, w in enumerate("abcdef")),
    "flags.csv": "id,comment,toxic,insult\n" + "".join(f"r{n},some {w},{n % 2},0\n" for n, w in enumerate("abcdef")),
    "lists.csv": "tokens,ner_tags\n\"['a', 'b']\",\"[0, 1]\"\n\"['c' 'd']\",\"[3 0]\"\n",
    "glue.tsv": '\ufeffQuality\t#1 ID\t#1 String\t#2 String\n1\t7\the "x\tb y\n0\t8\tc\td e\n',
    "bars.txt": "label|text\n0|a b\n1|c d\n",
    "conll.txt": "-DOCSTART- -X- O O\n\n" + "".join(f"{w} NN {TAGS[n % 5]}\n" for n, w in enumerate(WORDS)),
    "first.txt": "".join(f"{TAGS[n % 5]}\t{w}\n" for n, w in enumerate(WORDS)) + "\nO\tx\n",
    "germeval.tsv": "# a comment\n" + "".join(f"{n}\t{w}\t{TAGS[n % 5]}\tO\n" for n, w in enumerate(WORDS, 1)),
    "sentences.csv": "Sentence #,Word,POS,Tag\nSentence: 1,a,DT,O\n,b,NN,B-geo\nSentence: 2,c,NN,O\n",
    "plain.txt": "one text\nanother text, longer\n\nthe last\n",
}
INSERTS = (b'"', b"\n", b"\r\n", b"\t", b",", b";", b"|", b"[", b"]", b"{", b"}", b"\0", b"\xff", b"\xef\xbb\xbf")
INSERTS += (b"\xf0\x9f", b"null", b"NaN", b"1e999", b"-100", b"9" * 5000, b"\\ud800", b"''", b"#", b"O", b"B-", b" ")


def binary_layouts(folder: Path) -> dict[str, bytes]:
    """Parquet and Arrow files of labelled texts and tagged words."""
    datasets = pytest.importorskip("datasets", reason="the optional extra 'train' is not installed")
    import pyarrow
    from pyarrow import parquet

    names = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=list(TAGS))),
        }
    )
    rows = [{"tokens": WORDS, "ner_tags": [n % 5 for n in range(len(WORDS))]}] * 3
    datasets.Dataset.from_list(rows, features=names).to_parquet(folder / "tags.parquet")
    table = pyarrow.table({"text": WORDS, "label": [n % 2 for n in range(len(WORDS))]})
    parquet.write_table(table, folder / "rows.parquet")
    with pyarrow.ipc.new_stream(folder / "stream.arrow", table.schema) as writer:
        writer.write_table(table)
    with pyarrow.ipc.new_file(folder / "whole.arrow", table.schema) as writer:
        writer.write_table(table)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def damaged(content: bytes, chance: random.Random) -> bytes:
    """`content` with one to four of: bytes flipped, cut off, inserted, removed, a piece doubled, lines shuffled."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place, span = chance.randrange(len(data) + 1), chance.randint(1, 40)
        kind = chance.randrange(7)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            data[place:place] = chance.choice(INSERTS)
        elif kind == 3:
            del data[place : place + span]
        elif kind == 4:
            data[place:place] = data[place : place + span]
        elif kind == 5:
            lines = bytes(data).splitlines(keepends=True)
            chance.shuffle(lines)
            data = bytearray(b"".join(lines))
        else:
            data[place : place + span] = bytes(chance.randrange(256) for _ in range(chance.randint(0, span)))
    return bytes(data)


def options(chance: random.Random) -> dict[str, Any]:
    """Options of a source, none most of the time."""
    return chance.choice(
        [
            *[{}] * 5,
            {"header": ("a", "text")},
            {"header": ("token", "pos", "tag")},
            {"labels": TAGS},
            {"label_column": "label"},
            {"label_column": "toxic,insult"},
        ]
    )


def used(records: list[Record]) -> None:
    """Read the records as every kind of task does."""
    for required in (False, True):
        for work, known in (
            (class_indices, (("NEG", "POS"), 2)),
            (label_sets, (("toxic", "insult"), 2)),
            (label_sets, ((), 5)),
            (numbers, ()),
            (gold_tags, (TAGS,)),
        ):
            try:
                work(records, *known, required=required)
            except DataError as error:
                assert str(error)


def test_no_damaged_file_ends_in_another_error_than_ours(tmp_path: Path) -> None:
    (tmp_path / "built").mkdir()
    layouts = {name: text.encode() for name, text in TEXT_LAYOUTS.items()} | binary_layouts(tmp_path / "built")
    names = sorted(layouts)
    refused = 0
    for seed in range(FILES):
        chance = random.Random(seed)
        name = names[seed % len(names)]
        path = tmp_path / name
        path.write_bytes(damaged(layouts[name], chance))
        source = TextSource(str(path), **options(chance))
        try:
            used(read_records(source)[0])
        except (DataError, ConfigError) as error:
            refused += 1
            assert name in str(error) or "evaluation text" in str(error), f"seed {seed}: {error}"
        except Exception as error:
            raise AssertionError(f"seed {seed}, {name}, {source}: {error!r}; file: {path.read_bytes()!r}") from error
    assert 0 < refused < FILES


@pytest.mark.parametrize("name", sorted(TEXT_LAYOUTS))
def test_the_whole_files_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(TEXT_LAYOUTS[name], encoding="utf-8")
    if name == "bars.txt":
        with pytest.raises(DataError, match=r"looks like a table split at '\|'"):
            read_records(TextSource(str(path)))
    else:
        assert read_records(TextSource(str(path)))[0]
