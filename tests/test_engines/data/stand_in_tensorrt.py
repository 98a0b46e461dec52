"""Stands in for the `tensorrt` module of one release where none can be installed: names and call order, no building.

Put on the path as ``tensorrt.py``. STAND_IN_RELEASE says which release; a name that release lacks raises
AttributeError, by the list beside the tests. A model whose name holds "refused" is refused by the parser. RECORD says
what the last build was told.
"""

import enum
import json
import os
from pathlib import Path
from typing import Any

__version__ = os.environ["STAND_IN_RELEASE"]
NAMES: dict[str, Any] = json.loads(Path(os.environ["STAND_IN_NAMES"]).read_text(encoding="utf-8"))["names"]
RECORD: dict[str, Any] = {}
TIMINGS = f"timings of {__version__}".encode()


def known(owner: str, name: str) -> bool:
    releases = NAMES[owner].get(name, ())
    return releases == "all" or __version__ in releases


def enumeration(owner: str) -> Any:
    return enum.IntEnum(owner, {name: value for value, name in enumerate(NAMES[owner]) if known(owner, name)})


class Strict:
    """An object of the class named like it: only names of this release can be read or set."""

    def __getattribute__(self, name: str) -> Any:
        owner = type(self).__name__
        if not name.startswith("_") and not known(owner, name):
            raise AttributeError(f"'{owner}' object of TensorRT {__version__} has no attribute '{name}'")
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            if not known(type(self).__name__, name):
                raise AttributeError(f"TensorRT {__version__} has no '{type(self).__name__}.{name}' to set")
            RECORD[name] = getattr(value, "name", value)
        object.__setattr__(self, name, value)


class Memory(bytes):
    """TensorRT's host memory: a buffer and a context manager."""

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *_: object) -> None:
        return None


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self, *_: Any) -> None:
        return None


class Logger(ILogger):
    pass


class DeviceType(enum.IntEnum):
    GPU, DLA = 0, 1


BuilderFlag = enumeration("BuilderFlag")
HardwareCompatibilityLevel = enumeration("HardwareCompatibilityLevel")
LayerInformationFormat = enumeration("LayerInformationFormat")
MemoryPoolType = enumeration("MemoryPoolType")
NetworkDefinitionCreationFlag = enumeration("NetworkDefinitionCreationFlag")
ProfilingVerbosity = enumeration("ProfilingVerbosity")


def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
    return True


class ITensor(Strict):
    name = "input_ids"
    shape = (-1, -1)
    dtype = "int32"
    is_shape_tensor = False


class INetworkDefinition(Strict):
    num_inputs = 1

    def __iter__(self) -> Any:
        return iter(())

    def get_input(self, index: int) -> ITensor:
        return ITensor()

    def get_flag(self, flag: Any) -> bool:
        return str(flag.name) == "STRONGLY_TYPED"


class ParserError(Strict):
    def __init__(self, index: int) -> None:
        self._index = index

    def node_name(self) -> str:
        return f"encoder.layer.{self._index}.MatMul"

    def node_operator(self) -> str:
        return "MatMul"

    def desc(self) -> str:
        return "types of inputs differ"


class OnnxParser(Strict):
    num_errors = 0

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        assert isinstance(network, INetworkDefinition)

    def parse_from_file(self, path: str) -> bool:
        if "refused" in path:
            object.__setattr__(self, "num_errors", 25)
        return "refused" not in path

    def get_error(self, index: int) -> ParserError:
        return ParserError(index)


class ITimingCache(Strict):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def combine(self, other: "ITimingCache", ignore_mismatch: bool) -> bool:
        assert not other._content, "an old cache is merged without a look at its device"
        return True

    def serialize(self) -> Memory:
        return Memory(self._content or TIMINGS)


class IOptimizationProfile(Strict):
    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        RECORD["shapes"] = {name: [list(low), list(best), list(high)]}


class IBuilderConfig(Strict):
    DLA_core, default_device_type, num_optimization_profiles = -1, DeviceType.GPU, 1

    def __init__(self) -> None:
        self._cache: ITimingCache | None = None
        RECORD.update(flags=[], pools={})

    def set_flag(self, flag: Any) -> None:
        RECORD["flags"].append(flag.name)

    def get_flag(self, flag: Any) -> bool:
        return flag.name in RECORD["flags"]

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        RECORD["pools"][pool.name] = size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return int(RECORD["pools"].get(pool.name, 0))

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        return 0

    def create_timing_cache(self, content: bytes) -> ITimingCache:
        return ITimingCache(content)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache._content and cache._content != TIMINGS:
            return False
        self._cache = cache
        RECORD["timings_reused"] = bool(cache._content)
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder(Strict):
    def __init__(self, logger: ILogger) -> None:
        return None

    def create_network(self, flags: int) -> INetworkDefinition:
        RECORD["network_flags"] = flags
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> Memory:
        return Memory(b"a plan")


class EngineInspector(Strict):
    def get_engine_information(self, form: Any) -> str:
        assert form.name == "JSON"
        return '{"Layers": []}'


class ICudaEngine(Strict):
    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector()


class Runtime(Strict):
    def __init__(self, logger: ILogger) -> None:
        return None

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine:
        return ICudaEngine()
