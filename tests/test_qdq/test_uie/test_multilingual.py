"""uie-m: XLM-R's SentencePiece tokenizer, whose pieces are of characters before normalization, in several languages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast, XLMRobertaTokenizer

from qdq.loading.model import load_model
from qdq.tasks.spans import parts
from qdq.uie.extract import Extraction, Reader
from qdq.uie.rows import prompt_records

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
WORDS = ("▁person", "▁city", "▁leads", "▁of", "▁in", "张三", "北京", "firm")
LETTERS = "▁abcdefghijklmnopqrstuvwxyzABZ张三在北京工作人名城市的职位李四任校长,.[]1"
# Prompt, content and answers: at the beginning, behind spaces, in letters that normalization changes, in an option
ROWS = (
    ("人名", "张三在北京工作,李四任校长", ("张三", "李四")),
    ("城市", " 张三 在 北京 工作", ("北京",)),
    ("person", "Ann leads Acme  in Berlin", ("Ann",)),
    ("city of Ann", "Ａｎｎ① leads in Ｂｅｒｌｉｎ.", ("Ｂｅｒｌｉｎ",)),
    ("firm", "张三 leads Acme", ("Acme",)),
    ("person", "in Berlin", ()),
)


@pytest.fixture
def uie_m(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A tiny XLM-R with UIE's heads, and its tokenizer of Unigram pieces with a normalizer in front."""
    folder = tmp_path / "uie-m"
    shutil.copytree(tiny_checkpoint("xlm-roberta", "information-extraction"), folder)
    for file in folder.glob("*token*"):
        file.unlink()
    pieces = [*((name, 0.0) for name in SPECIAL), *((word, -2.0) for word in WORDS)]
    pieces += [(letter, -6.0) for letter in LETTERS]
    pipeline = XLMRobertaTokenizer(vocab=pieces).backend_tokenizer
    pipeline.normalizer = normalizers.NFKC()  # as the published table of characters, which only that class keeps
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    names |= {"cls_token": SPECIAL[0], "sep_token": SPECIAL[2]}
    inputs = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=pipeline, model_max_length=64, model_input_names=inputs, **names
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = []
    for prompt, content, answers in ROWS:
        found = [
            {"text": text, "start": content.index(text), "end": content.index(text) + len(text)} for text in answers
        ]
        rows.append({"prompt": prompt, "content": content, "result_list": found})
    (tmp_path / "prompts.txt").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path / "prompts.txt"


@pytest.mark.parametrize("sequence", [64, 28])
def test_marks_of_answers_are_their_characters(sequence: int, uie_m: Path, prompts: Path) -> None:
    """Marked perfectly, every row gives the characters that were annotated, also where contents are cut."""
    loaded = load_model(str(uie_m))
    assert "token_type_ids" not in loaded.inputs and loaded.outputs == ("start_prob", "end_prob")
    records = prompt_records(prompts)
    found: list[set[tuple[int, int]]] = [set() for _ in records]
    rows = parts(loaded.tokenizer, records, sequence, typed=False)
    assert len(rows) > len(records) or sequence == 64
    for row in rows:
        assert row.lost == 0 and len(row.tokens["input_ids"]) <= sequence
        start, end = (np.zeros(len(row.offsets)) for _ in range(2))
        start[list(row.starts)] = end[list(row.ends)] = 1
        found[row.record] |= {(first, last) for first, last, _ in row.spans(start, end)}
    assert found == [{(first, last) for first, last, _ in record.spans or ()} for record in records]


def test_extraction_walks_a_schema_in_both_languages(uie_m: Path) -> None:
    """A runner that knows the ids of the answers: their texts come back as they are written."""
    loaded = load_model(str(uie_m))
    tokenizer = loaded.tokenizer
    known = {"人名": "张三", "张三的职位": "校长", "person": "Ａｎｎ", "city of Ａｎｎ": "Ｂｅｒｌｉｎ"}

    def runner(feeds: Any) -> dict[str, Any]:
        start, end = (np.zeros(feeds["input_ids"].shape, dtype=np.float32) for _ in range(2))
        for row, ids in enumerate(feeds["input_ids"].tolist()):
            for prompt, answer in known.items():
                asked = tokenizer(prompt)["input_ids"]
                wanted = [
                    one for one in tokenizer(answer, add_special_tokens=False)["input_ids"] if one != 5 + len(WORDS)
                ]
                for place in range(len(asked), len(ids)) if ids[: len(asked)] == asked else ():
                    if ids[place : place + len(wanted)] == wanted:
                        start[row, place] = end[row, place + len(wanted) - 1] = 0.9
        return {"start_prob": start, "end_prob": end}

    reader = Reader(runner, tokenizer, loaded.inputs, 64)
    (found,) = Extraction(reader, {"人名": ["职位"]})("任校长 张三")
    assert [(one["text"], one["start"]) for one in found["人名"]] == [("张三", 4)]
    assert [one["text"] for one in found["人名"][0]["relations"]["职位"]] == ["校长"]
    (found,) = Extraction(reader, {"person": ["city"]}, "en")("Ａｎｎ leads in Ｂｅｒｌｉｎ")
    assert [(one["text"], one["start"], one["end"]) for one in found["person"]] == [("Ａｎｎ", 0, 3)]
    assert [one["text"] for one in found["person"][0]["relations"]["city"]] == ["Ｂｅｒｌｉｎ"]


@pytest.mark.slow
def test_from_prompts_to_an_engine(
    uie_m: Path, prompts: Path, qdq: Callable[..., Any], small: tuple[str, ...], tmp_path: Path
) -> None:
    """Calibrated, built, scored by span F1, and asked."""
    out = tmp_path / "work"
    data, few = ("--calibration", prompts, "--eval-data", prompts), ("--samples", "2", "--json")
    ran = qdq("compile", "--model", uie_m, *data, "--out", out, "--target", "onnxruntime", *small[2:], *few)
    assert ran.code == 0, ran.err
    accuracy = json.loads(ran.out)["accuracy"]
    assert set(accuracy["outputs"]) == {"start_prob", "end_prob"} and accuracy["metric"]["name"] == "f1"
    ran = qdq(
        "extract", out, "--schema", '["人名"]', "--text", "张三在北京", "--position-prob", "0.01", "--sequence", "32"
    )
    assert ran.code == 0, ran.err
    for one in json.loads(ran.out).get("人名", ()):
        assert one["text"] == "张三在北京"[one["start"] : one["end"]]
