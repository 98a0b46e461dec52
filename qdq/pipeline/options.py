"""Options of a compile run, each declared once (`qdq.base.option`), and the rules that hold between them.

Read from the declarations: the command line and its help (`qdq.cli.arguments`), the variables of the Makefile, the
resolved configuration on the screen (`qdq.pipeline.outcome`), what a later stage may change (`qdq.pipeline.recall`),
choices and ranges, and the compression API's help (`qdq.compress.arguments`). Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from engines import targets
from engines.cores import available_cores, numa_nodes, share_cores
from engines.instructions import int8_sums
from qdq.base.choices import (
    BATCH_FORMS,
    BODIES,
    CAPABILITIES,
    HARDWARE,
    INPUT_TYPES,
    PACKINGS,
    PLACEMENTS,
    PRECISION_HINTS,
    PRODUCT_CODES,
)
from qdq.base.option import FREE, as_json, check, option, values_for
from qdq.calibrate.algorithms import ALGORITHMS, ALIASES, CLIP, DEFAULT_MOVING_RATE, Algorithm, algorithm_named
from qdq.calibrate.treatments.settings import (
    ACTIVATION_TYPES,
    CALIBRATE,
    PTQ,
    WEIGHT_TYPES,
    PtqSettings,
    TreatmentOptions,
    Treatments,
    refuse_idle,
)
from qdq.errors import ConfigError
from qdq.loading.kinds import TASKS

TARGETS = ("auto", *targets.TARGETS)
TRITON_BACKENDS = tuple(dict.fromkeys(backend for target in targets.TARGETS.values() for backend in target.backends))
DEFAULT_PLACEMENT = "auto"
DEFAULT_BATCH_SIZE = 4  # of calibration, PaddleNLP's; matters to avg and moving averages only
MANY = 1_000_000

# Help that is too long for its declaration below, or belongs to several commands.
LABEL_COLUMN = "column of the label or tags; with commas one 0/1 column per class (default: detected)"
HEADER = "names of the columns of a table or tagged file without a header line (default: its first line)"
MODEL_CLASS = "class of your own, FILE.py:CLASS, whose code is then run (default: transformers' class)"
LABELS = "names of the classes whose numbers the data hold, in order (default: the file's, the model's)"
OTHER_ROWS = "the rows behind the calibration rows, else bundled text"
DETECTED_TARGET = (
    "auto, which is tensorrt when a GPU and the tensorrt module are there, else openvino or onnxruntime, whichever is "
    "faster here"
)
CALIBRATORS = ", ".join((f"{CLIP} (max, residual adds by the error of their sum)", *ALGORITHMS))
CALIBRATORS = f"{CALIBRATORS}; as in PaddleNLP {', '.join(ALIASES)}"

# Groups of --help, in its order. CALIBRATE decides all options of two of them; the others' say which stage does.
GROUPS = ("model", "text", "quantization", PTQ, "engine and benchmark", "TensorRT builder")
LOWER, BUILD = "lower", "build"
_model, _text, _engine, _builder = (partial(option, group=GROUPS[index]) for index in (0, 1, 4, 5))
_quantization = partial(option, decided_by=CALIBRATE, group="quantization")
_ptq = partial(option, decided_by=CALIBRATE, group=PTQ)


@dataclass(frozen=True, kw_only=True)
class CompileOptions(TreatmentOptions):
    """Options of `qdq compile` as typed; `validate` checks them, `resolve` fills in what is None."""

    model: str | None = _model(
        None,
        "hub id, folder, or checkpoint/ of a run (default: the bundled all-MiniLM-L6-v2)",
        CALIBRATE,
        "ID",
        common=True,
    )
    task: str | None = _model(
        None, " (default: from the checkpoint's architecture)", CALIBRATE, choices=TASKS, common=True
    )
    model_class: str | None = _model(None, MODEL_CLASS, CALIBRATE, "CLASS")
    allow_pickle: bool = _model(
        False, "read pytorch_model.bin; loading a pickle can run code (default: safetensors only)", CALIBRATE
    )
    out: str | None = _model(None, "work directory (default: build/<model name>)", FREE, "DIR", common=True)

    calibration: str | None = _text(
        None, "file, folder or datasets:NAME (default: bundled English text)", CALIBRATE, "DATA", common=True
    )
    samples: int = _text(128, "calibration texts", CALIBRATE, within=(1, MANY))
    eval_data: str | None = _text(
        None, f"text to compare with FP32 on and to time with (default: {OTHER_ROWS})", FREE, "DATA", common=True
    )
    eval_samples: int = _text(512, "most of these texts to use", FREE, within=(1, MANY))
    text_columns: tuple[str, ...] = _text((), "column of the text, and of its pair (default: detected)", FREE, "A[,B]")
    label_column: str | None = _text(None, LABEL_COLUMN, FREE)
    header: tuple[str, ...] = _text((), HEADER, FREE, "A,B")
    labels: tuple[str, ...] = _text((), LABELS, FREE, "A,B")

    placement: str | None = _quantization(None, f" (default: {DEFAULT_PLACEMENT})", choices=PLACEMENTS, common=True)
    search: bool = _quantization(False, "with auto: try every unit on training rows (default: 20 s of checks)")
    max_drop: float = _quantization(0.5, "points that --search may lose", metavar="P", within=(0, 100))
    spec: str | None = _quantization(
        None, "QuantSpec as JSON or YAML, instead of --placement (default: none)", metavar="FILE"
    )
    embedding_tables: bool = _quantization(
        False, "INT8 embedding tables too, one scale per row: a smaller file (default: what the placement says, float)"
    )
    calibrator: str = _quantization(CLIP, CALIBRATORS)
    percentile: float | None = _quantization(
        None, "of the percentile calibrator (default: 99.999, or 99.99 when residual adds are quantized)", metavar="P"
    )

    weight_quantize_type: str | None = _ptq(
        None, "scale of weights (default: what the placement says)", metavar="T", choices=WEIGHT_TYPES
    )
    activation_quantize_type: str = _ptq(
        "range_abs_max", "ranges (default: range_abs_max, the algorithm's)", metavar="T", choices=ACTIVATION_TYPES
    )
    moving_rate: float = _ptq(DEFAULT_MOVING_RATE, "of moving averages", metavar="R")
    algo_list: tuple[str, ...] = _ptq(
        (), "sweep: calibrators to try, such as percentile:99.9 (default: no sweep)", metavar="A,B"
    )
    batch_num_list: tuple[int | None, ...] = _ptq(
        (), "sweep: numbers of batches; all is every sample (default: no sweep)", metavar="N,M", within=(1, MANY)
    )
    batch_size_list: tuple[int, ...] = _ptq(
        (), "sweep: samples in a batch (default: no sweep)", metavar="N,M", within=(1, MANY)
    )

    target: str = _engine("auto", f" (default: {DETECTED_TARGET})", FREE, choices=TARGETS, common=True)
    batch: int = _engine(40, "benchmark batch, Triton's largest batch", FREE, within=(1, 4096), common=True)
    sequence: int = _engine(128, "benchmark sequence; longer texts are cut", FREE, within=(4, MANY), common=True)
    mode: str = _engine("latency", "one request at a time, or several", FREE, choices=("latency", "throughput"))
    threads: int = _engine(
        0,
        "threads of a request (default: 0, all cores of a NUMA node; throughput: 1)",
        FREE,
        within=(0, 4096),
        common=True,
    )
    streams: int = _engine(
        0, "requests at once in throughput mode (default: 0, as many as cores have room for)", FREE, within=(0, 4096)
    )
    precision_hint: str = _engine(
        "f32", "what OpenVINO computes outside INT8", BUILD, metavar="P", choices=PRECISION_HINTS
    )
    body: str = _engine("fp16", "TensorRT's float type outside INT8", LOWER, "T", choices=BODIES)
    input_dtype: str = _engine("int64", "CPU engines' inputs", LOWER, "T", choices=INPUT_TYPES)
    packing: str = _engine("auto", "CPU engines skip padding; auto: unless scales are dynamic", LOWER, choices=PACKINGS)
    bench_seconds: float = _engine(20.0, "time budget of the benchmark inside compile", FREE, "S", positive=True)
    triton_backend: str | None = _engine(
        None, "Triton's backend (default: onnxruntime, or tensorrt for plans)", FREE, choices=TRITON_BACKENDS
    )
    buckets: tuple[int, ...] = _engine(
        (),
        "lengths Triton serves as models of their own, or profiles of a plan: 32,64,128 (default: none)",
        FREE,
        "N,M",
    )

    raw_inputs: bool = _engine(False, "a second Triton repository, for clients that send token ids", FREE)
    queue_size: int = _engine(
        256, "requests that may wait for a text model; more get a 503; 0: any number", FREE, within=(0, MANY)
    )
    queue_delay: int = _engine(
        10_000,
        "microseconds that texts wait for others of their batch; a lone client waits, too",
        FREE,
        "US",
        within=(0, MANY),
    )
    queue_timeout: int = _engine(
        0,
        "milliseconds that one may wait there (default: 0, no limit; with one Triton's batcher stalls)",
        FREE,
        "MS",
        within=(0, MANY),
    )
    response_cache: bool = _engine(False, "the server answers repeated requests from its cache", FREE)

    # docs/tensorrt.md, "Build options", explains these.
    sm: int = _builder(75, "the GPU's compute capability, 75 for 7.5", CALIBRATE, among=CAPABILITIES)
    product_codes: str = _builder(
        "attention", "linears that write INT8: one more rounding, fewer bytes", LOWER, choices=PRODUCT_CODES
    )
    batch_form: str = _builder(
        "padded",
        "rows: several texts share a row; gather: padding stays out of the linears",
        LOWER,
        choices=BATCH_FORMS,
    )
    workspace_gib: float = _builder(4.0, "limit of a kernel's memory", BUILD, "G", positive=True)
    optimization_level: int = _builder(3, "0 to 5, fast to best", BUILD, within=(0, 5))
    timing_cache: str | None = _builder(
        None, "kernel timings to start from (default: timing.cache of this target)", BUILD, "FILE"
    )
    version_compatible: bool = _builder(False, "the plan loads in later TensorRT versions, too", BUILD)
    hardware_compatibility: str = _builder("none", "", BUILD, choices=HARDWARE)
    refit: bool = _builder(False, "replaceable weights; floating-point variants only", FREE)
    strip_weights: bool = _builder(False, "plans without weights; floating-point variants only", FREE)

    def validate(self) -> None:
        """Raise ConfigError for the first value that cannot be meant, naming the nearest valid one."""
        check(self)
        for name in self.algo_list:
            algorithm_named(name, where="--algo-list")
        if self.percentile is not None:
            algorithm_named("percentile", self.percentile, where="--percentile")
        typed = (self.algo_list, "--algo-list") if self.algo_list else ((self.calibrator,), "--calibrator")
        if self.algo_list or self.calibrator != CLIP:
            refuse_idle(self.activation_quantize_type, typed[0], "--activation-quantize-type", typed[1])
        self.algorithm(None)
        if len(self.text_columns) > 2:
            raise ConfigError(f"--text-columns: at most two (text and pair), found {len(self.text_columns)}")
        self._validate_serving()
        self._validate_placement()

    @property
    def sweeps(self) -> bool:
        """True when several settings are to be tried."""
        return bool(self.algo_list or self.batch_num_list or self.batch_size_list)

    @property
    def _algorithm_name(self) -> str:
        return "max" if self.calibrator == CLIP else self.calibrator

    def algorithm(self, default_percentile: float | None) -> Algorithm:
        """The one algorithm of a run that does not sweep. Raises ConfigError."""
        percentile = self.percentile or default_percentile
        chosen = algorithm_named(self._algorithm_name, percentile, self.moving_rate, "--calibrator")
        return chosen if self.activation_quantize_type == "range_abs_max" else self.ptq_settings().algorithms()[0]

    def ptq_settings(self) -> PtqSettings:
        """Settings of a sweep; a list that is not given holds the run's one value."""
        return PtqSettings(
            algo_list=self.algo_list or (self._algorithm_name,),
            batch_num_list=self.batch_num_list or (None,),
            batch_size_list=self.batch_size_list or (DEFAULT_BATCH_SIZE,),
            activation_quantize_type=self.activation_quantize_type,
            moving_rate=self.moving_rate,
        )

    def ptq_json(self) -> dict[str, Any]:
        """Plain JSON value of the post-training options, lists as the sweep takes them."""
        mine = {known.name for known in fields(self) if known.metadata["group"] == PTQ}
        return {name: value for name, value in self.as_json().items() if name in mine} | as_json(self.ptq_settings())

    @property
    def treatments(self) -> Treatments:
        """Everything that is done beside choosing ranges. A calibrator that was named decides every range itself."""
        clips = self.calibrator == CLIP and self.activation_quantize_type == "range_abs_max"
        return Treatments(**values_for(TreatmentOptions, self), clip_search=clips)

    def _validate_serving(self) -> None:
        backend, target = self.triton_backend, targets.TARGETS.get(self.target)
        if backend and target and targets.TARGETS[backend].gpu and backend not in target.backends:
            raise ConfigError(
                f"--triton-backend: {backend} serves plans only, not --target {target.name}; leave it out"
            )
        if not self.buckets:
            return
        if list(self.buckets) != sorted(set(self.buckets)) or self.buckets[0] < 4:
            raise ConfigError(f"--buckets: {','.join(map(str, self.buckets))} must be increasing lengths from 4 on")
        if self.triton_backend is not None and not targets.TARGETS[self.triton_backend].batches:
            raise ConfigError(
                f"--buckets: Triton's {self.triton_backend} backend forms no batches; use --triton-backend onnxruntime"
            )

    def _validate_placement(self) -> None:
        target = targets.TARGETS.get(self.target)
        if self.placement == "dynamic" and target is not None and not target.dynamic:
            raise ConfigError(
                f"--placement: dynamic needs a CPU target, {self.target} has no run-time scales; calibrate"
            )
        if self.placement is not None and self.spec is not None:
            raise ConfigError(
                "--placement and --spec both say what to quantize; give one (a spec can name a placement)"
            )
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
        return as_json(self)


