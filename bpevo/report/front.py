"""The front by complexity: the best rule of a search for each number of components, simplified, so that it can be read."""

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
            assert row.accuracy is not None
            found.append(
                FrontRow(
                    components=count,
                    equation=str(rule),
                    kind=kind(rule),
                    proposal=row.proposal,
                    learning_rate=row.learning_rate,
                    search=100 * row.accuracy,
                )
            )
    return found[::-1]


def front_cells(row: FrontRow) -> list[str]:
    """The texts of FRONT_COLUMNS."""
    return [str(row.components), f"{row.learning_rate:g}", f"{row.search:.2f}"]


def front_table(found: Sequence[FrontRow]) -> TextTable:
    """For the terminal."""
    lines = [Line(f"{row.equation}  [{row.kind}]", front_cells(row)) for row in found]
    return TextTable(FRONT_TITLE, "equation", FRONT_COLUMNS, lines)
