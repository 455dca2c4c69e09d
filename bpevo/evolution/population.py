"""Earlier results as controllers need them: the elite and the rest, and the bars, each in a time that hardly grows."""

import math
from collections.abc import Mapping, Sequence

from sortedcontainers import SortedKeyList, SortedList

from bpevo.evolution.fitness import Bars, fitness
from bpevo.evolution.proposals import Result, Rung

MIN_REFERENCES = 20  # values below which there is no bar


class Population:
    """The results that did not diverge: the `elite_size` best, and the others."""

    def __init__(self, elite_size: int, rungs: Sequence[Rung]):
        self._elite_size, self._rung_epochs = elite_size, [rung.epoch for rung in rungs]
        self._first: Mapping[int, float] = {}
        self._results: list[Result] = []
        self._clear()

    def _clear(self) -> None:
        self._elite = SortedKeyList(key=lambda ranked: ranked[0])  # ((fitness, -id), result), worst first
        self._rest = SortedKeyList(key=lambda ranked: ranked[1].id)

    def judge(self, first: Mapping[int, float]) -> None:
        """Ranks everything by these first bars; called once a rung, not once a proposal."""
        self._first = first
        self._clear()
        for result in self._results:
            self._place(result)

    def add(self, result: Result) -> None:
        self._results.append(result)
        self._place(result)

    def _place(self, result: Result) -> None:
        accuracy, rungs = result.standing(self._rung_epochs, self._first)
        if accuracy is None:
            return
        self._elite.add(((fitness(accuracy, rungs), -result.id), result))
        if len(self._elite) > self._elite_size:
            self._rest.add(self._elite.pop(0))

    @property
    def elite(self) -> Sequence[Result]:
        """Best first; among equals the older one."""
        return _View(self._elite, backwards=True)

    @property
    def rest(self) -> Sequence[Result]:
        """In id order."""
        return _View(self._rest)


class _View(Sequence):
    """The results of a sequence of (rank, result)."""

    def __init__(self, ranked: Sequence, backwards: bool = False):
        self._ranked, self._backwards = ranked, backwards

    def __len__(self) -> int:
        return len(self._ranked)

    def __getitem__(self, index):
        return self._ranked[~index if self._backwards else index][1]


class References:
    """The accuracies of earlier trainings at the rungs, by which later ones are stopped."""

    def __init__(self, rungs: Sequence[Rung]):
        self._reached = [(rung, SortedList()) for rung in rungs]

    def add(self, result: Result) -> None:
        """A training that diverged counts as 0 at every rung, whenever that was."""
        for rung, reached in self._reached:
            for t in result.trainings:
                if t.accuracy is None:
                    reached.add(0.0)
                elif len(t.curve) >= rung.epoch:
                    reached.add(t.curve[rung.epoch - 1])

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
