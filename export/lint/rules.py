"""Every rule of `qdq check`, in the order it is reported: errors, performance, notes."""

from __future__ import annotations

from export.lint import (
    rules_blocks,
    rules_channels,
    rules_gemm,
    rules_notes,
    rules_structure,
    rules_types,
    rules_values,
)
from export.lint.findings import Rule

RULES: tuple[Rule, ...] = (
    *rules_values.RULES,
    *rules_channels.RULES,
    *rules_structure.RULES,
    *rules_types.RULES,
    *sorted((*rules_gemm.RULES, *rules_blocks.RULES), key=lambda rule: rule.id),  # two files, one numbering
    *rules_notes.RULES,
)
