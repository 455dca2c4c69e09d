"""Workers of several networks as one: a program for each, in turn on the same devices."""

from collections.abc import Callable, Mapping

from bpevo.workers.job import Job, Outcome
from bpevo.workers.workers import Workers


class WorkersByNetwork:
    """Each job goes to the workers of its network; a poll trains an epoch on every one."""

    def __init__(self, of: Mapping[str, Workers]):
        self._of = dict(of)

    @property
    def capacity(self) -> int:
        return sum(workers.capacity for workers in self._of.values())

    @property
    def occupancy(self) -> float:
        return sum(workers.capacity * workers.occupancy for workers in self._of.values()) / self.capacity

    @property
    def wanted(self) -> int:
        return 0 if self._crowded else sum(workers.wanted for workers in self._of.values())

    @property
    def ahead(self) -> int:
        return 0 if self._crowded else sum(workers.ahead for workers in self._of.values())

    @property
    def _crowded(self) -> bool:
        """Whether so much waits for one network that what comes next, such as what follows a trial, would come late."""
        return any(workers.ahead <= 0 for workers in self._of.values())

    @property
    def idle(self) -> bool:
        return all(workers.idle for workers in self._of.values())

    def submit(self, job: Job) -> None:
        self._of[job.network].submit(job)

    def poll(self, meanwhile: Callable[[], None] = lambda: None) -> list[Outcome]:
        return [outcome for workers in self._of.values() for outcome in workers.poll(meanwhile)]

    def suspend(self) -> list[Outcome]:
        return [outcome for workers in self._of.values() for outcome in workers.suspend()]

    def close(self) -> None:
        for workers in self._of.values():
            workers.close()
