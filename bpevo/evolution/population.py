"""Earlier results as controllers need them: their order, and the bars, each in a time that hardly grows."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from sortedcontainers import SortedList

from bpevo.evolution.fitness import Bars, fitness, standing
from bpevo.evolution.proposals import Result, Rung

MIN_REFERENCES = 20  # values below which there is no bar


class Population:
    """The results that did not diverge, best first; among equals the older one. The `elite_size` best are the elite."""

    def __init__(self, elite_size: int, rungs: Sequence[Rung], group: Callable[[Result], str] = lambda result: ""):
        """`group` names the one of `groups` to which a result belongs; it is asked once a result."""
        self._elite_size, self._rungs, self._group = elite_size, rungs, group
        self.groups: dict[str, SortedList] = {}  # ids of those in _ranked
        self._group_of: dict[int, str] = {}  # of all results
        self._first: Mapping[int, float] = {}
        self._results: dict[int, Result] = {}
        self._confirmed: dict[int, float | None] = {}  # ids; accuracy on the second seed
        self._ranked = SortedList()  # (rungs, accuracy, -id), worst first
        self._places: dict[int, tuple[int, float, int]] = {}  # of each id in _ranked
        self._unconfirmed = SortedList()  # those places of which no confirmation was ever asked for
        self._asked: set[int] = set()

    def judge(self, first: Mapping[int, float]) -> None:
        """Ranks everything by these first bars; called once a rung, not once a proposal."""
        self._first = first
        for result in self._results.values():
            self._place(result)

    def add(self, result: Result) -> None:
        """Also a confirmation's; its parent's was added before."""
        confirmed = result.proposal.confirms
        if confirmed is None:
            self._results[result.id], self._group_of[result.id] = result, self._group(result)
        else:
            self._confirmed[confirmed], result = result.trained.accuracy, self._results[confirmed]
        self._place(result)

    def standing(self, result: Result) -> tuple[float | None, int]:
        """(accuracy, rungs) by which it ranks, see bpevo.evolution.fitness."""
        trained, confirmed = result.trained, self._confirmed
        return standing(
            trained.accuracy,
            trained.rungs,
            curve=trained.curve,
            rung_epochs=[rung.epoch for rung in self._rungs],
            bars=result.proposal.bars,
            first=self._first,
            confirmations=[confirmed[result.id]] if result.id in confirmed else [],
        )

    def _place(self, result: Result) -> None:
        n = result.id
        group = self._group_of[n]
        if n in self._places:
            place = self._places.pop(n)
            self._ranked.remove(place)
            self._unconfirmed.discard(place)
            self.groups[group].remove(n)
        accuracy, rungs = self.standing(result)
        if accuracy is not None:
            place = self._places[n] = *fitness(accuracy, rungs), -n
            self._ranked.add(place)
            self.groups.setdefault(group, SortedList()).add(n)
            if n not in self._asked:
                self._unconfirmed.add(place)

    def confirm(self, id: int) -> None:
        """A confirmation of this one was asked for."""
        self._asked.add(id)
        if id in self._places:
            self._unconfirmed.discard(self._places[id])

    @property
    def best_unconfirmed(self) -> Result | None:
        """The best that was trained to the end and of which no confirmation was asked for."""
        if not self._unconfirmed or self._unconfirmed[-1][0] < len(self._rungs):
            return None
        return self._results[-self._unconfirmed[-1][2]]

    def __iter__(self) -> Iterator[Result]:
        return (self._results[-place[2]] for place in reversed(self._ranked))

    @property
    def elite(self) -> Sequence[Result]:
        return _View(self, 0, min(self._elite_size, len(self._ranked)))

    @property
    def rest(self) -> Sequence[Result]:
        return _View(self, min(self._elite_size, len(self._ranked)), len(self._ranked))

    def tournament(self, rng: np.random.Generator, ids: Sequence[int], size: int, since: int = 0) -> Result | None:
        """The best of `size` results drawn from `ids[since:]`, each from all of them; None where there are none."""
        if since >= len(ids):
            return None
        drawn = (ids[int(i)] for i in rng.integers(since, len(ids), size))
        return self._results[max(drawn, key=self._places.__getitem__)]

    def at(self, rank: int) -> Result:
        """The best one at rank 0."""
        return self._results[-self._ranked[~rank][2]]


class _View(Sequence):
    """The results at some ranks."""

    def __init__(self, population: Population, begin: int, end: int):
        self._population, self._ranks = population, range(begin, end)

    def __len__(self) -> int:
        return len(self._ranks)

    def __getitem__(self, index):
        return self._population.at(self._ranks[index])


class References:
    """The accuracies of earlier trainings at the rungs, by which later ones are stopped."""

    def __init__(self, rungs: Sequence[Rung]):
        self._reached = [(rung, SortedList()) for rung in rungs]

    def add(self, result: Result) -> None:
        """A training that diverged counts as 0 at every rung, whenever that was."""
        trained = result.trained
        for rung, reached in self._reached:
            if trained.accuracy is None:
                reached.add(0.0)
            elif len(trained.curve) >= rung.epoch:
                reached.add(trained.curve[rung.epoch - 1])

    def bars(self) -> Bars:
        """The bars of the rungs where there are enough references."""
        found = ((rung.epoch, bar(reached, rung.quantile)) for rung, reached in self._reached)
        return tuple((epoch, value) for epoch, value in found if value is not None)


def bar(references: Sequence[float], quantile: float) -> float | None:
    """The least accuracy to go on: no more than a share 1 - `quantile` of the references reach it.

    Args:
      references: accuracies in [0, 1], sorted.
      quantile: in (0, 1).

    Returns:
      The last of those best references, or the next number above where worse ones tie with it (though never above 1).
      None below MIN_REFERENCES, or where that share is not even one of them.

    >>> bar([i / 20 for i in range(20)], 0.75)  # 5 of 20 lie here or above
    0.75
    """
    count = len(references)
    allowed = math.floor(count * (1 - quantile) + 1e-9)  # 1 - (1 - 1/η) is not always 1/η
    if count < MIN_REFERENCES or not allowed:
        return None
    last, next_worse = references[count - allowed], references[count - allowed - 1]
    return last if next_worse < last else min(math.nextafter(last, math.inf), 1.0)
