"""What goes into a worker and what comes out."""

import dataclasses
from typing import Any

from bpevo.training import EpochResult, Training


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
