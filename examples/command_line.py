"""Command line of the compression scripts and of finetune.py: their own flags beside those of a TrainingArguments."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from qdq.base.config import load_mapping
from qdq.base.edge import Format, Parser
from qdq.compress import CompressionArguments
from qdq.errors import ConfigError

CONFIG = Path(__file__).with_name("config.yml")


@dataclass
class DataArguments:
    """Model and data of a compression script."""

    dataset: str = field(metadata={"help": 'hub data set such as "clue tnews", or a folder with train and dev files'})
    model_name_or_path: str = field(metadata={"help": "fine-tuned checkpoint: hub id or folder"})
    max_seq_length: int = field(default=128, metadata={"help": "longer texts are cut, longer contexts windowed"})
    max_answer_length: int = field(default=50, metadata={"help": "question answering: tokens of the longest answer"})
    doc_stride: int = field(default=128, metadata={"help": "question answering: tokens two windows share"})
    max_train_samples: int = field(default=0, metadata={"help": "use only the first so many; 0 is all"})
    max_eval_samples: int = field(default=0, metadata={"help": "use only the first so many; 0 is all"})
    text_columns: list[str] = field(
        default_factory=list, metadata={"help": "columns of the text and of its pair; none: detected"}
    )
    label_column: str | None = field(default=None, metadata={"help": "column of the label or tags; none: detected"})
    header: list[str] = field(
        default_factory=list, metadata={"help": "names of the columns of files without a header line"}
    )
    labels: list[str] = field(
        default_factory=list, metadata={"help": "names of the classes whose numbers the files hold, in order"}
    )


class WithDefaults(Format, argparse.ArgumentDefaultsHelpFormatter):
    """Help that names every default."""


class ScriptParser(Parser, HfArgumentParser):
    """A parser of dataclasses whose errors are those of `qdq`: one message, exit code 2."""

    def read(self, words: Sequence[str] | None = None) -> tuple[Any, ...]:
        """One instance of every dataclass. Raises ConfigError for what cannot be parsed."""
        given = list(sys.argv[1:] if words is None else words)
        self.parse_args(given)  # first: a word that nothing takes
        try:
            return tuple(self.parse_args_into_dataclasses(given))
        except ValueError as error:  # of transformers, for values that do not go together
            raise ConfigError(f"{str(error).splitlines()[0]}; see '{self.prog} --help'") from error


def parse(
    defaults: Mapping[str, Any],
    arguments: Sequence[str] | None = None,
    about: str | None = None,
    settings: type[Any] = CompressionArguments,
) -> tuple[DataArguments, Any]:
    """Parse the command line over `defaults` (flag name to value; batch_size stands for both batch sizes).

    `about` is printed by --help; `settings` is the dataclass of the second value. Raises ConfigError for what cannot be
    parsed.
    """
    both = (DataArguments, settings)
    parser = ScriptParser(dataclass_types=both, description=about, formatter_class=WithDefaults)
    values = dict(defaults)
    if "batch_size" in values:
        size = values.pop("batch_size")
        values |= {"per_device_train_batch_size": size, "per_device_eval_batch_size": size}
    words = list(sys.argv[1:] if arguments is None else arguments)
    if any(word.startswith("--activation_quantize_type") for word in words):
        values.pop("algo_list", None)  # abs_max and moving_average_abs_max are ranges by themselves
    known = {action.dest for action in parser._actions}
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"{CONFIG}: unknown flag '{unknown[0]}'; it must be one the script takes")
    parser.set_defaults(**values)
    data, chosen = parser.read(arguments)
    return data, chosen


def defaults_of(dataset: str) -> dict[str, Any]:
    """Read the flags that config.yml sets for a data set; a folder counts as the CLUE task of its name."""
    config = load_mapping(CONFIG)
    name = dataset if dataset in config else f"clue {Path(dataset).name.lower()}"
    return {**config["default"], **config.get(name, {})}


def typed(flag: str, arguments: Sequence[str] | None = None) -> str:
    """Read the value of a flag before the whole line can be parsed; "" without it."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for index, word in enumerate(words):
        if word.startswith(f"--{flag}="):
            return word.partition("=")[2]
        if word == f"--{flag}" and index + 1 < len(words):
            return words[index + 1]
    return ""
