"""The compiler takes, refuses and compiles real graphs; whatever ends its process is an error, and ends it for sure."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from engines.tensorrt_rtx import Compiled, Compiler, Refused, Shapes, compile_graph, parse
from engines.tensorrt_rtx import compiler as module
from qdq.errors import BuildError, ConfigError

from .conftest import SHAPE, WriteHalf

ROOT = Path(__file__).resolve().parents[3]
HELLO = 'import os, sys, time; print(\'{"version": "1.7.1", "capabilities": [75]}\', flush=True)\n'


def refused(path: Path) -> Path:
    """A graph whose second node TensorRT has no importer for."""
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[b, s] x) => (float[b, s] y) {
        r = Relu (x)
        q, scale, zero = DynamicQuantizeLinear (r)
        y = DequantizeLinear (q, scale, zero)
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.node[1].name = "dynamic"
    onnx.save(model, path)
    return path


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> Compiler:
    """A compiler whose child is another program."""
    child = tmp_path / "child.py"
    child.write_text(program, encoding="utf-8")
    monkeypatch.setattr(module, "CHILD", child)
    return Compiler(timeout_s=20)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_memory_is_the_childs_own(write_half: WriteHalf) -> None:
    mine = bytearray(1 << 30)  # what started the child may be as large as it likes
    mine[:: resource.getpagesize()] = bytes(len(mine[:: resource.getpagesize()]))
    assert compile_graph(write_half(), (75,), SHAPE).peak_mb < 600


@pytest.mark.parametrize("capability", [75, 89])
def test_an_encoder_layer_is_compiled(compiler: Compiler, write_half: WriteHalf, capability: int) -> None:
    model = write_half()
    assert compiler.parse(model) == ()
    compiled = compiler.compile(model, (capability,), SHAPE)
    assert compiled.version == compiler.version
    assert compiled.capabilities == (capability,)
    assert compiled.plan_bytes > 100_000
    assert compiled.peak_mb < 1024
    kinds = [kernel.kind for kernel in compiled.kernels]
    assert kinds.count("gemm") == 4  # q, k and v are one
    assert kinds.count("attention") == 1
    assert kinds.count("layernorm") == 3
    merged = next(kernel for kernel in compiled.kernels if kernel.kind == "gemm")
    assert {f"encoder.layer.0.attention.self.{name}.MatMul" for name in ("query", "key", "value")} <= set(merged.onnx)
    assert str(merged.outputs[0]) == "fp16 [64, 192]"
    assert [str(tensor) for tensor in merged.inputs] == ["int8 [64, 64]"]
    assert merged.bytes == 64 * 64 + 64 * 192 + 2 * 4 + 2 * 64 * 192  # rows, weights, alpha and beta, result


def test_layers_add_up_to_the_whole(compiler: Compiler, write_half: WriteHalf) -> None:
    compiled = compiler.compile(write_half(), (75,), SHAPE)
    per_layer = compiled.per_layer()
    assert list(per_layer) == [0, None]
    assert sum(count for count, _ in per_layer.values()) == len(compiled.kernels)
    assert sum(megabytes for _, megabytes in per_layer.values()) == pytest.approx(compiled.megabytes)


def test_a_gathered_table_counts_as_its_rows(compiler: Compiler, write_half: WriteHalf) -> None:
    compiled = compiler.compile(write_half(), (75,), Shapes.fixed(1, 8))
    embedding = next(kernel for kernel in compiled.kernels if kernel.gathers)
    table = next(tensor for tensor in embedding.constants if tensor.shape == (50, 64))
    others = [tensor for tensor in (*embedding.inputs, *embedding.constants, *embedding.outputs) if tensor != table]
    assert embedding.bytes == sum(tensor.bytes for tensor in others) + 2 * 8 * 64


def test_a_profile_has_no_bytes(compiler: Compiler, write_half: WriteHalf) -> None:
    compiled = compiler.compile(write_half(), (75,), Shapes.between((1, 1), (4, 16), (8, 32)))
    assert not compiled.static
    assert sum(kernel.kind == "attention" for kernel in compiled.kernels) == 1
    with pytest.raises(ConfigError, match=r"has no size .* \(Shapes\.fixed\)"):
        _ = compiled.megabytes


def test_one_plan_for_several_capabilities_is_the_same_every_time(
    compiler: Compiler, write_half: WriteHalf, tmp_path: Path
) -> None:
    model = write_half()
    plans = [tmp_path / "one" / "model.plan", tmp_path / "two" / "model.plan"]
    first, second = (compiler.compile(model, (75, 120), SHAPE, plan) for plan in plans)
    assert first.kernels == second.kernels
    assert first.gemms == second.gemms
    assert plans[0].read_bytes() == plans[1].read_bytes()
    assert first.plan_bytes == plans[0].stat().st_size
    assert [entry.name for entry in plans[0].parent.iterdir()] == ["model.plan"]


def test_a_refused_node_is_named(compiler: Compiler, tmp_path: Path) -> None:
    model = refused(tmp_path / "model.onnx")
    (error,) = compiler.parse(model)
    assert (error.node, error.operator) == ("dynamic", "DynamicQuantizeLinear")
    assert error.reason == "this operator is not supported"
    with pytest.raises(Refused, match=r"model\.onnx: TensorRT for RTX refuses it: DynamicQuantizeLinear 'dynamic'"):
        compiler.compile(model)


def test_a_refusal_of_the_builder_is_named_too(compiler: Compiler, write_encoder: Callable[..., Path]) -> None:
    with pytest.raises(Refused) as caught:
        compiler.compile(write_encoder(), (75,), SHAPE)
    (error,) = caught.value.errors
    assert error.operator == "MatMul"
    assert error.node.startswith("encoder.layer.0.")
    assert error.reason.endswith("for Turing (SM75): FP32 GEMM is not supported")


def test_files_that_hold_no_graph(compiler: Compiler, tmp_path: Path) -> None:
    for content in (b"", b"no protobuf" * 20):
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        assert len(compiler.parse(path)) == 1
    with pytest.raises(ConfigError, match=r"absent\.onnx is not a file"):
        compiler.parse(tmp_path / "absent.onnx")


def test_an_unknown_capability_names_the_known_ones(compiler: Compiler, write_half: WriteHalf) -> None:
    with pytest.raises(ConfigError, match=r"compute capability 90: .* compiles for 75, 80, 86, 89, 120, 121"):
        compiler.compile(write_half(), (90,), SHAPE)
    with pytest.raises(ConfigError, match="expected one or more, each once"):
        compiler.compile(write_half(), (), SHAPE)


@pytest.mark.parametrize("shapes", [((0, 1), (1, 1), (1, 1)), ((1, 8), (1, 4), (1, 16))])
def test_impossible_shapes(shapes: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ConfigError, match="1 <= minimum <= optimum <= maximum"):
        Shapes.between(*shapes)


def test_every_input_gets_its_axes(compiler: Compiler, tmp_path: Path) -> None:
    """Ids [B,S], a mask of the same names, features [B,S,8], and multiple choice [B,N,S]."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (int64[B, S] ids, float16[B, S, S] mask, float16[B, S, 8] features, float16[B, N, S] choices)
    => (float16[B, N, 8] y) {
        half = Cast <to = 10> (ids)
        axis = Constant <value_ints = [1]> ()
        row = Unsqueeze (half, axis)
        masked = Add (mask, row)
        mixed = MatMul (masked, features)
        y = MatMul (choices, mixed)
    }"""
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    compiled = compiler.compile(path, (75,), Shapes.fixed(2, 16, choices=3))
    assert compiled.kernels[-1].outputs[0].shape == (2, 3, 8)
    assert compiled.axes == ("batch", "choices", "sequence")


def test_a_link_has_its_external_data_beside_it(compiler: Compiler, write_half: WriteHalf, tmp_path: Path) -> None:
    """A cache of models links files whose real places have other names."""
    model = onnx.load(write_half())
    real, place = tmp_path / "blobs", tmp_path / "snapshot"
    real.mkdir()
    place.mkdir()
    onnx.save(model, real / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=64)
    (real / "model.data").rename(place / "model.data")
    (place / "model.onnx").symlink_to(real / "model.onnx")
    assert compiler.parse(place / "model.onnx") == ()


def test_fixed_shapes_stay(compiler: Compiler, tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float16[2, 8] x) => (float16[2, 8] y) { y = Relu (x) }"""
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    compiled = compiler.compile(path, (75,), Shapes.between((1, 1), (4, 16), (8, 32)))
    assert compiled.axes == ()
    assert compiled.static
    assert compiled.kernels[-1].outputs[0].shape == (2, 8)


