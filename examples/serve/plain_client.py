"""Ask a served text model with Python's standard library alone; prints its outputs as JSON.

    python examples/serve/plain_client.py http://localhost:8000 my-classifier TEXT="a text" truncation=cut

Inputs are in capitals, parameters (truncation, dimensions) are not; an input that is given several times is a list.
"""

import json
import sys
import urllib.error
import urllib.request
from typing import Any


def ask(url: str, model: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send inputs and parameters of one text to /generate; returns the outputs. Raises HTTPError, of a bad text 400."""
    request = urllib.request.Request(f"{url}/v2/models/{model}/generate", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        outputs: dict[str, Any] = json.loads(answer.read())
    return outputs


def body_of(words: list[str]) -> dict[str, Any]:
    """NAME=VALUE words as the body of a request."""
    body: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name in body:
            before = body[name] if isinstance(body[name], list) else [body[name]]
            body[name] = [*before, value]
        else:
            body[name] = int(value) if name == "dimensions" else value
    return body


def main(words: list[str]) -> int:
    """Ask and print; the exit code is 1 when the server refused."""
    try:
        outputs = ask(words[0], words[1], body_of(words[2:]))
    except urllib.error.HTTPError as error:
        sys.stderr.write(f"{error.code}: {json.loads(error.read())['error']}\n")
        return 1
    sys.stdout.write(json.dumps(outputs, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
