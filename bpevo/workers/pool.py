"""A pool of workers that come and go: which job is where, what was lost, and what is done about it. Knows no cluster.

Every job that is submitted ends once. A job whose worker is lost begins again elsewhere: the same job, so the same result.
One that is lost twice trains alone, in a worker with one slot; only if it brings that down twice, on two nodes where there
are two with room, its outcome is "crashed".
"""

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from bpevo.training import DeviceLost
from bpevo.workers.fleet import Cause, Epoch, Fleet, Lost, Place, Prepare, Ready, Report, Worker, differences
from bpevo.workers.job import Job, Outcome
from bpevo.workers.suspects import Suspects

WAIT = 1.0  # seconds that a poll waits for answers at most
LOOK = 5.0  # seconds after which a look at the nodes is out of date
ROOM = 60.0  # seconds that a worker for jobs alone waits for room that seems to be there
FAILED_STARTS = 3  # of workers on a node, in a row, after which it is left out


class PoolError(RuntimeError):
    """No worker can be had; the message says why. Starting again changes nothing."""


class PoolLost(DeviceLost):
    """The machines are gone: what was stored is kept, the same command continues."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds without an answer after which a worker counts as lost."""

    first: float = 3600.0  # where it compiles
    least: float = 300.0
    epochs: float = 20.0  # so many times the usual epoch


@dataclasses.dataclass
class _Member:
    alone: bool
    without: set[str]  # nodes where it must not be
    since: float  # the beginning of the call under way
    call: int | None = 0  # its number; None: it waits for orders
    place: Place | None = None
    recipe: Any = None  # whose slots it has, or is making
    ready: bool = False  # it has them
    capacity: int = 0
    jobs: dict[tuple, Job] = dataclasses.field(default_factory=dict)  # by identity
    epochs: tuple[int, int] = (0, 0)  # run, offered
    proven: bool = False  # an epoch of this recipe is over: its program is compiled


