"""The order of what was trained: the one meaning of "best" above the controller.

A rule is as fit as its fittest training: rungs survived, then accuracy, the mean of it and its confirmation's where there is
one. Ties between trainings of a rule go to the higher learning rate, between rules to the older proposal.
"""

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from bpevo.evolution import Bars, first_bars, fitness, standing
from bpevo.rules import parse
from bpevo.runs.rows import Row, Rows
from bpevo.workers import Stage


def judged(rows: Iterable[Row], bars: Mapping[int, Bars], rung_epochs: Sequence[int]) -> Rows:
    """The rows as they rank: those whose proposal met no bar at a rung are held to the first one that came after it, and
    those that were confirmed have the mean accuracy.

    Args:
      rows: of a search; others stay as they are.
      bars: of each proposal, by id.
      rung_epochs: epochs of the run's rungs, rising.
    """
    first, rows = first_bars(bars[i] for i in sorted(bars)), Rows(rows)
    confirmed = {row.equation: row.accuracy for row in rows.of(stage=Stage.CONFIRMATION)}

    def rank(row: Row) -> Row:
        if row.proposal is None or row.stage != Stage.SEARCH:
            return row
        curve = [math.nan if v is None else v for v in row.curve["eval_accuracy"]]  # comes with divergence alone
        accuracy, rungs = standing(
            row.accuracy,
            row.rungs,
            curve=curve,
            rung_epochs=rung_epochs,
            bars=bars[row.proposal],
            first=first,
            confirmations=[confirmed[row.equation]] if row.equation in confirmed else [],
        )
        return dataclasses.replace(row, accuracy=accuracy, rungs=rungs)

    return Rows(map(rank, rows))


def fittest(rows: Iterable[Row]) -> dict[str, Row]:
    """The fittest training of each rule or treatment, in order of their first; those of which all diverged are left out."""
    best: dict[str, Row] = {}
    for row in rows:
        if row.accuracy is not None:
            old = best.setdefault(row.equation, row)
            best[row.equation] = max(old, row, key=lambda r: (fitness(r.accuracy, r.rungs), r.learning_rate))
    return best


def ranked(rows: Iterable[Row], without: Collection[str] = ()) -> Iterator[Row]:
    """The fittest training of each rule, best rule first; rules whose canonical key is in `without` are left out."""

    def order(row: Row):
        return fitness(row.accuracy, row.rungs), -(row.proposal or 0)

    for row in sorted(fittest(rows).values(), key=order, reverse=True):
        if not without or parse(row.equation).key not in without:
            yield row
