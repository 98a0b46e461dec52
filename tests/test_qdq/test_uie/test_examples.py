"""Prompts with answers, and negatives, by the documented rules on annotations made by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from qdq.errors import ConfigError, DataError
from qdq.uie.annotations import Annotation, Entity, Relation
from qdq.uie.examples import ALL, Answer, Example, Rules, class_examples, span_examples

ZHANG = Annotation(
    "张三在北京卖书", (Entity(0, 2, "人名"), Entity(3, 5, "城市"), Entity(6, 7, "商品")), (Relation(0, 1, "工作地"),)
)
LI = Annotation("李四和王五去上海", (Entity(0, 2, "人名"), Entity(3, 5, "人名"), Entity(6, 8, "城市")))
RAIN = Annotation("今天下雨")


def rows(annotations: list[Annotation], train: bool = False, **rules: Any) -> list[tuple[str, str, list[str]]]:
    """(content's first character, prompt, answers) of every example."""
    made = span_examples(annotations, Rules(**rules), random.Random(0), train=train)
    for one in made:
        assert all(one.content[answer.start : answer.end] == answer.text for answer in one.answers if answer.start >= 0)
    return [(one.content[0], one.prompt, [answer.text for answer in one.answers]) for one in made]


def test_development_rows_have_every_negative() -> None:
    assert rows([ZHANG, LI, RAIN]) == [
        ("张", "人名", ["张三"]),
        ("张", "城市", ["北京"]),
        ("张", "商品", ["书"]),
        ("李", "人名", ["李四", "王五"]),
        ("李", "城市", ["上海"]),
        ("李", "商品", []),
        ("今", "人名", []),
        ("今", "商品", []),
        ("今", "城市", []),
        ("张", "张三的工作地", ["北京"]),
    ]


def test_english_prompts_turn_around() -> None:
    one = Annotation("Ann runs Acme", (Entity(0, 3, "person"), Entity(9, 13, "company")), (Relation(0, 1, "firm"),))
    assert rows([one], language="en")[-1] == ("A", "firm of Ann", ["Acme"])


def test_every_predicate_of_a_subject_is_asked() -> None:
    other = Annotation("赵六爱茶", (Entity(0, 2, "人名"), Entity(3, 4, "商品")), (Relation(0, 1, "爱好"),))
    found = [row for row in rows([ZHANG, other]) if "的" in row[1]]
    assert found == [
        ("张", "张三的工作地", ["北京"]),
        ("张", "张三的爱好", []),
        ("赵", "赵六的爱好", ["茶"]),
        ("赵", "赵六的工作地", []),
    ]


def many_labels() -> list[Annotation]:
    """One text with one entity, and one that brings ten labels more."""
    letters = "".join(chr(ord("a") + number) for number in range(10))
    return [
        Annotation("甲乙", (Entity(0, 1, "人名"),)),
        Annotation(letters, tuple(Entity(n, n + 1, f"l{n}") for n in range(10))),
    ]


@pytest.mark.parametrize(("ratio", "expected"), [(0, 0), (3, 3), (10, 10), (50, 10), (ALL, 10)])
def test_training_rows_have_few_negatives_for_a_positive(ratio: int, expected: int) -> None:
    found = rows(many_labels(), train=True, negative_ratio=ratio)
    assert sum(text == "甲" and not answers for text, _, answers in found) == expected
    assert len({row[:2] for row in found}) == len(found)  # no prompt twice


def test_a_text_without_entities_gets_all_negatives_in_training_too() -> None:
    found = rows([LI, RAIN], train=True, negative_ratio=1)
    assert [row for row in found if row[0] == "今"] == [("今", "人名", []), ("今", "城市", [])]


def test_negatives_of_relations_are_three_kinds() -> None:
    found = rows([ZHANG, LI], train=True, negative_ratio=9)
    prompts = [prompt for text, prompt, answers in found if "的" in prompt and not answers and text == "张"]
    assert "北京的工作地" in prompts  # read backwards
    assert {"李四的工作地", "王五的工作地"} & set(prompts)  # of other subjects
    assert all(prompt.endswith(("工作地", "人名", "城市", "商品")) for prompt in prompts)
    assert len(prompts) == len(set(prompts)) <= 9
    assert "张三的工作地" not in prompts


def test_a_relation_that_holds_both_ways_is_no_negative() -> None:
    both = (Relation(0, 1, "朋友"), Relation(1, 0, "朋友"))
    one = Annotation("李四和王五", (Entity(0, 2, "人名"), Entity(3, 5, "人名")), both)
    assert [row for row in rows([one], train=True) if "的" in row[1]] == [
        ("李", "李四的朋友", ["王五"]),
        ("李", "王五的朋友", ["李四"]),
    ]


def test_a_class_of_a_text_is_an_answer_in_the_prompt() -> None:
    one = Annotation("好", classes=("负向",))
    (found,) = class_examples([one], Rules(), random.Random(0))
    assert found.prompt in ("情感倾向[正向,负向]", "情感倾向[负向,正向]")
    (answer,) = found.answers
    place = len(found.prompt) + 1 + answer.start  # counted from one behind the prompt's end
    assert found.prompt[place : place + 2] == answer.text == "负向" and answer.end - answer.start == 2


def test_an_option_inside_another_is_found_at_its_own_place() -> None:
    rules = Rules(options=("好", "不好", "很好"))
    for seed in range(6):
        (found,) = class_examples([Annotation("茶", classes=("好",))], rules, random.Random(seed))
        place = len(found.prompt) + 1 + found.answers[0].start
        assert found.prompt[place - 1] in "[," and found.prompt[place + 1] in "],"


def test_classes_of_entities() -> None:
    one = Annotation("店面干净,很好", (Entity(0, 2, "评价维度##正向"), Entity(5, 7, "观点词")))
    made = span_examples([one], Rules(), random.Random(0))
    assert made[0] == Example(one.text, "评价维度", (Answer("店面", 0, 2),))
    assert made[-1].prompt in ("店面的情感倾向[正向,负向]", "店面的情感倾向[负向,正向]")
    assert [answer.text for answer in made[-1].answers] == ["正向"]
    english = Rules(language="en", options=("good", "bad"))
    made = span_examples([Annotation("clean shop", (Entity(6, 10, "aspect##good"),))], english, random.Random(0))
    assert made[-1].prompt.startswith("Sentiment Classification of shop[")


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(DataError, match="'中性', no one of --options 正向 负向"):
        class_examples([Annotation("好", classes=("中性",))], Rules(), random.Random(0))
    with pytest.raises(ConfigError, match="--schema_lang"):
        Rules(language="fr")
    with pytest.raises(ConfigError, match="--negative_ratio: -2"):
        Rules(negative_ratio=-2)
