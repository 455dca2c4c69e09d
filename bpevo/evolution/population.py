"""Earlier results as controllers need them: the elite and the rest, and the bars, each in a time that hardly grows."""

import math
from collections.abc import Sequence

from sortedcontainers import SortedKeyList, SortedList

from bpevo.evolution.proposals import Result, Rung

MIN_REFERENCES = 20  # values below which there is no bar


class Population:
    """The results that did not diverge: the `elite_size` best, and the others."""

    def __init__(self, elite_size: int):
        self._elite_size = elite_size
        self._elite = SortedKeyList(key=lambda result: (result.fitness, -result.id))  # worst first
        self._rest = SortedKeyList(key=lambda result: result.id)

    def add(self, result: Result) -> None:
        if result.accuracy is None:
            return
        self._elite.add(result)
        if len(self._elite) > self._elite_size:
            self._rest.add(self._elite.pop(0))

    @property
    def elite(self) -> Sequence[Result]:
        """Best first; among equals the older one."""
        return _Reversed(self._elite)

    @property
    def rest(self) -> Sequence[Result]:
        """In id order."""
        return self._rest


class _Reversed(Sequence):
    """A view of a sequence from its end to its beginning."""

    def __init__(self, items: Sequence):
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index):
        return self._items[~index]


class Bars:
    """What earlier candidates reached at the rungs, and the accuracies that it asks of later ones there."""

    def __init__(self, rungs: Sequence[Rung]):
        self._reached = [(rung, SortedList()) for rung in rungs]

    def add(self, result: Result) -> None:
        for rung, reached in self._reached:
            reached.update(curve[rung.epoch - 1] for curve in result.curves if len(curve) >= rung.epoch)

    def current(self) -> tuple[tuple[int, float], ...]:
        """(epoch, least accuracy to go on) of the rungs that enough candidates reached: `np.quantile`'s lower value."""
        return tuple(
            (rung.epoch, float(reached[math.floor((len(reached) - 1) * rung.quantile)]))
            for rung, reached in self._reached
            if len(reached) >= MIN_REFERENCES
        )
