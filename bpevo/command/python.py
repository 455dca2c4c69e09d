"""Searches and evaluations from Python, a notebook above all: the commands' flags as arguments, their results as objects."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import flags
from rich.console import Console

from bpevo.command import definitions, evaluating, plans, process, searching
from bpevo.command.jax_setup import FIXED
from bpevo.report.opened import Opened
from bpevo.rules.text import suggestion


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
        try:
            values([type(self).__name__, *(f"--{name}={_text(value)}" for name, value in given.items())])
        except flags.Error as error:
            raise plans.UsageError(str(error)) from error
        return values


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
        interruption = process.Interruption()
        with _settled_jax(), interruption.installed():
            searching.run(plans.search_command(self._values()), Console(), interruption)
        return open(self.workdir)


class Evaluation(_Command):
    """An evaluation, as `python -m bpevo.evaluate`.

    Args:
      workdir: folder of a search, whose best rules and settings it takes; or any, with `rules`.
      **settings: the command's flags by name, such as `rules=["unit_fro(g)", "fa"]`, `repeats=10`, `scenario="wider"`.
    """

    _definitions = (definitions.define_common, definitions.define_evaluation)

    def run(self) -> Opened:
        """Tunes, selects and tests, with progress; as Search.run."""
        interruption = process.Interruption()
        with _settled_jax(), interruption.installed():
            command = plans.evaluation_command(self._values())
            evaluating.run(command, Console(), interruption)
        return open(command.folder)


def open(folder: str | os.PathLike) -> Opened:
    """The run in a folder, of a search or an evaluation, to look at: see bpevo.report.opened.Opened. Raises RunError."""
    return Opened(folder)


def _text(value: Any) -> str:
    if isinstance(value, str | bytes | os.PathLike) or not isinstance(value, Sequence):
        return os.fsdecode(value) if isinstance(value, os.PathLike | bytes) else str(value)
    texts = [str(v) for v in value]
    # Rules hold commas; every other list is one of names or numbers.
    return ";".join(texts) if any("(" in t or "," in t for t in texts) else ",".join(texts)


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
