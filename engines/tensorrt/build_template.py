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
WORKSPACE_GIB = 4.0
OPTIMIZATION_LEVEL = 3
TIMING_CACHE: str | None = None
# end values of this model

HERE = Path(__file__).resolve().parent


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
    for axis, sizes in RANGES.items():
        names = ("MIN", "OPT", "MAX")
        arguments.add_argument(f"--{axis}", type=int, nargs=3, metavar=names, default=sizes, help=f"default: {sizes}")
    arguments.add_argument("--workspace-gib", type=float, default=WORKSPACE_GIB, help="GiB (default: %(default)s)")
    arguments.add_argument("--optimization-level", type=int, default=OPTIMIZATION_LEVEL, choices=range(6))
    arguments.add_argument(
        "--timing-cache", type=Path, default=TIMING_CACHE and HERE / TIMING_CACHE, help="read if there, then written"
    )
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
        for index in range(parser.num_errors):
            rejected = parser.get_error(index)
            print(f"  {rejected.node_operator()} node '{rejected.node_name()}': {rejected.desc()}", file=sys.stderr)
        fail(1, f"TensorRT {trt.__version__} cannot parse {model}; the nodes are listed above")
    return network


def add_profile(builder: Any, network: Any, config: Any, options: argparse.Namespace) -> None:
    """One optimization profile with the shape ranges of all inputs."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name not in INPUTS:
            fail(1, f"the model has an input '{tensor.name}' this script was not written for; known: {list(INPUTS)}")
        low, best, high = (
            tuple(axis if isinstance(axis, int) else getattr(options, axis)[which] for axis in INPUTS[tensor.name])
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
    if options.timing_cache:
        data = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, False):
            print(f"build_engine: {options.timing_cache} is of another TensorRT or GPU; ignored", file=sys.stderr)
    return config


def layer_information(trt: Any, logger: Any, plan: Any) -> str:
    """The engine inspector's JSON text of the plan, as TensorRT wrote it."""
    runtime = trt.Runtime(logger)
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
    add_profile(builder, network, config, options)
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
