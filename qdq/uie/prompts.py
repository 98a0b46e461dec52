"""Texts of prompts, in Chinese and English: of a label, of a subject's label, of a choice among options."""

from __future__ import annotations

from collections.abc import Sequence

from qdq.base.config import choice
from qdq.base.spans import OPTIONS
from qdq.base.spans import options_of as options_of

LANGUAGES = ("ch", "en")
PREFIXES = {"ch": "情感倾向", "en": "Sentiment Classification"}  # of a classification, PaddleNLP's


def language_named(name: str) -> str:
    """`ch` or `en`; zh stands for ch. Raises ConfigError naming the nearest one."""
    return choice("ch" if name == "zh" else name, LANGUAGES, "--schema_lang")


def of_subject(subject: str, name: str, language: str = "ch") -> str:
    """Prompt for `name` of `subject`: ``张三的职位``, or ``position of Smith``; options stay at the end."""
    if language == "ch":
        return f"{subject}的{name}"
    found = OPTIONS.match(name)
    return f"{name} of {subject}" if found is None else f"{found['prefix']} of {subject}[{found['options']}]"


def of_options(prefix: str, options: Sequence[str]) -> str:
    """Prompt for a choice: ``情感倾向[正向,负向]``."""
    return f"{prefix}[{','.join(options)}]"


def kind_of(prompt: str, content: str, language: str = "ch") -> str:
    """Class under which the answers to a prompt are counted: its label, ``X的职位`` (``position of X``), its prefix.

    A prompt is about a subject where that stands in the content.
    """
    label, _ = options_of(prompt)
    if language == "ch":
        subject, found, name = label.rpartition("的")
        return f"X的{name}" if found and subject and name and subject in content else label
    name, found, subject = label.partition(" of ")
    return f"{name} of X" if found and name and subject and subject in content else label
