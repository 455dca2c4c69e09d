"""A run to look at, finished or not: `bpevo.open(workdir)`. Tables are pandas data frames."""

import dataclasses
import functools
import os
import pathlib
from typing import TYPE_CHECKING, Any

from bpevo.evaluation import standings, verdict
from bpevo.evaluation.treatments import stored
from bpevo.report import build
from bpevo.report.front import front
from bpevo.report.leaderboard import leaderboard, remarks
from bpevo.rules import Expression, parse
from bpevo.runs import Row, Rows, RunDatabase, networks
from bpevo.workers import on

if TYPE_CHECKING:
    import pandas

TOP = 20  # rules that a search's leaderboard shows


class Opened:
    """What a folder's run holds now; nothing is locked, so that it may be looked at while it grows.

    Args:
      folder: the workdir of a search, or of an evaluation (`runs/digits/a1`).

    Raises:
      RunError: there is no run, or it cannot be read.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(os.path.expanduser(folder))
        with RunDatabase.reading(self.folder) as database:
            self.settings: dict[str, Any] = database.settings()
            self.versions: dict[str, str] = database.versions()
            self.is_evaluation = "scenario" in self.settings
            self.rows: Rows = database.rows() if self.is_evaluation else database.judged()
            self.proposals = database.proposals()

    @property
    def leaderboard(self) -> "pandas.DataFrame":
        """A row per rule and control, best first; accuracies in %. Of an evaluation its standings."""
        return _frame([self._told(row) for row in self._board])

    @property
    def front(self) -> "pandas.DataFrame":
        """The best rule for each number of components that have an effect, simplified (bpevo.report.front)."""
        return _frame([] if self.is_evaluation else [self._told(row) for row in front(self.rows)])

    @property
    def remarks(self) -> list[str]:
        """How (not) to read the leaderboard; of an evaluation its verdict."""
        if self.is_evaluation:
            return verdict(self._board)
        held_out = self.settings.get("held_out", 0)
        return remarks(self._board, held_out, self.settings.get("validation_examples", 0) - held_out)

    @property
    def best(self) -> Expression | None:
        """The best rule that is no control; None without one. What it is worth, `remarks` says."""
        for row in self._board:
            if self.is_evaluation and row.role != "control":
                treatment = stored(row.text)
                return treatment.expression if treatment else None
            if not self.is_evaluation and not row.label:
                return parse(row.equation)
        return None

    @property
    def trainings(self) -> "pandas.DataFrame":
        """A row per training, in order of finishing, as the database holds them."""
        names = [f.name for f in dataclasses.fields(Row) if f.name not in ("curve", "members")]
        return _frame([{name: getattr(row, name) for name in names} for row in self.rows.trainings])

    @property
    def curves(self) -> "pandas.DataFrame":
        """A row per training and epoch: losses, accuracies in [0, 1], gradient norm."""
        return _frame(
            [
                {
                    "stage": row.stage,
                    "equation": row.equation,
                    "learning_rate": row.learning_rate,
                    "replicate": row.replicate,
                    "network": row.network,
                }
                | {"epoch": epoch + 1}
                | {name: values[epoch] for name, values in row.curve.items()}
                for row in self.rows.trainings
                for epoch in range(row.epochs)
            ]
        )

    def report(self) -> list[pathlib.Path]:
        """Writes the report of the folder, plots included, and returns its pages and tables. Raises RunError."""
        return build.build(self.folder)

    @functools.cached_property
    def _board(self) -> list[Any]:
        if self.is_evaluation:
            return standings(self.rows, self.settings)
        return leaderboard(self.rows, TOP, self.settings.get("learning_rates", ()), networks(self.settings))

    def _told(self, row: Any) -> dict[str, Any]:
        """A row's fields and what its properties say; over several networks also what it did on each."""
        told = dataclasses.asdict(row) | _read_off(row)
        told.pop("on", None)
        for name, part in zip(networks(self.settings).names, getattr(row, "on", ()), strict=False):
            of_part = {"learning_rate": part.learning_rate, "search": part.search} | _read_off(part)
            told |= {on(key, name): value for key, value in of_part.items()}
        return told

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{line}</li>" for line in map(build.page.html.escape, self.remarks))
        return f"{self.leaderboard.to_html(index=False)}<ul>{notes}</ul>"

    def __repr__(self) -> str:
        kind = "evaluation" if self.is_evaluation else "search"
        return f"<{kind} in {self.folder}: {len(self.rows.trainings)} trainings, best {self.best}>"


def _read_off(row: Any) -> dict[str, Any]:
    """What a row's properties say, and its parts that are no numbers made so."""
    found = {name: getattr(row, name) for name in ("mean", "deviation") if hasattr(row, name)}
    for name in ("difference", "test", "selection"):
        part = getattr(row, name, None)
        part = getattr(part, "pairs", part)
        if hasattr(row, name):
            found[name] = None if part is None else part.mean
    return found


def _frame(rows: list[dict[str, Any]]) -> "pandas.DataFrame":
    try:
        import pandas
    except ImportError as error:
        raise ImportError("this table is a pandas data frame: pip install pandas") from error
    return pandas.DataFrame(rows)