def test_a_plan_that_cannot_be_written(compiler: Compiler, write_half: WriteHalf, tmp_path: Path) -> None:
    model = write_half()
    with pytest.raises(BuildError, match="cannot be written"):
        compiler.compile(model, (75,), SHAPE, model / "model.plan")
    folder = tmp_path / "plans"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Compiler() as limited:
        limited.parse(model)
        assert limited._child is not None
        resource.prlimit(limited._child.pid, resource.RLIMIT_FSIZE, (4096, before[1]))  # as when the disk is full
        with pytest.raises(BuildError, match="File too large"):
            limited.compile(model, (75,), SHAPE, folder / "model.plan")
        assert list(folder.iterdir()) == []
        assert limited.parse(model) == ()


def test_without_the_context_manager(write_half: WriteHalf, compiler: Compiler) -> None:
    assert parse(write_half()) == ()
    assert isinstance(compile_graph(write_half(), (75,), SHAPE), Compiled)


def test_a_crash_is_an_error_and_the_next_graph_gets_a_new_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_half: WriteHalf, compiler: Compiler
) -> None:
    program = HELLO + "sys.stdin.readline(); print('the library says why', file=sys.stderr, flush=True); os.abort()\n"
    crashing = fake(tmp_path, monkeypatch, program)
    with crashing:
        for _ in range(2):
            with pytest.raises(BuildError, match=r"model\.onnx: .* died \(status -6: the library says why\)"):
                crashing.parse(write_half())
        assert crashing._child is None


