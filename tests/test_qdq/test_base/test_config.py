"""The strict loader: what the user typed is what is stored, everything else is one message naming file, key and fix."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdq.base.config import choice, from_mapping, load_mapping, nearest
from qdq.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """One field of every kind the loader knows."""

    name: str = "a"
    bits: int = 8
    share: float = 0.5
    deep: bool = False
    bound: float | None = None
    layers: tuple[str, ...] = ()
    mode: Literal["fast", "exact"] = "fast"


@dataclass(frozen=True)
class Needy:
    """A field without default."""

    path: str


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=5),
        "bits": st.integers(),
        "share": st.floats(allow_nan=False),
        "deep": st.booleans(),
        "bound": st.none() | st.floats(allow_nan=False),
        "layers": st.lists(st.text(max_size=3), max_size=3),
        "mode": st.sampled_from(["fast", "exact"]),
    },
)


@given(VALUES)
def test_stores_exactly_what_was_typed(values: dict[str, Any]) -> None:
    stored = asdict(from_mapping(Settings, values, "s.yaml"))
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in stored.items()} == {
        **asdict(Settings()),
        "layers": [],
        **values,
    }


@given(
    st.dictionaries(
        st.text(max_size=6), st.none() | st.booleans() | st.integers() | st.floats() | st.text(), max_size=4
    )
)
def test_anything_else_is_a_config_error(values: dict[str, Any]) -> None:
    try:
        from_mapping(Settings, values, "s.yaml")
    except ConfigError as error:
        assert str(error).startswith("s.yaml: ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bit": 4}, r"s\.yaml: unknown key 'bit'; did you mean 'bits'\? \(valid: bits, bound, deep"),
        ({"zzz": 4}, r"s\.yaml: unknown key 'zzz'; \(valid: "),
        ({7: 4}, r"s\.yaml: unknown key '7'"),
        ({"bits": "8"}, r"s\.yaml: bits: expected int, found '8'"),
        ({"bits": 8.0}, r"s\.yaml: bits: expected int, found 8\.0"),
        ({"bits": True}, r"s\.yaml: bits: expected int, found True"),
        ({"share": True}, r"s\.yaml: share: expected float, found True"),
        ({"deep": 1}, r"s\.yaml: deep: expected bool, found 1"),
        ({"deep": "yes"}, r"s\.yaml: deep: expected bool, found 'yes'"),
        ({"name": None}, r"s\.yaml: name: expected str, found None"),
        ({"bound": "none"}, r"s\.yaml: bound: expected float \| None, found 'none'"),
        ({"layers": "encoder"}, r"s\.yaml: layers: expected a list, found 'encoder'"),
        ({"layers": ["a", 1]}, r"s\.yaml: layers: expected str, found 1"),
        ({"mode": "exakt"}, r"s\.yaml: mode: unknown value 'exakt'; did you mean 'exact'\?"),
        ({"mode": 1}, r"s\.yaml: mode: expected .*found 1"),
    ],
)
def test_wrong_values_name_source_key_and_fix(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(Settings, values, "s.yaml")


def test_whole_numbers_are_floats_where_a_float_is_expected() -> None:
    assert from_mapping(Settings, {"share": 1, "bound": 2}, "s") == Settings(share=1.0, bound=2.0)
    assert type(from_mapping(Settings, {"share": 1}, "s").share) is float


def test_a_number_too_large_for_a_float() -> None:
    with pytest.raises(ConfigError, match="s: share: expected float"):
        from_mapping(Settings, {"share": 10**400}, "s")


def test_missing_required_key() -> None:
    with pytest.raises(ConfigError, match=r"spec\.json: .*'path'"):
        from_mapping(Needy, {}, "spec.json")


@pytest.mark.parametrize(
    ("typed", "suggestion"), [("Percentil", "percentile"), ("MAX", "max"), ("mxa", "max"), ("histogram", None)]
)
def test_nearest(typed: str, suggestion: str | None) -> None:
    expected = f"did you mean '{suggestion}'? " if suggestion else ""
    assert nearest(typed, ["percentile", "max"]) == f"{expected}(valid: max, percentile)"


def test_choice_returns_the_value_or_names_what_was_asked() -> None:
    assert choice("max", ("max", "mse"), "--calibrator") == "max"
    with pytest.raises(ConfigError, match=r"^--calibrator: unknown value 'maxx'; did you mean 'max'"):
        choice("maxx", ("max", "mse"), "--calibrator")
    for value in (True, None, ["a"], 3):  # from a manifest of another version
        with pytest.raises(ConfigError, match="unknown value"):
            choice(value, ("a", "b"), "--kind")  # type: ignore[arg-type]


def test_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"layers": ["a"], "bound": null, "share": 0.25}')
    (tmp_path / "s.yaml").write_text("layers: [a]\nbound: null\nshare: 0.25\n")
    assert load_mapping(tmp_path / "s.json") == load_mapping(tmp_path / "s.yaml")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.json", b'{"bits": 8,}', r"s\.json: not valid JSON \("),
        ("s.yaml", b"bits: [8", r"s\.yaml: not valid YAML \("),
        ("s.yaml", b"a: !!python/object:os.system x", r"s\.yaml: not valid YAML"),
        ("s.json", b"[1, 2]", r"s\.json: expected a mapping of option names to values, found list"),
        ("s.yaml", b"", r"s\.yaml: expected a mapping of option names to values, found NoneType"),
        ("s.yaml", b"caf\xe9: 1", r"s\.yaml: cannot be read \(.*utf-8"),
        ("s.json", b"[" * 100_000, r"s\.json: not valid JSON"),
        ("s.yaml", b"[" * 1_500, r"s\.yaml: not valid YAML"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_mapping(tmp_path / name)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read \(.*No such file"):
        load_mapping(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_mapping(tmp_path)


def test_json_infinity_is_a_float_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"bound": math.inf}))
    assert from_mapping(Settings, load_mapping(tmp_path / "s.json"), "s").bound == math.inf
