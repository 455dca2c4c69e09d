"""Learning rates of what is tuned: a grid that grows until the best rate lies inside it.

The same policy for every row of a table: without it, a row whose best rate lies at the edge of the grid is compared by the
grid's limits, not by its worth.
"""

import statistics
from collections.abc import Mapping, Sequence

FACTOR = 2.0
MOST_STEPS = 6  # that a grid grows on each side
BARREN = 2  # so many steps that bring nothing end a side: a plateau, as of a network that learns nothing, has no end

# Accuracies of the trainings at each rate, one a seed; None: it diverged, which counts as 0.
Tried = Mapping[float, Sequence[float | None]]


def best_rate(tried: Tried) -> float | None:
    """The rate of the best mean; ties go to the higher rate. None if everything diverged."""
    means = _means(tried)
    alive = [rate for rate in tried if any(a is not None for a in tried[rate])]
    return max(alive, key=lambda rate: (means[rate], rate), default=None)


def next_rates(initial: Sequence[float], tried: Tried, nothing: float | None = None) -> tuple[float, ...]:
    """The rates to try next; empty when the grid is done.

    The grid grows in rounds, each of which needs the whole one before it: what is tried in the end depends neither on the
    order in which a round's rates come in nor on where a run was interrupted.

    Args:
      initial: rates that are tried in any case.
      tried: what came out so far; of complete rates alone, all with the same number of seeds.
      nothing: a mean of what has learned nothing. A grid that is done without a better one grows down from its lowest rate
        as if all had diverged: on a plateau, as of a network that no rate but smaller ones can train, no best rate lies inside.

    >>> next_rates([0.1, 0.4], {0.1: [0.5], 0.4: [0.7]})
    (0.8,)
    >>> next_rates([0.1, 0.4], {0.1: [0.5], 0.4: [0.7], 0.8: [0.6]})
    ()
    >>> next_rates([0.1], {0.1: [0.5]})
    (0.05, 0.2)
    >>> next_rates([0.1], {0.1: [0.5], 0.05: [0.6]})
    (0.2,)
    >>> flat = {0.05: [0.1], 0.1: [0.1], 0.2: [0.1], 0.4: [0.1]}
    >>> next_rates([0.1], flat), next_rates([0.1], flat, nothing=0.1)
    ((), (0.025,))
    """
    complete: dict[float, Sequence[float | None]] = {}
    asked = tuple(initial)
    while asked:
        missing = tuple(rate for rate in asked if rate not in tried)
        if missing:
            return missing
        complete |= {rate: tried[rate] for rate in asked}
        asked = tuple(
            sorted(_outward(initial, complete, up)[-1] for up in (False, True) if _open(initial, complete, up))
        )
        below = _outward(initial, complete, up=False)
        if (
            not asked
            and nothing is not None
            and max(_means(complete).values()) <= nothing
            and len(below) - 2 < MOST_STEPS
        ):
            asked = (below[-1],)
    return ()


def at_edge(initial: Sequence[float], tried: Tried) -> bool:
    """Whether the best rate lies at an end of the grid beyond which more might be, though it may not grow further."""
    return any(_best_is_last(initial, tried, up) and not _barren(initial, tried, up) for up in (False, True))


def _means(tried: Tried) -> dict[float, float]:
    return {rate: statistics.mean(a or 0.0 for a in accuracies) for rate, accuracies in tried.items()}


def _outward(initial: Sequence[float], tried: Tried, up: bool) -> list[float]:
    """The end of the initial rates on one side, the grown ones that were tried, and the next."""
    rates = [max(initial) if up else min(initial)]
    while rates[-1] in tried:
        rates.append(rates[-1] * FACTOR if up else rates[-1] / FACTOR)
    return rates


def _best_is_last(initial: Sequence[float], tried: Tried, up: bool) -> bool:
    best, last = best_rate(tried), (max if up else min)(tried, default=None)
    # Where all diverged, a lower rate may not.
    return best == last if best is not None else not up and bool(tried)


def _barren(initial: Sequence[float], tried: Tried, up: bool) -> bool:
    """Whether the last BARREN steps of growth brought nothing."""
    means, steps = _means(tried), _outward(initial, tried, up)[1:-1][-BARREN:]
    if best_rate(tried) is None or len(steps) < BARREN:
        return False

    def inside(rate: float) -> float:
        return max(m for r, m in means.items() if (r < rate if up else r > rate))

    return all(means[rate] <= inside(rate) for rate in steps)


def _open(initial: Sequence[float], tried: Tried, up: bool) -> bool:
    grown = len(_outward(initial, tried, up)) - 2
    return grown < MOST_STEPS and _best_is_last(initial, tried, up) and not _barren(initial, tried, up)
