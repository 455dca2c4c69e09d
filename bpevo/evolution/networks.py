"""Fitness over several networks: a rule trains on one after the other, and what it reached on all counts as one number.

It is as one long training: epochs count on from network to network, so rungs and their bars may lie on any of them, also at
a network's end, and a rule that is stopped or diverges costs nothing on the networks after it. The number is an accuracy:

  worst  the mean accuracy of tuned backprop over the networks, plus the rule's lead over it where that is least;
  mean   the same with the rule's mean lead: its mean accuracy.

So it is compared with backprop's mean, and networks of which one is harder than the other weigh alike.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

OVER = ("worst", "mean")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """On what the rules of a search train.

    >>> both = Networks(names=("mlp-32", "mlp-64-64"), epochs=4)
    >>> both.within(1, [(2, 0.5), (4, 0.7), (6, 0.8)])  # rungs of the second network
    ((2, 0.8),)
    >>> both.fitness([0.9, 0.5], backprop=[0.8, 0.6])  # leads of 0.1 and -0.1
    0.6
    """

    names: tuple[str, ...] = ("",)  # of models, in the order of training; a search on one network does not name it
    epochs: int = 0  # of a training on one of several
    over: str = "worst"  # one of OVER

    @property
    def several(self) -> bool:
        return len(self.names) > 1

    def within(self, place: int, bars: Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
        """Those of (epoch, value) on the network at that place, from its own first epoch on."""
        if not self.several:
            return tuple(bars)
        before = place * self.epochs
        return tuple((epoch - before, value) for epoch, value in bars if before < epoch <= before + self.epochs)

    def fitness(self, accuracies: Sequence[float], backprop: Sequence[float]) -> float:
        """What a rule's accuracies on all networks are worth.

        Args:
          accuracies: of the rule, by network.
          backprop: of tuned backprop, likewise; not looked at where there is one network.
        """
        if not self.several:
            return accuracies[0]
        leads = [a - b for a, b in zip(accuracies, backprop, strict=True)]
        lead = min(leads) if self.over == "worst" else statistics.fmean(leads)
        return min(1.0, max(0.0, statistics.fmean(backprop) + lead))  # a lead of -1 may go below 0, rounding above 1


ONE = Networks()
