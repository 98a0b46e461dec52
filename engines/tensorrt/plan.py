"""Turn an ONNX file into a plan with polygraphy: parse, configure, build, inspect.

Beside the generated build_engine.py the only place that touches TensorRT's Python API. Imports nothing heavy itself.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.tensorrt.settings import TensorRTSettings, profile_shapes
from engines.types import TensorInfo
from qdq.base.notice import NOTICE
from qdq.errors import BuildError

logger = logging.getLogger(__name__)

MAX_REFUSALS = 20  # parser messages shown; a graph of the wrong kind is refused at every node


@dataclass(frozen=True)
class BuiltPlan:
    """Result of a build in memory: the serialized engine, the inspector's JSON text, and the kernel timings."""

    serialized: Any  # bytes-like
    layer_info: str
    timings: bytes  # empty when no timing cache was asked for


def build_plan(model: Path, inputs: Sequence[TensorInfo], settings: TensorRTSettings) -> BuiltPlan:
    """Build the plan of an ONNX file; takes minutes. Raises BuildError with its reason and the nodes it named."""
    import tensorrt as trt
    from polygraphy.backend.trt import EngineBytesFromNetwork, EngineFromBytes
    from polygraphy.exception import PolygraphyException

    logger.log(NOTICE, "building with TensorRT %s; this takes some minutes", trt.__version__)
    try:
        # Timings go through a file of their own, not over the old ones: polygraphy would merge both without asking
        # whether the old ones fit this GPU. What was read of the old file is in there again.
        with tempfile.TemporaryFile() as timings:
            build = EngineBytesFromNetwork(
                _parse(trt, model),
                config=_configuration(trt, inputs, settings),
                save_timing_cache=timings if settings.timing_cache else None,
            )
            serialized = build()
            timings.seek(0)
            measured = timings.read()
        load_engine = EngineFromBytes(serialized)
        engine = load_engine()
        inspector = engine.create_engine_inspector()
        layer_info = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    except (PolygraphyException, RuntimeError, TypeError) as error:
        # The last two come from TensorRT's bindings: shapes that do not fit, a builder the driver is too old for.
        raise BuildError(
            f"TensorRT {trt.__version__} cannot build {model}: {error}; its own messages are above, and "
            "build_engine.py beside the model shows them again"
        ) from error
    return BuiltPlan(serialized, layer_info, measured)


def _parse(trt: Any, model: Path) -> tuple[Any, Any, Any]:
    """(builder, network, parser) of the model, strongly typed; the parser owns the weights, so it must live on.

    Not polygraphy's loader, which logs the parser's messages and raises without them.
    """
    from polygraphy.backend.trt import CreateNetwork, get_trt_logger

    create_network = CreateNetwork(strongly_typed=True)
    builder, network = create_network()
    trt.init_libnvinfer_plugins(get_trt_logger(), "")
    parser = trt.OnnxParser(network, get_trt_logger())
    if not parser.parse_from_file(str(model)) or parser.num_errors:
        errors = [parser.get_error(index) for index in range(min(parser.num_errors, MAX_REFUSALS))]
        refused = [
            f"{rejected.node_operator()} node '{rejected.node_name()}': {rejected.desc()}" for rejected in errors
        ]
        more = parser.num_errors - len(refused)
        refused += [f"and {more} more"] if more else []
        listed = "".join(f"\n  {line}" for line in refused) or " (it gives no reason; is this an ONNX file?)"
        raise BuildError(f"TensorRT {trt.__version__} cannot parse {model}; 'qdq check' explains most reasons:{listed}")
    return builder, network, parser


def _configuration(trt: Any, inputs: Sequence[TensorInfo], settings: TensorRTSettings) -> Callable[..., Any]:
    """The build configuration, made when polygraphy has a builder. No precision flags: the graph's types decide."""
    from polygraphy.backend.trt import CreateConfig, PostprocessConfig, Profile

    profiles = []
    for one in settings.profiles():
        profiles.append(shapes := Profile())
        for name, (low, best, high) in profile_shapes(inputs, one).items():
            shapes.add(name, min=low, opt=best, max=high)
    create_config = CreateConfig(
        tf32=True,  # TensorRT's own default, also trtexec's; polygraphy would switch it off
        profiles=profiles,
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
        memory_pool_limits={trt.MemoryPoolType.WORKSPACE: int(settings.workspace_gib * 2**30)},
        builder_optimization_level=settings.optimization_level,
        version_compatible=settings.version_compatible,
        hardware_compatibility_level=_hardware(trt, settings.hardware_compatibility),
        refittable=settings.refit,
        strip_plan=settings.strip_weights,
    )

    def load_timings(_builder: Any, _network: Any, config: Any) -> None:
        _load_timings(config, settings.timing_cache)

    configure: Callable[..., Any] = PostprocessConfig(create_config, load_timings)
    return configure


def _hardware(trt: Any, level: str) -> Any:
    """TensorRT's enumerator of a hardware compatibility; None leaves TensorRT's default."""
    if level == "ampere_plus":
        return trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if level == "same_compute_capability":  # absent before 10.9; `settings.check_machine` refused that
        return trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    return None


def _load_timings(config: Any, path: Path | None) -> None:
    """Give the builder the timings of earlier builds. Here, because polygraphy does not look at the answer."""
    if path is None or not path.is_file():
        return
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BuildError(f"{path}: the timing cache cannot be read ({error.strerror}); delete it") from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        logger.warning(
            "%s was measured by another TensorRT version or on another GPU model: it is not used, every kernel is "
            "timed again, and the file is replaced after the build",
            path,
        )
