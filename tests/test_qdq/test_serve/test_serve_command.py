"""`qdq serve` as its user sees it: the printed request works, a signal ends it in order, a lost model is noticed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engines.client import local_server, parse_address
from engines.triton.server.leftovers import processes
from engines.triton.server.trial import Trial
from qdq.cli import serve as module
from qdq.errors import DeployError

from .conftest import CLASSIFIER, HANGS, STARTED, serving


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_the_printed_request_is_answered_and_a_signal_ends_it_in_order(repository: Path, ending: int) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # the tests run in the background, and children inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
    words = [sys.executable, "-m", "qdq.cli.main", "serve", str(repository)]
    words += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as owner:
        try:
            ready, line = _promised(owner)
            server = local_server(parse_address(ready.split()[1]))
            command = Path(f"/proc/{server}/cmdline").read_text(encoding="utf-8")
            STARTED.append(command.partition("shm-region-prefix-name=")[2].partition("\0")[0])
            ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=HANGS)
            assert json.loads(ran.stdout)["model_name"] == CLASSIFIER and json.loads(ran.stdout)["LABEL"]
            owner.send_signal(ending)
            said, _ = owner.communicate(timeout=HANGS)
        except BaseException:
            owner.terminate()  # a failure is told, not waited for
            raise
    assert "the server has ended; requests in flight were answered" in said
    assert owner.returncode == 0


def _promised(owner: subprocess.Popen[str]) -> tuple[str, str]:
    """Lines about the ready server and of the request that works; they are printed last."""
    assert owner.stdout is not None
    found: dict[str, str] = {}
    while "curl" not in found and (line := owner.stdout.readline()):
        found[line.split()[0] if line.split() else ""] = line.strip()
    return found["ready"], found["curl"]


def test_a_model_that_answers_no_more_ends_the_server(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process was killed; Triton's health endpoints go on saying 200."""
    alive = Trial.alive
    monkeypatch.setattr(Trial, "alive", lambda self, url: alive(self, url, timeout=2.0))
    with serving(repository) as server:
        for stub in processes(server.prefix):
            os.kill(stub, signal.SIGKILL)
        with pytest.raises(DeployError, match=f"{CLASSIFIER} has not answered 3 requests in a row"):
            module._wait(server, 1)
        server.process.kill()  # it would wait for the dead process for as long as it may


def test_a_server_that_ends_by_itself_is_said(repository: Path) -> None:
    with serving(repository) as server:
        server.process.kill()
        with pytest.raises(DeployError, match="ended by itself with -9"):
            module._wait(server, 1)
