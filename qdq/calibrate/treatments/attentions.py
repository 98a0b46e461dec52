"""Where attention's projections are in an injected module, and which linear reads its context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import nn

from qdq.inject.quantizer import QuantLinear

if TYPE_CHECKING:
    from qdq.calibrate.treatments.observe import Group, Observed

# Attributes of an attention module that hold the query, key and value projections, in the families' spellings.
PROJECTIONS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))


def attentions(module: nn.Module) -> Iterator[tuple[str, tuple[QuantLinear, QuantLinear, QuantLinear]]]:
    """Path of every attention module and its query, key and value projections, where all three are quantized."""
    for path, owner in module.named_modules():
        if not hasattr(owner, "matmul_q_input_quantizer"):
            continue
        for names in PROJECTIONS:
            found = [getattr(owner, name, None) for name in names]
            linears = [linear for linear in found if isinstance(linear, QuantLinear)]
            if len(linears) == len(names):
                yield path, (linears[0], linears[1], linears[2])


def value_readers(module: nn.Module, observed: Observed) -> Iterator[tuple[str, QuantLinear, Group]]:
    """Path of an attention, its value projection, and the group of the one linear that reads its context.

    Of attentions whose value projection was observed and whose context has a channel for each of its outputs.
    """
    known = {id(linear) for group in observed.groups for linear in group.linears.values()}
    consumers = {name: group for group in observed.groups for name in group.linears}
    for path, (_, _, value) in attentions(module):
        group = context_reader(path, consumers)
        if id(value) in known and group is not None and group.seen.largest.shape[0] == value.out_features:
            yield path, value, group


def context_reader(path: str, groups: Mapping[str, Group]) -> Group | None:
    """The group of the linear that reads the context of the attention at `path`, by linears' names.

    BERT's sits beside the attention, the other families' inside.
    """
    parent = path.rpartition(".")[0]
    for name in (f"{path}.out_lin", f"{path}.dense", f"{path}.o", f"{parent}.output.dense"):
        if name in groups and len(groups[name].linears) == 1:
            return groups[name]
    return None
