"""What a search's winners have in common, and where the best one came from."""

import collections
import dataclasses
from collections.abc import Sequence

from bpevo.evolution import Change, Proposal
from bpevo.rules import Expression, without_idle
from bpevo.rules.expression import BinaryNode, UnaryNode
from bpevo.runs import Rows, fittest
from bpevo.workers import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """How many equations use a component: of the winners, and of all."""

    component: str
    winners: float
    population: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestor:
    id: int
    equation: str
    changes: tuple[Change, ...]  # from its parent
    accuracy: float | None


def components(expression: Expression) -> set[str]:
    """Names of what an expression uses: operands with their mean, std or bn; functions without constants."""
    nodes = without_idle(expression).walk()
    return {n.name if isinstance(n, UnaryNode | BinaryNode) else str(n) for n in nodes}


def shares(proposals: Sequence[Proposal], winners: Sequence[Proposal], count: int = 16) -> list[Share]:
    """The components whose use differs most between winners and all, most favoured first; ties in order of their names."""

    def usage(group: Sequence[Proposal]) -> dict[str, float]:
        uses = collections.Counter(c for p in group for c in components(p.equation.to_expression()))
        return {c: n / len(group) for c, n in uses.items()}

    if not winners:
        return []
    of_winners, of_all = usage(winners), usage(proposals)
    found = [Share(component=c, winners=of_winners.get(c, 0.0), population=of_all[c]) for c in of_all]
    found = sorted(found, key=lambda s: (-abs(s.winners - s.population), s.component))[:count]
    return sorted(found, key=lambda s: (s.population - s.winners, s.component))


def lineage(proposals: Sequence[Proposal], rows: Rows, last: Proposal) -> list[Ancestor]:
    """From the first ancestor to `last`."""
    accuracies = {row.proposal: row.accuracy for row in fittest(rows.of(stage=Stage.SEARCH)).values()}
    by_id, line = {p.id: p for p in proposals}, []
    following: Proposal | None = last
    while following is not None:
        line.append(
            Ancestor(
                id=following.id,
                equation=str(without_idle(following.equation.to_expression())),
                changes=following.changes,
                accuracy=accuracies.get(following.id),
            )
        )
        # Ids fall along a lineage, so a damaged database cannot make it endless.
        parent = following.parent
        following = by_id.get(parent) if parent is not None and parent < following.id else None
    return line[::-1]