def resolve(options: CompileOptions, model_name: str, own_spec: bool = False) -> CompileOptions:
    """Decide target, placement, threads, streams and out for this machine and model.

    `own_spec`: the model is a checkpoint that says itself what is quantized, so no placement is chosen for it unless
    `search` asks for one.
    """
    target = candidates(options.target)[0]
    _check_together(options, target)
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


def _check_together(options: CompileOptions, target: str) -> None:
    """Raise ConfigError for options that this target, or another option, rules out."""
    if options.mode == "throughput" and targets.TARGETS[target].gpu:
        raise ConfigError("--mode: throughput is about CPU engines; for plans see 'qdq bench --engine' and --streams")
    if options.batch_form != "padded" and not targets.TARGETS[target].gpu:
        raise ConfigError(f"--batch-form: {options.batch_form} is for plans of TensorRT, this run is for {target}")
    if options.batch_form != "padded" and options.buckets:
        raise ConfigError("--buckets: a batch without padding holds all lengths, one model serves it; leave it out")
    since = targets.TARGETS[target].since.get(options.body, 0)
    if options.sm < since:
        raise ConfigError(
            f"--body: {target} has {options.body} from compute capability {since / 10} on; give --sm {since} or more"
        )
    if options.buckets and options.buckets[-1] != options.sequence:
        raise ConfigError(
            f"--buckets: {','.join(map(str, options.buckets))} must end with --sequence {options.sequence}, where "
            "longer texts are cut"
        )


def candidates(target: str) -> tuple[str, ...]:
    """The targets that `target` may stand for: itself, or for "auto" those that one is chosen from on this machine.

    They are tensorrt alone when a CUDA GPU and the tensorrt module are both present, else the CPU targets, whose
    engines race (`qdq.pipeline.stages.race`). The likelier winner comes first: onnxruntime where INT8 products
    saturate, because OpenVINO's weights lose bits there and its kernels are no faster than FP32 (docs/performance.md,
    "CPUs without VNNI").
    """
    import importlib.util

    if target != "auto":
        return (target,)
    if importlib.util.find_spec("tensorrt") is not None:
        from engines.tensorrt import probe

        if probe().ready:
            return ("tensorrt",)
    likely = "onnxruntime" if int8_sums().saturate else "openvino"
    return tuple(sorted(targets.CPU_TARGETS, key=lambda name: name != likely))
