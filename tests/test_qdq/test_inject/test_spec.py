"""QuantSpec: the strict loader, its round trip through JSON and YAML, and what each named placement stands for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qdq.errors import ConfigError
from qdq.inject.spec import (
    MATMUL_OPERANDS,
    PLACEMENTS,
    RESIDUAL_OPERANDS,
    QuantSpec,
    load_spec,
    named_spec,
    spec_from_mapping,
)

specs = st.builds(
    QuantSpec,
    placement=st.sampled_from(sorted(PLACEMENTS)),
    weight_bits=st.integers(2, 8),
    activation_bits=st.integers(2, 8),
    per_channel_weights=st.booleans(),
    linear=st.booleans(),
    matmul=st.lists(st.sampled_from(MATMUL_OPERANDS), unique=True).map(tuple),
    residual=st.lists(st.sampled_from(RESIDUAL_OPERANDS), unique=True).map(tuple),
    enable_layers=st.none() | st.sampled_from([r"pooler", r"layer\.\d+\.output"]),
    disable_layers=st.none() | st.sampled_from([r"^bert", r"(query|key)"]),
    disable_keywords=st.lists(st.text(min_size=1, max_size=8), max_size=3).map(tuple),
    embeddings=st.booleans(),
    fuse_qkv=st.booleans(),
    clip_gelu=st.none() | st.floats(0.001, 1e4),
    recalibrate_weights=st.booleans(),
)


@given(spec=specs)
def test_a_spec_survives_json_and_yaml(spec: QuantSpec) -> None:
    assert spec_from_mapping(json.loads(json.dumps(spec.as_json()))) == spec
    assert spec_from_mapping(yaml.safe_load(yaml.safe_dump(spec.as_json()))) == spec


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_spec_file_needs_only_what_differs(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"spec{suffix}"
    path.write_text('{"placement": "linear+qk", "clip_gelu": 10, "disable_keywords": ["layer.0"]}', encoding="utf-8")
    spec = load_spec(path)
    assert spec == named_spec("linear+qk", clip_gelu=10.0, disable_keywords=("layer.0",))
    assert isinstance(spec.clip_gelu, float)


def test_a_key_beside_the_placement_overrides_it() -> None:
    spec = spec_from_mapping({"placement": "linear", "matmul": ["a"]})
    assert (spec.matmul, spec.residual) == (("a",), ())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"weight_bit": 8}, ["unknown key 'weight_bit'", "did you mean 'weight_bits'"]),
        ({"placement": "linear+qkv"}, ["placement", "did you mean 'linear+qk'", "qdqbert"]),
        ({"placement": 3}, ["placement", "expected a name, found 3"]),
        ({"weight_bits": "8"}, ["weight_bits", "expected int, found '8'"]),
        ({"weight_bits": True}, ["weight_bits", "found True"]),
        ({"weight_bits": 9}, ["weight_bits", "9 is outside 2..8"]),
        ({"activation_bits": 1}, ["activation_bits", "1 is outside 2..8"]),
        ({"per_channel_weights": 1}, ["per_channel_weights", "expected bool"]),
        ({"matmul": "q"}, ["matmul", "expected a list"]),
        ({"matmul": ["q", "x"]}, ["matmul", "unknown value 'x'"]),
        ({"residual": ["locall"]}, ["residual", "did you mean 'local'"]),
        ({"disable_layers": "layer.(0"}, ["disable_layers", "'layer.(0' is not a regular expression"]),
        ({"enable_layers": ["pooler"]}, ["enable_layers", "['pooler']"]),
        ({"clip_gelu": 0}, ["clip_gelu", "must be positive"]),
        ({"clip_gelu": float("nan")}, ["clip_gelu", "must be positive"]),
        ({"disable_keywords": [1]}, ["disable_keywords", "expected str"]),
    ],
)
def test_a_wrong_value_names_the_file_the_key_and_the_remedy(
    tmp_path: Path, values: dict[str, Any], words: list[str]
) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_spec(path)
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "placement", "a: b: c", ""])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"spec\.yaml"):
        load_spec(path)


def test_a_spec_cannot_be_changed_and_an_override_must_be_valid() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantSpec().weight_bits = 4  # type: ignore[misc]
    with pytest.raises(ConfigError, match="weight_bits: 16"):
        named_spec("linear", weight_bits=16)
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        named_spec("linnear")


# name -> (matmul operands, residual operands, per-channel weights, fuse_qkv), as documented in spec.py and in
# FasterTransformer's quant_utils.py for the last four.
DOCUMENTED = {
    "linear": ("", (), True, False),
    "linear+qk": ("qk", (), True, False),
    "dynamic": ("", (), True, False),
    "qdqbert": ("qkav", ("local", "residual"), True, False),
    "auto": ("qkav", ("local", "residual"), True, False),
    "fused": ("qkav", ("residual",), True, False),
    "ft1": ("qkav", (), True, False),
    "ft2": ("qkav", ("residual",), False, True),
    "ft3": ("qkav", ("residual",), False, True),
    "trt": ("qkav", ("local", "residual"), False, True),
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_named_placement_is_what_its_documentation_says(name: str) -> None:
    spec = named_spec(name)
    assert ("".join(spec.matmul), spec.residual, spec.per_channel_weights, spec.fuse_qkv) == DOCUMENTED[name]
    assert (spec.linear, spec.weight_bits, spec.activation_bits, spec.embeddings) == (True, 8, 8, False)
