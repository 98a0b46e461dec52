"""Files beside the configuration of a text model: README.md, and what starts a server."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version

from engines.serving.answers import outputs_of
from engines.serving.form import QA, UIE, TextForm
from engines.serving.metrics import FAMILIES
from engines.serving.requests import inputs_of
from engines.targets import TARGETS
from engines.triton.settings import TritonSettings
from engines.triton.text.orchestration import compose, kubernetes

# Any image from 24.10 on does for a CPU; of a plan it has to be one with the TensorRT that built it.
IMAGE = "nvcr.io/nvidia/tritonserver:25.08-py3"
# The last of version 1: python backends up to 24.10 are built with pybind11 2.10, which knows no arrays of numpy 2;
# later ones (pybind11 2.12) take both.
NUMPY = "numpy==1.26.4"
PACKAGES = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime", "onnx")}  # of each engine


def text_files(form: TextForm, settings: TritonSettings) -> dict[str, str]:
    """Text of every file by name."""
    return {
        "README.md": _readme(form, settings),
        "requirements.txt": requirements(form),
        "Dockerfile": DOCKERFILE,
        "compose.yaml": compose(form, settings),
        "kubernetes.yaml": kubernetes(form, settings),
    }


def requirements(form: TextForm) -> str:
    """Packages the server's Python needs, in the versions that the engine was verified and timed with."""
    names = ("tokenizers", *PACKAGES.get(form.engine, ()))
    pinned = [f"{name}=={found}" if (found := _version(name)) else name for name in names]
    return "\n".join((NUMPY, *pinned)) + "\n"


def curl_line(form: TextForm, name: str, url: str = "localhost:8000") -> str:
    """A request that works, for the shell."""
    body = {key: list(texts) if len(texts) > 1 else texts[0] for key, texts in form.sample.items()}
    quoted = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    return f"curl {url}/v2/models/{name}/generate -d '{quoted}'"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


DOCKERFILE = f"""\
FROM {IMAGE}
COPY requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir -r /tmp/requirements.txt
"""


def _readme(form: TextForm, settings: TritonSettings) -> str:
    """README.md of the model."""
    behind = f", in front of the plan {settings.name}_plan" if TARGETS[form.engine].gpu else ""
    parts = [
        f"# {settings.name}",
        f"Texts in, answers out: {form.task}, {form.engine} engine{behind}.",
        f"```\n{curl_line(form, settings.name)}\n```",
        _tables(form),
        "\n".join(f"- {line}" for line in (*_limits(form), *meanings(form), *settings.about)),
        f"Metrics beside Triton's: {', '.join(FAMILIES)}.",
        "`docker compose up --build` in this folder starts a server in an image of Triton that has what "
        "requirements.txt names; kubernetes.yaml takes the same image; `qdq serve` needs none.",
    ]
    return "\n\n".join(parts) + "\n"


def meanings(form: TextForm) -> tuple[str, ...]:
    """Sentences, a line each, on what the outputs of a form's task are."""
    prompt = (f"the server puts the prompt {form.prompt!r} in front of every text",) if form.prompt else ()
    if form.task == "text-classification" and form.head == "scores":
        behind = "the same" if form.activation == "identity" else f"what {form.activation} makes of them"
        return (*prompt, f"LOGITS are what the model returns, SCORE is {behind}")
    if form.task == "text-classification" and form.head == "multi-label":
        above = ", ".join(f"{share:g}" for share in form.thresholds)
        return (*prompt, f"LABELS are the classes whose probability, the sigmoid of its logit, is above {above}")
    return (*prompt, *_MEANINGS.get(form.task, ()))


_MEANINGS = {
    "text-classification": ("PROBABILITIES are the softmax of LOGITS, SCORE is that of LABEL",),
    "next-sentence-prediction": ("the first class says that TEXT_PAIR follows TEXT",),
    "token-classification": ("a word has the class of its first token; a score is the mean over the entity's words",),
    QA: ("ANSWER is CONTEXT from START to END; SCORE is the probability of its start times that of its end",),
    UIE: (
        "SPANS are all parts of CONTEXT that answer PROMPT, a JSON list; of a prompt for a choice, label[a,b], the one "
        "option chosen",
    ),
    "multiple-choice": ("PROBABILITIES are the softmax over the choices, CHOICE counts from 0",),
    "fill-mask": ("PREDICTIONS hold, for each masked place in order, the five likeliest tokens",),
    "language-modeling": ("PREDICTIONS hold the five likeliest tokens behind the text",),
}


def _tables(form: TextForm) -> str:
    """Inputs and outputs with what one row of them holds."""
    inputs = [
        f"| {item.name} | {list(item.dims)} | {'optional' if item.optional else ''} |" for item in inputs_of(form)
    ]
    outputs = [
        f"| {output.name} | {output.kind} | {list(output.dims)} | {'on request' * output.on_request} |"
        for output in outputs_of(form)
    ]
    heads = ("| input, strings | per row | |\n|---|---|---|", "| output | type | per row | |\n|---|---|---|---|")
    return "\n\n".join("\n".join(rows) for rows in ((heads[0], *inputs), (heads[1], *outputs)))


def _limits(form: TextForm) -> list[str]:
    """Limits of a text, and the parameters of a request."""
    lines = [
        f"at most {form.sequence} tokens and {form.characters} characters a text: a request with a longer one, or an "
        'empty one, gets 400; the parameter `"truncation": "cut"` cuts tokens off instead, and CUT says how many'
    ]
    if form.task == QA:
        lines.append(
            "a CONTEXT of more tokens is no fault: it is read in windows that overlap, and the best one answers"
        )
    if any(output.on_request for output in outputs_of(form)):
        lines.append("outputs on request are sent to those who name them among the outputs they want")
    if form.dimensions:
        lines.append(f"the parameter `dimensions` gives shorter embeddings: {', '.join(map(str, form.dimensions))}")
    if not form.pooled:
        lines.append("EMBEDDING is the mean over the text's tokens, of length 1: the model has no pooling of its own")
    return lines
