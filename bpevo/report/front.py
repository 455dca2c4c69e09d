"""The front by complexity: the best rule of a search for each number of components, simplified, so that it can be read."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from bpevo.evolution.kinds import kind
from bpevo.evolution.simplify import components, simplified
from bpevo.report.terminal import Line, TextTable
from bpevo.rules import parse
from bpevo.runs import Rows, ranked
from bpevo.search import CONTROL_KEYS
from bpevo.workers import Stage

LOOKED_AT = 30  # best rules; to simplify one takes some tens of milliseconds
FRONT_COLUMNS = ("components", "lr", "search %")
FRONT_TITLE = f"best rule for each number of components that have an effect, among the {LOOKED_AT} best"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontRow:
    """A rule than which no simpler one of the search is as good."""

    components: int  # with an effect
    equation: str  # of these alone
    kind: str  # of bpevo.evolution.kinds
    proposal: int | None
    learning_rate: float
    search: float  # accuracy that selected it, %: it flatters
    on: tuple[FrontRow, ...] = ()  # over several networks: with learning rate and accuracy on each

    @property
    def plain(self) -> tuple:
        """For the database's table `front`."""
        return self.components, self.equation, self.kind, self.proposal, self.learning_rate, self.search


def front(rows: Rows) -> list[FrontRow]:
    """From the simplest rule to the best one.

    Args:
      rows: of the run, as they rank (bpevo.runs.judged).
    """
    found: list[FrontRow] = []
    best = ranked(rows.of(stage=Stage.SEARCH), CONTROL_KEYS)
    for row in itertools.islice(best, LOOKED_AT):
        rule = simplified(parse(row.equation))
        count = components(rule)
        if not found or count < found[-1].components:
            whole, *each = (
                FrontRow(
                    components=count,
                    equation=str(rule),
                    kind=kind(rule),
                    proposal=row.proposal,
                    learning_rate=trained.learning_rate,
                    search=100 * (trained.accuracy or 0.0),
                )
                for trained in (row, *row.members)
            )
            found.append(dataclasses.replace(whole, on=tuple(each)))
    return found[::-1]


def front_cells(row: FrontRow) -> list[str]:
    """The texts of FRONT_COLUMNS; over several networks as on the leaderboard."""
    rates = " / ".join(f"{each.learning_rate:g}" for each in row.on or (row,))
    accuracies = f" ({' / '.join(f'{each.search:.2f}' for each in row.on)})" if row.on else ""
    return [str(row.components), rates, f"{row.search:.2f}{accuracies}"]


def front_table(found: Sequence[FrontRow]) -> TextTable:
    """For the terminal."""
    lines = [Line(f"{row.equation}  [{row.kind}]", front_cells(row)) for row in found]
    return TextTable(FRONT_TITLE, "equation", FRONT_COLUMNS, lines)
