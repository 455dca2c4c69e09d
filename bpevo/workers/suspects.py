"""Jobs that may bring their workers down: how often each was lost, and those that train alone until they end or have crashed."""

import collections
from collections.abc import Set

from bpevo.workers.fleet import Cause
from bpevo.workers.job import Job

TOGETHER = 2  # losses of a job among others, after which it trains alone
CRASHES = 2  # of a job alone, after which it counts as crashed
MOST_ALONE = 10  # losses alone of causes that are not known to lie outside, likewise: what kills silently must end, too


class Suspects:
    """Knows jobs by their identity; `alone` are those that train alone, one after the other, the first of them now or next."""

    def __init__(self) -> None:
        self.alone: collections.deque[Job] = collections.deque()
        self._losses: collections.Counter[tuple] = collections.Counter()
        self._crashes: dict[tuple, list[str]] = {}  # of a job alone: on which nodes
        self._confined: set[tuple] = set()  # jobs for which no other node had room

    def lost(self, job: Job, cause: Cause) -> bool:
        """Counts that a job's worker was lost; whether it trains alone from now on."""
        if cause != Cause.OUTSIDE:
            self._losses[job.identity] += 1
        return self._losses[job.identity] >= TOGETHER

    def without(self, usable: Set[str]) -> set[str]:
        """Nodes where the first job alone has crashed, if there are others for it that can be used."""
        crashed = set(self._crashes.get(self.alone[0].identity, ())) if self.alone else set()
        confined = self.alone and self.alone[0].identity in self._confined
        return set() if confined or not usable - crashed else crashed

    def confine(self) -> None:
        """No node has room for the first job alone but those where it has crashed."""
        self._confined.add(self.alone[0].identity)

    def crashed(self, node: str, cause: Cause, usable: Set[str]) -> bool:
        """After the loss of the first job alone: whether it counts as crashed."""
        identity = self.alone[0].identity
        crashes = self._crashes.setdefault(identity, [])
        if cause == Cause.ITSELF:
            crashes.append(node)
        bound = identity in self._confined or not usable - set(crashes)
        twice = len(crashes) >= CRASHES and (len(set(crashes)) >= CRASHES or bound)
        return twice or self._losses[identity] >= TOGETHER + MOST_ALONE

    def ended(self, job: Job) -> None:
        """Forgets a job, also of those alone."""
        if self.alone and self.alone[0] is job:
            self.alone.popleft()
        self._losses.pop(job.identity, None)
        self._crashes.pop(job.identity, None)
        self._confined.discard(job.identity)
