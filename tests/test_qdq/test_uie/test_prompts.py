"""Texts of prompts, and back to what they ask for."""

from __future__ import annotations

import pytest

from qdq.errors import ConfigError
from qdq.uie.prompts import kind_of, language_named, of_options, of_subject, options_of


def test_of_subject() -> None:
    assert of_subject("张三", "职位") == "张三的职位"
    assert of_subject("Smith", "position", "en") == "position of Smith"
    assert of_subject("店面", "情感倾向[正向,负向]") == "店面的情感倾向[正向,负向]"
    assert of_subject("the shop", "Sentiment [good, bad]", "en") == "Sentiment of the shop[good, bad]"


def test_options() -> None:
    assert options_of("情感倾向[正向，负向]") == ("情感倾向", ("正向", "负向"))
    assert options_of("Sentiment [good, bad]") == ("Sentiment", ("good", "bad"))
    assert (
        options_of("城市") == ("城市", ())
        and options_of("注[1]后") == ("注[1]后", ())
        and options_of("空[]") == ("空[]", ())
    )
    assert options_of(of_options("a", ("x", "y"))) == ("a", ("x", "y"))


@pytest.mark.parametrize(
    ("prompt", "content", "language", "kind"),
    [
        ("城市", "北京", "ch", "城市"),
        ("张三的职位", "张三是老师", "ch", "X的职位"),
        ("目的", "目标", "ch", "目的"),  # no subject of the content
        ("店面的情感倾向[负向,正向]", "店面很好", "ch", "X的情感倾向"),
        ("情感倾向[负向,正向]", "很好", "ch", "情感倾向"),
        ("position of Smith", "Smith teaches", "en", "position of X"),
        ("date of birth", "Smith teaches", "en", "date of birth"),
    ],
)
def test_the_class_of_a_prompt(prompt: str, content: str, language: str, kind: str) -> None:
    assert kind_of(prompt, content, language) == kind


def test_languages() -> None:
    assert language_named("zh") == language_named("ch") == "ch"
    with pytest.raises(ConfigError, match="--schema_lang"):
        language_named("de")
