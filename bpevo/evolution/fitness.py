"""The one order of fitness, for everything that ranks: controllers, leaderboards, selection, forks, reports."""


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