class Pool:
    """Workers, as a search and an evaluation need them, over a Fleet."""

    def __init__(
        self,
        fleet: Fleet,
        recipe: Any,
        workers: int | None = None,
        *,
        versions: Mapping[str, str] | None = None,
        patience: Patience = Patience(),
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        Args:
          fleet: where the workers are.
          recipe: makes a worker's slots, see `use`.
          workers: so many at most; None: as many as there is room for, at any time.
          versions: what every worker must report; what is not in it, the first worker settles for the others.
          patience: with workers that do not answer.
          say: gets a line for what a user should know.
          clock: seconds.
        """
        self._fleet, self._recipe, self._workers = fleet, recipe, workers
        self._patience, self._say, self._clock = patience, say, clock
        self.versions = dict(versions or {})
        self._members: dict[Worker, _Member] = {}
        self._resting: dict[Worker, None] = {}  # those without a call under way, in order
        self._idle: dict[Worker, None] = {}  # of the recipe's, those that nothing was left for: no look at each of them
        self._calls = 0
        self._waiting: collections.deque[Job] = collections.deque()
        self._suspects = Suspects()
        self._failures: collections.Counter[str] = collections.Counter()  # starts in a row, by node
        self._excluded: dict[str, str] = {}  # node -> why
        self._compiling: dict[str, Worker] = {}  # node -> the one that compiles for all of it
        self._compiled: set[str] = set()  # nodes where the recipe's program is
        self._ended: list[Outcome] = []  # since the last poll
        self._durations: collections.deque[float] = collections.deque(maxlen=200)  # of epochs
        self._nodes: Mapping[str, int] = {}
        self._usable: Mapping[str, int] = {}  # of these, those that are not excluded
        self._lone: Worker | None = None  # the member that is alone
        self._looked = self._checked = -float("inf")
        # Running sums over members that are not alone, so that a look costs the same however many there are.
        self._capacity = self._assigned = self._ready = 0
        self._epochs = [0, 0]

    # The protocol of workers.

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def occupancy(self) -> float:
        return self._epochs[0] / max(1, self._epochs[1])

    @property
    def wanted(self) -> int:
        return max(0, self._capacity - self._assigned - len(self._waiting))

    @property
    def ahead(self) -> int:
        return self._capacity - len(self._waiting)

    @property
    def idle(self) -> bool:
        # Jobs alone are counted where they wait until they have ended.
        return not (self._waiting or self._assigned or self._suspects.alone or self._ended)

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def poll(self, meanwhile: Callable[[], None] = lambda: None) -> list[Outcome]:
        """Raises PoolError or PoolLost."""
        self._fill()
        self._assign()
        meanwhile()
        self._assign()
        self._hear(WAIT)
        self._assign()  # what waits need not wait for the caller
        return self._taken()

    def suspend(self) -> list[Outcome]:
        """Waits for the epochs under way; what ends in them counts. Compiling is not waited for."""
        while any(m.call is not None and m.jobs and m.proven for m in self._members.values()):
            self._hear(WAIT)
        return self._taken()

    def close(self) -> None:
        for worker in list(self._members):
            self._remove(worker)
        self._waiting.clear()
        self._suspects.alone.clear()
        self._fleet.close()

    # Beyond the protocol.

    def use(self, recipe: Any) -> None:
        """From now on jobs are for the slots that this recipe makes. Nothing may be in training."""
        assert self.idle
        if recipe is not self._recipe:
            self._recipe = recipe
            self._resting |= self._idle
            self._idle.clear()
            self._compiled.clear()
            self._compiling.clear()

    def meet(self) -> None:
        """Returns once a worker is ready: then `versions` are complete. Raises as `poll`."""
        while not self._ready:
            self._fill()
            self._assign()
            self._hear(WAIT)

    # Workers come and go.

    def _fill(self) -> None:
        """Asks for the workers that are missing; one of them may be one that trains alone."""
        now = self._clock()
        if now - self._looked >= LOOK:
            self._nodes, self._looked = self._fleet.nodes(), now
            self._usable = {node: room for node, room in self._nodes.items() if node not in self._excluded}
        if self._nodes and not self._usable and not any(m.ready for m in self._members.values()):
            node, reason = next(reversed(self._excluded.items()))
            raise PoolError(f"no machine can run workers; the last one that failed: {reason}")
        wanted = self._workers or max(1, sum(self._usable.values()))
        if self._lone_is_placed(wanted):
            while len(self._members) < wanted:
                self._start(alone=False, without=set())

    def _lone_is_placed(self, wanted: int) -> bool:
        """Sees to it that there is a worker for jobs alone as long as there are such; False while it waits for room."""
        lone, alone = self._lone, self._suspects.alone
        if lone is None and not alone:
            return True
        usable = set(self._usable)
        without = self._suspects.without(usable)
        if lone is not None and (
            not alone or (not self._members[lone].place and self._members[lone].without != without)
        ):
            self._remove(lone)
            lone = None
        if not alone or (lone is not None and self._members[lone].place):
            return True
        if lone is None:
            for worker in [w for w, m in self._members.items() if not m.place]:
                self._remove(worker)  # it goes before those that wait for room
            lone = self._start(alone=True, without=without)
        # It also goes before one that has room, where there is no other: at once where that can be seen, as nodes come and go
        # while it waits; after a while where it cannot, as others may use the cluster.
        there = {w: m.place.node for w, m in self._members.items() if m.place and m.place.node not in without}
        held = collections.Counter(there.values())
        full = len(self._members) > wanted or all(held[node] >= self._nodes[node] for node in usable - without)
        late = self._clock() - self._members[lone].since >= ROOM
        if there and (full or late):
            self._withdraw(min(there, key=lambda w: len(self._members[w].jobs)))
            self._members[lone].since = self._clock()
        elif late and without:
            self._suspects.confine()
        return False

    def _start(self, alone: bool, without: set[str]) -> Worker:
        worker = self._fleet.start(alone=alone, without=without | set(self._excluded))
        if alone:
            self._lone = worker
        self._members[worker] = _Member(alone, without, self._clock())
        return worker

    def _remove(self, worker: Worker) -> _Member:
        """Ends a worker and forgets it, so that no answer of its is heard any more."""
        member = self._members[worker]
        self._account(member, ready=False, capacity=0)
        if member.alone:
            self._lone = None
        else:
            self._assigned -= len(member.jobs)
        del self._members[worker]
        self._resting.pop(worker, None)
        self._idle.pop(worker, None)
        if member.place and self._compiling.get(member.place.node) == worker:
            del self._compiling[member.place.node]
        self._fleet.kill(worker)
        return member

    def _withdraw(self, worker: Worker) -> None:
        """Ends a worker that has done nothing wrong."""
        self._waiting.extendleft(reversed(self._remove(worker).jobs.values()))

    def _lose(self, worker: Worker, lost: Lost) -> None:
        """Ends a worker that is of no use, and puts its jobs where they begin again."""
        member = self._remove(worker)
        node = member.place.node if member.place else ""
        if not member.ready and lost.cause != Cause.OUTSIDE:
            self._failures[node] += 1
            if self._failures[node] >= FAILED_STARTS:
                if not node:
                    raise PoolError(f"{FAILED_STARTS} workers failed before they began: {lost.reason}")
                self._excluded[node] = lost.reason
                self._looked = -float("inf")  # _usable is out of date
                self._say(f"no more workers on {node[:12]}, where {FAILED_STARTS} could not start: {lost.reason}")
        again = f": {len(member.jobs)} trainings begin again" if member.jobs else ""
        self._say(
            f"lost the worker {member.place.name if member.place else 'that had no place yet'} ({lost.reason}){again}"
        )
        for job in reversed(member.jobs.values()):
            alone = self._suspects.lost(job, lost.cause)
            if member.alone:
                self._judge(job, node, lost)
            elif alone:
                self._suspects.alone.append(job)
            else:
                self._waiting.appendleft(job)

    def _judge(self, job: Job, node: str, lost: Lost) -> None:
        """Whether a job that was lost alone has crashed; if not, it is tried again."""
        if self._suspects.crashed(node, lost.cause, set(self._nodes) - set(self._excluded)):
            self._suspects.ended(job)
            self._say(f"training {job.subject} alone brings a worker down: its outcome is a crash ({lost.reason})")
            self._ended.append(Outcome(job=job, status="crashed", reason=lost.reason, curve=(), seconds=0.0))

    # Orders.

    def _assign(self) -> None:
        """Gives every worker that waits for orders what there is for it."""
        for _ in range(min(len(self._idle), len(self._waiting))):
            self._resting[self._idle.popitem()[0]] = None
        fair = -(-(len(self._waiting) + self._assigned) // max(1, self._ready))
        for worker in list(self._resting):
            member = self._members[worker]
            assert member.place
            node = member.place.node
            first = member.alone or node in self._compiled or self._compiling.setdefault(node, worker) == worker
            if not first:
                continue  # until the first one's program is in the cache
            if member.recipe is not self._recipe:
                self._account(member, ready=False, capacity=0)
                member.recipe, member.proven = self._recipe, False
                self._call(worker, member, Prepare(recipe=self._recipe))
                continue
            fresh = []
            if member.alone:
                fresh = [self._suspects.alone[0]] if self._suspects.alone and not member.jobs else []
            else:
                while self._waiting and len(member.jobs) + len(fresh) < min(member.capacity, fair):
                    fresh.append(self._waiting.popleft())
                self._assigned += len(fresh)
            member.jobs |= {job.identity: job for job in fresh}
            if member.jobs:
                self._call(worker, member, Epoch(jobs=fresh))
            elif not member.alone:
                del self._resting[worker]
                self._idle[worker] = None

    def _call(self, worker: Worker, member: _Member, request: Prepare | Epoch) -> None:
        del self._resting[worker]
        self._calls += 1
        member.call, member.since = self._calls, self._clock()
        self._fleet.call(worker, self._calls, request)

    # Answers.

    def _hear(self, seconds: float) -> None:
        """Takes the answers that come in so many seconds, and gives up those whose time is over."""
        for worker, number, answer in self._fleet.wait(seconds):
            member = self._expecting(worker, number)
            if member is None:
                continue
            member.call = None
            if isinstance(answer, Lost):
                self._lose(worker, answer)
                continue
            self._resting[worker] = None
            if isinstance(answer, Place):
                self._place(worker, member, answer)
            elif isinstance(answer, Ready):
                self._settle(worker, member, answer)
            else:
                self._take(member, answer)
        self._check()

    def _expecting(self, worker: Worker, number: int) -> _Member | None:
        """Who gave this answer; None where none is expected: it is late, or came before. So each job ends once."""
        member = self._members.get(worker)
        return member if member and member.call == number else None

    def _place(self, worker: Worker, member: _Member, place: Place) -> None:
        member.place = place
        if place.node in self._excluded:
            self._remove(worker)

    def _settle(self, worker: Worker, member: _Member, ready: Ready) -> None:
        """Takes a worker in that is like the others."""
        assert member.place
        if other := differences(self.versions, ready.versions):
            self._lose(worker, Lost(reason=f"it is unlike the others: {other}"))
            return
        if not self.versions.keys() >= ready.versions.keys():
            self.versions |= ready.versions
        if not member.epochs[1]:
            self._say(f"worker {member.place.name}: {ready.capacity} slot{'s' * (ready.capacity != 1)}")
        self._failures[member.place.node] = self._failures[""] = 0
        self._account(member, ready=True, capacity=ready.capacity)
        member.epochs = (0, 0)  # counted anew by what it has made

    def _take(self, member: _Member, report: Report) -> None:
        assert member.place
        if member.proven:
            self._durations.append(self._clock() - member.since)
        member.proven = True
        if not member.alone:
            self._compiled.add(member.place.node)
            self._compiling.pop(member.place.node, None)
        self._account(member, ready=True, capacity=report.capacity)
        for i, (before, now) in enumerate(zip(member.epochs, (report.epochs_run, report.epochs_offered), strict=True)):
            self._epochs[i] += now - before
        member.epochs = report.epochs_run, report.epochs_offered
        for line in report.said:
            self._say(f"{member.place.name}: {line}")
        for outcome in report.outcomes:
            job = member.jobs.pop(outcome.job.identity)
            self._assigned -= not member.alone
            self._suspects.ended(job)
            self._ended.append(dataclasses.replace(outcome, job=job))

    def _account(self, member: _Member, ready: bool, capacity: int) -> None:
        """Keeps the sums in step with a member's slots."""
        if not member.alone:
            self._ready += ready - member.ready
            self._capacity += capacity - member.capacity
        member.ready, member.capacity = ready, capacity

    def _check(self) -> None:
        """Gives up workers that have been silent for too long. One that waits for room is not late."""
        now = self._clock()
        if now - self._checked < WAIT:
            return
        self._checked = now
        usual = statistics.median(self._durations) if self._durations else 0.0
        bound = max(self._patience.least, self._patience.epochs * usual)
        for worker, member in list(self._members.items()):
            silent = now - member.since
            if member.call and silent > (bound if member.proven else max(bound, self._patience.first)):
                self._lose(worker, Lost(reason=f"no answer for {silent:.0f} s"))

    def _taken(self) -> list[Outcome]:
        ended, self._ended = self._ended, []
        return ended
