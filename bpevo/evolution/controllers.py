"""The controller's decisions: proposal n as a pure function of the run's settings and the results with ids ≤ n - lag.

Finishing order, slots and interruptions therefore change nothing (semantics in README.md, "Determinism").
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from bpevo.evolution.fitness import fitness
from bpevo.evolution.space import Change, SearchSpace, feasible
from bpevo.rules import Equation

MAX_RESTARTS = 10_000
MIN_REFERENCES = 20  # values below which there is no bar


class SpaceExhausted(RuntimeError):
    """No new equation was found in MAX_RESTARTS attempts, or nothing can be mutated."""


@dataclasses.dataclass(frozen=True)
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
    """After `epoch`, go on only with an accuracy of at least the `quantile` of the snapshot's there."""

    epoch: int
    quantile: float


@dataclasses.dataclass(frozen=True)
class Proposal:
    id: int
    equation: Equation
    key: str
    parent: int | None = None  # id, or None for the initial ones
    changes: tuple[Change, ...] = ()
    bars: tuple[tuple[int, float], ...] = ()  # (epoch, accuracy)
    infeasible: int = 0  # restarts before this one
    duplicates: int = 0


@dataclasses.dataclass(frozen=True)
class EvolutionSettings:
    """arXiv 1808.02822, section 3.2 and appendix B."""

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


class PaperController:
    """Draws proposals in id order.

    `initial` equations are the first proposals; empty means N random ones. `key` maps an equation to what makes it a
    duplicate; a key seen at a smaller id restarts the draw and costs no budget.
    """

    def __init__(
        self,
        space: SearchSpace,
        settings: EvolutionSettings,
        initial: Sequence[Equation],
        key: Callable[[Equation], str],
    ):
        self._space, self._settings, self._initial, self._key = space, settings, list(initial), key
        self._seen: dict[str, int] = {}
        self._roots: list[int] = []  # ids that hold an initial equation
        self._snapshot: list[Result] = []
        self.next_id = 0

    def adopt(self, proposal: Proposal) -> None:
        """Takes a proposal of an earlier session, in id order."""
        assert proposal.id == self.next_id
        self._seen.setdefault(proposal.key, proposal.id)
        if proposal.id < len(self._initial) and proposal.parent is None:
            self._roots.append(proposal.id)
        self.next_id += 1

    def tell(self, result: Result) -> None:
        self._snapshot.append(result)

    def ask(self) -> Proposal:
        return self.propose(self._snapshot)

    def propose(self, snapshot: Sequence[Result]) -> Proposal:
        """The next proposal, given the results with ids ≤ next_id - lag. Raises SpaceExhausted."""
        n = self.next_id
        rng = np.random.default_rng([self._settings.seed, n])
        alive = [r for r in snapshot if r.accuracy is not None]
        elite = sorted(alive, key=lambda r: (r.fitness, -r.id), reverse=True)[: self._settings.elite_size]
        chosen = {r.id for r in elite}
        rest = [r for r in alive if r.id not in chosen]
        infeasible = duplicates = 0
        while infeasible + duplicates < MAX_RESTARTS:
            equation, parent, changes = self._draw(n, rng, elite, rest, infeasible + duplicates)
            if not feasible(equation):
                infeasible += 1
                continue
            key = self._key(equation)
            if key in self._seen:
                duplicates += 1
                continue
            proposal = Proposal(n, equation, key, parent, changes, self._bars(snapshot), infeasible, duplicates)
            self.adopt(proposal)
            return proposal
        raise SpaceExhausted(
            f"space exhausted: no new equation in {MAX_RESTARTS:,} attempts ({infeasible:,} infeasible, {duplicates:,} seen)"
        )

    def _draw(self, n: int, rng, elite: list[Result], rest: list[Result], attempt: int):
        if n < len(self._initial) and not attempt:
            return self._space.padded(rng, self._initial[n]), None, ()
        if not self._initial and (n < self._settings.elite_size or not elite):
            return self._space.random(rng), None, ()
        if elite:
            pool = elite if not rest or rng.random() < self._settings.elite_probability else rest
            parent = pool[int(rng.integers(len(pool)))]
            equation, parent_id = parent.equation, parent.id
        else:  # no result has come in yet: the initial equations themselves, those of them that were no duplicates
            if not self._roots:
                raise SpaceExhausted("space exhausted: the first initial equation is not feasible in this space")
            parent_id = self._roots[int(rng.integers(len(self._roots)))]
            equation = self._space.padded(rng, self._initial[parent_id])
        weights = np.asarray(self._settings.mutations, float)
        changes = []
        for _ in range(1 + int(rng.choice(len(weights), p=weights / weights.sum()))):
            try:
                equation, change = self._space.mutated(rng, equation)
            except ValueError as error:
                raise SpaceExhausted(f"space exhausted: {error}") from None
            changes.append(change)
        return equation, parent_id, tuple(changes)

    def _bars(self, snapshot: Sequence[Result]) -> tuple[tuple[int, float], ...]:
        bars = []
        for rung in self._settings.rungs:
            reached = [c[rung.epoch - 1] for r in snapshot for c in r.curves if len(c) >= rung.epoch]
            if len(reached) >= MIN_REFERENCES:
                bars.append((rung.epoch, float(np.quantile(reached, rung.quantile, method="lower"))))
        return tuple(bars)


CONTROLLERS = {"paper": PaperController}
Controller = PaperController
