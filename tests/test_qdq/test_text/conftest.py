"""The tokenizer that tests of encoding and of workloads share."""

from __future__ import annotations

import pytest
from transformers import BertTokenizer

from .words import LETTERS, bert


@pytest.fixture
def tokenizer() -> BertTokenizer:
    return bert([*LETTERS, *(f"##{letter}" for letter in LETTERS)])
