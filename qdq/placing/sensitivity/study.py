"""The whole study: every point and group quantized alone and left out alone, resumable, ranked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qdq.base.artifacts import sha256_json
from qdq.placing.sensitivity.groups import groups, kind_of, layer_of
from qdq.placing.sensitivity.probe import Probe, Trial

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Row:
    """One point or group.

    Attributes:
        name: point name, or group name.
        points: how many points it has.
        alone: everything else in floating point, so its own damage.
        without: everything else quantized, so what is left when it alone is floating point.
        snr_db: of its tensor; of the worst one in a group.
    """

    name: str
    kind: str
    layer: int | None
    points: int
    alone: Trial
    without: Trial
    snr_db: float


@dataclass(frozen=True)
class Study:
    """All rows, most damaging first, with nothing and everything quantized to compare with."""

    rows: tuple[Row, ...]
    groups: tuple[Row, ...]
    floating: Trial
    everything: Trial
    samples: int
    source: str

    def as_json(self) -> dict[str, Any]:
        """The content of sensitivity.json; `gain` is what leaving only it out takes off the divergence of all."""
        return {
            "samples": self.samples,
            "source": self.source,
            "divergence": self.everything.kind,
            "floating": asdict(self.floating),
            "everything": asdict(self.everything),
            "points": [self._row(row) for row in self.rows],
            "groups": [self._row(row) for row in self.groups],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        gain = self.everything.divergence - row.without.divergence
        found = {**asdict(row), "damage": row.alone.divergence, "gain": gain}
        if row.alone.metric is not None and self.floating.metric is not None and row.without.metric is not None:
            found["metric_damage_points"] = 100 * (self.floating.metric - row.alone.metric)
            found["metric_gain_points"] = 100 * (row.without.metric - (self.everything.metric or 0.0))
        return found


class Journal:
    """Finished trials on disk, one JSON line each, so that an interrupted study goes on where it was.

    A line that was cut off and a journal of another study are ignored.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path, self._identity = path, sha256_json(dict(identity))
        self._done = self._read()
        if not self._done:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"study": self._identity}) + "\n", encoding="utf-8")

    def _read(self) -> dict[str, Trial]:
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        found: dict[str, Trial] = {}
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if number == 0 and entry.get("study") != self._identity:
                return {}
            if "trial" in entry:
                found[entry["trial"]] = Trial(**entry["result"])
        return found

    def of(self, name: str, run: Callable[[], Trial]) -> Trial:
        """The trial called `name`, from disk or run now."""
        if name not in self._done:
            self._done[name] = run()
            with self._path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps({"trial": name, "result": asdict(self._done[name])}) + "\n")
        return self._done[name]

    def close(self) -> None:
        """Remove the file: the study is whole."""
        self._path.unlink(missing_ok=True)


def study(probe: Probe, journal: Journal, metric: bool, about: tuple[int, str], progress: Progress) -> Study:
    """Run or resume every trial. `about` is (samples, source) for the report."""
    everything = frozenset(probe.names)
    units = {name: (name,) for name in probe.names}
    grouped = groups(probe.names)
    total = 2 * (len(units) + len(grouped)) + 2
    floating = journal.of("floating", lambda: probe.trial((), metric))
    whole = journal.of("everything", lambda: probe.trial(everything, metric))
    probe.remember(everything)
    noise = probe.signal_to_noise()
    done = 2
    rows: dict[bool, list[Row]] = {True: [], False: []}
    for single, members in ((True, units), (False, grouped)):
        for name, points in members.items():
            chosen = frozenset(points)
            alone = journal.of(f"alone {name}", lambda chosen=chosen: probe.trial(chosen, metric))  # type: ignore[misc]
            rest = everything - chosen
            without = journal.of(f"without {name}", lambda rest=rest: probe.trial(rest, metric))  # type: ignore[misc]
            kind, layer = (kind_of(name), layer_of(name)) if single else ("group", None)
            snr = min(noise[point] for point in points)
            rows[single].append(Row(name, kind, layer, len(points), alone, without, snr))
            done += 2
            progress(done, total)
    ranked = {key: tuple(sorted(found, key=lambda row: -row.alone.divergence)) for key, found in rows.items()}
    return Study(ranked[True], ranked[False], floating, whole, *about)
