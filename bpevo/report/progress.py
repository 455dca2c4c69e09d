"""Live progress of a search and of an evaluation: a panel in a terminal that can move its cursor, a line that is written anew
in a notebook, plain lines elsewhere."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bpevo.rules import without_idle
from bpevo.runs import Row
from bpevo.search import Search
from bpevo.workers import Stage

COMPILING = "compiling the training program"
OF_PROPOSALS = (Stage.TRIAL, Stage.SEARCH, Stage.CONFIRMATION)
LINE_SECONDS = 10.0  # between plain lines
NOTEBOOK_SECONDS = 0.5  # between changes of a notebook's line


class NotebookLine:
    """One output of a notebook's cell, written anew in its place, at most every NOTEBOOK_SECONDS."""

    def __init__(self, line: str):
        from IPython.display import display  # a notebook has it

        self._last, self._line = time.monotonic(), line
        self._handle = display({"text/plain": line}, raw=True, display_id=True)

    def show(self, line: str) -> None:
        self._line = line
        if time.monotonic() - self._last > NOTEBOOK_SECONDS:
            self.catch_up()

    def catch_up(self) -> None:
        """Shows the last line, whenever the one before was shown."""
        self._last = time.monotonic()
        self._handle.update({"text/plain": self._line}, raw=True)


class Progress:
    """Watches a Search. Without a panel it prints a line at most every LINE_SECONDS, and one per new best rule."""

    def __init__(self, console: Console):
        self._console = console
        self._live: Live | None = None
        self._written: NotebookLine | None = None
        self._start, self._last, self._trained = time.monotonic(), -math.inf, 0
        self._stage, self._best, self._notice = COMPILING, -1.0, ""
        self._facts: dict[str, str] = {}

    @contextlib.contextmanager
    def running(self) -> Iterator["Progress"]:
        """Shows the panel, or says that it begins."""
        if self._console.is_jupyter:
            self._written = NotebookLine(f"{self._stage} …")
            try:
                yield self
            finally:
                self._written.catch_up()
            return
        # FORCE_COLOR makes a file a terminal to rich; cursor codes are for real ones.
        if not (self._console.is_interactive and self._console.file.isatty()):
            self._console.print(f"{self._stage} …")
            yield self
            return
        try:
            with Live(get_renderable=self._panel, console=self._console, refresh_per_second=4) as self._live:
                yield self
        finally:
            self._live = None

    def notice(self, line: str) -> bool:
        """Shows `line` below the panel, which would wipe what others write; False without a panel.

        For a signal handler: nothing is written before the panel's own next refresh.
        """
        self._notice = line
        return self._live is not None

    def __call__(self, search: Search, rows: Sequence[Row]) -> None:
        if self._stage == COMPILING:
            self._stage = Stage.SEARCH
        for row in rows:
            self._stage = row.stage
        self._trained += sum(row.stage in OF_PROPOSALS for row in rows)
        self._facts = self._told(search)
        if self._live:
            return
        line = ", ".join(f"{k} {v}" for k, v in self._facts.items() if v)
        if self._written:
            self._written.show(line)
            return
        best = search.best[1] if search.best else None
        new = best is not None and best > self._best
        if new or time.monotonic() - self._last > LINE_SECONDS:
            self._last, self._best = time.monotonic(), self._best if best is None else max(self._best, best)
            self._console.print(Text(line), soft_wrap=True)

    def _told(self, search: Search) -> dict[str, str]:
        """What the search's running figures say; costs the same however long it has run."""
        elapsed = time.monotonic() - self._start
        rate = self._trained / elapsed
        left = search.plan.max_evaluations - search.done  # trials that diverge everywhere spare a training
        best, drawn = search.best, len(search.proposals)
        backprop = [found for name in search.plan.networks.names if (found := search.control("backprop", name))]
        tries = max(1, drawn + search.infeasible + search.duplicates)
        return {
            "stage": self._stage,
            "evaluations": f"{search.done} of {search.plan.max_evaluations} ({3600 * rate:,.0f}/h)",
            "time left": f"{left / rate / 60:.1f} min" if rate and left > 0 else "",
            "best": f"{100 * best[1]:.2f} % {without_idle(best[0].to_expression())}" if best else "",
            "backprop": " / ".join(f"{100 * accuracy:.2f} % (learning rate {rate:g})" for rate, accuracy in backprop),
            "failures": "; ".join(f"{n} {reason}" for reason, n in search.failures.most_common()),
            "draws": f"{drawn} drawn, {search.infeasible / tries:.0%} infeasible, {search.duplicates / tries:.0%} duplicate",
            "occupancy": f"{search.occupancy:.0%} of slots",
        }

    def _panel(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        for name, value in (self._facts or {"stage": self._stage}).items():
            grid.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
        if self._notice:
            grid.add_row("", Text(self._notice, style="bold"))
        return grid


class Stages:
    """Watches an Evaluation: a line at most every LINE_SECONDS, and one at the end of each stage; in a notebook one a stage."""

    def __init__(self, console: Console):
        self._console = console
        self._written: NotebookLine | None = None
        self._stage, self._start, self._last, self._trained = "", 0.0, -math.inf, 0

    def __call__(self, stage: str, done: int, wanted: int, rows: Sequence[Row]) -> None:
        now = time.monotonic()
        begins = stage != self._stage
        if begins:
            self._stage, self._start, self._trained = stage, now, 0
        self._trained += len(rows)
        seconds = (now - self._start) / self._trained * (wanted - done) if self._trained and now > self._start else 0.0
        left = f", {seconds / 60:.1f} min left" if seconds else ""
        last = f"; {rows[-1].equation}" if rows else ""
        line = f"{stage}: {done} of {wanted} trainings{left}{last}"
        if self._console.is_jupyter:
            if begins or not self._written:
                self._written = NotebookLine(line)
            self._written.show(line)
            if done >= wanted:
                self._written.catch_up()
        elif now - self._last >= LINE_SECONDS or done >= wanted:
            self._last = now
            self._console.print(Text(line), soft_wrap=True)
