"""The edge of every program here: a parser of flags, and one message and exit code for every error."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from qdq.base.interrupt import Interrupts
from qdq.errors import ConfigError, QdqError, Unavailable

DONE, FAILED, USAGE, AS_FAR_AS_POSSIBLE, INTERRUPTED = 0, 1, 2, 3, 130
WIDTH = 80
SUGGESTED, ALIKE = 3, 0.75  # most options that a message about a misspelled one names, and difflib's least likeness


class Format(argparse.RawDescriptionHelpFormatter):
    """Help at the same width everywhere, with room for the longest option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=WIDTH, max_help_position=24)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """argparse with the project's error form: one message, the nearest valid word, exit code 2."""

    list_all = "--help"  # the option whose help has every option

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": Format, "allow_abbrev": False, **settings})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse; a word that nothing takes is answered with the nearest option."""
        parsed, extra = self.parse_known_args(args, namespace)
        if extra:
            self.unknown(extra)
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage; `run_program` prints the one message."""
        raise ConfigError(f"{message.removeprefix('argument ')}; see '{self.prog} --help'")

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Raise for words no option or command takes."""
        word = words[0].partition("=")[0]
        if not word.startswith("-"):
            raise ConfigError(
                f"unexpected argument '{word}'; options are written --name value, see '{self.prog} --help'"
            )
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        begun = [option for option in options if option.startswith(word)]
        alike = [f"'{option}'" for option in begun or difflib.get_close_matches(word, options, SUGGESTED, ALIKE)]
        hint = f"did you mean {' or '.join(alike[:SUGGESTED])}? " if alike else ""
        raise ConfigError(f"unknown option {word}; {hint}'{self.prog} {self.list_all}' lists all")


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
