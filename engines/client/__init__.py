"""A client of any Triton server: asks a model over HTTP or gRPC, reads text models, and loads one to measure it.

Read in this order: `protocol` (what a client can ask), `over_http` and `over_grpc` (the two ways to ask), `texts` (rows
of text in, answers out), `load` (many clients at once), `statistics` (what the server says of itself), `report`.
"""

from __future__ import annotations

from engines.client.address import Address, connect, parse_address
from engines.client.load import Call, LoadSettings, run_load
from engines.client.protocol import Client, ModelInfo, Refused, Tensor
from engines.client.report import draw_load, figures_of, render_load
from engines.client.statistics import batches_between, cpu_seconds, local_server
from engines.client.texts import TextRow, answer_of, answer_text, choose_model, feeds_of, small_outputs, takes_text

__all__ = [
    "Address",
    "Call",
    "Client",
    "LoadSettings",
    "ModelInfo",
    "Refused",
    "Tensor",
    "TextRow",
    "answer_of",
    "answer_text",
    "batches_between",
    "choose_model",
    "connect",
    "cpu_seconds",
    "draw_load",
    "feeds_of",
    "figures_of",
    "local_server",
    "parse_address",
    "render_load",
    "run_load",
    "small_outputs",
    "takes_text",
]
