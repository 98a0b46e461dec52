"""Published latencies: the rows the model is fitted on, and the held-out rows it is judged by.

The split is fixed here, by kind of row and never by how well a row fits:

- fitted: TensorRT on BERT-base alone. T4 (8.5.1) at batch 1, 8, 32 and 128, which span launch-bound to power-bound;
  A100 (8.6.1) at batch 8 and 128, which see what the power-limited T4 cannot, the rate at the boost clock. Plus one
  FP32 row of FasterTransformer, the only source of FP32 there is;
- held out: everything else, above all every BERT-large row, the batch sizes between, and batch 1 on the A100.

Both lists come from `fitted`; a test asserts that they are disjoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from engines.estimate.model import DATA
from qdq.base.artifacts import read_json

T4, A100, A100_NEWER = "trt-8.5.1", "trt-8.6.1", "trt-10.11"
FT = ("ft-tensorflow", "ft-pytorch")
FITTED_BATCHES = {T4: (1, 8, 32, 128), A100: (8, 128)}


@dataclass(frozen=True)
class Row:
    """One published latency in ms; `source` is a key of published.json's sources."""

    source: str
    device: str
    encoder: str  # bert-base or bert-large
    batch: int
    sequence: int
    precision: str  # int8, float16, float32; int8-v1 is FasterTransformer with float residuals and INT32 GEMM outputs
    ms: float

    @property
    def whole(self) -> bool:
        """True when embedding and head are in the published time."""
        return self.source not in FT

    @property
    def label(self) -> str:
        """Readable identity: device, encoder, batch, precision, source."""
        return f"{self.device} {self.encoder} b{self.batch} {self.precision} {self.source}"


def published_rows() -> tuple[Row, ...]:
    """Every row of data/published.json."""
    return tuple(Row(**row) for row in read_json(DATA / "published.json")["rows"])


def fitted(row: Row) -> bool:
    """Return whether the coefficients were fitted on this row."""
    if row.precision == "float32":
        return row.source == FT[0] and row.batch == 8
    return row.encoder == "bert-base" and row.batch in FITTED_BATCHES.get(row.source, ())


def held_out_groups(rows: Iterable[Row]) -> dict[str, tuple[Row, ...]]:
    """Held-out rows by what they test. A row may be in several groups; none of them is fitted."""
    unseen = [row for row in rows if not fitted(row)]
    shapes = {(row.encoder, row.batch) for row in unseen if row.source == A100}
    tests: dict[str, Callable[[Row], bool]] = {
        "T4 BERT-large": lambda row: row.source == T4 and row.encoder == "bert-large",
        "T4 BERT-base, other batch sizes": lambda row: row.source == T4 and row.encoder == "bert-base",
        "batch 1": lambda row: row.batch == 1 and row.source in (T4, A100),
        "A100": lambda row: row.source == A100,
        "A100, newer TensorRT (10.11)": lambda row: row.source == A100_NEWER and (row.encoder, row.batch) in shapes,
        "T4, other runtime (FasterTransformer)": lambda row: row.source in FT and row.precision in ("int8", "float16"),
        "T4, float residuals (FasterTransformer INT8-v1)": lambda row: row.precision == "int8-v1",
        "T4 FP32 (FasterTransformer)": lambda row: row.precision == "float32",
    }
    return {name: tuple(row for row in unseen if test(row)) for name, test in tests.items()}
