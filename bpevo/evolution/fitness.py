"""The one order of fitness, for everything that ranks: controllers, leaderboards, selection, forks, reports."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

Bars = tuple[tuple[int, float], ...]  # (epoch, least accuracy to go on)


def fitness(accuracy: float | None, rungs: int) -> tuple[int, float]:
    """What a training or a proposal is worth; greater is better, among equals the older one wins.

    Args:
      accuracy: validation accuracy at its end; None if it diverged.
      rungs: early-stopping bars it survived.

    Returns:
      A sort key: rungs first, then accuracy; whatever diverged lies below all else.

    >>> fitness(0.3, rungs=2) > fitness(0.9, rungs=1) > fitness(None, rungs=2)
    True
    """
    return (-1, 0.0) if accuracy is None else (rungs, accuracy)


def first_bars(bars: Iterable[Bars]) -> dict[int, float]:
    """The first bar at each rung's epoch, from the bars of all proposals in id order.

    >>> first_bars([(), ((2, 0.5),), ((2, 0.6), (4, 0.7))])
    {2: 0.5, 4: 0.7}
    """
    first: dict[int, float] = {}
    for of_proposal in bars:
        for epoch, bar in of_proposal:
            first.setdefault(epoch, bar)
    return first


def standing(
    accuracy: float | None,
    rungs: int,
    *,
    curve: Sequence[float],
    rung_epochs: Sequence[int],
    bars: Bars,
    first: Mapping[int, float],
    confirmations: Sequence[float | None] = (),
) -> tuple[float | None, int]:
    """By what a training is ranked: where no bar was known when it was proposed, it is held to the first one there was; of
    one that was confirmed the mean counts.

    Args:
      accuracy: at its end; None if it diverged, which no bar changes.
      rungs: that it survived.
      curve: its accuracy after each epoch.
      rung_epochs: epochs of all rungs, rising.
      bars: its proposal's own: those it was held to while it trained.
      first: from `first_bars`.
      confirmations: accuracies of the same training on other seeds; None: diverged, as which the rule then ranks.

    Returns:
      (accuracy, rungs), or what they were at the first rung where it lies below that bar.

    >>> standing(0.9, 2, curve=(0.3, 0.5, 0.9), rung_epochs=(1, 2), bars=(), first={1: 0.2, 2: 0.6})
    (0.5, 1)
    >>> standing(0.75, 0, curve=(0.5, 0.75), rung_epochs=(), bars=(), first={}, confirmations=[0.25])
    (0.5, 0)
    """
    if accuracy is None:
        return accuracy, rungs
    judged = {epoch for epoch, _ in bars}
    for passed, epoch in enumerate(rung_epochs):
        if len(curve) >= epoch and epoch not in judged and curve[epoch - 1] < first.get(epoch, -math.inf):
            return curve[epoch - 1], passed
    confirmed = [a for a in confirmations if a is not None]
    if len(confirmed) < len(confirmations):
        return None, rungs
    return statistics.fmean([accuracy, *confirmed]), rungs
