"""A fleet that is not there: workers on stand-ins for training, in virtual time, with deaths, silence and late answers."""

import collections
import dataclasses
import hashlib
import heapq
import itertools
import random
import types
from collections.abc import Callable, Collection, Container, Mapping
from typing import Any

from bpevo.training import EpochResult, OutOfMemory, Training
from bpevo.workers import Job, LocalWorkers
from bpevo.workers.fleet import Answer, Cause, Epoch, Lost, Place, Prepare, Ready, Report

VERSIONS = {"jax": "simulated", "device": "simulated"}


def chance(*what: Any) -> float:
    """A number in [0, 1) that depends on `what` alone."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=6).digest()) / 2**48


class StandIn:
    """A Trainer whose accuracies are hashes of what is trained; one rule in eight diverges."""

    def __init__(self, capacity: int, epochs: int):
        self.capacity = capacity
        self.task = types.SimpleNamespace(settings=types.SimpleNamespace(epochs=epochs))
        self.epochs_run = self.epochs_offered = 0
        self.short_of_memory = False  # the next epoch does not fit
        self._slots: dict[int, tuple[Training, str, int]] = {}

    @property
    def free(self) -> list[int]:
        return [slot for slot in range(self.capacity) if slot not in self._slots]

    def start(self, slot: int, training: Training, epoch: int = 0, state: Any = ()) -> None:
        del state
        what = f"{training.equation}, {training.learning_rate}, {training.replicate}, {training.transform}"
        self._slots[slot] = training, what, epoch

    def state(self, slot: int) -> list:
        del slot
        return []

    def stop(self, slot: int) -> None:
        self._slots.pop(slot, None)

    def halved(self) -> "StandIn":
        smaller = StandIn(max(1, self.capacity // 2), self.task.settings.epochs)
        smaller.epochs_run, smaller.epochs_offered = self.epochs_run, self.epochs_offered
        return smaller

    def advance(self, meanwhile: Callable[[], None] = lambda: None) -> dict[int, EpochResult]:
        meanwhile()
        if self.short_of_memory:
            raise OutOfMemory("simulated")
        self.epochs_run += len(self._slots)
        self.epochs_offered += self.capacity * bool(self._slots)
        results = {}
        for slot, (training, what, epoch) in list(self._slots.items()):
            epoch += 1
            reason = "loss not finite" if epoch == 2 and chance("diverges", what) < 0.125 else ""
            accuracy = 0.0 if reason else (chance(what) + 0.1 * chance(what, epoch)) / 1.1
            results[slot] = EpochResult(
                epoch=epoch, train_loss=1.0, train_accuracy=accuracy, gradient_norm=1.0,
                eval_loss=1.0, eval_accuracy=accuracy, reason=reason,
            )  # fmt: skip
            self._slots[slot] = training, what, epoch
            if reason or epoch >= self.task.settings.epochs:
                self.stop(slot)
        return results


@dataclasses.dataclass(frozen=True, kw_only=True)
class Misfortune:
    """Chances at each call; what is left goes well."""

    dies: float = 0.0
    hangs: float = 0.0  # never answers, or when nobody waits any more
    twice: float = 0.0  # answers twice
    halves: float = 0.0  # its memory does not do
    fails: float = 0.0  # at its start
    leaves: float = 0.0  # its whole node goes; it is back after NODE_GONE seconds


START, EPOCH, NODE_GONE, LATE = 5.0, 10.0, 60.0, 5000.0  # seconds


@dataclasses.dataclass
class _Worker:
    alone: bool
    without: Collection[str]
    node: str = ""
    dead: bool = False
    node_gone: bool = False  # of which it dies
    calling: bool = True  # its start
    workers: LocalWorkers | None = None
    jobs: set[tuple] = dataclasses.field(default_factory=set)


class SimulatedFleet:
    """A Fleet in virtual time: `now` is its clock. Checks what a pool must never do."""

    def __init__(
        self,
        nodes: Mapping[str, int],
        slots: int,
        epochs: int,
        misfortune: Misfortune = Misfortune(),
        seed: int = 0,
        *,
        fatal: Container[str] = (),
        broken: Container[str] = (),
        versions: Mapping[str, Mapping[str, str]] | None = None,
        make: Callable[[int], Any] | None = None,
    ):
        """
        Args:
          nodes: have room for so many workers each.
          slots: of a worker.
          epochs: of a training.
          misfortune: what happens to workers.
          seed: of all chances.
          fatal: subjects that bring down whatever trains them.
          broken: nodes where no worker can start.
          versions: of nodes that report others.
          make: a Trainer for so many slots; StandIn where None.
        """
        self._room = dict(nodes)
        self._there = dict(nodes)
        self._slots, self._epochs, self._misfortune, self._fatal = slots, epochs, misfortune, fatal
        self._random = random.Random(seed)
        self.time = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], list]]] = []
        self._workers: dict[int, _Worker] = {}
        self._pending: list[int] = []
        self._broken, self._versions = broken, versions or {}
        self._make: Callable[[int], Any] = make or (lambda slots: StandIn(slots, epochs))
        self.deaths = 0
        self.starts: collections.Counter[str] = collections.Counter()  # workers that had a place, by node
        self.alone = 0  # starts of such
        self.calls: list[tuple[str, int, type]] = []  # node, worker, kind
        self._crashes: list[tuple[str, str]] = []  # subject, node

    def now(self) -> float:
        return self.time

    def nodes(self) -> Mapping[str, int]:
        return {node: self._room[node] for node in self._there}

    def start(self, *, alone: bool, without: Collection[str]) -> int:
        worker = next(self._order)
        self.alone += alone
        self._workers[worker] = _Worker(alone, without)
        self._pending.append(worker)
        self._place_pending()
        return worker

    def call(self, worker: int, number: int, request: Prepare | Epoch) -> None:
        w, fate = self._workers[worker], self._random.random()
        assert not w.calling, "a worker has one call at a time"
        w.calling = True
        self.calls.append((w.node, worker, type(request)))
        odds = self._misfortune
        if w.dead:
            self._later(0.1, worker, number, Lost(reason="it had died"))  # while it waited for orders
            return
        if isinstance(request, Epoch) and any(job.subject in self._fatal for job in request.jobs):
            if w.alone:
                self._crashes.append((request.jobs[0].subject, w.node))
            self._die(worker, number, 1.0, Cause.ITSELF if w.alone else Cause.UNKNOWN)
            return
        for name in ("dies", "hangs", "leaves", "halves", "twice"):
            if fate < (odd := getattr(odds, name)):
                break
            fate -= odd
        else:
            name = ""
        if name == "dies" and isinstance(request, Epoch):
            self._die(worker, number, self._random.uniform(0, EPOCH), Cause.UNKNOWN)
        elif name == "leaves":
            self.leave(w.node)
            self._later(EPOCH, worker, number, Lost(reason=""))
        elif isinstance(request, Prepare) and w.node in self._broken:
            self._die(worker, number, 1.0, Cause.UNKNOWN)
        elif isinstance(request, Prepare):
            w.workers = LocalWorkers(self._make(1 if w.alone else self._slots), None, lambda line: None)
            versions = self._versions.get(w.node, VERSIONS)
            self._later(START, worker, number, Ready(capacity=w.workers.capacity, versions=versions))
        else:
            report = self._trained(w, request.jobs, short=name == "halves")
            took = EPOCH * self._random.uniform(0.5, 1.5)
            if name == "hangs":
                self._later(took + LATE, worker, number, report)
                return
            self._later(took, worker, number, report)
            if name == "twice":
                self._later(took + self._random.uniform(0, 3 * EPOCH), worker, number, report)

    def wait(self, seconds: float) -> list[tuple[int, int, Answer]]:
        end, answers = self.time + seconds, list[tuple[int, int, Answer]]()
        while self._events and self._events[0][0] <= (self.time if answers else end):
            self.time, _, event = heapq.heappop(self._events)
            answers += event()
        if not answers:
            self.time = end
        return answers

    @property
    def living(self) -> int:
        return sum(not w.dead for w in self._workers.values())

    @property
    def unheard(self) -> int:
        """Calls under way of living workers."""
        return sum(w.calling for w in self._workers.values() if not w.dead)

    def crashed_on(self, subject: str) -> list[str]:
        """Nodes of the workers that it brought down alone."""
        return [node for what, node in self._crashes if what == subject]

    def join(self, node: str, room: int) -> None:
        self._room[node] = self._there[node] = room
        self._place_pending()

    def occupy(self, node: str, room: int) -> None:
        """As another search does."""
        self._there[node] -= room

    def kill(self, worker: int) -> None:
        self._gone(worker)

    def close(self) -> None:
        for worker in self._workers:
            self._gone(worker)

    def _trained(self, w: _Worker, jobs: Collection[Job], short: bool) -> Report:
        assert w.workers
        w.jobs |= {job.identity for job in jobs}
        assert len(w.jobs) <= w.workers.capacity or not jobs, "more jobs than slots"
        for job in jobs:
            w.workers.submit(job)
        w.workers.trainer.short_of_memory = short and w.workers.capacity > 1  # type: ignore[attr-defined]
        outcomes = w.workers.poll()
        w.jobs -= {outcome.job.identity for outcome in outcomes}
        trainer = w.workers.trainer
        run, offered = getattr(trainer, "epochs_run", 0), getattr(trainer, "epochs_offered", 0)
        return Report(outcomes=outcomes, capacity=trainer.capacity, epochs_run=run, epochs_offered=offered)

    def _later(self, seconds: float, worker: int, number: int, answer: Answer) -> None:
        def event() -> list[tuple[int, int, Answer]]:
            w = self._workers[worker]
            w.calling = False
            lost = Lost(reason="its node is gone", cause=Cause.OUTSIDE)
            return [(worker, number, lost if w.node_gone else answer)]  # also of one that was killed: then it is late

        self._at(seconds, event)

    def _at(self, seconds: float, event: Callable[[], list]) -> None:
        heapq.heappush(self._events, (self.time + seconds, next(self._order), event))

    def _place_pending(self) -> None:
        for worker in list(self._pending):
            w = self._workers[worker]
            node = next((n for n, room in self._there.items() if room > 0 and n not in w.without), None)
            if node is None:
                continue
            self._pending.remove(worker)
            self._there[node] -= 1
            w.node = node
            self.starts[node] += 1
            if self._random.random() < self._misfortune.fails:
                self._die(worker, 0, 1.0, Cause.UNKNOWN)
            else:
                self._later(1.0, worker, 0, Place(node=node, name=f"{node}/{worker}"))

    def _die(self, worker: int, number: int, seconds: float, cause: Cause) -> None:
        self.deaths += 1
        self._gone(worker)
        self._later(seconds, worker, number, Lost(reason="simulated death", cause=cause))

    def _gone(self, worker: int) -> None:
        w = self._workers[worker]
        if worker in self._pending:
            self._pending.remove(worker)
        if not w.dead and w.node in self._there:
            self._there[w.node] += 1
        w.dead = True
        self._place_pending()

    def leave(self, node: str) -> None:
        """A node goes with all on it, which nobody is told at once."""
        del self._there[node]
        for w in self._workers.values():
            if w.node == node and not w.dead:
                w.dead = w.node_gone = True
                self.deaths += 1

        def back() -> list:
            self._there[node] = self._room[node]
            self._place_pending()
            return []

        self._at(NODE_GONE, back)
