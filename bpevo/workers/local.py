"""Workers on this process's devices: jobs go into the trainer's slots and come back as outcomes."""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from bpevo.training import EpochResult, Trainer, Training


@dataclasses.dataclass(frozen=True)
class Job:
    """A training with its early-stopping bars. `tag` is the caller's own."""

    tag: Any
    training: Training
    bars: tuple[tuple[int, float], ...] = ()  # (epoch, least accuracy to go on)
    rung_epochs: tuple[int, ...] = ()  # epochs of all rungs, also of those without a bar


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended: status "done", "stopped" (below a bar) or "diverged" (with its reason)."""

    job: Job
    status: str
    reason: str
    curve: tuple[EpochResult, ...]
    seconds: float

    @property
    def accuracy(self) -> float | None:
        """Accuracy after the last epoch; None if it diverged."""
        return None if self.status == "diverged" else self.curve[-1].eval_accuracy

    @property
    def rungs(self) -> int:
        """Rungs survived."""
        reached = sum(epoch <= len(self.curve) for epoch in self.job.rung_epochs)
        return reached - (self.status == "stopped")


class LocalWorkers:
    """Runs jobs in the slots of one Trainer. A slot freed at the end of an epoch takes the next waiting job at once."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._waiting: deque[Job] = deque()
        self._running: dict[int, tuple[Job, list[EpochResult], float]] = {}

    @property
    def wanted(self) -> int:
        """Jobs that could start now, beyond those waiting."""
        return max(0, len(self.trainer.free) - len(self._waiting))

    @property
    def idle(self) -> bool:
        return not self._running and not self._waiting

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def cancel(self) -> None:
        """Drops every job."""
        for slot in self._running:
            self.trainer.stop(slot)
        self._waiting.clear()
        self._running.clear()

    def poll(self) -> list[Outcome]:
        """Trains one epoch in every slot and returns the jobs that ended, in slot order."""
        for slot in self.trainer.free:
            if self._waiting:
                job = self._waiting.popleft()
                self.trainer.start(slot, job.training)
                self._running[slot] = (job, [], time.time())
        outcomes = []
        for slot, result in self.trainer.advance().items():
            job, curve, start = self._running[slot]
            curve.append(result)
            status = self._status(job, result)
            if status:
                self.trainer.stop(slot)
                del self._running[slot]
                outcomes.append(Outcome(job, status, result.reason, tuple(curve), time.time() - start))
        return outcomes

    def _status(self, job: Job, result: EpochResult) -> str:
        if result.reason:
            return "diverged"
        if result.epoch >= self.trainer.candidate.settings.epochs:
            return "done"
        return "stopped" if result.eval_accuracy < dict(job.bars).get(result.epoch, -math.inf) else ""

    def epoch_seconds(self, trainings: Sequence[Training], repeats: int = 3) -> list[float]:
        """Wall time of one epoch of each training alone, evaluation included: the least of `repeats`. Needs idle workers."""
        assert self.idle
        times = [math.inf] * len(trainings)
        for _ in range(repeats):
            for i, training in enumerate(trainings):
                self.trainer.start(0, training)
                start = time.perf_counter()
                self.trainer.advance()
                times[i] = min(times[i], time.perf_counter() - start)
                self.trainer.stop(0)
        return times
