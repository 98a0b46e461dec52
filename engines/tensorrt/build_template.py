"""Build the TensorRT engine of the ONNX model beside this file.

Needs an NVIDIA GPU and the Python module `tensorrt` (10.x or 11.x); otherwise only the standard library. Writes the
plan and, beside it, the layer information that says in which precision every layer runs.

Exit status: 0 built, 1 the build failed, 2 wrong usage, 3 this machine lacks TensorRT or a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

# begin values of this model
MODEL = "model.onnx"
INPUTS: dict[str, list[int | str]] = {"input_ids": ["batch", "sequence"]}
RANGES: dict[str, list[int]] = {"batch": [1, 40, 40], "sequence": [1, 128, 128]}  # axis: min, opt, max
BUCKETS: list[int] = []  # sequences with a profile of their own
WORKSPACE_GIB = 4.0
OPTIMIZATION_LEVEL = 3
TIMING_CACHE: str | None = None
VERSION_COMPATIBLE = False
HARDWARE_COMPATIBILITY = "none"
REFIT, STRIP_WEIGHTS = False, False
# end values of this model

HERE = Path(__file__).resolve().parent
MAX_REFUSALS = 20  # parser messages shown; a graph of the wrong kind is refused at every node


def fail(status: int, message: str) -> NoReturn:
    """Print one message and end."""
    print(f"build_engine: {message}", file=sys.stderr)
    raise SystemExit(status)


def parse_options() -> argparse.Namespace:
    """Command line; every default is what the compiler was told."""
    arguments = argparse.ArgumentParser(description="Build the TensorRT engine of the ONNX model beside this file.")
    arguments.add_argument("--model", type=Path, default=HERE / MODEL, help="ONNX file (default: %(default)s)")
    arguments.add_argument("--output", type=Path, default=HERE / "model.plan", help="engine file to write")
    arguments.add_argument("--layer-info", type=Path, default=HERE / "layer_info.json", help="layer information file")
    # Shape ranges and build settings.
    for axis, sizes in RANGES.items():
        names = ("MIN", "OPT", "MAX")
        arguments.add_argument(f"--{axis}", type=int, nargs=3, metavar=names, default=sizes, help=f"default: {sizes}")
    arguments.add_argument("--workspace-gib", type=float, default=WORKSPACE_GIB, help="GiB (default: %(default)s)")
    arguments.add_argument("--optimization-level", type=int, default=OPTIMIZATION_LEVEL, choices=range(6))
    arguments.add_argument(
        "--timing-cache", type=Path, default=TIMING_CACHE and HERE / TIMING_CACHE, help="read if there, then written"
    )
    arguments.add_argument(
        "--version-compatible",
        action=argparse.BooleanOptionalAction,
        default=VERSION_COMPATIBLE,
        help="the plan also loads in later TensorRT versions; may be slower",
    )
    arguments.add_argument(
        "--hardware-compatibility",
        choices=("none", "ampere_plus", "same_compute_capability"),
        default=HARDWARE_COMPATIBILITY,
        help="other GPUs that may load the plan; may be slower. ampere_plus excludes the T4 (default: %(default)s)",
    )
    # Refuse what TensorRT would only refuse after minutes.
    options = arguments.parse_args()
    for axis in RANGES:
        low, best, high = getattr(options, axis)
        if not 1 <= low <= best <= high:
            arguments.error(f"--{axis}: expected 1 <= MIN <= OPT <= MAX, found {low} {best} {high}")
    if not options.workspace_gib > 0:
        arguments.error("--workspace-gib: expected more than 0")
    return options


def import_tensorrt() -> Any:
    """The tensorrt module, or the end of this program with the command that installs it."""
    try:
        import tensorrt as trt
    except (ImportError, OSError) as problem:
        fail(3, f"the Python module 'tensorrt' cannot be imported ({problem}); install it with: pip install tensorrt")
    if int(trt.__version__.split(".")[0]) < 10:
        fail(3, f"TensorRT {trt.__version__} is too old for this graph; install 10.x or 11.x: pip install -U tensorrt")
    return trt


def create_builder(trt: Any, logger: Any) -> Any:
    """The builder; without a usable GPU the constructor raises after logging the CUDA error."""
    try:
        return trt.Builder(logger)
    except (TypeError, RuntimeError) as problem:
        fail(3, f"TensorRT {trt.__version__} finds no usable CUDA device ({problem}); check nvidia-smi")


def parse(trt: Any, builder: Any, logger: Any, model: Path) -> Any:
    """The network of the ONNX file, strongly typed: every layer runs in the type the graph says, INT8 between Q and DQ.

    TensorRT 11 knows no other kind and needs no flag.
    """
    if not model.is_file():
        fail(1, f"{model} does not exist; copy the whole folder, or name the file with --model")
    major = int(trt.__version__.split(".")[0])
    flags = 0 if major >= 11 else 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        for index in range(min(parser.num_errors, MAX_REFUSALS)):
            rejected = parser.get_error(index)
            print(f"  {rejected.node_operator()} node '{rejected.node_name()}': {rejected.desc()}", file=sys.stderr)
        fail(1, f"TensorRT {trt.__version__} cannot parse {model}: {parser.num_errors} messages, the first are above")
    return network


def add_profiles(builder: Any, network: Any, config: Any, options: argparse.Namespace) -> None:
    """One optimization profile with the shape ranges of all inputs, and one for each bucket, of that sequence alone."""
    ranges = {axis: getattr(options, axis) for axis in RANGES}
    for own in (ranges, *(ranges | {"sequence": [bucket] * 3} for bucket in BUCKETS)):
        add_profile(builder, network, config, own)


def add_profile(builder: Any, network: Any, config: Any, ranges: dict[str, list[int]]) -> None:
    """One optimization profile; `ranges` are (min, opt, max) by axis."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name not in INPUTS:
            fail(1, f"the model has an input '{tensor.name}' this script was not written for; known: {list(INPUTS)}")
        low, best, high = (
            tuple(axis if isinstance(axis, int) else ranges[axis][which] for axis in INPUTS[tensor.name])
            for which in range(3)
        )
        profile.set_shape(tensor.name, low, best, high)
    if config.add_optimization_profile(profile) < 0:
        fail(1, "TensorRT refuses the shape ranges; see its message above")


