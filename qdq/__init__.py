"""QDQ compiler for transformer encoders: a checkpoint in, a measured INT8 engine and a Triton repository out.

    import qdq

    compiled = qdq.compile("my-bert", calibration="train.tsv", eval_data="dev.tsv")
    print(compiled.coverage.linears, compiled.accuracy.agreement, compiled.benchmark.speedup)

    engine = qdq.load(compiled.path)
    transformers.pipeline("text-classification", model=engine, tokenizer=engine.tokenizer)("a text")

`compile` runs the whole flow in a work directory, `load` opens what is there, `check` lints any Q/DQ graph. Errors are
`QdqError` and its subclasses in `qdq.errors`. Importing this package loads no heavy library.
"""

from __future__ import annotations

from qdq.api.checking import check
from qdq.api.compiling import Compiled, compile
from qdq.api.engine import Engine, load
from qdq.api.progress import Progress
from qdq.base.versions import __version__
from qdq.errors import QdqError

__all__ = ["Compiled", "Engine", "Progress", "QdqError", "__version__", "check", "compile", "load"]
