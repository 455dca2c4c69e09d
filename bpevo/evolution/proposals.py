"""What a controller is told and what it answers: results, proposals, and the settings of an evolution."""

import dataclasses

from bpevo.evolution.fitness import fitness
from bpevo.evolution.space import Change
from bpevo.rules import Equation


class SpaceExhausted(RuntimeError):
    """No new equation was found in `MAX_RESTARTS` attempts, or nothing can be mutated."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a proposal achieved, over its learning rates."""

    id: int
    equation: Equation
    accuracy: float | None  # validation accuracy at its end; None if it diverged
    rungs: int  # bars it survived
    curves: tuple[tuple[float, ...], ...]  # validation accuracy after each epoch, one curve per learning rate

    @property
    def fitness(self) -> tuple[int, float]:
        return fitness(self.accuracy, self.rungs)


@dataclasses.dataclass(frozen=True)
class Rung:
    """After `epoch`, go on only with an accuracy of at least the `quantile` of the earlier results there."""

    epoch: int
    quantile: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """An equation to train, and how it came about."""

    id: int  # order of drawing, from 0
    equation: Equation
    key: str  # of bpevo.evolution.Duplicates: by it a later session finds duplicates of this one
    parent: int | None = None  # id; None: drawn at random, or an initial equation
    changes: tuple[Change, ...] = ()  # from the parent to this
    bars: tuple[tuple[int, float], ...] = ()  # (epoch, least accuracy to go on)
    infeasible: int = 0  # draws thrown away before this one
    duplicates: int = 0  # likewise


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

    def __post_init__(self):
        if self.elite_size < 1:
            raise ValueError(f"elite_size must be at least 1, not {self.elite_size}")
        if not 0 <= self.elite_probability <= 1:
            raise ValueError(f"elite_probability must lie in [0, 1], not {self.elite_probability}")
        if not self.mutations or min(self.mutations) < 0 or sum(self.mutations) <= 0:
            raise ValueError(f"mutations are non-negative weights of k = 1, 2, …, not all 0: {self.mutations}")
