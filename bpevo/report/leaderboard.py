"""The leaderboard: found rules beside backprop and the zero-signal control, on fresh seeds where there are some."""

import dataclasses
import itertools
import statistics

from bpevo.report.terminal import Line, TextTable
from bpevo.rules import NAMED, parse, without_idle
from bpevo.runs import Rows, fittest, ranked
from bpevo.search import CONTROL_KEYS, CONTROLS
from bpevo.workers import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeaderboardRow:
    """Accuracies in %. `fresh` are those of the seeds that the search has not seen."""

    label: str  # name of a control, or place
    equation: str  # without idle genes
    learning_rate: float | None  # None: not trained yet
    search: float | None
    fresh: tuple[float, ...]
    cost: float | None  # epoch time over backprop's
    status: str

    @property
    def mean(self) -> float | None:
        return statistics.mean(self.fresh) if self.fresh else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the fresh seeds."""
        return statistics.stdev(self.fresh) if len(self.fresh) > 1 else None


def leaderboard(rows: Rows, costs: dict[str, float], top: int) -> list[LeaderboardRow]:
    """Controls and the `top` rules of a search, best first: by fresh seeds where trained, else by the search's accuracy.

    A control that an early interrupt left without a result has a row that says so.
    """
    controls = {e.equation: e for e in rows.of(stage=Stage.CONTROL)} | fittest(rows.of(stage=Stage.CONTROL))
    found = itertools.islice(ranked(rows.of(stage=Stage.SEARCH), CONTROL_KEYS), top)
    texts = {NAMED[name]: name for name in CONTROLS}
    missing = texts.keys() - {str(parse(text)) for text in controls}
    board = [
        LeaderboardRow(
            label=texts[text],
            equation=text,
            learning_rate=None,
            search=None,
            fresh=(),
            cost=None,
            status="not trained yet",
        )
        for text in texts
        if text in missing
    ]
    for e in [*controls.values(), *found]:
        fresh = rows.of(stage=Stage.SELECTION, equation=e.equation, learning_rate=e.learning_rate)
        failed = sum(f.accuracy is None for f in fresh)
        board.append(
            LeaderboardRow(
                label=texts[str(parse(e.equation))] if e.stage == Stage.CONTROL else "",
                equation=str(without_idle(parse(e.equation))),
                learning_rate=e.learning_rate,
                search=None if e.accuracy is None else 100 * e.accuracy,
                fresh=tuple(100 * f.accuracy for f in fresh if f.accuracy is not None),
                cost=costs.get(e.equation),
                status=e.reason or (f"{failed} of {len(fresh)} diverged" if failed else ""),
            )
        )
    return sorted(board, key=lambda r: (r.mean is not None, r.mean or r.search or 0.0), reverse=True)


def table(board: list[LeaderboardRow], title: str) -> TextTable:
    """For the terminal."""
    return TextTable(title, "equation", ("lr", "search %", "fresh seeds %", "n", "cost"), [_line(row) for row in board])


def _line(row: LeaderboardRow) -> Line:
    name = f"{row.label}: {row.equation}" if row.label else row.equation
    spread = "" if row.deviation is None else f" ± {row.deviation:.2f}"
    numbers = (
        "" if row.learning_rate is None else f"{row.learning_rate:g}",
        "" if row.search is None else f"{row.search:.2f}",
        "" if row.mean is None else f"{row.mean:.2f}{spread}",
        str(len(row.fresh) or ""),
        "" if row.cost is None else f"{row.cost:.2f}x",
    )
    return Line(name + (f"  ({row.status})" if row.status else ""), numbers, "bold" if row.label else "")