def test_libraries_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_half: WriteHalf, compiler: Compiler
) -> None:
    with (
        fake(tmp_path, monkeypatch, "raise OSError('GLIBC_2.99 not found')\n") as broken,
        pytest.raises(BuildError, match=r"loading TensorRT for RTX: .* GLIBC_2\.99 not found"),
    ):
        broken.parse(write_half())


def test_a_child_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_half: WriteHalf, compiler: Compiler
) -> None:
    with fake(tmp_path, monkeypatch, HELLO + "time.sleep(600)\n") as hanging:
        assert hanging.capabilities == (75,)
        assert hanging._child is not None
        process = hanging._child.pid
        hanging.timeout_s = 0.1
        with pytest.raises(BuildError, match=r"no answer .* within 0\.1 seconds"):
            hanging.parse(write_half())
        assert not is_running(process)


def test_ctrl_c_ends_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_half: WriteHalf, compiler: Compiler
) -> None:
    def interrupt(*_: object) -> bytes:
        raise KeyboardInterrupt

    with fake(tmp_path, monkeypatch, HELLO + "time.sleep(600)\n") as interrupted:
        assert interrupted.version == "1.7.1"
        assert interrupted._child is not None
        process = interrupted._child.pid
        monkeypatch.setattr(module, "_read_line", interrupt)
        with pytest.raises(KeyboardInterrupt):
            interrupted.parse(write_half())
        assert not is_running(process)


def test_a_killed_program_leaves_no_child(compiler: Compiler) -> None:
    program = (
        "import time; from engines.tensorrt_rtx import Compiler\n"
        "c = Compiler(); c.version; print(c._child.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        child = int(started.stdout.readline())
        assert is_running(child)
        os.kill(started.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)
