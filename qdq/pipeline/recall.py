"""Options that a stage's own command takes over from the earlier run in its work directory, and those it may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from qdq.base.option import flag
from qdq.calibrate.algorithms import spelled_today
from qdq.errors import ConfigError
from qdq.pipeline.options import CompileOptions

ORDER = ("inject", "calibrate", "export", "lower", "variants", "build", "verify", "bench", "shapes", "deploy")
# Option -> the last stage that reads it. A later stage cannot change it: it starts from files that stage has written.
DECIDED_BY: Mapping[str, str | None] = {known.name: known.metadata["decided_by"] for known in fields(CompileOptions)}


def recalled(stage: str, typed: Mapping[str, Any], earlier: Mapping[str, Any]) -> CompileOptions:
    """Options of `qdq <stage>`: what is typed, else what the earlier run used, else the defaults.

    `earlier`: options as a manifest records them. Raises ConfigError for a typed option that an earlier stage has
    decided otherwise.
    """
    known: dict[str, Any] = {key: value for key, value in earlier.items() if key in DECIDED_BY}
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    if "calibrator" in known:
        known["calibrator"] = spelled_today(known["calibrator"], said=False)  # nobody typed it now
    for name in typed.keys() if earlier else ():
        decider, made = DECIDED_BY[name], known.get(name)
        if decider is not None and ORDER.index(stage) > ORDER.index(decider) and made != typed[name]:
            was = "its default" if made is None else f"'{made}'"
            raise ConfigError(
                f"{flag(name)}: this work directory was made with {was}, and '{typed[name]}' changes what "
                f"'qdq {decider}' wrote; run 'qdq compile' or 'qdq {decider}' with it"
            )
    if typed.keys() & {"placement", "spec"}:  # one takes the other's place
        known |= {"placement": None, "spec": None}
    if typed.get("model", known.get("model")) != known.get("model"):
        known |= {"placement": None, "spec": None, "task": None}  # chosen for the other model
    return CompileOptions(**{**known, **_cores_anew(typed, known), **typed})


def _cores_anew(typed: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return threads and streams to share the cores anew: one share ends when the other, or the mode, changes."""
    if typed.get("mode", known.get("mode")) != known.get("mode"):
        return {"threads": 0, "streams": 0}
    return {"streams": 0} if "threads" in typed else {"threads": 0} if "streams" in typed else {}
