"""The tools a user would pick instead, each turning one FP32 ONNX file into something that runs on this CPU.

`tools` builds them, `engines.opening` loads what was built; `race` adds torch's and ours, checks accuracy and times all
of them in one interleaved run.
"""

from __future__ import annotations

from engines.opening import Opening, open_runner
from qdq.studies.peers.tools import ARTIFACTS, NO_BF16, TOOLS, Material, Tool, build_artifact

__all__ = ["ARTIFACTS", "NO_BF16", "TOOLS", "Material", "Opening", "Tool", "build_artifact", "open_runner"]
