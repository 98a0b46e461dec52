"""`qdq explain`: everything a work directory knows about a layer, a linear or a single point."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.targets import TARGETS
from qdq.base.artifacts import read_json, to_json
from qdq.base.edge import DONE
from qdq.base.option import option
from qdq.errors import ConfigError

INDENT = 15
LINEAR = ("linear input", "linear weight")  # kinds of points


@dataclass(frozen=True)
class ExplainOptions:
    """Options of `qdq explain`."""

    name: str = option(
        "", "layer, linear, node or point, or part of its name: layer.0, query, MatMul_1 (default: all)", "", "NAME",
        positional=True,
    )  # fmt: skip
    out: str | None = option(None, "work directory (default: the newest below build/)", metavar="DIR")
    compile: bool = option(False, "let NVIDIA's compiler say which kernel computes it; needs no GPU")


def explain(options: ExplainOptions, as_json: bool) -> tuple[str, int]:
    """Return what is known of every point that the name fits, by the linear or block it belongs to.

    Raises ConfigError for a folder without a run in it, and for a name that fits nothing.
    """
    from qdq.pipeline.folders import newest_run
    from qdq.pipeline.workdir import MANIFEST
    from qdq.placing.names import owners

    work = Path(options.out) if options.out else newest_run()
    if not (work / MANIFEST).is_file() or not (work / "placement.json").is_file():
        raise ConfigError(f"{work}: no placement.json; give the work directory of 'qdq compile' or 'qdq inject'")
    points = read_json(work / "placement.json")["points"]
    meant = owners(options.name, points, work)
    kernels = _kernels(work) if options.compile else {}
    found = [_owner(name, members, work, kernels) for name, members in meant.items()]
    asked = read_json(work / MANIFEST)["options"]
    report = {"work": str(work), "model": asked.get("model"), "owners": found}
    return to_json(report) if as_json else render(report), DONE


def _owner(
    name: str, points: Sequence[Mapping[str, Any]], work: Path, kernels: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """One module: its points, the treatments that changed it, and what each target makes of it."""
    from qdq.placing.units import layer_of

    # Its points, and what was done to them
    calibration = _read(work / "calibration.json")
    sensitivity = {row["name"]: row for row in _read(work / "sensitivity" / "sensitivity.json").get("points", ())}
    placed = [_point(point, calibration, sensitivity) for point in points]
    treatments = [
        {"treatment": kind} | {key: value for key, value in entry.items() if key != "point"}
        for kind, entries in calibration.get("treatments", {}).items()
        for entry in entries
        if _belongs(entry["point"], name)
    ]
    # What each target makes of it
    targets = {
        target: _target(name, work / target, kernels) | _engine(name, placed, work / target)
        for target in TARGETS
        if (work / target).is_dir()
    }
    return {
        "name": name,
        "layer": layer_of(f"{name}."),
        "points": placed,
        "treatments": treatments,
        "targets": targets,
    }


def _belongs(point: str, owner: str) -> bool:
    """True when a treatment's point, with or without the wrapper's ``model.``, is `owner` or a quantizer of it."""
    bare = point.removeprefix("model.")
    module, _, last = bare.rpartition(".")
    return bare == owner or (module == owner and last.endswith("_quantizer"))


def _point(
    point: Mapping[str, Any], calibration: Mapping[str, Any], sensitivity: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """State, reason, range and scale of one point, and what it costs where that was measured."""
    from qdq.placing.units import kind_of

    name = point["name"]
    found: dict[str, Any] = {"name": name, "kind": kind_of(name), "int8": point["placed"], "reason": point["reason"]}
    if activation := calibration.get("activations", {}).get(name):
        found |= {"amax": activation["amax"], "scale": activation["amax"] / 127}
    if weight := calibration.get("weights", {}).get(name):
        found |= {"weight": weight}
    if row := sensitivity.get(name):
        found |= {"damage": row["damage"], "gain": row["gain"], "metric_damage_points": row.get("metric_damage_points")}
    return found


def _target(name: str, folder: Path, kernels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The passes that changed the module's nodes or left them alone, and what the engine or a prediction says."""
    passes = _read(folder / "passes.json").get("passes", ())
    found: dict[str, Any] = {
        "changed_by": [step["pass"] for step in passes if any(_is_of(node, name) for node in step["changed"])],
        "declined": {
            step["pass"]: item["reason"] for step in passes for item in step["declined"] if _is_of(item["name"], name)
        },
    }
    if folder.name.startswith("tensorrt") and (folder / "model.onnx").is_file():
        found |= {
            "predicted": _predicted(name, folder / "model.onnx"),
            "kernels": list(dict.fromkeys(k for node, names in kernels.items() if _is_of(node, name) for k in names)),
            "compiled_layer": _compiled_layer(name, folder),
        }
    return found


