"""Faults of the real server: no wrong answer, nobody waits for ever, and nothing stays behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from bisect import bisect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import pytest

from engines.client import Call, local_server, parse_address
from engines.triton.server import Server
from engines.triton.server.leftovers import processes
from qdq.errors import DeployError

from .conftest import CLASSIFIER, HANGS, STARTED, Loaded, serving

UNDER_WAY = 8  # clients


class Load:
    """A load in the background; `calls` waits for it and raises what it raised."""

    def __init__(self, load: Callable[[], list[Call]]) -> None:
        self.started = time.perf_counter()
        pool = ThreadPoolExecutor(1)
        self._future = pool.submit(load)
        pool.shutdown(wait=False)

    def calls(self) -> list[Call]:
        return self._future.result(2 * HANGS)


def post(server: Server, path: str) -> tuple[int, str]:
    request = urllib.request.Request(f"{server.http}{path}", b"{}")
    try:
        with urllib.request.urlopen(request, timeout=HANGS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def answered(calls: list[Call]) -> int:
    return sum(call.outputs is not None for call in calls)


def test_400_answers_of_400_are_right_under_32_clients(zoo: Server, classified: Loaded) -> None:
    for url in (zoo.http, f"grpc://{zoo.grpc}"):
        assert answered(classified(url, 32, requests=400)) == 400


def test_a_full_queue_refuses_and_answers_rightly(repository: Path, classified: Loaded) -> None:
    """Who is refused has waited for no more answers than those of the queue and of three batches."""
    config = repository / CLASSIFIER / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    assert text.count('string_value: "256"') == 1  # of queue_size
    config.write_text(text.replace('string_value: "256"', 'string_value: "2"'), encoding="utf-8")
    with serving(repository) as server:
        calls = classified(server.http, 32, requests=1500)
        refused = [call for call in calls if call.outputs is None]
        assert answered(calls) > 0 and refused
        assert {call.status for call in refused} == {503}
        ends = sorted(call.sent + call.seconds for call in calls if call.outputs is not None)
        waited = [bisect(ends, call.sent + call.seconds) - bisect(ends, call.sent) for call in refused]
        assert median(waited) <= 2 + 3 * 8  # of most: a client's thread may have to wait for its turn, too
        assert answered(classified(server.http, 2, requests=20)) == 20  # and recovers


def test_a_burst_is_answered_without_a_pause(repository: Path, classified: Loaded) -> None:
    """Requests that come while the instance is busy are answered when it is free, though no other request follows.

    With a policy for the queue Triton's batcher looks for them every half second only: sixteen requests at once would
    take longer than one after the other.
    """
    with serving(repository) as server:
        bursts = [classified(server.http, 16, requests=16) for _ in range(5)]
        lone = [classified(server.http, 1, requests=16) for _ in range(2)]
    assert all(answered(calls) == 16 for calls in (*bursts, *lone))
    together = min(max(call.seconds for call in calls) for calls in bursts)
    assert together < min(sum(call.seconds for call in calls) for calls in lone)


def test_two_servers_on_one_repository(repository: Path, classified: Loaded) -> None:
    with serving(repository) as first, serving(repository) as second:
        assert first.prefix != second.prefix and first.ports != second.ports
        loads = [Load(lambda url=server.http: classified(url, 4, requests=100)) for server in (first, second)]
        assert [answered(load.calls()) for load in loads] == [100, 100]
        first.process.send_signal(signal.SIGTERM)
        first.process.wait(HANGS)
        assert answered(classified(second.http, 4, requests=50)) == 50


def test_reload_of_a_good_version_loses_nothing_and_a_broken_one_leaves_the_old(
    repository: Path, classified: Loaded
) -> None:
    versions = repository / CLASSIFIER
    with serving(repository, "--model-control-mode=explicit", "--load-model=*") as server:
        load = Load(lambda: classified(server.http, UNDER_WAY, seconds=8.0))
        shutil.copytree(versions / "1", versions / "2")
        assert post(server, f"/v2/repository/models/{CLASSIFIER}/load")[0] == 200
        shutil.copytree(versions / "1", versions / "3")
        (versions / "3" / "text.json").write_text("{}", encoding="utf-8")
        status, said = post(server, f"/v2/repository/models/{CLASSIFIER}/load")
        assert status >= 400 and "text.json" in said
        calls = load.calls()
        assert answered(calls) == len(calls) > UNDER_WAY, [call.message for call in calls if call.outputs is None][:3]
        assert answered(classified(server.http, 4, requests=40)) == 40


def test_sigterm_answers_what_is_under_way(repository: Path, classified: Loaded) -> None:
    with serving(repository) as server:
        load = Load(lambda: classified(server.http, UNDER_WAY, seconds=4.0))
        time.sleep(1.5)
        ended = time.perf_counter() - load.started
        assert server.stop(HANGS) == 0
        calls = load.calls()
    slowest = max(call.seconds for call in calls if call.outputs is not None)
    before = [call for call in calls if call.sent < ended - slowest]  # the others may not have reached it
    assert answered(before) == len(before) > 0, [call.message for call in before if call.outputs is None][:3]
    refused = [call for call in calls if call.outputs is None]
    assert {call.status for call in refused} <= {0, 503}


def test_a_killed_server_hangs_nobody_and_the_next_one_answers(repository: Path, classified: Loaded) -> None:
    with serving(repository) as server:
        load = Load(lambda: classified(server.http, UNDER_WAY, seconds=3.0))
        time.sleep(1.0)
        server.process.kill()
        calls = load.calls()
    assert answered(calls) > 0
    assert {call.status for call in calls if call.outputs is None} == {0}
    assert processes(server.prefix) == []
    with serving(repository) as server:
        assert answered(classified(server.http, 4, requests=40)) == 40


def test_a_server_killed_with_its_owner_is_cleaned_up_by_the_next_start(repository: Path) -> None:
    """`qdq serve` itself killed: the kernel ends its server, and what stays in shared memory goes at the next start."""
    words = [sys.executable, "-m", "qdq.cli.main", "serve", str(repository)]
    words += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as owner:
        assert owner.stdout is not None
        said = ""
        for line in owner.stdout:
            said += line
            if line.startswith("ready "):
                server = local_server(parse_address(line.split()[1]))
                break
        else:
            pytest.fail(said)
        command = Path(f"/proc/{server}/cmdline").read_text(encoding="utf-8")
        STARTED.append(command.partition("shm-region-prefix-name=")[2].partition("\0")[0])
        assert STARTED[0]
        owner.kill()
    with serving(repository):
        pass


def test_a_killed_backend_process_is_noticed_and_never_answers_wrongly(repository: Path, classified: Loaded) -> None:
    """Triton 2.51 does not start it anew: requests are refused, and a request, not a health endpoint, tells."""
    with serving(repository) as server:
        load = Load(lambda: classified(server.http, UNDER_WAY, seconds=3.0, timeout=5.0))
        time.sleep(1.0)
        stubs = processes(server.prefix)
        assert stubs
        for stub in stubs:
            os.kill(stub, signal.SIGKILL)
        calls = load.calls()
        assert answered(calls) > 0
        refused = [call for call in calls if call.outputs is None]
        assert {call.status for call in refused} <= {0, 500, 504} and refused  # 0: its connection broke
        assert not any(trial.alive(server.http, timeout=5.0) for trial in server.tried)
        server.process.kill()  # it would wait for the dead process for as long as it may
    with serving(repository) as server:
        assert answered(classified(server.http, 4, requests=40)) == 40


def test_a_repository_that_does_not_load_says_why(repository: Path) -> None:
    (engine,) = (repository / CLASSIFIER / "1").glob("*.onnx")
    engine.write_bytes(b"no model")
    with pytest.raises(DeployError, match=engine.name), serving(repository):
        pass
