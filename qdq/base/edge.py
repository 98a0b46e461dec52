"""The edge of every program here: a parser of flags, and one message and exit code for every error."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from qdq.base.alike import alike
from qdq.base.interrupt import Interrupts
from qdq.errors import ConfigError, QdqError, Unavailable

DONE, FAILED, USAGE, AS_FAR_AS_POSSIBLE, INTERRUPTED = 0, 1, 2, 3, 130
WIDTH = 80
MISSING = "the following arguments are required"  # argparse's words


class Format(argparse.RawDescriptionHelpFormatter):
    """Help at the same width everywhere, with room for the longest option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=WIDTH, max_help_position=24)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """argparse with the project's error form: one message, the nearest valid word, exit code 2."""

    list_all = "--help"  # the option whose help has every option
    first = "--name value"  # how a word is written that stands without an option's name
    elsewhere: Mapping[str, Sequence[str]] = {}  # options as other tools call them

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": Format, "allow_abbrev": False, **settings})
        self._words: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, which reports what is missing before what it does not know."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse; a word that nothing takes is answered with the nearest option."""
        parsed, extra = self.parse_known_args(args, namespace)
        if extra:
            self.unknown(extra)
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage; `run_program` prints the one message."""
        if message.startswith(MISSING):  # what is missing may be there under another name
            flags = [word.partition("=")[0] for word in self._words if word.startswith("--")]
            strange = (flag for flag in flags if flag not in self._option_string_actions)
            if named := next((flag for flag in strange if self._alike(flag)), None):
                self.unknown([named])
        raise ConfigError(f"{message.removeprefix('argument ')}; see '{self.prog} --help'")

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Raise for words no option or command takes."""
        word = words[0].partition("=")[0]
        if not word.startswith("-"):
            raise ConfigError(
                f"unexpected argument '{word}'; options are written {self.first}, see '{self.prog} --help'"
            )
        found = [f"'{option}'" for option in self._alike(word)]
        hint = f"did you mean {' or '.join(found)}? " if found else ""
        raise ConfigError(f"unknown option {word}; {hint}'{self.prog} {self.list_all}' lists all")

    def _alike(self, word: str) -> list[str]:
        """Options that an unknown one may stand for."""
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        return alike(word, options, self.elsewhere)


def run_script(script: Callable[[], Any]) -> int:
    """Run a script's main function with the messages, warnings and exit codes of `qdq`; returns the exit code."""

    def run() -> int:
        from qdq.base.screen import Screen, logged_to  # here, where Ctrl-C is handled already

        with logged_to(Screen()):
            script()
        return DONE

    return run_program(run, last=True)


def run_program(run: Callable[[], int], last: bool) -> int:
    """Run something with Ctrl-C handled; `last`: the process ends afterwards. Returns the exit code."""
    interrupts = Interrupts()
    code = INTERRUPTED
    try:
        interrupts.start()
        code = _guarded(run, interrupts)
    except KeyboardInterrupt:  # another one while the first was being reported
        pass
    finally:
        interrupts.over = True
        interrupts.ignore() if last else interrupts.restore()
    return code


def _guarded(run: Callable[[], int], interrupts: Interrupts) -> int:
    """Run something; every error becomes one message and an exit code."""
    try:
        return run()
    except KeyboardInterrupt:
        return _interrupted(interrupts)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit flush does not raise again
        return FAILED
    except Exception as error:  # the edge: a bug still ends in one message; the traceback is there on request
        if interrupts.received:
            return _interrupted(interrupts)
        if os.environ.get("QDQ_TRACEBACK"):
            raise
        message, code = _explain(error)
        _complain(message)
        return code


def _interrupted(interrupts: Interrupts) -> int:
    interrupts.over = True
    _complain("interrupted; whole files were kept, run again to continue")
    return INTERRUPTED


def _explain(error: Exception) -> tuple[str, int]:
    if isinstance(error, Unavailable):
        return str(error), AS_FAR_AS_POSSIBLE
    if isinstance(error, QdqError):
        return str(error), USAGE if isinstance(error, ConfigError) else FAILED
    if isinstance(error, MemoryError):
        return "out of memory; give a smaller --batch (BATCH=), --sequence (SEQ=) or --samples", FAILED
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; free space, or check the rights of the folders in use", FAILED
    name = type(error).__name__
    return (
        f"internal error, {name}: {error}; please report it with the output of the same command under QDQ_TRACEBACK=1",
        FAILED,
    )


def _complain(message: str) -> None:
    text = f"qdq: {message}"
    if sys.stderr.isatty():
        from qdq.base.screen import wrap

        text = wrap(text, 2)
    print(text, file=sys.stderr)
