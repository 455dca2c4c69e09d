"""The protocol between a search or an evaluation and whatever trains for it."""

from collections.abc import Callable
from typing import Protocol

from bpevo.workers.job import Job, Outcome


class Workers(Protocol):
    """Where jobs are trained. An extension point: a search and an evaluation use nothing else of their workers.

    A job goes in by `submit` and comes out of `poll` once, as its Outcome, in any order. What a training computes depends on
    its Job alone, never on other jobs, on the number of slots or on when it runs.
    """

    @property
    def capacity(self) -> int:
        """Trainings that can run at once."""

    @property
    def occupancy(self) -> float:
        """Share of the slots' epochs so far that trained something."""

    @property
    def wanted(self) -> int:
        """Jobs that could start now, beyond those waiting."""

    @property
    def ahead(self) -> int:
        """Jobs beyond those waiting that could start after the epoch in progress, if every slot became free."""

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""

    def submit(self, job: Job) -> None:
        """Adds a job; it starts in `poll`."""

    def poll(self, meanwhile: Callable[[], None] = lambda: None) -> list[Outcome]:
        """Trains on, at least until something may have ended, and returns what ended; `meanwhile` may submit more.

        The caller stores the outcomes before it polls again. Raises OutOfMemory or DeviceLost where no worker can go on.
        """

    def suspend(self) -> list[Outcome]:
        """Saves what running trainings have reached, where that can be kept, and returns what ended meanwhile: before an
        interrupted run ends."""

    def close(self) -> None:
        """Gives up every job and what the workers hold. They are not used again."""
