"""Build the OpenVINO engine: ONNX in, IR (model.xml, model.bin) and the INT8 report out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engines.instructions import Int8Sums, int8_sums
from engines.interface import interface
from engines.openvino.packing import is_packed
from engines.openvino.precision import verdicts
from engines.openvino.reading import mark, read_network
from engines.precision import assemble
from engines.types import BuiltEngine, MatmulNames, NotInt8
from qdq.base.artifacts import atomic_path
from qdq.base.choices import PRECISION_HINTS
from qdq.base.config import choice
from qdq.base.packing import FULL
from qdq.errors import BuildError, Unavailable

# How OpenVINO's messages begin before they come to the point.
BOILERPLATE = ("Exception from ", "Check '", "FrontEnd API failed", "Loading input model", "Summary:")


@dataclass(frozen=True)
class OpenVINOSettings:
    """Settings the engine is compiled with.

    `precision_hint` is always set: OpenVINO's own default is bf16 on CPUs that have it, which changes both speed and
    numbers behind the user's back. `dynamic_group` is written into the IR, so that every reader computes the same.
    `shape`, of every input, has a runner compile a second, static variant: OpenVINO's kernels for a known shape are
    faster, and a large batch can be cut into pieces (see `OpenVINORunner`). Other shapes run in the dynamic variant.
    `pinned` is for machines of several NUMA nodes: OpenVINO then keeps the threads of a stream on one. `sums` are those
    of the CPU that engines are built for and opened on, this one.
    """

    threads: int = 0  # inference threads; 0 lets OpenVINO use all cores
    precision_hint: str = "f32"  # precision of what is not INT8
    dynamic_group: int = 0  # inputs of a linear with INT8 weights that share a run-time scale; 0 leaves the graph
    shape: tuple[int, ...] | None = None
    streams: int = 0  # requests that callers run at once, each on `threads` threads; 0 is latency mode
    pinned: bool = False  # threads stay on their cores
    full: float = FULL  # share of real tokens from which a packed graph runs without its packing
    sums: Int8Sums = field(default_factory=int8_sums)

    def __post_init__(self) -> None:
        choice(self.precision_hint, PRECISION_HINTS, "precision hint")

    def properties(self) -> dict[str, Any]:
        """OpenVINO's spelling."""
        return {
            "INFERENCE_PRECISION_HINT": self.precision_hint,
            "INFERENCE_NUM_THREADS": self.threads * max(1, self.streams),
            "PERFORMANCE_HINT": "THROUGHPUT" if self.streams else "LATENCY",
            **({"NUM_STREAMS": self.streams} if self.streams else {}),
            **({"ENABLE_CPU_PINNING": True} if self.pinned else {}),
        }


def build(
    lowered: Path, folder: Path, settings: OpenVINOSettings, names: MatmulNames | None, stem: str = "model"
) -> BuiltEngine:
    """Convert `lowered` to IR in `folder`, compile it once and read its precisions back.

    For a CPU whose INT8 products saturate, the IR's weights are made to fit and its attention is float
    (`engines.openvino.saturation`).
    `names` None is a floating-point engine. Raises BuildError with OpenVINO's reason when it refuses the graph,
    DeployError when the IR cannot be written, Unavailable when openvino is not installed.
    """
    inputs, outputs = interface(lowered)  # first: of a damaged file OpenVINO only says that no reader takes it
    core = open_core()
    import openvino

    xml, weights = folder / f"{stem}.xml", folder / f"{stem}.bin"
    try:
        network = read_network(core, lowered, settings.sums)
        model = network.model
        _name_generated(model)
        if settings.dynamic_group:
            model.set_rt_info(str(settings.dynamic_group), ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
        compiled = core.compile_model(model, "CPU", settings.properties())
    except RuntimeError as error:
        raise BuildError(f"OpenVINO cannot build {lowered}: {reason(error)}; run the lower stage again") from error
    report = None
    if names is not None:
        report = assemble(_known_floats(names, network.fitted), verdicts(compiled.get_runtime_model()))
    if report is not None and report.encoder_linear[0] + report.attention_matmul[0]:
        mark(model, settings.sums)
    _save(model, xml, weights)
    recorded = {
        "threads": settings.threads,
        "precision_hint": settings.precision_hint,
        **({"dynamic_group": settings.dynamic_group} if settings.dynamic_group else {}),
        "int8_sums": {**settings.sums.as_json(), **({"fitted": network.fitted} if network.fitted else {})},
        "packing": is_packed(model),
        "openvino": openvino.__version__,
        "inference_precision": compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
    }
    return BuiltEngine("openvino", (xml, weights), inputs, outputs, report, recorded)


def _known_floats(names: MatmulNames, fitted: dict[str, Any] | None) -> MatmulNames:
    """Name the products that lost their quantizers: a fused block could report another precision for them."""
    lost = fitted["float_products"] if fitted else ()
    reason = "two activations could saturate on this CPU; computed in float"
    return replace(names, unquantized=(*names.unquantized, *(NotInt8(name, reason) for name in lost)))


def open_core() -> Any:
    """OpenVINO's entry object. Raises Unavailable when openvino is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise Unavailable("openvino is not installed; run: pip install '.[cpu]'") from error
    return openvino.Core()


def has_bf16() -> bool:
    """Return whether OpenVINO has BF16 instructions on this CPU; without them BF16 is many times slower than FP32.

    Raises Unavailable when openvino is not installed.
    """
    return "BF16" in open_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def reason(error: Exception) -> str:
    """Return the point of an OpenVINO message in one line, without the places in its sources that it passed through."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(BOILERPLATE)]
    return "; ".join(telling[-2:]) if telling else type(error).__name__


def _name_generated(model: Any) -> None:
    """Rename what OpenVINO numbered itself: it counts over the life of a process, which an IR must not depend on."""
    for index, operation in enumerate(model.get_ordered_ops()):
        if operation.get_friendly_name() == operation.get_name():
            operation.set_friendly_name(f"{operation.get_type_name()}_{index}")


def _save(model: Any, xml: Path, weights: Path) -> None:
    """OpenVINO writes the weights beside the XML under the same stem, so both go to partial names and are renamed."""
    import openvino

    with atomic_path(weights) as partial_weights, atomic_path(xml) as partial_xml:
        written = partial_xml.with_suffix(".bin")
        try:
            openvino.save_model(model, str(partial_xml), compress_to_fp16=False)
            written.rename(partial_weights)
        except RuntimeError as error:
            written.unlink(missing_ok=True)
            raise OSError(f"OpenVINO could not write it ({reason(error)})") from error
