"""What a pool of 500 workers asks of its head: a whole search in virtual time through the real Search, controller, Pool and
database, over a fleet that is not there and dies often. Every outcome is checked as it is stored.

What the simulation and the checks take is left out. What is pickled for the workers and comes back from them is counted, but
not what Ray adds to it.
"""

import collections
import dataclasses
import functools
import itertools
import pathlib
import pickle
import resource
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from bpevo.bench.simulated import Misfortune, SimulatedFleet, StandIn
from bpevo.command import definitions, plans
from bpevo.evolution import CONTROLLERS, SameFunction, SameText
from bpevo.runs import Row, RunDatabase
from bpevo.search import Search, SearchPlan
from bpevo.workers import Job, LocalWorkers, Outcome, Pool
from bpevo.workers.fleet import Answer, Epoch

EPOCHS = 20
WORKERS, SLOTS, NODE = 500, 16, 4  # NODE: workers of a node
# As a1, but with one learning rate: every training is an equation of its own, which asks most of the head.
SETTINGS = (f"--epochs={EPOCHS}", "--stop_epochs=5,10", "--learning_rates=0.1", "--elite_size=1000", "--top=10")
# Chances at a call; an epoch of virtual time is 10 s, so some 30 workers die in an hour, and 20 nodes with all on them.
MISFORTUNE = Misfortune(dies=2e-4, hangs=2e-5, twice=1e-3, halves=1e-5, fails=1e-3, leaves=1e-4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """What the head took since the figures before; `results`, `memory`, `deaths`, `reissued`: of the whole run so far."""

    results: int
    drawn: int  # proposals: at first far more than results, in the end none
    milliseconds: float  # of the head's processor time, a result
    controller: float  # of these, but a proposal: its draw, and what tells duplicates
    database: float  # of these, a result
    disk: float  # milliseconds that a result waits for it beside the processor's
    memory: int  # bytes at most, the simulation's too
    per_hour: float  # results in an hour of virtual time
    deaths: int  # of workers
    reissued: int  # trainings that began again


class Account:
    """Seconds by part of the program: of the processor, and that it waited."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.waited: dict[str, float] = collections.defaultdict(float)

    def __call__(self, part: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        begin, clock = time.process_time(), time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            spent = time.process_time() - begin
            self.seconds[part] += spent
            self.waited[part] += time.perf_counter() - clock - spent


class Timed:
    """What stands in its place, each call of a method on the account of a part."""

    def __init__(self, inner: Any, account: Account, part: str, methods: Collection[str]):
        self._inner = inner
        for name in methods:
            self.__dict__[name] = functools.partial(account, part, getattr(inner, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class MeasuredFleet:
    """A simulated fleet whose own time is on the account, and to which requests and answers travel as bytes."""

    def __init__(self, fleet: SimulatedFleet, account: Account):
        self._fleet, self._account = fleet, account
        self._begun: collections.Counter[tuple] = collections.Counter()  # of open jobs, by identity
        self.reissued = 0

    def nodes(self) -> Mapping[str, int]:
        return self._account("simulation", self._fleet.nodes)

    def start(self, *, alone: bool, without: Collection[str]) -> int:
        return self._account("simulation", self._fleet.start, alone=alone, without=without)

    def call(self, worker: int, number: int, request: Any) -> None:
        sent = pickle.dumps(request)
        self._account("simulation", self._call, worker, number, sent)

    def wait(self, seconds: float) -> list[tuple[int, int, Answer]]:
        answers = self._account("simulation", self._wait, seconds)
        return [(worker, number, pickle.loads(answer)) for worker, number, answer in answers]

    def kill(self, worker: int) -> None:
        self._account("simulation", self._fleet.kill, worker)

    def close(self) -> None:
        self._fleet.close()

    def _call(self, worker: int, number: int, sent: bytes) -> None:
        request = pickle.loads(sent)
        if isinstance(request, Epoch):
            for job in request.jobs:
                self.reissued += job.identity in self._begun
                self._begun[job.identity] += 1
        self._fleet.call(worker, number, request)
        self._fleet.calls.clear()

    def _wait(self, seconds: float) -> list[tuple[int, int, bytes]]:
        return [(worker, number, pickle.dumps(answer)) for worker, number, answer in self._fleet.wait(seconds)]

    def ended(self, job: Job) -> None:
        del self._begun[job.identity]


class CheckedWorkers:
    """A pool of which every job must come back once, as one worker to which nothing happens trains it."""

    def __init__(self, pool: Pool, fleet: MeasuredFleet, account: Account):
        self._pool, self._fleet, self._account = pool, fleet, account
        self._open: dict[tuple, Job] = {}

    def submit(self, job: Job) -> None:
        assert job.identity not in self._open
        self._open[job.identity] = job
        self._pool.submit(job)

    def poll(self, meanwhile: Callable[[], None] = lambda: None) -> list[Outcome]:
        outcomes = self._pool.poll(meanwhile)
        self._account("simulation", self._check, outcomes)
        return outcomes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def _check(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            job = self._open.pop(outcome.job.identity)  # a second outcome would find none
            expected = undisturbed(job)
            if (outcome.status, outcome.reason, outcome.curve) != (expected.status, expected.reason, expected.curve):
                raise AssertionError(f"{job.subject} ended as it does not without deaths: {outcome}")
            self._fleet.ended(job)


def undisturbed(job: Job) -> Outcome:
    """What one worker makes of it."""
    workers = LocalWorkers(StandIn(1, EPOCHS))  # type: ignore[arg-type]
    workers.submit(job)
    while True:
        if outcomes := workers.poll():
            return outcomes[0]


def plan(trainings: int, workers: int, slots: int, *settings: str) -> SearchPlan:
    """What the search is that `bpevo.launch --pool=ray` would run with these numbers, its lag included. Raises UsageError."""
    values = flags.FlagValues()
    definitions.define_common(values)
    definitions.define_search(values)
    own = [f"--max_evaluations={trainings}", "--pool=ray", f"--workers={workers}", f"--slots={slots}"]
    values(["bpevo.launch", *SETTINGS, *own, *settings])
    return plans.search_plan(values)


def fleet(workers: int, slots: int, seed: int = 0) -> SimulatedFleet:
    """With room for so many workers, which die."""
    nodes = {f"node {i}": NODE for i in range(-(-workers // NODE))}
    return SimulatedFleet(nodes, slots, EPOCHS, MISFORTUNE, seed)


def marks(trainings: int) -> Iterator[int]:
    """Trainings of the search after which figures are taken, before its end.

    >>> list(marks(15_000))
    [1000, 2000, 5000, 10000]
    """
    every = (mark * 10**power for power in itertools.count(3) for mark in (1, 2, 5))
    return itertools.takewhile(lambda mark: mark < trainings, every)


def measure(
    asked: SearchPlan,
    folder: pathlib.Path,
    simulated: SimulatedFleet,
    workers: int,
    say: Callable[[Figures], None] = lambda figures: None,
) -> list[Figures]:
    """Runs a whole search into a database in `folder`.

    Args:
      asked: the search, of EPOCHS epochs a training.
      folder: empty.
      simulated: from `fleet`.
      workers: of the pool, at most.
      say: gets the figures as they are taken.

    Returns:
      The figures at `marks` and at the end.

    Raises:
      AssertionError: a training was lost, came back twice or changed.
    """
    account = Account()
    measured = MeasuredFleet(simulated, account)
    pool = Pool(measured, "simulated", workers, say=lambda line: None, clock=simulated.now)
    duplicates = SameFunction() if asked.equivalence else SameText()
    made = CONTROLLERS[asked.controller](asked.space, asked.evolution, asked.initial, duplicates)
    controller: Any = Timed(made, account, "controller", ("ask", "tell", "adopt"))
    found: list[Figures] = []
    ahead = collections.deque(marks(asked.max_evaluations))
    before: dict[str, float] = collections.defaultdict(float)

    def take(search: Search) -> None:
        nonlocal before
        spent = account.seconds
        head = time.process_time() - begin - spent["simulation"]
        now = {"results": len(search.rows), "drawn": len(search.proposals), "virtual": simulated.time, "head": head}
        now |= {"controller": spent["controller"], "database": spent["database"], "disk": account.waited["database"]}
        since, before = {name: value - before[name] for name, value in now.items()}, now
        each = 1e3 / since["results"]
        figures = Figures(
            results=len(search.rows),
            drawn=int(since["drawn"]),
            milliseconds=since["head"] * each,
            controller=1e3 * since["controller"] / max(1, since["drawn"]),
            database=since["database"] * each,
            disk=since["disk"] * each,
            memory=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            per_hour=3600 * since["results"] / since["virtual"],
            deaths=simulated.deaths,
            reissued=measured.reissued,
        )
        found.append(figures)
        say(figures)

    def watch(search: Search, rows: Sequence[Row]) -> None:
        if ahead and search.done >= ahead[0]:
            ahead.popleft()
            take(search)

    with RunDatabase.writing(folder) as database:
        database.check_settings(asked.fingerprint(), {}, ())
        stored: Any = Timed(database, account, "database", ("add_proposal", "add_rows"))
        checked: Any = CheckedWorkers(pool, measured, account)
        begin = time.process_time()
        search = Search(stored, controller, checked, asked, watch)
        search.run()
        take(search)
        ended, kept = database.rows(), database.proposals()
    assert not checked._open and len({row.identity for row in ended}) == len(ended) == len(search.rows)
    assert len(kept) == len(search.proposals)
    pool.close()
    assert simulated.living == 0
    return found
