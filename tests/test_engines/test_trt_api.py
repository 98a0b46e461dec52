"""Every TensorRT and polygraphy name the TensorRT target uses exists in every release it claims to support.

TensorRT cannot be installed on most machines that run these tests, so the names are read from the syntax tree and
compared with data/trt_api.json, and the polygraphy calls are bound to polygraphy's real signatures.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from engines.tensorrt.script import build_script
from engines.tensorrt.settings import TensorRTSettings
from engines.types import TensorInfo

ENGINE = Path(__file__).resolve().parents[2] / "engines" / "tensorrt"
API: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "trt_api.json").read_text(encoding="utf-8"))

# The class behind every variable that holds a TensorRT object, and the calls that may assign it.
VARIABLES = {
    "logger": "Logger",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "rejected": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
}
PRODUCERS = {
    "logger": {"Logger", "getLogger"},  # the second in plan.py, where it is Python's and TensorRT's is polygraphy's
    "builder": {"create_builder"},
    "network": {"create_network", "parse"},
    "parser": {"OnnxParser"},
    "rejected": {"get_error"},
    "config": {"create_builder_config", "configure"},
    "profile": {"create_optimization_profile"},
    "tensor": {"get_input"},
    "cache": {"create_timing_cache", "get_timing_cache"},
    "runtime": {"Runtime"},
    "engine": {"deserialize_cuda_engine", "load_engine"},
    "inspector": {"create_engine_inspector"},
}
# Variables of the generated script that hold no TensorRT object.
OTHERS = frozenset(
    {"argparse", "os", "sys", "arguments", "options", "handle", "model", "path", "partial", "problem", "information"}
    | {"RANGES"}
)
# Names that some supported release lacks: used only behind a check of the version (`check_machine`, `set_portability`).
GUARDED = ["HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY is missing in 10.0.1, 10.3.0, 10.7.0"]


def root_name(node: ast.AST) -> str | None:
    """The variable an expression such as ``a.b(c).d[0]`` starts from; None for a literal."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def names_used(
    tree: ast.AST, variables: Mapping[str, str] = VARIABLES, others: Iterable[str] = OTHERS
) -> Iterator[tuple[str, str]]:
    """(class, member) of every TensorRT name in `tree`; ("module", name) for ``trt.name``.

    Fails on an attribute of a variable that is in no table, so that nothing escapes the comparison.
    """
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    known = {*others, *functions, "Path", "str", "int", "trt"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and root_name(node.func) in {"getattr", "setattr"}:
            assert root_name(node.args[0]) not in {*variables, "trt"}, f"line {node.lineno}: dynamic TensorRT name"
        if not isinstance(node, ast.Attribute):
            continue
        root = root_name(node.value)
        assert root is None or root in variables or root in known, f"line {node.lineno}: unknown variable '{root}'"
        if root == "trt":
            yield from _module_name(node)
        elif root is not None and root in variables:
            assert isinstance(node.value, ast.Name), f"line {node.lineno}: assign '{root}.…' to a known variable first"
            yield variables[root], node.attr


def _module_name(node: ast.Attribute) -> Iterator[tuple[str, str]]:
    if isinstance(node.value, ast.Name):
        if node.attr != "__version__":
            yield "module", node.attr
    elif isinstance(node.value, ast.Attribute) and isinstance(node.value.value, ast.Name):
        if node.value.attr != "__version__":
            yield node.value.attr, node.attr
    else:
        raise AssertionError(f"line {node.lineno}: chained call on a TensorRT object")


def missing_names(used: Iterable[tuple[str, str]]) -> list[str]:
    """One sentence per name that some supported release lacks."""
    names: dict[str, dict[str, Any]] = API["names"]
    problems = []
    for owner, member in sorted(set(used)):
        if owner == "module":
            if member not in names and member not in names["functions"]:
                problems.append(f"trt.{member} is unknown")
            continue
        has = names.get(owner, {}).get(member, [])
        lacking = [release for release in API["releases"] if has != "all" and release not in has]
        if lacking:
            problems.append(f"{owner}.{member} is missing in {', '.join(lacking)}")
    return problems


def generated() -> ast.Module:
    inputs = [TensorInfo(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")]
    return ast.parse(build_script("model.onnx", inputs, TensorRTSettings(timing_cache=Path("timing.cache"))))


def function(path: Path, name: str) -> ast.FunctionDef:
    """One function of a source file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)


def test_the_table_covers_10_and_11() -> None:
    assert [release for release in API["releases"] if release.startswith("10.")]
    assert [release for release in API["releases"] if release.startswith("11.")]
    assert set(VARIABLES.values()) <= set(API["names"])
    assert set(PRODUCERS) == set(VARIABLES)


def test_generated_script_uses_only_names_of_every_release() -> None:
    used = list(names_used(generated()))
    assert missing_names(used) == GUARDED
    assert ("Builder", "build_serialized_network") in used
    assert ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED") in used
    assert ("ProfilingVerbosity", "DETAILED") in used
    assert len(set(used)) > 30


def test_builder_uses_only_names_of_every_release() -> None:
    variables = {name: owner for name, owner in VARIABLES.items() if name != "logger"}  # there it is Python's
    others = {"logger", "logging", "tempfile", "settings", "shapes", "timings", "error", "path", "model"} | {
        "profile_shapes",
        "profiles",
    }
    used = list(names_used(ast.parse((ENGINE / "plan.py").read_text(encoding="utf-8")), variables, others))
    assert missing_names(used) == GUARDED
    assert {("MemoryPoolType", "WORKSPACE"), ("IBuilderConfig", "set_timing_cache")} < set(used)
    assert {("ParserError", "node_name"), ("HardwareCompatibilityLevel", "AMPERE_PLUS")} < set(used)


def test_no_other_module_touches_tensorrt() -> None:
    for path in ENGINE.glob("*.py"):
        if path.name in {"plan.py", "build_template.py"}:
            continue
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import)]
        assert not [alias.name for node in imports for alias in node.names if alias.name == "tensorrt"], path.name


def test_variables_hold_what_the_table_says() -> None:
    plan = ast.parse((ENGINE / "plan.py").read_text(encoding="utf-8"))
    for node in [*ast.walk(generated()), *ast.walk(plan)]:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        variable = node.targets[0].id
        if variable in PRODUCERS and isinstance(node.value, ast.Call):
            callee = node.value.func
            name = callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", None)
            assert name in PRODUCERS[variable], f"'{variable}' assigned from {name}"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("config.set_flag(trt.BuilderFlag.INT8)", "BuilderFlag.INT8 is missing in 11.0.0.114"),
        ("flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)", "EXPLICIT_BATCH is missing in 11"),
        ("builder.platform_has_fast_int8", "Builder.platform_has_fast_int8 is missing in 11"),
        ("config.int8_calibrator = None", "IBuilderConfig.int8_calibrator is missing in 11"),
        ("config.max_workspace_size = 1", "IBuilderConfig.max_workspace_size is missing in 10.0.1"),
        ("trt.Bulider(logger)", "trt.Bulider is unknown"),
    ],
)
def test_a_removed_or_misspelt_name_is_found(line: str, problem: str) -> None:
    problems = missing_names(names_used(ast.parse(line)))
    assert any(problem in sentence for sentence in problems), problems


@pytest.mark.parametrize(
    "line",
    ["mystery.build()", "getattr(trt, 'BuilderFlag')", "parser.get_error(0).desc()", "trt.Runtime(logger).anything"],
)
def test_nothing_escapes_the_check(line: str) -> None:
    with pytest.raises(AssertionError):
        list(names_used(ast.parse(line)))


def calls(node: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(last part of the callee's name, call) of every call."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            yield getattr(call.func, "attr", getattr(call.func, "id", "")), call


def bind(signature: inspect.Signature, call: ast.Call, bound_method: bool = True) -> inspect.BoundArguments:
    """Bind the call's argument names to a signature; raises TypeError when they do not fit."""
    keywords = {str(keyword.arg): None for keyword in call.keywords}
    return signature.bind(*([None] if bound_method else []), *call.args, **keywords)


def test_polygraphy_calls_fit_its_real_signatures() -> None:
    from polygraphy.backend import trt as polygraphy_trt

    classes = {"CreateConfig", "CreateNetwork", "EngineBytesFromNetwork", "EngineFromBytes", "PostprocessConfig"}
    classes |= {"TrtRunner"}
    seen = set()
    for source in ("plan.py", "runner.py"):
        for name, call in calls(ast.parse((ENGINE / source).read_text(encoding="utf-8"))):
            if name not in classes:
                continue
            owner = getattr(polygraphy_trt, name)
            extra = bind(inspect.signature(owner.__init__), call).arguments.get("kwargs", {})
            if extra:  # CreateConfig hands the rest to its base class
                inspect.signature(owner.__mro__[1].__init__).bind(None, **extra)
            seen.add(name)
    assert seen == classes


def test_polygraphy_methods_fit_their_real_signatures() -> None:
    from polygraphy.backend.trt import Profile, TrtRunner

    add = [call for name, call in calls(function(ENGINE / "plan.py", "_configuration")) if name == "add"]
    assert [bind(inspect.signature(Profile.add), call) for call in add]
    runner = ast.parse((ENGINE / "runner.py").read_text(encoding="utf-8"))
    methods = {"activate", "deactivate", "get_input_metadata", "infer"}
    used = [(name, call) for name, call in calls(runner) if name in methods]
    assert {name for name, _ in used} == methods
    for name, call in used:
        bind(inspect.signature(getattr(TrtRunner, name)), call)
