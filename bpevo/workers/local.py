"""Workers on this process's devices: jobs go into the trainer's slots and come back as outcomes."""

import dataclasses
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from bpevo.training import EpochResult, OutOfMemory, Trainer
from bpevo.workers.checkpoints import Checkpoint, Checkpoints
from bpevo.workers.job import Job, Outcome

KEPT = 4  # states a slot, of trainings that ended early: more trials than that are seldom open


@dataclasses.dataclass
class _Running:
    """A job in a slot. Times are of the monotonic clock, which no change of the date moves."""

    job: Job
    curve: list[EpochResult]
    start: float  # when it would have started without an interruption
    saved: float  # its last checkpoint or start


class LocalWorkers:
    """Workers in the slots of one Trainer. A slot freed at the end of an epoch takes the next waiting job at once.

    A job that goes on where an earlier one ended (Job.epochs) does so from its state, as long as that is kept here, else from
    the beginning: equal bit for bit on CPU. When the device runs out of memory the trainer is replaced by one with half the
    slots, and the running jobs start again from their checkpoints or from the beginning.
    """

    def __init__(self, trainer: Trainer, checkpoints: Checkpoints | None = None, say: Callable[[str], None] = print):
        """`say` gets a line for what a user should know."""
        self.trainer = trainer
        self._checkpoints, self._say = checkpoints, say
        self._waiting: deque[Job] = deque()
        self._running: dict[int, _Running] = {}
        self._kept: OrderedDict[Any, Checkpoint] = OrderedDict()  # of trainings that ended early
        self._reported: list[Job] = []  # by the last poll
        self._whole = True  # curves and slots are of the same epoch: no poll was interrupted

    @property
    def wanted(self) -> int:
        return max(0, len(self.trainer.free) - len(self._waiting))

    @property
    def ahead(self) -> int:
        return self.trainer.capacity - len(self._waiting)

    @property
    def idle(self) -> bool:
        return not self._running and not self._waiting

    @property
    def capacity(self) -> int:
        return self.trainer.capacity

    @property
    def occupancy(self) -> float:
        return self.trainer.occupancy

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def close(self) -> None:
        for slot in self._running:
            self.trainer.stop(slot)
        self._waiting.clear()
        self._running.clear()

    def poll(self, meanwhile: Callable[[], None] = lambda: None) -> list[Outcome]:
        """Trains one epoch in every slot and returns the jobs that ended, in slot order; `meanwhile` may submit more.

        The caller stores them before it polls again: only then their checkpoints go. Raises OutOfMemory, DeviceLost.
        """
        if self._checkpoints:
            for job in self._reported:
                self._checkpoints.discard(job)
        self._reported, self._whole = [], False
        outcomes: list[Outcome] = []
        try:
            for slot in self.trainer.free:
                while self._waiting and slot not in self._running:
                    self._start(slot, self._waiting[0])
                    self._waiting.popleft()
                    outcomes += self._ended(slot)
            results = self.trainer.advance(meanwhile)
        except OutOfMemory:
            results = None
        if results is None:  # outside of the handler, which keeps the lost arrays alive
            self._halve()
            results = {}
        for slot, result in results.items():
            self._running[slot].curve.append(result)
            outcomes += self._ended(slot)
        self._reported, self._whole = [outcome.job for outcome in outcomes], True
        if self._checkpoints:
            self._save(self._checkpoints.seconds)
        return outcomes

    def suspend(self) -> list[Outcome]:
        """Writes a checkpoint of every running training, if there are checkpoints and no poll was interrupted."""
        if self._checkpoints and self._whole:
            self._save(0.0)
        return []

    def _start(self, slot: int, job: Job) -> None:
        saved = self._checkpoints.load(job, self.trainer.state_shapes) if self._checkpoints else None
        kept = self._kept.pop(_what(job), None)
        saved, now = saved or kept, time.monotonic()
        if saved:
            self.trainer.start(slot, job.training, len(saved.curve), saved.state)
            self._running[slot] = _Running(job, saved.curve, now - saved.seconds, now)
        else:
            self.trainer.start(slot, job.training)
            self._running[slot] = _Running(job, [], now, now)

    def _ended(self, slot: int) -> list[Outcome]:
        """The outcome of a slot's job and the slot free, if it has ended."""
        running = self._running[slot]
        status = self._status(running.job, running.curve[-1]) if running.curve else ""
        if not status:
            return []
        curve, seconds = tuple(running.curve), time.monotonic() - running.start
        if status == "done" and len(curve) < self.trainer.task.settings.epochs:
            self._kept[_what(running.job)] = Checkpoint(list(curve), seconds, self.trainer.state(slot))
            if len(self._kept) > KEPT * self.trainer.capacity:
                self._kept.popitem(last=False)
        self.trainer.stop(slot)
        del self._running[slot]
        return [Outcome(job=running.job, status=status, reason=curve[-1].reason, curve=curve, seconds=seconds)]

    def _save(self, seconds: float) -> None:
        """Writes a checkpoint of each running training that has had none for so long."""
        assert self._checkpoints
        for slot, running in self._running.items():
            now = time.monotonic()
            if running.curve and now - running.saved >= seconds:
                checkpoint = Checkpoint(running.curve, now - running.start, self.trainer.state(slot))
                self._checkpoints.save(running.job, checkpoint)
                running.saved = now

    def _halve(self) -> None:
        before = self.trainer.capacity
        self.trainer = self.trainer.halved()
        self._waiting.extendleft(r.job for _, r in sorted(self._running.items(), reverse=True))
        self._running.clear()
        self._say(f"the device ran out of memory with {before} slots: going on with {self.trainer.capacity}")

    def _status(self, job: Job, result: EpochResult) -> str:
        if result.reason:
            return "diverged"
        if result.eval_accuracy < dict(job.bars).get(
            result.epoch, -math.inf
        ):  # at the end too: another network may follow
            return "stopped"
        return "done" if result.epoch >= (job.epochs or self.trainer.task.settings.epochs) else ""


def _what(job: Job) -> tuple[Any, ...]:
    """What a job trains, whatever it is for and however long."""
    t = job.training
    return str(t.equation), t.learning_rate, t.replicate, t.transform, t.held_out