def configure(trt: Any, builder: Any, options: argparse.Namespace) -> Any:
    """Build configuration. No precision flags: the graph decides, and TensorRT 11 has none."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * 2**30))
    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layer information names ONNX nodes and types
    set_portability(trt, config, options)
    if options.timing_cache:
        load_timings(config, options.timing_cache)
    return config


def set_portability(trt: Any, config: Any, options: argparse.Namespace) -> None:
    """Set the TensorRT versions and GPUs that may load the plan, and weights that can be replaced or are left out."""
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatibility == "ampere_plus":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    elif options.hardware_compatibility == "same_compute_capability":
        major, minor = (int(part) for part in trt.__version__.split(".")[:2])
        if (major, minor) < (10, 9):
            fail(3, f"same_compute_capability needs TensorRT 10.9 or later, this is {trt.__version__}")
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    if REFIT:
        config.set_flag(trt.BuilderFlag.REFIT)
    if STRIP_WEIGHTS:  # without REFIT: to be put back as they are
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)


def load_timings(config: Any, path: Path) -> None:
    """Start from the kernel timings of earlier builds; an empty cache collects those of this build."""
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        print(
            f"build_engine: {path} was measured by another TensorRT version or on another GPU model: it is not used, "
            "every kernel is timed again, and the file is replaced after the build",
            file=sys.stderr,
        )
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)


def layer_information(trt: Any, logger: Any, plan: Any) -> str:
    """The engine inspector's JSON text of the plan, as TensorRT wrote it."""
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = True  # a version-compatible plan carries code; this one was built just now
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        fail(1, "the plan that was just built cannot be loaded; see the messages above")
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def write(path: Path, content: Any) -> None:
    """Write to a temporary name, then rename: a killed run leaves no half file that looks whole."""
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        with partial.open("wb") as handle:
            handle.write(content)
        os.replace(partial, path)
    except OSError as problem:
        fail(1, f"cannot write {path}: {problem.strerror}")
    finally:
        partial.unlink(missing_ok=True)
    print(f"wrote {path}")


def main() -> int:
    """Build, then write plan, layer information and timing cache."""
    options = parse_options()
    trt = import_tensorrt()
    logger = trt.Logger()
    builder = create_builder(trt, logger)
    trt.init_libnvinfer_plugins(logger, "")
    network = parse(trt, builder, logger, options.model)
    config = configure(trt, builder, options)
    add_profiles(builder, network, config, options)
    print(f"building with TensorRT {trt.__version__}; this takes some minutes", flush=True)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        fail(1, f"TensorRT {trt.__version__} could not build {options.model}; see its messages above")
    information = layer_information(trt, logger, plan)
    write(options.output, plan)
    write(options.layer_info, information.encode())
    if options.timing_cache:
        cache = config.get_timing_cache()
        write(options.timing_cache, cache.serialize())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
