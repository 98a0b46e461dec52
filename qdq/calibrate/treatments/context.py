"""Readers of attention's values and of its context: the quantizers a change of either passes through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import nn

from qdq.calibrate.treatments.attentions import attentions
from qdq.inject.quantizer import QuantLinear

if TYPE_CHECKING:
    from qdq.calibrate.treatments.observe import Group, Observed


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
