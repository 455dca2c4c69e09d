"""The order of what was trained: the one meaning of "best" above the controller.

A rule is as fit as its fittest training: rungs survived, then accuracy. Ties between trainings of a rule go to the higher
learning rate, between rules to the older proposal.
"""

from collections.abc import Collection, Iterable, Iterator

from bpevo.evolution import fitness
from bpevo.rules import parse
from bpevo.runs.rows import Row


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
