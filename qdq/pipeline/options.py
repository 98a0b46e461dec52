"""What a user can ask of a compile run, with every default and detection rule; no heavy imports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engines import targets
from qdq.base.config import choice
from qdq.calibrate.algorithms import DEFAULT_MOVING_RATE, Algorithm, algorithm_named
from qdq.calibrate.treatments.settings import PtqSettings, Treatments
from qdq.errors import ConfigError
from qdq.load.kinds import TASKS

TARGETS = ("auto", *targets.TARGETS)
MODES = ("latency", "throughput")
PRECISION_HINTS = ("f32", "bf16", "f16")
BODIES = ("fp16", "bf16", "fp32")
INPUT_TYPES = ("int64", "int32")
HARDWARE = ("none", "ampere_plus", "same_compute_capability")
TRITON_BACKENDS = ("onnxruntime", "openvino", "tensorrt")
PLACEMENT_NAMES = ("auto", "linear", "linear+qk", "qdqbert", "dynamic", "ft1", "ft2", "ft3", "trt")

# Options of `qdq bench --engine` beside those of CompileOptions.
PLAN_OPTIONS = (
    *("engine", "warmup", "iterations", "in_flight", "device"),
    *("cuda_graph", "spin_wait", "transfers"),
)

SEARCH = "search"  # max (smoothing has taken the outliers), then the search of qdq.calibrate.treatments.clip
CPU_TARGETS = targets.CPU_TARGETS
DEFAULT_PLACEMENT = "auto"
LARGEST_BATCH = 4096
DEFAULT_BATCH_SIZE = 4  # of calibration, PaddleNLP's; matters to avg and moving averages only


@dataclass(frozen=True)
class CompileOptions:
    """Options of `qdq compile` as typed; `resolve` fills in what is None.

    Attributes:
        model: hub id, folder or checkpoint; None is the bundled all-MiniLM-L6-v2.
        task: Hugging Face task name; None detects it from the checkpoint's architecture.
        target: openvino, onnxruntime, tensorrt; auto is tensorrt when a GPU and its module are there, else openvino.
        calibration: file, folder or ``datasets:`` source; None is the bundled English text.
        eval_data: likewise; None is what `calibration` has left after the calibration samples, or bundled text.
        text_columns, label_column: column names; detected when empty.
        placement: named placement; None is auto, unless a spec or a checkpoint of ours says what is quantized.
        search, max_drop: with placement auto, judge every unit on training rows and allow that many points of drop.
        spec: JSON or YAML file with a QuantSpec, instead of a named placement.
        embedding_tables: INT8 embedding tables with a scale per row, whatever the placement says; needs no data.
        calibrator, percentile: how activation ranges are chosen: an algorithm of qdq.calibrate.algorithms, or search,
            which takes max and searches residual operands by the error of the normalized sum.
            percentile None is 99.999, or 99.99 when residual adds are quantized.
        weight_quantize_type, activation_quantize_type, moving_rate, round_type, bias_correction: of PaddleNLP's
            compression API, see qdq.calibrate.treatments.settings; weight_quantize_type None is the placement's own.
        value_centering, equalization, smoothing, residual_scaling, softmax_scale: the other treatments of
            qdq.calibrate.treatments.settings.
        algo_list, batch_num_list, batch_size_list: what a sweep tries; without any there is no sweep.
        samples: calibration texts.
        eval_samples: most texts compared with FP32.
        batch, sequence: benchmark shape; sequence is also where texts are truncated.
        mode: latency (one request at a time) or throughput (several at once).
        threads: of a request; 0 is every core of a NUMA node for latency, one for throughput.
        streams: requests at once in throughput mode; 0 is what the cores have room for.
        precision_hint: what OpenVINO computes non-INT8 layers in.
        body: type of everything outside the INT8 islands in a TensorRT graph.
        input_dtype: integer type of a CPU engine's inputs; TensorRT's are INT32 whatever it says.
        workspace_gib, optimization_level, timing_cache, version_compatible, hardware_compatibility: of the TensorRT
            builder, see engines.tensorrt.settings; timing_cache None is timing.cache in the target's folder.
        refit, strip_weights: likewise, for the floating-point plans of `qdq variants` only.
        triton_backend: None is tensorrt for plans and onnxruntime otherwise.
        buckets: sequence lengths that Triton serves as models of their own, increasing, the last one `sequence`; none
            is one model for every length.
        bench_seconds: time budget of the benchmark inside compile.
        out: work directory; None is build/<model name>.
    """

    model: str | None = None
    task: str | None = None
    target: str = "auto"
    calibration: str | None = None
    eval_data: str | None = None
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    placement: str | None = None
    search: bool = False
    max_drop: float = 0.5
    spec: str | None = None
    embedding_tables: bool = False
    calibrator: str = SEARCH
    percentile: float | None = None
    weight_quantize_type: str | None = None
    activation_quantize_type: str = "range_abs_max"
    moving_rate: float = DEFAULT_MOVING_RATE
    round_type: str = "gptq"
    bias_correction: bool = True
    value_centering: bool = True
    equalization: bool = True
    smoothing: bool = True
    residual_scaling: bool = True
    softmax_scale: bool = True
    algo_list: tuple[str, ...] = ()
    batch_num_list: tuple[int | None, ...] = ()
    batch_size_list: tuple[int, ...] = ()
    samples: int = 128
    eval_samples: int = 512
    batch: int = 40
    sequence: int = 128
    mode: str = "latency"
    threads: int = 0
    streams: int = 0
    precision_hint: str = "f32"
    body: str = "fp16"
    input_dtype: str = "int64"
    workspace_gib: float = 4.0
    optimization_level: int = 3
    timing_cache: str | None = None
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    refit: bool = False
    strip_weights: bool = False
    triton_backend: str | None = None
    buckets: tuple[int, ...] = ()
    bench_seconds: float = 20.0
    out: str | None = None
    allow_pickle: bool = False

    def validate(self) -> None:
        """Raise ConfigError for the first value that cannot be meant, naming the nearest valid one."""
        if self.task is not None:
            choice(self.task, TASKS, "--task")
        choice(self.target, TARGETS, "--target")
        choice(self.precision_hint, PRECISION_HINTS, "--precision-hint")
        choice(self.body, BODIES, "--body")
        choice(self.input_dtype, INPUT_TYPES, "--input-dtype")
        choice(self.mode, MODES, "--mode")
        choice(self.hardware_compatibility, HARDWARE, "--hardware-compatibility")
        self.algorithm(None)
        self.ptq_settings()
        if self.placement is not None:
            choice(self.placement, PLACEMENT_NAMES, "--placement")
        if self.triton_backend is not None:
            choice(self.triton_backend, TRITON_BACKENDS, "--triton-backend")
        if self.triton_backend == "tensorrt" and self.target in CPU_TARGETS:
            raise ConfigError(f"--triton-backend: tensorrt serves plans only, not --target {self.target}; leave it out")
        self._validate_buckets()
        self._validate_search()
        if self.placement == "dynamic" and self.target == "tensorrt":
            raise ConfigError("--placement: dynamic needs a CPU target, TensorRT has no run-time scales; calibrate")
        if self.placement is not None and self.spec is not None:
            raise ConfigError(
                "--placement and --spec both say what to quantize; give one (a spec can name a placement)"
            )
        for name, least, most in (
            ("samples", 1, 1_000_000),
            ("eval_samples", 1, 1_000_000),
            ("batch", 1, LARGEST_BATCH),
            ("sequence", 4, 1_000_000),
            ("threads", 0, 4096),
            ("streams", 0, 4096),
            ("optimization_level", 0, 5),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(f"--{name.replace('_', '-')}: {value} is outside {least}..{most}")
        for name in ("bench_seconds", "workspace_gib"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name.replace('_', '-')}: {getattr(self, name)} must be positive")
        if len(self.text_columns) > 2:
            raise ConfigError(f"--text-columns: at most two (text and pair), found {len(self.text_columns)}")

    @property
    def sweeps(self) -> bool:
        """Whether several settings are to be tried."""
        return bool(self.algo_list or self.batch_num_list or self.batch_size_list)

    def algorithm(self, default_percentile: float | None) -> Algorithm:
        """The one algorithm of a run that does not sweep. Raises ConfigError."""
        if self.percentile is not None:
            algorithm_named("percentile", self.percentile, where="--percentile")
        name = "max" if self.calibrator == SEARCH else self.calibrator
        chosen = algorithm_named(name, self.percentile or default_percentile, self.moving_rate, "--calibrator")
        fixed = PtqSettings(
            activation_quantize_type=self.activation_quantize_type, moving_rate=self.moving_rate
        ).algorithms()
        return chosen if self.activation_quantize_type == "range_abs_max" else fixed[0]

    def ptq_settings(self) -> PtqSettings:
        """What a sweep tries; a list that is not given holds the run's one value. Raises ConfigError."""
        return PtqSettings(
            algo_list=self.algo_list or ("max" if self.calibrator == SEARCH else self.calibrator,),
            batch_num_list=self.batch_num_list or (None,),
            batch_size_list=self.batch_size_list or (DEFAULT_BATCH_SIZE,),
            weight_quantize_type=self.weight_quantize_type or "channel_wise_abs_max",
            activation_quantize_type=self.activation_quantize_type,
            moving_rate=self.moving_rate,
            round_type=self.round_type,
            bias_correction=self.bias_correction,
        )

    @property
    def treatments(self) -> Treatments:
        """What is done beside choosing ranges. A calibrator that was named decides every range itself."""
        return Treatments(
            value_centering=self.value_centering,
            equalization=self.equalization,
            smoothing=self.smoothing,
            residual_scaling=self.residual_scaling,
            clip_search=self.calibrator == SEARCH and self.activation_quantize_type == "range_abs_max",
            softmax_scale=self.softmax_scale,
            round_type=self.round_type,
            bias_correction=self.bias_correction,
        )

    def _validate_buckets(self) -> None:
        if not self.buckets:
            return
        if list(self.buckets) != sorted(set(self.buckets)) or self.buckets[0] < 4:
            raise ConfigError(f"--buckets: {','.join(map(str, self.buckets))} must be increasing lengths from 4 on")
        if self.triton_backend == "openvino":
            raise ConfigError("--buckets: Triton's openvino backend forms no batches; use --triton-backend onnxruntime")

    def _validate_search(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise ConfigError(f"--max-drop: {self.max_drop} is outside 0..100 points")
        if self.search and (self.spec or self.placement not in (None, "auto")):
            raise ConfigError(
                f"--search chooses a placement, and {self.spec or self.placement} is one; leave it or --search out"
            )
        if self.search and self.calibration is not None and self.eval_data is None:
            raise ConfigError(
                "--search decides on the rows behind the calibration rows, which then prove nothing; give other text "
                "to --eval-data (EVAL=)"
            )

    def as_json(self) -> dict[str, Any]:
        """Plain JSON value of every option."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def resolve(options: CompileOptions, model_name: str, own_spec: bool = False) -> CompileOptions:
    """`options` with target, placement, threads, streams and out decided for this machine and model.

    `own_spec`: the model is a checkpoint that says itself what is quantized, so no placement is chosen for it unless
    `search` asks for one.
    """
    target = detect_target() if options.target == "auto" else options.target
    if options.mode == "throughput" and target == "tensorrt":
        raise ConfigError("--mode: throughput is about CPU engines; for plans see 'qdq bench --engine' and --streams")
    if options.buckets and options.buckets[-1] != options.sequence:
        raise ConfigError(
            f"--buckets: {','.join(map(str, options.buckets))} must end with --sequence {options.sequence}, where "
            "longer texts are cut"
        )
    from engines.cores import numa_nodes, share_cores

    threads, streams = share_cores(options.mode, options.threads, options.streams, available_cores(), numa_nodes())
    placement = options.placement or (None if options.spec or (own_spec and not options.search) else DEFAULT_PLACEMENT)
    return replace(
        options,
        target=target,
        placement=placement,
        threads=threads,
        streams=streams,
        out=options.out or str(Path("build") / model_name),
    )


def detect_target() -> str:
    """tensorrt when a CUDA GPU and the tensorrt module are both present, else openvino."""
    import importlib.util

    if importlib.util.find_spec("tensorrt") is None:
        return "openvino"
    from engines.tensorrt import probe

    return "tensorrt" if probe().ready else "openvino"


def available_cores() -> int:
    """CPUs this process may use: affinity and container quota."""
    from engines.cores import available_cores as cores

    return cores()
