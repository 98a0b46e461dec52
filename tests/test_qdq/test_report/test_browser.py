"""The page in a real headless Chromium: no console message, no request, nothing of a text runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from qdq.pipeline.stages.report import facts_of
from qdq.report.page import render

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless_shell")
BROWSER = os.environ.get("QDQ_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-zygote", "--single-process", "--enable-logging=stderr")
ATTACK = (
    "<script>document.title='broken'</script><img src='http://example.com/x.png' onerror=\"document.title='broken'\">"
)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH; QDQ_CHROMIUM can name one")
@pytest.mark.parametrize("width", [400, 1600])
def test_a_browser_shows_the_page_and_asks_nobody(workplace: Path, width: int) -> None:
    target = workplace / "work" / "onnxruntime"
    found = {"count": 1, "of": 2, "moved": [], "texts": [{"text": ATTACK, "fp32": ATTACK, "int8": ATTACK}]}
    (target / "disagreements.json").write_text(json.dumps(found), encoding="utf-8")
    page = workplace / "page.html"
    page.write_text(render(facts_of(workplace / "work", "onnxruntime")), encoding="utf-8")
    log = workplace / "net.json"
    profile = f"--user-data-dir={workplace / 'profile'}"
    command = [str(BROWSER), *FLAGS, profile, f"--window-size={width},900", f"--log-net-log={log}"]
    command += ["--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "<title>tiny-bert: onnxruntime</title>" in ran.stdout, ran.stderr
    assert "CONSOLE" not in ran.stderr, ran.stderr
    assert "&lt;script&gt;document.title" in ran.stdout and "<script" not in ran.stdout and "<img" not in ran.stdout
    asked = log.read_text(encoding="utf-8", errors="replace")
    assert "example.com" not in asked
