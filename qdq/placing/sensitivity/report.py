"""The report of `qdq sensitivity`: each point and group run alone and left out alone; resumable, ranked, drawn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qdq.base.artifacts import read_json, sha256_json, write_json
from qdq.base.picture import new_figure, save_figure
from qdq.base.types import Progress
from qdq.placing.sensitivity.probe import Probe, Trial
from qdq.placing.units import groups, kind_of, layer_of, part_of


class Journal:
    """Finished trials in a file, so that an interrupted study goes on where it was. Another study's are ignored."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path, self._identity = path, sha256_json(dict(identity))
        found = read_json(path) if path.is_file() else {}
        self._trials: dict[str, dict[str, Any]] = found["trials"] if found.get("study") == self._identity else {}

    def of(self, name: str, run: Callable[[], Trial]) -> dict[str, Any]:
        """The trial called `name`, from the file or run now."""
        if name not in self._trials:
            self._trials[name] = asdict(run())
            write_json(self._path, {"study": self._identity, "trials": self._trials})
        return self._trials[name]

    def close(self) -> None:
        """Remove the file: the study is whole."""
        self._path.unlink(missing_ok=True)


def study(probe: Probe, journal: Journal, metric: bool, source: str, progress: Progress) -> dict[str, Any]:
    """Run or resume every trial; returns the content of sensitivity.json, most damaging rows first.

    ``alone`` is with everything else in floating point; ``without``, with everything else quantized; ``gain``, what
    leaving only this out takes off the divergence of all; ``snr_db``, of the tensor, or of the worst one in a group.
    """

    def trial(name: str, enabled: Collection[str]) -> dict[str, Any]:
        return journal.of(name, lambda: probe.trial(enabled, metric))

    everything, grouped = frozenset(probe.names), groups(probe.names)
    done = itertools.count(1)
    # Both ends of the scale, and the noise of each tensor.
    floating, whole = trial("floating", ()), trial("everything", everything)
    noise = probe.signal_to_noise()

    def row(name: str, points: Collection[str], kind: str, layer: int | None) -> dict[str, Any]:
        alone, without = trial(f"alone {name}", points), trial(f"without {name}", everything.difference(points))
        found: dict[str, Any] = {"name": name, "kind": kind, "layer": layer, "points": len(points)}
        found |= {"alone": alone, "without": without, "snr_db": min(noise[point] for point in points)}
        found |= {"damage": alone["divergence"], "gain": whole["divergence"] - without["divergence"]}
        if floating["metric"] is not None:
            found["metric_damage_points"] = 100 * (floating["metric"] - alone["metric"])
            found["metric_gain_points"] = 100 * (without["metric"] - whole["metric"])
        progress(next(done), len(everything) + len(grouped))
        return found

    # Every point, then every group.
    points = [row(name, (name,), kind_of(name), layer_of(name)) for name in probe.names]
    sets = [row(name, members, "group", None) for name, members in grouped.items()]
    return {
        "samples": probe.samples,
        "source": source,
        "divergence": whole["kind"],
        "floating": floating,
        "everything": whole,
        "points": sorted(points, key=lambda entry: -entry["damage"]),
        "groups": sorted(sets, key=lambda entry: -entry["damage"]),
    }


def plot(report: Mapping[str, Any], path: Path) -> Path:
    """Draw a PNG: a cell per part and layer, coloured by damage, and the ranked damage of all points beside it.

    Raises DeployError when the file cannot be written.
    """
    from matplotlib.colors import LogNorm

    cells = {(f"{part_of(e['name'])} · {kind_of(e['name'])}", e["layer"] or 0): e["damage"] for e in report["points"]}
    parts, layers = (sorted(set(labels)) for labels in zip(*cells, strict=True))
    smallest = max(min((value for value in cells.values() if value > 0), default=0.0), 1e-9)  # the axes are logarithmic
    grid = [[max(cells.get((part, layer), smallest), smallest) for layer in layers] for part in parts]
    # Left: the damage of each part in each layer.
    figure = new_figure(12, 0.28 * len(parts) + 2)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    image = left.imshow(
        grid, aspect="auto", cmap="viridis", norm=LogNorm(smallest, max(max(map(max, grid)), 2 * smallest))
    )
    left.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    left.set_yticks(range(len(parts)), parts, fontsize=7)
    left.set_xlabel("encoder layer")
    left.set_title("damage of quantizing one point alone")
    figure.colorbar(image, ax=left, label=f"divergence ({report['divergence']})")
    # Right: all points by damage, beside all of them at once.
    damages = [max(entry["damage"], smallest) for entry in report["points"]]
    right.semilogy(range(1, len(damages) + 1), damages, ".-", markersize=4, label="one point alone")
    whole = max(report["everything"]["divergence"], smallest)
    right.axhline(whole, color="tab:red", label="all points")
    right.set_xlabel("points, most damaging first")
    right.set_title("ranked")
    right.grid(visible=True, alpha=0.3)
    right.legend()
    return save_figure(figure, path)
