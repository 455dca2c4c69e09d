"""Searches and evaluations from Python, a notebook above all: the commands' flags as arguments, their results as objects."""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from absl import flags
from rich.console import Console

from bpevo.command import definitions, evaluating, funnelling, plans, process, searching
from bpevo.command.jax_setup import FIXED
from bpevo.data import DataError
from bpevo.report.opened import Opened
from bpevo.rules.text import suggestion
from bpevo.runs import RunError
from bpevo.training import DeviceLost, OutOfMemory


class _Command:
    """A command with its settings; `run` does it, or goes on with it."""

    _definitions: Sequence[Callable[[flags.FlagValues], None]]

    def __init__(self, workdir: str | os.PathLike, **settings: Any):
        self.workdir, self.settings = os.fspath(workdir), settings

    def _values(self) -> flags.FlagValues:
        """The settings as flags. Raises TypeError for one that is not known, UsageError for a value that is none."""
        values = flags.FlagValues()
        for define in self._definitions:
            define(values)
        unknown = [name for name in self.settings if name not in values]
        if unknown:
            raise TypeError(f"{type(self).__name__} takes no {unknown[0]!r}; {suggestion(unknown[0], sorted(values))}")
        given = {"workdir": self.workdir} | {name: v for name, v in self.settings.items() if v is not None}
        texts = [f"--{name}={_text(value, _separator(values[name]))}" for name, value in given.items()]
        try:
            values([type(self).__name__, *texts])
        except flags.Error as error:
            raise plans.UsageError(str(error)) from None
        return values

    @contextlib.contextmanager
    def _started(self) -> Iterator[tuple[flags.FlagValues, Console, process.Interruption]]:
        """What a command runs with, in a process of one's own: jax and signals are as before afterwards."""
        if self.settings.get("max_hours") and threading.current_thread() is not threading.main_thread():
            raise plans.UsageError(
                "max_hours= ends a run by a signal, and those reach the main thread alone: run it there"
            )
        interruption = process.Interruption()
        with _errors_of_keywords(), _settled_jax(), interruption.installed():
            yield self._values(), _Console(), interruption


class Search(_Command):
    """A search, as `python -m bpevo.launch`.

    Args:
      workdir: folder of the run; where there is one already, it goes on.
      **settings: the command's flags by name: numbers, texts and lists, such as `dataset="digits"`,
        `learning_rates=[0.2, 0.05]`, `max_evaluations=200`.

    >>> import bpevo, tempfile
    >>> search = bpevo.Search(tempfile.mkdtemp(), dataset="digits", model="mlp-8", epochs=1, no_such_setting=3)
    >>> search.run()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    TypeError: Search takes no 'no_such_setting'; ...
    """

    _definitions = (definitions.define_common, definitions.define_search)

    def run(self) -> Opened:
        """Searches to the end, with progress; an interrupt keeps every finished training, and `run` again goes on.

        Raises TypeError or UsageError for settings that cannot be, DataError, RunError, OutOfMemory or DeviceLost.
        """
        with self._started() as (values, console, interruption):
            command = plans.search_command(values)
            searching.run(command, console, interruption)
        return open(command.workdir)


class Evaluation(_Command):
    """An evaluation, as `python -m bpevo.evaluate`.

    Args:
      workdir: folder of a search, whose best rules and settings it takes; or any, with `rules`.
      **settings: the command's flags by name, such as `rules=["unit_fro(g)", "fa"]`, `repeats=10`, `scenario="wider"`.
    """

    _definitions = (definitions.define_common, definitions.define_evaluation)

    def run(self) -> Opened:
        """Tunes, selects and tests, with progress; as Search.run."""
        with self._started() as (values, console, interruption):
            command = plans.evaluation_command(values)
            evaluating.run(command, console, interruption)
        return open(command.folder)


class Funnel(_Command):
    """A funnel, as `python -m bpevo.funnel`.

    Args:
      workdir: folder of a search, whose best rules climb; or any, with `rules`.
      **settings: the command's flags by name, such as `stages=["keep=20", "epochs=10 keep=5"]`, `top=50`.
    """

    _definitions = (definitions.define_common, definitions.define_evaluation, definitions.define_funnel)

    def run(self) -> Opened:
        """All stages, with progress; as Search.run. Returns the evaluation of the last one that has begun."""
        with self._started() as (values, console, interruption):
            commands = funnelling.funnel_commands(values)
            funnelling.climb(commands, values.max_hours, console, interruption)
        return open([command.folder for command in commands.values() if command.folder.exists()][-1])


def open(folder: str | os.PathLike) -> Opened:
    """The run in a folder, of a search or an evaluation, to look at: see bpevo.report.opened.Opened. Raises RunError."""
    with _errors_of_keywords():
        return Opened(folder)


def _separator(flag: flags.Flag) -> str:
    """Between the items of a list: rules hold commas."""
    return "," if isinstance(flag.parser, flags.ListParser) else ";"


def _text(value: Any, separator: str) -> str:
    if isinstance(value, str | bytes | os.PathLike):
        return os.fsdecode(value)
    return separator.join(map(str, value)) if isinstance(value, Iterable) else str(value)


def _keywords(text: str) -> str:
    """A message of a command, of flags, with keywords in their place; a whole command line stays.

    >>> _keywords("--epochs=0 must be at least 1; --noselfcheck runs in spite of it, or python -m bpevo.doctor --workdir=x")
    'epochs=0 must be at least 1; selfcheck=False runs in spite of it, or python -m bpevo.doctor --workdir=x'
    """

    def keyword(match: re.Match) -> str:
        command, negated, name = match.groups()
        return command or (f"{negated}=False" if negated else name)

    return re.sub(r"(python -m bpevo.*)|(?<![\w/-])(?:flag )?--(?:no([a-z]\w*)\b|([a-z]\w*))", keyword, text)


@contextlib.contextmanager
def _errors_of_keywords() -> Iterator[None]:
    try:
        yield
    except (plans.UsageError, DataError, RunError, OutOfMemory, DeviceLost) as error:
        error.args = tuple(_keywords(a) if isinstance(a, str) else a for a in error.args)
        raise


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(_keywords(o) if isinstance(o, str) else o for o in objects), **options)


@contextlib.contextmanager
def _settled_jax() -> Iterator[None]:
    """What decides numbers in jax is as the commands have it, and afterwards as it was."""
    before = {name: getattr(jax.config, name) for name in FIXED}
    try:
        for name, value in FIXED.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
