"""The leaderboard: found rules beside backprop and the zero-signal control, on fresh seeds where there are some.

Over several networks a cell holds what a rule did on each, in their order.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence

from bpevo.evaluation.significance import Summary, summary
from bpevo.evolution import ONE, Networks, at_edge
from bpevo.evolution.kinds import BACKPROP, SCALED, kind
from bpevo.report.terminal import Line, TextTable
from bpevo.rules import NAMED, parse, without_idle
from bpevo.runs import Row, Rows, fittest, ranked
from bpevo.search import CONTROL_KEYS, CONTROLS
from bpevo.workers import Stage

BOARD_COLUMNS = ("lr", "search %", "fresh %", "n", "vs backprop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeaderboardRow:
    """Accuracies in %. `fresh` are those of the seeds that the search has not seen."""

    label: str  # name of a control
    equation: str  # without idle genes
    kind: str  # of bpevo.evolution.kinds; empty for a control
    proposal: int | None  # id of the search's proposal
    learning_rate: float | None  # None: not trained yet
    rates: int  # learning rates that were tried
    at_edge: bool  # the best of several rates is the smallest or largest of them
    search: float | None  # of one that was confirmed the mean of two seeds
    fresh: tuple[float, ...]
    diverged: int  # of the fresh seeds
    difference: Summary | None  # of fresh seeds to backprop's of the same number
    status: str
    on: tuple[LeaderboardRow, ...] = ()  # over several networks: what it did on each, as far as it trained there

    @property
    def each(self) -> tuple[LeaderboardRow, ...]:
        """By network; on one the row itself."""
        return self.on or (self,)

    @property
    def mean(self) -> float | None:
        return summary(self.fresh).mean if self.fresh else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the fresh seeds."""
        return summary(self.fresh).deviation if len(self.fresh) > 1 else None


def leaderboard(rows: Rows, top: int, rates: Sequence[float] = (), networks: Networks = ONE) -> list[LeaderboardRow]:
    """Controls and the `top` rules of a search, best first: by fresh seeds where trained, else by the search's accuracy.

    What diverged on a fresh seed stands below all that did not. A control that an early interrupt left without a result has
    a row that says so. Over several networks the means of fresh seeds count as the search's accuracies do.

    Args:
      rows: of the run, as they rank (bpevo.runs.judged).
      top: rules that are shown.
      rates: the learning rates of the run, from which the controls' grids grew; empty: those that were tried.
      networks: of the run.
    """
    of_control = rows.of(stage=Stage.CONTROL, network="")
    controls = {e.equation: e for e in of_control} | fittest(of_control)
    found = itertools.islice(ranked(rows.of(stage=Stage.SEARCH), CONTROL_KEYS), top)
    by_function = {str(parse(text)): row for text, row in controls.items()}
    backprop = by_function.get(NAMED["backprop"])
    board = [_untrained(text, name) for text, name in _LABELS.items() if text not in by_function]
    on_each = [rows.trainings.of(network=name) for name in networks.names]
    baselines = [_fresh(own, _member(backprop, i)) if backprop else {} for i, own in enumerate(on_each)]
    for e in [*controls.values(), *found]:
        each = [
            _row(on_each[i], member, baselines[i] if e is not backprop else {}, rates)
            for i, member in enumerate(e.members or (e,))
        ]
        board.append(_together(e, each, networks, baselines) if networks.several else each[0])
    return sorted(board, key=_order, reverse=True)


_LABELS = {NAMED[name]: name for name in CONTROLS}
_Fresh = Mapping[int, float | None]  # accuracies by replicate


def _member(e: Row, place: int) -> Row:
    return e.members[place] if e.members else e


def _row(rows: Rows, e: Row, baseline: _Fresh, rates: Sequence[float]) -> LeaderboardRow:
    """A rule on one network, whose rows these are; `baseline`: of backprop there, empty for itself."""
    fresh = _fresh(rows, e)
    values = {seed: 100 * a for seed, a in fresh.items() if a is not None}
    pairs = [value - 100 * accuracy for seed, value in values.items() if (accuracy := baseline.get(seed)) is not None]
    failed = len(fresh) - len(values)
    own = rows.of(stage=Stage.CONTROL if e.stage == Stage.CONTROL else Stage.TRIAL, equation=e.equation)
    tried = {row.learning_rate: [row.accuracy] for row in own or rows.of(stage=e.stage, equation=e.equation)}
    edge = e.learning_rate in (min(tried), max(tried))
    if e.stage == Stage.CONTROL:
        edge = at_edge(rates or list(tried), tried)
    return LeaderboardRow(
        label=_LABELS[str(parse(e.equation))] if e.stage == Stage.CONTROL else "",
        equation=str(without_idle(parse(e.equation))),
        kind="" if e.stage == Stage.CONTROL else kind(without_idle(parse(e.equation))),
        proposal=e.proposal,
        learning_rate=e.learning_rate,
        rates=len(tried),
        at_edge=edge and len(tried) > 1,
        search=None if e.accuracy is None else 100 * e.accuracy,
        fresh=tuple(values.values()),
        diverged=failed,
        difference=summary(pairs) if len(pairs) > 1 else None,
        status=e.reason or (f"{failed} of {len(fresh)} diverged" if failed else ""),
    )


