"""Options of the commands that study a model instead of compiling it; same rules as `qdq.cli.arguments`."""

from __future__ import annotations

import argparse

from qdq.cli.values import names

# Command -> what it is for; `add_study_options` has the options.
STUDY_COMMANDS = {
    "evaluate": "task metrics of models, checkpoints and engines on labelled data",
    "sensitivity": "which points cost accuracy: each alone, and all without each",
}


def add_study_options(name: str, parser: argparse.ArgumentParser) -> None:
    """Add the options of one study command; the defaults live in its options class."""
    {"evaluate": _evaluate, "sensitivity": _sensitivity}[name](parser)
    parser.add_argument("--json", action="store_true", default=False, help="print one JSON document")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "what",
        nargs="+",
        metavar="WHAT",
        help="hub id or folder (FP32), checkpoint/ of a run (fake-quantized), .onnx, .xml or .plan file, or a work "
        "directory (all in it); differences are to the first",
    )
    add("--data", metavar="DATA", required=True, help="file, folder or datasets:NAME[:SPLIT]; CoNLL and SQuAD too")
    add("--model", metavar="ID", help="whose tokenizer and classes to use (default: of WHAT, or beside the file)")
    add("--task", metavar="NAME", help="default: from the checkpoint's architecture")
    _columns(parser)
    add("--samples", metavar="N", type=int, help="first rows to use (default: all)")
    add("--sequence", metavar="N", type=int, help="tokens; longer texts are cut (default: 128)")
    add("--batch", metavar="N", type=int, help="rows per batch (default: 32)")
    add(
        "--overlap",
        metavar="N",
        type=int,
        help="context tokens neighbouring windows share; -1: one window only (default: a third of --sequence)",
    )
    add("--scoring", metavar="NAME", help="squad or cmrc (default: by the contexts' script)")
    add("--metric", metavar="NAME", help="the metric that decides (default: the task's own)")
    add("--predictions", metavar="FILE", help="write the last WHAT's predictions as JSON lines (.json: SQuAD's form)")
    add("--out", metavar="FILE", help="write all figures as JSON")
    add("--threads", metavar="N", type=int, help="default: 0, which is all cores")
    add("--precision-hint", metavar="P", help="what OpenVINO computes outside INT8 (default: f32)")


def _sensitivity(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("what", metavar="WHAT", help="checkpoint/ or work directory of a run, or a model to inject and calibrate here")
    add("--data", metavar="DATA", help="training text to compare answers on (default: bundled English text)")
    _columns(parser)
    add("--placement", metavar="NAME", help="of a model that is calibrated here (default: qdqbert)")
    add("--samples", metavar="N", type=int, help="texts (default: 64)")
    add("--skip", metavar="N", type=int, help="rows of DATA to pass over; they calibrate a model (default: 0)")
    add("--sequence", metavar="N", type=int, help="tokens; longer texts are cut (default: 128)")
    add("--batch", metavar="N", type=int, help="rows per batch (default: 16)")
    add("--metric", action="store_true", help="score the task metric of every trial too; needs labels")
    add("--out", metavar="DIR", help="folder of the results (default: build/<model name>/sensitivity)")
    add("--threads", metavar="N", type=int, help="default: 0, which is all cores")


def _columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text-columns", metavar="A[,B]", type=names, help="default: detected")
    parser.add_argument("--label-column", metavar="NAME", help="default: detected")
