"""`qdq auto`: a configuration file's steps, or without one the strategy that is found by measuring engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from qdq.auto.search.settings import SearchSettings
from qdq.base.option import flag, option
from qdq.errors import ConfigError

if TYPE_CHECKING:
    from qdq.auto.config import Configuration
    from qdq.base.screen import Screen

NEEDED = ("model", "train", "dev")  # of a search without a configuration
OF_GLOBAL = (*NEEDED, "task")  # a configuration's Global names them


@dataclass(frozen=True)
class AutoOptions:
    """Options of `qdq auto` beside those of a search, as typed."""

    config_path: str | None = option(
        None, "YAML file: model, data and steps (default: search for the fastest engine)", metavar="FILE"
    )
    eval: bool = option(False, "score the configuration's model as it is, and end")


def auto(typed: Mapping[str, Any], as_json: bool, screen: Screen) -> str:
    """Do what was typed; returns the text for standard output. Raises QdqError."""
    own = {declared.name for declared in fields(AutoOptions)}
    options = AutoOptions(**{name: value for name, value in typed.items() if name in own})
    searching = {name: value for name, value in typed.items() if name not in own}
    if options.config_path is None:
        if options.eval:
            raise ConfigError("--eval scores the model of a configuration; give --config-path FILE")
        if missing := [name for name in NEEDED if name not in searching]:
            raise ConfigError(f"{flag(missing[0])} is missing; give {', '.join(map(flag, NEEDED))}, or --config-path")
        return _searched(SearchSettings(**searching), as_json, screen)
    return _configured(options, options.config_path, searching, as_json, screen)


def _configured(options: AutoOptions, path: str, typed: Mapping[str, Any], as_json: bool, screen: Screen) -> str:
    """Do as a configuration file asks."""
    from qdq.auto.command import evaluate_file, run_file
    from qdq.auto.config import read_config
    from qdq.base.artifacts import to_json

    # The model alone, or what is configured
    save_dir = typed.get("save_dir", SearchSettings.save_dir)
    asked = [name for name in typed if name != "save_dir"]
    configuration = read_config(path, needs_model=True)
    measured = not configuration.strategies and (asked or not configuration.train)
    if not measured or options.eval:
        if asked:
            raise ConfigError(f"{flag(asked[0])} is of a search, and {path} says what is done; leave it out")
        if options.eval:
            found = evaluate_file(path, screen)
            return to_json(found) if as_json else "".join(f"{name}: {value:.4f}\n" for name, value in found.items())
        result = run_file(path, save_dir, screen)
        return to_json(result.as_json()) if as_json else f"{result.folder}\n"
    # Nothing is: a search with its model and data
    return _searched(settings_of(configuration, typed), as_json, screen)


def settings_of(configuration: Configuration, typed: Mapping[str, Any]) -> SearchSettings:
    """A search for the model and the data of a configuration without strategies.

    Raises ConfigError for what both name, and for keys of TrainConfig, which a search decides.
    """
    from qdq.auto.inputs.data import place_of
    from qdq.auto.inputs.models import find_model

    options, where = configuration.model, configuration.where
    assert options is not None  # read with needs_model
    for name in OF_GLOBAL:
        if name in typed:
            raise ConfigError(f"{flag(name)}: Global of {where} names it; leave one of them out")
    if configuration.train is not None:
        raise ConfigError(
            f"{where}: TrainConfig: a search trains in its own way; leave the section out, or all options but "
            "--config-path and --save-dir"
        )
    source = find_model(options.model_dir, options.model_filename, options.params_filename, f"{where}: model_dir")
    if source.onnx:
        raise ConfigError(f"{where}: Global: {source.name} is an ONNX file; a search needs a checkpoint folder")
    values = {"model": source.name, "train": place_of(options, "train"), "dev": place_of(options, "dev")}
    return SearchSettings(**{**values, "sequence": options.max_seq_length, **typed})


def _searched(settings: SearchSettings, as_json: bool, screen: Screen) -> str:
    from qdq.auto.search.command import search
    from qdq.base.artifacts import to_json

    report = search(settings, screen)
    return to_json(report) if as_json else f"{report['deployed']}\n"
