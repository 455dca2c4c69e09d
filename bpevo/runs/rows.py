"""A row of the database: how one training ended. Over several networks, what its trainings come to together."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from bpevo.runs.errors import printable
from bpevo.training import EpochResult
from bpevo.workers.job import ON, Outcome, Stage, on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table `evaluations`. `curve` maps a column of EpochResult to its values per epoch."""

    stage: str  # one of bpevo.workers.Stage
    equation: str  # the rule with all its genes; in an evaluation the treatment
    learning_rate: float
    replicate: int
    proposal: int | None
    status: str  # done, stopped, diverged, crashed
    reason: str
    accuracy: float | None  # after the last epoch; None if it diverged or crashed
    rungs: int
    curve: dict[str, list[float | None]]
    seconds: float
    finished: str
    network: str = ""  # of a search on several networks: which
    members: tuple[Row, ...] = ()  # of what several trainings come to: these, by network (bpevo.runs.ranking.joined)

    @property
    def subject(self) -> str:
        """That of the Job."""
        return on(self.equation, self.network)

    @property
    def identity(self) -> tuple[str, str, float, int]:
        """Unique in a run; equals that of the Job."""
        return self.stage, self.subject, self.learning_rate, self.replicate

    @property
    def epochs(self) -> int:
        return len(self.curve["eval_accuracy"])

    def epochs_after(self, trial: int) -> int:
        """Those that it took in a slot itself, where its trial took so many: one as long as the training is not gone on with."""
        whole = self.status == "done" and self.epochs == trial
        return self.epochs if self.stage != Stage.SEARCH or whole else max(0, self.epochs - trial)


class Rows(list[Row]):
    """Rows in order of finishing."""

    def of(self, **wanted: Any) -> Rows:
        """Those whose fields have these values: `rows.of(stage=Stage.TUNING, equation="g")`."""
        return Rows(row for row in self if all(getattr(row, name) == value for name, value in wanted.items()))

    @property
    def trainings(self) -> Rows:
        """Those that are trainings, each a row of the database."""
        return self.of(members=())

    @property
    def slot_epochs(self) -> int:
        """Epochs in a slot that these trainings took; of one that goes on where its trial ended those after the trial."""
        rows = self.trainings
        trials = {(row.subject, row.learning_rate): row.epochs for row in rows.of(stage=Stage.TRIAL)}
        return sum(row.epochs_after(trials.get((row.subject, row.learning_rate), 0)) for row in rows)


def row_of(outcome: Outcome, finished: str) -> Row:
    """What of an outcome is stored. What is not finite in its curve becomes None."""
    columns = [f.name for f in dataclasses.fields(EpochResult) if f.name not in ("epoch", "reason", "alignment")]
    curve = {name: [_finite(getattr(e, name)) for e in outcome.curve] for name in columns}
    for unit in outcome.curve[0].alignment if outcome.curve else ():
        for i, name in enumerate(("cosine", "norm_ratio")):
            curve[f"{name} {unit}"] = [_finite(e.alignment[unit][i]) for e in outcome.curve]
    job = outcome.job
    return Row(
        stage=str(job.stage),
        equation=job.subject.partition(ON)[0],
        learning_rate=job.training.learning_rate,
        replicate=job.training.replicate,
        proposal=job.proposal,
        status=outcome.status,
        reason=printable(" ".join(outcome.reason.split())),  # of another process, it may hold anything
        accuracy=outcome.accuracy,
        rungs=outcome.rungs,
        curve=curve,
        seconds=outcome.seconds,
        finished=finished,
        network=job.network,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
