"""The tools a user would pick instead, each turning one FP32 ONNX file into something that runs on this CPU.

`tools` builds them; qdq/peers.py adds torch's and ours, checks accuracy and times all of them in one interleaved run.
"""

from __future__ import annotations

from engines.peers.tools import TOOLS, Built, Material, build_tool

__all__ = ["TOOLS", "Built", "Material", "build_tool"]
