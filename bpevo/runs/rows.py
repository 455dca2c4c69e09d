"""A row of the database: how one training ended."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table `evaluations`. `curve` maps a column of EpochResult to its values per epoch."""

    stage: str  # one of bpevo.workers.Stage
    equation: str  # the rule with all its genes; in an evaluation the treatment
    learning_rate: float
    replicate: int
    proposal: int | None
    status: str  # done, stopped, diverged
    reason: str
    accuracy: float | None  # after the last epoch; None if it diverged
    rungs: int
    curve: dict[str, list[float | None]]
    seconds: float
    finished: str

    @property
    def identity(self) -> tuple[str, str, float, int]:
        """Unique in a run; equals that of the Job."""
        return self.stage, self.equation, self.learning_rate, self.replicate


class Rows(list[Row]):
    """Rows in order of finishing."""

    def of(self, **wanted: Any) -> Rows:
        """Those whose fields have these values: `rows.of(stage=Stage.TUNING, equation="g")`."""
        return Rows(row for row in self if all(getattr(row, name) == value for name, value in wanted.items()))
