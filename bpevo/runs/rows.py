"""A row of the database: how one training ended."""

from __future__ import annotations

import dataclasses
from typing import Any

from bpevo.workers.job import Stage


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

    @property
    def identity(self) -> tuple[str, str, float, int]:
        """Unique in a run; equals that of the Job."""
        return self.stage, self.equation, self.learning_rate, self.replicate

    @property
    def epochs(self) -> int:
        return len(self.curve["eval_accuracy"])


class Rows(list[Row]):
    """Rows in order of finishing."""

    def of(self, **wanted: Any) -> Rows:
        """Those whose fields have these values: `rows.of(stage=Stage.TUNING, equation="g")`."""
        return Rows(row for row in self if all(getattr(row, name) == value for name, value in wanted.items()))

    @property
    def slot_epochs(self) -> int:
        """Epochs in a slot that these trainings took; of one that goes on where its trial ended those after the trial."""
        trials = {(row.equation, row.learning_rate): row.epochs for row in self.of(stage=Stage.TRIAL)}
        trained = sum(row.epochs for row in self)
        return trained - sum(trials.get((row.equation, row.learning_rate), 0) for row in self.of(stage=Stage.SEARCH))
