"""Schema trees walked with a model that answers by rule, long texts, both languages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from qdq.errors import ConfigError, DataError
from qdq.uie.extract import Extraction, Reader
from qdq.uie.schema import Node, read_schema, typed_schema


class Oracle:
    """A runner that knows the answers to prompts: words of the content, or an option of the prompt itself."""

    def __init__(self, answers: Mapping[str, list[str]], vocabulary: str, words: bool = False) -> None:
        self.answers, self.rows = answers, []
        pieces = sorted(set(vocabulary.split())) if words else sorted(set(vocabulary))
        self.names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces]
        made = Tokenizer(models.WordLevel({name: place for place, name in enumerate(self.names)}, unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=False)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        self.tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=made, model_max_length=512, pad_token="[PAD]", unk_token="[UNK]"
        )

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        start, end = (np.zeros(feeds["input_ids"].shape, dtype=np.float32) for _ in range(2))
        for row, (ids, mask) in enumerate(zip(feeds["input_ids"], feeds["attention_mask"], strict=True)):
            words = [self.names[index] for index in ids[mask.astype(bool)]]
            behind = words.index("[SEP]")
            prompt, content = words[1:behind], words[behind + 1 : -1]
            self.rows.append(("".join(prompt), "".join(content)))
            for answer in self.answers.get("".join(prompt), []):
                first, inside = (1, prompt) if "[" in prompt else (behind + 1, content)
                for place in range(len(inside)):
                    taken = inside[place : place + len(self.pieces(answer))]
                    if taken == self.pieces(answer):
                        start[row, first + place], end[row, first + place + len(taken) - 1] = 0.9, 0.8
        return {"start_prob": start, "end_prob": end}

    def pieces(self, text: str) -> list[str]:
        return self.tokenizer.tokenize(text)

    def extraction(self, schema: Any, lang: str = "ch", **settings: Any) -> Extraction:
        reader = Reader(self, self.tokenizer, ("input_ids", "attention_mask"), **settings)
        return Extraction(reader, schema, lang)


TEXT = "张三任校长,李四任老师"
VOCABULARY = TEXT + "人名职位的情感倾向[正负]店面评价维度观点词很好干净,地震触发级时间"


def said(rows: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    return [(row["text"], row["start"], row["end"]) for row in rows]


def test_entities() -> None:
    oracle = Oracle({"人名": ["张三", "李四"], "时间": []}, VOCABULARY)
    (found,) = oracle.extraction(["时间", "人名"])(TEXT)
    assert list(found) == ["人名"]  # nothing stands for a name that was not found
    assert said(found["人名"]) == [("张三", 0, 2), ("李四", 6, 8)]
    assert found["人名"][0]["probability"] == pytest.approx(0.9 * 0.8)
    assert "relations" not in found["人名"][0]


def test_relations_ask_for_each_subject() -> None:
    oracle = Oracle({"人名": ["张三", "李四"], "张三的职位": ["校长"]}, VOCABULARY)
    (found,) = oracle.extraction({"人名": ["职位", "时间"]})(TEXT)
    assert said(found["人名"][0]["relations"]["职位"]) == [("校长", 3, 5)]
    assert "relations" not in found["人名"][1]
    asked = [prompt for prompt, _ in oracle.rows]
    assert sorted(asked) == sorted(["人名", "张三的职位", "张三的时间", "李四的职位", "李四的时间"])


def test_an_event_is_a_trigger_with_roles() -> None:
    oracle = Oracle({"地震触发词": ["地震"], "地震的震级": ["3级"]}, VOCABULARY + "3今日发生")
    (found,) = oracle.extraction({"地震触发词": ["震级"]})("今日发生3级地震")
    assert said(found["地震触发词"][0]["relations"]["震级"]) == [("3级", 4, 6)]


def test_opinions_have_words_and_a_class() -> None:
    answers = {"评价维度": ["店面"], "店面的观点词": ["干净"], "店面的情感倾向[正,负]": ["正"]}
    (found,) = Oracle(answers, VOCABULARY).extraction({"评价维度": ["观点词", "情感倾向[正,负]"]})("店面很干净")
    below = found["评价维度"][0]["relations"]
    assert said(below["观点词"]) == [("干净", 3, 5)]
    assert below["情感倾向"] == [{"text": "正", "probability": pytest.approx(0.72)}]


def test_nested_deeper() -> None:
    answers = {"人名": ["张三"], "张三的职位": ["校长"], "校长的时间": ["老师"]}
    (found,) = Oracle(answers, VOCABULARY).extraction({"人名": [{"职位": ["时间"]}, "评价"]})(TEXT)
    position = found["人名"][0]["relations"]["职位"][0]
    assert said(position["relations"]["时间"]) == [("老师", 9, 11)]


def test_classes_of_a_text_and_several_texts() -> None:
    oracle = Oracle({"情感倾向[正,负]": ["负"], "人名": ["张三"]}, VOCABULARY)
    found = oracle.extraction(["情感倾向[正,负]", "人名"], batch=2)(["张三很好", "店面很好"])
    assert [row["情感倾向"][0]["text"] for row in found] == ["负", "负"]
    assert "人名" in found[0] and "人名" not in found[1]
    oracle.answers = {}
    assert oracle.extraction("情感倾向[正,负]")("很好") == [{}]  # no option is likely enough


def test_a_schema_can_be_changed() -> None:
    oracle = Oracle({"人名": ["张三"], "职位": ["校长"]}, VOCABULARY)
    extraction = oracle.extraction("人名")
    extraction.set_schema("职位")
    assert list(extraction(TEXT)[0]) == ["职位"]


def test_english_prompts() -> None:
    text = "Ann leads Acme and Bob teaches"
    answers = {"person": ["Ann", "Bob"], "firmofAnn": ["Acme"], "moodofAnn[good,bad]": ["good"]}
    oracle = Oracle(answers, text + " person firm of mood [ ] , good bad", words=True)
    (found,) = oracle.extraction({"person": ["firm", "mood[good,bad]"]}, "en")(text)
    assert said(found["person"]) == [("Ann", 0, 3), ("Bob", 19, 22)]
    assert said(found["person"][0]["relations"]["firm"]) == [("Acme", 10, 14)]
    assert found["person"][0]["relations"]["mood"][0]["text"] == "good"
    assert "moodofBob[good,bad]" in [prompt for prompt, _ in oracle.rows]


def test_long_texts_are_cut_and_put_together() -> None:
    text = "店面很好。" * 30 + "张三任校长。" + "店面干净。" * 30
    oracle = Oracle({"人名": ["张三"], "情感倾向[正,负]": ["正"]}, VOCABULARY + "。")
    (found,) = oracle.extraction(["人名", "情感倾向[正,负]"], sequence=64)(text)
    assert said(found["人名"]) == [("张三", 150, 152)]
    assert text[150:152] == "张三"
    assert found["情感倾向"] == [{"text": "正", "probability": pytest.approx(0.72)}]
    pieces = [content for prompt, content in oracle.rows if prompt == "人名"]
    assert len(pieces) > 4 and sorted("".join(pieces)) == sorted(text)
    assert all(piece.endswith("。") for piece in pieces)


def test_the_class_of_most_parts_wins() -> None:
    class Votes(Oracle):
        def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
            outputs = super().__call__(feeds)
            for row, ids in enumerate(feeds["input_ids"]):
                words = [self.names[index] for index in ids]
                place = words.index("正" if "好" in words else "负")
                outputs["start_prob"][row, place], outputs["end_prob"][row, place] = 1.0, 0.6 if "好" in words else 0.99
            return outputs

    text = ("很好" * 10 + "。") * 2 + "干净" * 10 + "。"
    (found,) = Votes({}, VOCABULARY + "。").extraction("情感倾向[正,负]", sequence=36)(text)
    assert found["情感倾向"] == [{"text": "正", "probability": pytest.approx(0.6)}]


def test_what_cannot_be_read_is_refused() -> None:
    oracle = Oracle({}, VOCABULARY)
    with pytest.raises(ConfigError, match="text 2 is empty"):
        oracle.extraction("人名")([TEXT, " "])
    with pytest.raises(DataError, match="leaves no room"):
        oracle.extraction("人名" * 10, sequence=16)(TEXT)
    with pytest.raises(ConfigError, match="--schema_lang"):
        oracle.extraction("人名", "fr")


def test_schemas() -> None:
    nested = {"竞赛": ["主办方", {"选手": ["成绩"]}], "时间": []}
    assert read_schema(nested) == (
        Node("竞赛", (Node("主办方"), Node("选手", (Node("成绩"),)))),
        Node("时间"),
    )
    assert read_schema(["a", {"b": "c"}]) == (Node("a"), Node("b", (Node("c"),)))
    assert Node("情感倾向[正向，负向]").options == ("正向", "负向") and Node("情感倾向[正向]").label == "情感倾向"


@pytest.mark.parametrize("schema", ["", [], None, 3, {"a": 5}, [["a"], [""]], ["a", "a"]])
def test_schemas_that_are_none(schema: Any) -> None:
    with pytest.raises(ConfigError, match="schema"):
        read_schema(schema)


def test_typed_schemas(tmp_path: Any) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"人名": ["职位"]}', encoding="utf-8")
    assert typed_schema(str(file)) == typed_schema('{"人名": ["职位"]}') == (Node("人名", (Node("职位"),)),)
    assert typed_schema("时间,情感倾向[正向,负向]，人名") == (Node("时间"), Node("情感倾向[正向,负向]"), Node("人名"))
    with pytest.raises(ConfigError, match="no JSON"):
        typed_schema('{"人名": }')
