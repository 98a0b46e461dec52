"""Ask a served text model with tritonclient over HTTP; prints its outputs as JSON.

    pip install 'tritonclient[http]'
    python examples/serve/http_client.py localhost:8000 my-classifier TEXT="a text" truncation=cut

Inputs are in capitals, parameters (truncation, dimensions) are not; an input that is given several times is a list.
"""

import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def ask(url: str, model: str, inputs: dict[str, list[str]], parameters: dict[str, Any]) -> dict[str, Any]:
    """Send one text (a row of every input); returns the outputs. Raises InferenceServerException for a bad text."""
    tensors = []
    for name, texts in inputs.items():
        tensors.append(triton.InferInput(name, [1, len(texts)], "BYTES"))
        tensors[-1].set_data_from_numpy(np.array([[text.encode() for text in texts]], dtype=object))
    with triton.InferenceServerClient(url) as client:
        answer = client.infer(model, tensors, parameters=parameters or None)
    found = answer.get_response()["outputs"]
    names = [output["name"] for output in found]
    return {name: plain(answer.as_numpy(name)[0]) for name in names}


def plain(row: Any) -> Any:
    """One row of an output as text, number or list."""
    values = [value.decode() if isinstance(value, bytes) else value for value in row.tolist()]
    return values[0] if len(values) == 1 else values


def main(words: list[str]) -> int:
    """Ask and print; the exit code is 1 when the server refused."""
    inputs: dict[str, list[str]] = {}
    parameters: dict[str, Any] = {}
    for word in words[2:]:
        name, _, value = word.partition("=")
        if name.isupper():
            inputs.setdefault(name, []).append(value)
        else:
            parameters[name] = int(value) if name == "dimensions" else value
    try:
        outputs = ask(words[0], words[1], inputs, parameters)
    except InferenceServerException as error:
        sys.stderr.write(f"{error.status()}: {error.message()}\n")
        return 1
    sys.stdout.write(json.dumps(outputs, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