def _engine(name: str, points: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Lines on what the engine itself says of the module's multiplications; {} where nothing is built of it."""
    from qdq.placing.names import products
    from qdq.placing.units import kind_of, layer_of

    int8 = _read(folder / "build.json").get("int8")
    if not int8:
        return {}
    inside = layer_of(f"{name}.") is not None  # an engine's INT8 is counted in the layers alone
    placed = {kind_of(point["name"]): point["int8"] for point in points}
    # What it names it says itself; of the others it says INT8, where their operands are
    said = {item["name"]: f"runs in float: {item['reason']}" for item in int8["not_int8"]}
    said |= dict.fromkeys(int8["inferred"], "runs in INT8, concluded from a fused block that reports one precision")
    mine = {node.rpartition(".")[2]: text for node, text in said.items() if node.rpartition(".")[0] == name}
    for node, operands in {**products(folder.parent), "": LINEAR}.items():
        if node and not placed.keys() & {*operands, *LINEAR}:
            mine.pop(node, None)  # the other product of an attention
        elif inside and all(placed.get(operand) for operand in operands) and (node not in mine if node else not mine):
            mine[node] = "runs in INT8, as the engine reports it"
    return {"engine": [f"{node} {text}".strip() for node, text in sorted(mine.items())]}


def _is_of(node: str, owner: str) -> bool:
    """True when a node of the lowered graph is the module's own, or computes it together with its neighbours."""
    own, _, inner = node.removeprefix(f"{owner}.").partition(".")
    if node.startswith(f"{owner}."):
        return not inner or own.endswith("_quantizer")
    parent, _, last = owner.rpartition(".")
    merged = node.removeprefix(f"{parent}.").split(".")[0].split("_and_")
    return len(merged) > 1 and node.startswith(f"{parent}.") and last in merged


def _predicted(name: str, graph: Path) -> list[str]:
    """One line for each of the module's nodes, as the linter expects it to be built."""
    from export.lint import fusion_map
    from export.lint.command import read_model
    from qdq.pipeline.workdir import MANIFEST

    options = read_json(graph.parents[1] / MANIFEST)["options"]
    mapped = fusion_map(read_model(graph), options["sm"], options["sequence"])
    layers = [layer for layer in mapped if _is_of(layer.name, name)]
    return [
        f"{layer.kind.replace('_', ' ')}, {layer.precision}"
        + (f", with {' and '.join(layer.epilogue)}" if layer.epilogue else "")
        + (f": {layer.reason}" if layer.reason else "")
        for layer in layers
    ]


def _compiled_layer(name: str, folder: Path) -> dict[str, Any] | None:
    """Kernels and megabytes of the module's encoder layer as NVIDIA's compiler built it, beside the FP16 graph's."""
    from qdq.placing.units import layer_of

    compiled, layer = _read(folder / "build.json").get("compiled"), layer_of(f"{name}.")
    if not compiled or layer is None or layer >= len(compiled["int8"]["layers"]):
        return None
    sides = {side: compiled[side]["layers"][layer] for side in ("int8", "float")}
    return {"by": compiled["by"], "compute_capability": compiled["compute_capability"], "layer": layer, **sides}


def _kernels(work: Path) -> dict[str, list[str]]:
    """Node of the lowered graph -> the kernels that compute it. Raises ConfigError without a graph for TensorRT."""
    from engines.tensorrt_rtx import Compiler, Shapes
    from qdq.base.screen import Screen
    from qdq.pipeline.folders import lowered_in
    from qdq.pipeline.workdir import MANIFEST

    graph = lowered_in(work)
    options = read_json(work / MANIFEST)["options"]
    with Screen().stage("compile"), Compiler() as compiler:
        compiled = compiler.compile(graph, (options["sm"],), Shapes.fixed(options["batch"], options["sequence"]))
    found: dict[str, list[str]] = {}
    for kernel in compiled.kernels:
        moved = f"{_types(kernel.inputs)} -> {_types(kernel.outputs)}, {kernel.bytes / 1e6:.1f} MB"
        text = f"{moved}: {shorten(kernel.name)}"
        for node in kernel.onnx:
            found.setdefault(node, []).append(text)
    return found


def shorten(name: str, most: int = 58) -> str:
    """The end of a kernel's name, which has its number; what was cut is a mark."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _types(tensors: Iterable[Any]) -> str:
    return " ".join(tensor.type for tensor in tensors)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def render(report: Mapping[str, Any]) -> str:
    """The report as text, 80 columns wide."""
    lines = [_row("work directory", report["work"])[2:], _row("model", report["model"] or "bundled")[2:]]
    for owner in report["owners"]:
        lines += ["", owner["name"]]
        lines += [line for point in owner["points"] for line in _point_lines(point)]
        for entry in owner["treatments"]:
            about = (f"{key.replace('_', ' ')} {_number(value)}" for key, value in entry.items() if key != "treatment")
            lines.append(_row(entry["treatment"].replace("_", " "), ", ".join(about)))
        for target, found in owner["targets"].items():
            lines += _target_lines(target, found)
    return "\n".join(lines) + "\n"


def _point_lines(point: Mapping[str, Any]) -> list[str]:
    """Lines of one point: its state with range, the reason, what it costs."""
    state = "INT8" if point["int8"] else "float"
    if "amax" in point:
        state += f", amax {point['amax']:.4g}, scale {point['scale']:.4g}"
    if weight := point.get("weight"):
        state += f", {weight['channels']} channels, amax {weight['amax_min']:.4g} to {weight['amax_max']:.4g}"
    lines = [_row(point["kind"], state)]
    if point["reason"]:
        lines.append(_row("", point["reason"]))
    if "damage" in point:
        worth = f"alone it moves the answers by {point['damage']:.2g}, without it {point['gain']:.2g} is gained"
        lines.append(_row("", worth))
    return lines


def _target_lines(target: str, found: Mapping[str, Any]) -> list[str]:
    """Lines of one target: prediction, kernels, the compiled layer, the passes."""
    lines = [*found.get("engine", ()), *found.get("predicted", ()), *found.get("kernels", ())]
    if layer := found.get("compiled_layer"):
        int8, floating = layer["int8"], layer["float"]
        lines.append(
            f"layer {layer['layer']} by {layer['by']}, compute capability {layer['compute_capability'] / 10:.1f}: "
            f"{int8['kernels']} kernels, {int8['megabytes']:.0f} MB; not quantized {floating['kernels']}, "
            f"{floating['megabytes']:.0f} MB"
        )
    if found["changed_by"]:
        lines.append(f"changed by the passes {', '.join(found['changed_by'])}")
    lines += [f"{name} left it: {reason}" for name, reason in found["declined"].items()]
    return [_row(target if not index else "", line) for index, line in enumerate(lines)]


def _row(name: str, text: str) -> str:
    from qdq.base.screen import wrap

    return wrap(f"  {name:<{INDENT}} {text}", INDENT + 3)


def _number(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)
