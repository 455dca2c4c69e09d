"""What goes into a worker and what comes out."""

import dataclasses
import enum

from bpevo.training import EpochResult, Training


class Stage(enum.StrEnum):
    """What a training is for: the value of a row's `stage`."""

    CONTROL = "control"  # backprop and the zero signal, at every learning rate of a grid that grows
    TRIAL = "trial"  # the first epochs of a proposal at each of its learning rates
    SEARCH = "search"  # a proposal, at the best of them
    CONFIRMATION = "confirmation"  # one of the best proposals on another seed
    TUNING = "tuning"  # a treatment at one of its learning rates
    SELECTION = "selection"  # fresh seeds, validation (of a search: on the examples that are held out)
    ABLATION = "ablation"  # a rule without one of its components
    TEST = "test"  # full training set, test accuracy


ON = " on "  # between a rule and the network that it is trained on, where there are several


def on(rule: str, network: str) -> str:
    """The subject of a rule's training in a search.

    >>> on("unit_fro(g)", "mlp-32"), on("g", "")
    ('unit_fro(g) on mlp-32', 'g')
    """
    return rule + ON + network if network else rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A training, what it is for, and its early-stopping bars."""

    stage: Stage
    subject: str  # what is trained, by the text that identifies it in the database: a rule (with `on`) or a treatment
    training: Training
    network: str = ""  # of a search on several networks: which
    proposal: int | None = None  # id of the search's proposal, where it is one
    bars: tuple[tuple[int, float], ...] = ()  # (epoch, least accuracy to go on)
    rung_epochs: tuple[int, ...] = ()  # epochs of all rungs, also of those without a bar
    epochs: int | None = None  # ends after so many; None: all. Another job may go on from there

    @property
    def identity(self) -> tuple[str, str, float, int]:
        """Equal for jobs of one row: stage, subject, learning rate, replicate."""
        return self.stage, self.subject, self.training.learning_rate, self.training.replicate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended: status "done", "stopped" (below a bar), "diverged" or "crashed" (with its reason).

    What crashed brought down the workers that trained it: it has no curve and ranks as what diverged.
    """

    job: Job
    status: str
    reason: str
    curve: tuple[EpochResult, ...]
    seconds: float

    @property
    def accuracy(self) -> float | None:
        """Accuracy after the last epoch; None if it diverged or crashed."""
        return None if self.status in ("diverged", "crashed") else self.curve[-1].eval_accuracy

    @property
    def rungs(self) -> int:
        """Rungs survived."""
        reached = sum(epoch <= len(self.curve) for epoch in self.job.rung_epochs)
        return reached - (self.status == "stopped")
