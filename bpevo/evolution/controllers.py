"""Controllers decide what is trained next: proposal n from the run's settings and the results with ids ≤ n - lag alone.

Finishing order, slots and interruptions therefore change nothing (README.md, "Determinism").

To add one, write a class with the members of `Controller`, or give a `DrawingController` its `draw`, or a
`BreedingController` its `parent`, and enter it:

    class Restless(DrawingController):  # always mutates the newest result
        def draw(self, rng): ...

    CONTROLLERS["restless"] = Restless
"""

import abc
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from bpevo.evolution import kinds
from bpevo.evolution.equivalence import Duplicates
from bpevo.evolution.fitness import first_bars
from bpevo.evolution.population import Population, References
from bpevo.evolution.proposals import EvolutionSettings, Proposal, Result, SpaceExhausted
from bpevo.evolution.space import Change, SearchSpace, feasible
from bpevo.rules import Equation

MAX_RESTARTS = 10_000
CONFIRM_EVERY = 10  # proposals; then the best unconfirmed one is trained again


class Controller(Protocol):
    """An extension point: what the search asks for its next proposal. `ask` must depend on nothing but what was told."""

    @property
    def next_id(self) -> int:
        """The id that the next proposal will have."""

    def adopt(self, proposal: Proposal) -> None:
        """Takes a proposal of an earlier session; all of them come in id order, before anything else."""

    def tell(self, result: Result) -> None:
        """Takes a result. Results come in id order; before proposal n exactly those with ids ≤ n - lag have come."""

    def ask(self) -> Proposal:
        """Draws proposal `next_id`. Raises SpaceExhausted."""


# (space, settings, initial equations, duplicates)
ControllerFactory = Callable[[SearchSpace, EvolutionSettings, Sequence[Equation], Duplicates], Controller]


class Draw(NamedTuple):
    """An equation and how it came about; not necessarily feasible, not necessarily new."""

    equation: Equation
    parent: int | None = None
    changes: tuple[Change, ...] = ()


class DrawingController(abc.ABC):
    """A controller that draws until an equation is feasible and new.

    The first proposals are the initial equations; a thrown away draw costs no budget. All that is random comes from a
    generator made of the seed and the proposal's id. After every CONFIRM_EVERY proposals one confirms the best so far: a
    lucky training would stay a parent for ever.
    """

    def __init__(
        self,
        space: SearchSpace,
        settings: EvolutionSettings,
        initial: Sequence[Equation],
        duplicates: Duplicates,
    ):
        """`duplicates` must be empty: it is told all proposals, also those adopted."""
        self.space, self.settings, self.initial = space, settings, list(initial)
        self.next_id = 0
        self.equations = 0  # proposals that are no confirmation
        self._duplicates = duplicates
        self._references = References(settings.rungs)
        self._population = Population(settings.elite_size, settings.rungs, self.group)
        self._first: dict[int, float] = {}  # bars by epoch: each rung's first

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator) -> Draw:
        """An equation for proposal `next_id`. Raises SpaceExhausted."""

    def group(self, result: Result) -> str:
        """Under which `Population.groups` lists it; asked once a result."""
        return ""

    def adopt(self, proposal: Proposal) -> None:
        assert proposal.id == self.next_id
        if proposal.confirms is None:
            self._duplicates.add(proposal)
            self.equations += 1
        else:
            self._population.confirm(proposal.confirms)
        first = first_bars([tuple(self._first.items()), proposal.bars])
        if first != self._first:
            self._first = first
            self._population.judge(first)
        self.next_id += 1

    def tell(self, result: Result) -> None:
        if result.proposal.confirms is None:  # or those that are trained twice would count twice
            self._references.add(result)
        self._population.add(result)

    def ask(self) -> Proposal:
        n = self.next_id
        if n % (CONFIRM_EVERY + 1) == CONFIRM_EVERY and (best := self._population.best_unconfirmed):
            proposal = Proposal(id=n, equation=best.equation, key=best.proposal.key, parent=best.id)
            self.adopt(proposal)
            return proposal
        bars = self._references.bars()
        rng = np.random.default_rng([self.settings.seed, n])
        infeasible = duplicates = 0
        while infeasible + duplicates < MAX_RESTARTS:
            if self.equations < len(self.initial) and not infeasible + duplicates:
                draw = Draw(self.space.padded(rng, self.initial[self.equations]))
            else:
                draw = self.draw(rng)
            if not feasible(draw.equation):
                infeasible += 1
                continue
            key = self._duplicates.key(draw.equation)
            if self._duplicates.find(draw.equation, key) is not None:
                duplicates += 1
                continue
            proposal = Proposal(
                id=n,
                equation=draw.equation,
                key=key,
                parent=draw.parent,
                changes=draw.changes,
                bars=bars,
                infeasible=infeasible,
                duplicates=duplicates,
            )
            self.adopt(proposal)
            return proposal
        raise SpaceExhausted(
            f"space exhausted: no new equation in {MAX_RESTARTS:,} attempts ({infeasible:,} infeasible, {duplicates:,} seen)"
        )


