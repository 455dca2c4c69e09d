"""Several searches side by side: what each has reached while they run, and what each has found."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live

from bpevo.report.leaderboard import LeaderboardRow, board_cells, leaderboard, name
from bpevo.report.progress import LINE_SECONDS
from bpevo.report.terminal import Line, TextTable
from bpevo.runs import Glance, Rows, networks

OVERVIEW_COLUMNS = ("lr", "search %", "fresh %", "n", "vs backprop", "backprop %")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """The best rule of a search that is no control, beside its backprop."""

    search: str  # its name
    best: LeaderboardRow | None
    backprop: LeaderboardRow | None


def best_found(search: str, rows: Rows, settings: Mapping[str, Any], top: int = 10) -> Found:
    """From a search's rows as they rank; the best rule is that of its leaderboard, of so many rules."""
    board = leaderboard(rows, top, settings.get("learning_rates", ()), networks(settings))
    best = next((row for row in board if not row.label), None)
    return Found(search=search, best=best, backprop=next((row for row in board if row.label == "backprop"), None))


def overview_cells(row: Found) -> list[str]:
    """The texts of OVERVIEW_COLUMNS."""
    own = board_cells(row.best) if row.best else [""] * (len(OVERVIEW_COLUMNS) - 1)
    return [*own, board_cells(row.backprop)[2] or board_cells(row.backprop)[1] if row.backprop else ""]


def overview_table(rows: Sequence[Found], title: str) -> TextTable:
    """For the terminal: a line a search."""
    lines = [
        Line(f"{row.search}: {name(row.best) if row.best else 'nothing yet'}", overview_cells(row)) for row in rows
    ]
    return TextTable(title, "search: best rule", OVERVIEW_COLUMNS, lines)


@dataclasses.dataclass(kw_only=True)
class SearchState:
    """How far a search is."""

    state: str  # such as waiting, running, done
    planned: int  # trainings
    reached: Glance


class Searches:
    """Shows several searches: a table in a terminal that can move its cursor, else a line each at most every LINE_SECONDS."""

    def __init__(self, console: Console, states: Mapping[str, SearchState]):
        """`states`: by the search's name; they are read anew whenever they are shown."""
        self._console, self._states = console, states
        self._live: Live | None = None
        self._notice, self._last, self._said = "", 0.0, dict[str, str]()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        if not (self._console.is_interactive and self._console.file.isatty()):
            yield
            return
        try:
            with Live(get_renderable=self._table, console=self._console, refresh_per_second=4) as self._live:
                yield
        finally:
            self._live = None

    def notice(self, line: str) -> bool:
        """As that of Progress."""
        self._notice = line
        return self._live is not None

    def __call__(self) -> None:
        """Takes note of what has changed."""
        if self._live:
            return
        due = time.monotonic() - self._last > LINE_SECONDS
        for search, now in self._states.items():
            told = [f"{c} {n}" for c, n in zip(_COLUMNS[1:], _cells(now)[1:], strict=True) if n]
            line, before = f"{search}: {', '.join([now.state, *told])}", self._said.get(search, "")
            if line != before and (due or not before.startswith(f"{search}: {now.state}")):
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
                self._said[search] = line
        if due:
            self._last = time.monotonic()

    def _table(self) -> TextTable:
        lines = [Line(search, _cells(now)) for search, now in self._states.items()]
        return TextTable(self._notice or "searches", "search", _COLUMNS, lines)


_COLUMNS = ("state", "trainings", "best %", "backprop %")


def _cells(now: SearchState) -> list[str]:
    reached = now.reached
    shares = ("" if a is None else f"{100 * a:.2f}" for a in (reached.best, reached.backprop))
    return [now.state, f"{reached.trained:,} of {now.planned:,}" if reached.trained else "", *shares]