def _together(
    e: Row, each: Sequence[LeaderboardRow], networks: Networks, baselines: Sequence[_Fresh]
) -> LeaderboardRow:
    """What a rule did on several networks, in one row."""
    means = [row.mean / 100 for row in each if row.mean is not None]
    level = [statistics.fmean(a or 0.0 for a in baseline.values()) for baseline in baselines if baseline]
    measured = len(means) == len(level) == len(networks.names)
    status = [f"{row.status} on {name}" for name, row in zip(networks.names, each, strict=False) if row.status]
    return dataclasses.replace(
        each[0],
        at_edge=any(row.at_edge for row in each),
        search=None if e.accuracy is None else 100 * e.accuracy,
        fresh=(100 * networks.fitness(means, level),) if measured else (),
        diverged=sum(row.diverged for row in each),
        difference=None,
        status="; ".join(status),
        on=tuple(each),
    )


def _order(row: LeaderboardRow) -> tuple:
    return (
        row.mean is not None and not row.diverged,
        row.mean is not None,
        row.search or 0.0 if row.mean is None else row.mean,
    )


def _fresh(rows: Rows, e: Row) -> dict[int, float | None]:
    """Accuracies on fresh seeds at the rate that was chosen, by replicate."""
    chosen = rows.of(stage=Stage.SELECTION, equation=e.equation, learning_rate=e.learning_rate)
    return {row.replicate: row.accuracy for row in chosen}


def _untrained(text: str, name: str) -> LeaderboardRow:
    return LeaderboardRow(
        label=name, equation=text, kind="", proposal=None, learning_rate=None, rates=0, at_edge=False, search=None,
        fresh=(), diverged=0, difference=None, status="not trained yet",
    )  # fmt: skip


def board_cells(row: LeaderboardRow) -> list[str]:
    """The texts of BOARD_COLUMNS; over several networks with one for each, and the search's accuracy over all before them."""
    on_each = [" / ".join(texts) if any(texts) else "" for texts in zip(*map(_cells, row.each), strict=True)]
    if row.on and row.search is not None:
        on_each[1] = f"{row.search:.2f} ({on_each[1]})"
    return on_each


def _cells(row: LeaderboardRow) -> list[str]:
    spread = "" if row.deviation is None else f" ± {row.deviation:.2f}"
    difference = "" if row.difference is None else f"{row.difference.mean:+.1f} ± {row.difference.margin:.1f}"
    return [
        "" if row.learning_rate is None else f"{row.learning_rate:g}{'*' if row.at_edge else ''}",
        "" if row.search is None else f"{row.search:.2f}",
        "" if row.mean is None else f"{row.mean:.2f}{spread}",
        str(len(row.fresh) or ""),
        difference,
    ]


def name(row: LeaderboardRow) -> str:
    """The equation with a control's name before it and its kind and status after it."""
    text = f"{row.label}: {row.equation}" if row.label else row.equation
    return text + (f"  [{row.kind}]" if row.kind else "") + (f"  ({row.status})" if row.status else "")


def plain(row: LeaderboardRow) -> tuple:
    """For the database's table `leaderboard`."""
    seeds = min(len(on_one.fresh) for on_one in row.each)
    difference = None if row.difference is None else row.difference.mean
    return row.equation, row.label, row.kind, row.learning_rate, row.search, row.mean, seeds, difference


def table(board: Sequence[LeaderboardRow], title: str) -> TextTable:
    """For the terminal."""
    lines = [Line(name(row), board_cells(row), "bold" if row.label else "") for row in board]
    return TextTable(title, "equation", BOARD_COLUMNS, lines)


def remarks(board: Sequence[LeaderboardRow], held_out: int, chosen_by: int) -> list[str]:
    """How (not) to read a leaderboard, in sentences.

    Args:
      board: from `leaderboard`.
      held_out: validation examples of the fresh seeds, which the search never used; 0: an older run, which used all.
      chosen_by: validation examples by which the search chose; 0: unknown.
    """
    said = [
        f"search %: on the {f'{chosen_by:,} ' if chosen_by else ''}validation examples that chose the rule, so it flatters."
        + (f" fresh %: on {held_out:,} others, mean ± sample deviation over n fresh seeds." if held_out else "")
        + " vs backprop: paired by seed, ± half the 95 % interval. [ ]: what a rule keeps of backprop's signal."
    ]
    backprop = next((row for row in board if row.label == "backprop"), None)
    rules = [row for row in board if not row.label]
    if not backprop or backprop.learning_rate is None or not rules:
        return said
    above = [row for row in itertools.takewhile(lambda row: row is not backprop, board) if not row.label]
    if backprop.on:
        said.append(
            "a / b: on the networks of the title, in their order. search %: before the brackets what the accuracies come to "
            "over all of them, to be compared with backprop's there; rows stand in the order of the same for fresh seeds."
        )
    scaled = [row for row in above if row.kind.removesuffix(" + noise") in (SCALED, BACKPROP)]
    if scaled:
        said.append(
            f"{len(scaled)} of the {len(above)} rules above backprop only rescale its signal: that is a learning rate, no find."
        )
    edges = [row for row in board if row.at_edge]
    if edges:
        said.append(f"* the best learning rate of {len(edges)} rows lies at the edge of those tried.")
    own, of_backprop = ({row.rates for r in some for row in r.each} for some in (rules, [backprop]))
    if own != of_backprop:
        said.append(
            f"No verdict: rules had {_span(own)} learning rate{'s' * (max(own) > 1)}, backprop {_span(of_backprop)}. Only "
            "bpevo.evaluate tunes all alike."
        )
    return said


def _span(numbers: set[int]) -> str:
    return " to ".join(str(n) for n in sorted({min(numbers), max(numbers)}))
