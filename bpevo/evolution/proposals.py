"""What a controller is told and what it answers: results, proposals, and the settings of an evolution."""

import dataclasses

from bpevo.evolution.fitness import Bars
from bpevo.evolution.space import Change
from bpevo.rules import Equation


class SpaceExhausted(RuntimeError):
    """No new equation was found in `MAX_RESTARTS` attempts, or nothing can be mutated."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """An equation to train, and how it came about. A child without a change is a confirmation of its parent: the same
    training on another seed."""

    id: int  # order of drawing, from 0
    equation: Equation
    key: str  # of bpevo.evolution.Duplicates: by it a later session finds duplicates of this one
    parent: int | None = None  # id; None: drawn at random, or an initial equation
    changes: tuple[Change, ...] = ()  # from the parent to this
    bars: Bars = ()  # (epoch, least accuracy to go on)
    infeasible: int = 0  # draws thrown away before this one
    duplicates: int = 0  # likewise

    @property
    def confirms(self) -> int | None:
        """Id of the proposal that this confirms; None: it is an equation of its own."""
        return None if self.changes else self.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """How the training of a proposal ended; with several learning rates that at the best of them."""

    accuracy: float | None  # validation accuracy at its end; None if it diverged, at every rate
    rungs: int  # bars it survived
    curve: tuple[float, ...]  # validation accuracy after each epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a proposal achieved."""

    proposal: Proposal
    trained: Trained

    @property
    def id(self) -> int:
        return self.proposal.id

    @property
    def equation(self) -> Equation:
        return self.proposal.equation


@dataclasses.dataclass(frozen=True)
class Rung:
    """After `epoch`, go on only above the `quantile` of the earlier trainings there: in their best 1 - `quantile`."""

    epoch: int
    quantile: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvolutionSettings:
    """Settings of a controller (arXiv 1808.02822, section 3.2 and appendix B).

    Raises ValueError for values that make no sense.

    >>> EvolutionSettings(elite_size=20, mutations=(3, 1)).elite_probability  # k = 2 in a quarter of the cases
    0.7
    """

    elite_size: int = 1000  # N
    elite_probability: float = 0.7  # p
    mutations: tuple[float, ...] = (1.0,)  # weights of k = 1, 2, …
    rungs: tuple[Rung, ...] = ()
    seed: int = 0
    tournament: int = 10  # results that compete to be a parent, of controllers that hold tournaments

    def __post_init__(self):
        if self.elite_size < 1:
            raise ValueError(f"elite_size must be at least 1, not {self.elite_size}")
        if self.tournament < 1:
            raise ValueError(f"tournament must be at least 1, not {self.tournament}")
        if not 0 <= self.elite_probability <= 1:
            raise ValueError(f"elite_probability must lie in [0, 1], not {self.elite_probability}")
        if not self.mutations or min(self.mutations) < 0 or sum(self.mutations) <= 0:
            raise ValueError(f"mutations are non-negative weights of k = 1, 2, …, not all 0: {self.mutations}")