class RandomController(DrawingController):
    """Every equation at random: what the search finds without breeding."""

    def draw(self, rng: np.random.Generator) -> Draw:
        return Draw(self.space.random(rng))


class BreedingController(DrawingController):
    """N random or the initial equations, then mutants of the parents that `parent` chooses."""

    def __init__(
        self,
        space: SearchSpace,
        settings: EvolutionSettings,
        initial: Sequence[Equation],
        duplicates: Duplicates,
    ):
        super().__init__(space, settings, initial, duplicates)
        self._roots: list[tuple[int, Equation]] = []  # initial equations, with the ids that hold them

    @abc.abstractmethod
    def parent(self, rng: np.random.Generator) -> Result | None:
        """The result of which a mutant is made. None: there is none that could be."""

    def adopt(self, proposal: Proposal) -> None:
        if proposal.parent is None and self.equations < len(self.initial):
            self._roots.append((proposal.id, self.initial[self.equations]))
        super().adopt(proposal)

    def draw(self, rng: np.random.Generator) -> Draw:
        if not self.initial and self.equations < self.settings.elite_size:
            return Draw(self.space.random(rng))
        chosen = self.parent(rng)
        if chosen:
            parent, equation = chosen.id, chosen.equation
        elif not self.initial:
            return Draw(self.space.random(rng))
        else:  # no result has come in yet: the initial equations themselves, those of them that were no duplicates
            if not self._roots:
                raise SpaceExhausted("space exhausted: the first initial equation is not feasible in this space")
            parent, equation = self._roots[int(rng.integers(len(self._roots)))]
            equation = self.space.padded(rng, equation)
        weights = np.asarray(self.settings.mutations, float)
        changes = []
        for _ in range(1 + int(rng.choice(len(weights), p=weights / weights.sum()))):
            try:
                equation, change = self.space.mutated(rng, equation)
            except ValueError as error:
                raise SpaceExhausted(f"space exhausted: {error}") from None
            changes.append(change)
        return Draw(equation, parent, tuple(changes))


class PaperController(BreedingController):
    """The evolution of arXiv 1808.02822: parents come from the N best with probability p, else from the rest."""

    def parent(self, rng: np.random.Generator) -> Result | None:
        elite, rest = self._population.elite, self._population.rest
        if not elite:
            return None
        pool = elite if not rest or rng.random() < self.settings.elite_probability else rest
        return pool[int(rng.integers(len(pool)))]


class AgingController(BreedingController):
    """Regularised evolution (arXiv 1802.01548): the parent is the best of a tournament among the N youngest results.

    What is good stays only by its children, each trained anew: a lucky training is forgotten. What diverged is no member.
    """

    def parent(self, rng: np.random.Generator) -> Result | None:
        ids = self._population.groups.get("", ())
        youngest = min(self.settings.elite_size, len(ids))
        return self._population.tournament(rng, ids, self.settings.tournament, since=len(ids) - youngest)


class NichesController(BreedingController):
    """Niches by kind (as the cells of MAP-Elites, arXiv 1504.04909): a kind is drawn, then a tournament among its results.

    The kind is what the probe says a rule keeps of backprop's signal (bpevo.evolution.kinds), reversed or not, with noise or
    not; every kind gets as many children, however many results it has and however bad they are, so none is crowded out.
    What sends no signal has nothing to hand down.
    """

    def group(self, result: Result) -> str:
        return kinds.plain(kinds.kind(result.equation))

    def parent(self, rng: np.random.Generator) -> Result | None:
        groups = self._population.groups
        present = [kind for kind in kinds.KINDS if kind != kinds.NO_SIGNAL and groups.get(kind)]
        if not present:
            return None
        ids = groups[present[int(rng.integers(len(present)))]]
        return self._population.tournament(rng, ids, self.settings.tournament)


CONTROLLERS: dict[str, ControllerFactory] = {
    "paper": PaperController,
    "random": RandomController,
    "aging": AgingController,
    "niches": NichesController,
}
