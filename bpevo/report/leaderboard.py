"""The leaderboard: found rules beside backprop and the zero-signal control, on fresh seeds where there are some."""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable

from bpevo.report.terminal import Line, TextTable
from bpevo.rules import NAMED, parse, without_idle
from bpevo.runs import Row
from bpevo.search import CONTROLS


@dataclasses.dataclass(frozen=True)
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


def leaderboard(evaluations: list[Row], costs: dict[str, float], top: int) -> list[LeaderboardRow]:
    """Controls and the `top` rules of a search, best first: by fresh seeds where trained, else by the search's accuracy.

    A control that an early interrupt left without a result has a row that says so.
    """
    controls = _best(e for e in evaluations if e.stage == "control")
    known = {parse(NAMED[name]).key for name in CONTROLS}
    best = _best(e for e in evaluations if e.stage == "search" and e.accuracy is not None)
    # Ties go to the older proposal, as in Search.leaders.
    ranked = sorted(best.values(), key=lambda e: (*_fitness(e)[:2], -(e.proposal or 0)), reverse=True)
    found = itertools.islice((e for e in ranked if parse(e.equation).key not in known), top)
    texts = {NAMED[name]: name for name in CONTROLS}
    missing = texts.keys() - {str(parse(text)) for text in controls}
    rows = [
        LeaderboardRow(texts[text], text, None, None, (), None, "not trained yet") for text in texts if text in missing
    ]
    for e in [*controls.values(), *found]:
        fresh = [
            f for f in evaluations
            if (f.stage, f.equation, f.learning_rate) == ("selection", e.equation, e.learning_rate)
        ]  # fmt: skip
        failed = [f.reason for f in fresh if f.accuracy is None]
        status = e.reason or (f"{len(failed)} of {len(fresh)} diverged" if failed else "")
        accuracies = tuple(100 * f.accuracy for f in fresh if f.accuracy is not None)
        label = texts[str(parse(e.equation))] if e.stage == "control" else ""
        search = None if e.accuracy is None else 100 * e.accuracy
        readable = str(without_idle(parse(e.equation)))
        rows.append(LeaderboardRow(label, readable, e.learning_rate, search, accuracies, costs.get(e.equation), status))
    return sorted(rows, key=lambda r: (r.mean is not None, r.mean or r.search or 0.0), reverse=True)


def _best(evaluations: Iterable[Row]) -> dict[str, Row]:
    """The fittest training of each equation; ties go to the higher learning rate, as in the selection."""
    best: dict[str, Row] = {}
    for e in evaluations:
        if e.equation not in best or _fitness(e) > _fitness(best[e.equation]):
            best[e.equation] = e
    return best


def _fitness(e: Row) -> tuple[int, float, float]:
    return (e.rungs, e.accuracy, e.learning_rate) if e.accuracy is not None else (-1, 0.0, e.learning_rate)


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
