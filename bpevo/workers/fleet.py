"""The protocol between a pool and the machines under it: what workers are asked and what they answer."""

import dataclasses
import enum
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from bpevo.workers.job import Job, Outcome

Worker = Any  # a worker's name in its fleet, hashable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
    """Asks a worker to make its slots; answered by Ready. Only workers without jobs are asked."""

    recipe: Any  # makes them: opaque to a pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epoch:
    """Asks a worker to train an epoch of all its jobs and of these new ones; answered by a Report."""

    jobs: Sequence[Job]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The first answer of a worker, once there is room for it."""

    node: str  # where it is
    name: str  # for people


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready:
    """A worker has its slots, and has found that it computes right numbers."""

    capacity: int
    versions: Mapping[str, str]  # of everything that may change bits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """An epoch is over."""

    outcomes: Sequence[Outcome]
    capacity: int  # from now on: less where the device's memory did not do
    epochs_run: int  # slot-epochs that trained something, so far
    epochs_offered: int
    said: Sequence[str] = ()  # what a user should know


class Cause(enum.StrEnum):
    """Why a worker is lost."""

    OUTSIDE = "outside"  # its node went, or somebody ended it: nothing that it trained is to blame
    UNKNOWN = "unknown"
    ITSELF = "itself"  # it crashed: known only of one that trains alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lost:
    """A worker is of no use any more."""

    reason: str
    cause: Cause = Cause.UNKNOWN


def differences(expected: Mapping[str, str], said: Mapping[str, str]) -> str:
    """In words, what a worker says of its versions that is not expected, or does not say; "" if nothing."""
    return "; ".join(
        f"{name} is {said.get(name) or 'none'}, not {value or 'none'}"
        for name, value in {**said, **expected}.items()
        if said.get(name) != value
    )


Answer = Place | Ready | Report | Lost


class Fleet(Protocol):
    """Machines that run workers. A worker has at most one call under way. It may die, hang, or answer late or twice."""

    def nodes(self) -> Mapping[str, int]:
        """The machines that are there, and how many workers each has room for."""

    def start(self, *, alone: bool, without: Collection[str]) -> Worker:
        """Asks for another worker, on none of the nodes `without`. It answers call 0 by its Place once there is room.

        One that is `alone` has one slot and survives what it trains: a crash is answered by a Lost.
        """

    def call(self, worker: Worker, number: int, request: Prepare | Epoch) -> None:
        """Sends a request; the answer carries its number."""

    def wait(self, seconds: float) -> list[tuple[Worker, int, Answer]]:
        """What was answered, as soon as there is something, or nothing after so many seconds.

        Raises PoolLost where the fleet itself is lost.
        """

    def kill(self, worker: Worker) -> None:
        """Ends a worker, or withdraws a start. What it still answers does not matter."""

    def close(self) -> None:
        """Ends all that it holds."""
