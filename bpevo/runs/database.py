"""The run database: one SQLite file per workdir. Every proposal and every finished training is a row; nothing that was
measured is only in memory. Reading works while a search writes (write-ahead log); one process at a time may write.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import math
import os
import pathlib
import socket
import sqlite3
from collections.abc import Iterator
from typing import Any

from bpevo.evolution import Change, Proposal, Result
from bpevo.rules import parse
from bpevo.workers import Outcome

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE proposals (
  id INTEGER PRIMARY KEY,           -- order of drawing, from 0
  equation TEXT NOT NULL,           -- the whole genome, idle genes included
  key TEXT NOT NULL,                -- equal for duplicates
  parent INTEGER REFERENCES proposals(id),
  changes TEXT NOT NULL,            -- JSON: [{part, gene, before, after}]
  bars TEXT NOT NULL,               -- JSON: [[epoch, accuracy]]
  infeasible INTEGER NOT NULL,      -- restarts before this one
  duplicates INTEGER NOT NULL,
  created TEXT NOT NULL
);
CREATE TABLE evaluations (
  stage TEXT NOT NULL,              -- search, control, selection, tuning, test
  equation TEXT NOT NULL,
  learning_rate REAL NOT NULL,
  replicate INTEGER NOT NULL,       -- training seed = fold_in(root, replicate)
  proposal INTEGER REFERENCES proposals(id),
  status TEXT NOT NULL,             -- done, stopped, diverged
  reason TEXT NOT NULL,
  accuracy REAL,                    -- after the last epoch, null if diverged
  rungs INTEGER NOT NULL,
  curve TEXT NOT NULL,              -- JSON: a list per column, an entry per epoch
  seconds REAL NOT NULL,
  finished TEXT NOT NULL,
  PRIMARY KEY (stage, equation, learning_rate, replicate)
);
CREATE INDEX evaluations_of_proposal ON evaluations (proposal);
CREATE TABLE costs (equation TEXT PRIMARY KEY, relative REAL NOT NULL);  -- epoch time over backprop's
"""


class RunError(RuntimeError):
    """The workdir cannot be used; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A row of `evaluations`. `curve` maps a column of EpochResult to its values per epoch."""

    stage: str
    equation: str
    learning_rate: float
    replicate: int
    proposal: int | None
    status: str
    reason: str
    accuracy: float | None
    rungs: int
    curve: dict[str, list[float | None]]
    seconds: float
    finished: str


class RunDatabase:
    """`<workdir>/run.sqlite`. Open for writing with `writing`, for reading with `reading`."""

    def __init__(self, connection: sqlite3.Connection, path: pathlib.Path):
        self._connection, self.path = connection, path

    @classmethod
    @contextlib.contextmanager
    def writing(cls, workdir: str | os.PathLike) -> Iterator["RunDatabase"]:
        """Creates or continues a run. Raises RunError if another process writes, or the files cannot be used."""
        folder = pathlib.Path(workdir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = open(folder / "lock", "a+", encoding="utf-8")  # noqa: SIM115 (held while the run lasts)
        except OSError as error:
            raise RunError(
                f"cannot write in the workdir {folder}: {error.strerror}; choose another --workdir"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed by the kernel when its owner dies
            except OSError:
                lock.seek(0)
                owner = lock.read().strip() or "unknown"
                raise RunError(
                    f"another process writes in {folder}: {owner}; wait for it or choose another --workdir"
                ) from None
            lock.seek(0)
            lock.truncate()
            lock.write(f"host {socket.gethostname()}, pid {os.getpid()}, since {_now()}\n")
            lock.flush()
            with cls._open(folder / "run.sqlite", create=True) as database:
                yield database

    @classmethod
    @contextlib.contextmanager
    def reading(cls, workdir: str | os.PathLike) -> Iterator["RunDatabase"]:
        """Raises RunError if there is no run."""
        path = pathlib.Path(workdir) / "run.sqlite"
        if not path.is_file():
            raise RunError(
                f"there is no run in {workdir}: {path.name} is missing; start one with python -m bpevo.launch"
            )
        with cls._open(path, create=False) as database:
            yield database

    @classmethod
    @contextlib.contextmanager
    def _open(cls, path: pathlib.Path, create: bool) -> Iterator["RunDatabase"]:
        try:
            connection = sqlite3.connect(path, timeout=60, isolation_level=None)
            with contextlib.closing(connection):
                connection.execute("PRAGMA foreign_keys = ON")
                if create:
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.execute("PRAGMA synchronous = FULL")
                    if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                        connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version != SCHEMA_VERSION:
                    raise RunError(
                        f"{path} has schema version {version} but this bpevo reads {SCHEMA_VERSION}; "
                        "use the release that wrote it or choose another --workdir"
                    )
                yield cls(connection, path)
        except sqlite3.DatabaseError as error:
            raise RunError(
                f"{path}: {error}; if the disk is full, free some space and start again; if the file is damaged, move it "
                "away or restore a copy"
            ) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    # Settings

    def settings(self) -> dict[str, Any]:
        return self._meta("settings")

    def versions(self) -> dict[str, str]:
        return self._meta("versions")

    def _meta(self, key: str) -> dict[str, Any]:
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else {}

    def check_settings(self, settings: dict[str, Any], versions: dict[str, str], free: tuple[str, ...]) -> None:
        """Stores the settings of a new run; for an old one, refuses a difference outside `free`. Raises RunError."""
        settings = json.loads(json.dumps(settings))
        old = self.settings()
        changed = [k for k in sorted({*old, *settings}) if old.get(k) != settings.get(k) and k not in free]
        if old and changed:
            lines = "\n".join(f"  {k}: {old.get(k)!r} in the run, {settings.get(k)!r} now" for k in changed)
            raise RunError(
                f"{self.path.parent} holds a run with other settings; results would not be comparable:\n{lines}\n"
                "go back to those settings or choose another --workdir"
            )
        with self._transaction() as c:
            for key, value in (("settings", settings), ("versions", versions)):
                c.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    # Proposals and evaluations

    def add_proposal(self, p: Proposal) -> None:
        changes = json.dumps([dataclasses.asdict(c) for c in p.changes])
        row = (p.id, str(p.equation), p.key, p.parent, changes, json.dumps(p.bars), p.infeasible, p.duplicates, _now())
        with self._transaction() as c:
            c.execute("INSERT INTO proposals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def proposals(self) -> list[Proposal]:
        """In id order."""
        max_parts = self.settings()["max_parts"]
        rows = self._connection.execute("SELECT * FROM proposals ORDER BY id")
        return [
            Proposal(
                number,
                parse(text).to_equation(max_parts),
                key,
                parent,
                tuple(Change(**c) for c in json.loads(changes)),
                tuple((int(e), float(a)) for e, a in json.loads(bars)),
                infeasible,
                duplicates,
            )
            for number, text, key, parent, changes, bars, infeasible, duplicates, _ in rows
        ]

    def add_evaluation(self, stage: str, equation: str, proposal: int | None, outcome: Outcome) -> Evaluation:
        columns = [f.name for f in dataclasses.fields(outcome.curve[0]) if f.name not in ("epoch", "reason")]
        curve = {name: [_finite(getattr(e, name)) for e in outcome.curve] for name in columns}
        training = outcome.job.training
        row = Evaluation(
            stage, equation, training.learning_rate, training.replicate, proposal, outcome.status, outcome.reason,
            outcome.accuracy, outcome.rungs, curve, outcome.seconds, _now(),
        )  # fmt: skip
        values = [json.dumps(v) if isinstance(v, dict) else v for v in dataclasses.astuple(row)]
        with self._transaction() as c:
            c.execute(f"INSERT INTO evaluations VALUES ({', '.join('?' * len(values))})", values)
        return row

    def evaluations(self, *stages: str) -> list[Evaluation]:
        """All, or those of some stages, in order of finishing."""
        marks = ", ".join("?" * len(stages))
        where = f"WHERE stage IN ({marks})" if stages else ""
        rows = self._connection.execute(f"SELECT * FROM evaluations {where} ORDER BY rowid", stages)
        return [Evaluation(*row[:9], json.loads(row[9]), *row[10:]) for row in rows]

    def result(self, proposal: Proposal, learning_rates: tuple[float, ...]) -> Result | None:
        """A proposal's result once all its learning rates have ended."""
        rows = self._connection.execute(
            "SELECT accuracy, rungs, curve FROM evaluations WHERE stage = 'search' AND proposal = ? ORDER BY learning_rate",
            (proposal.id,),
        ).fetchall()
        if len(rows) < len(learning_rates):
            return None
        return to_result(
            proposal, [(accuracy, rungs, json.loads(curve)["eval_accuracy"]) for accuracy, rungs, curve in rows]
        )

    def add_cost(self, equation: str, relative: float) -> None:
        with self._transaction() as c:
            c.execute("INSERT OR REPLACE INTO costs VALUES (?, ?)", (equation, relative))

    def costs(self) -> dict[str, float]:
        return dict(self._connection.execute("SELECT equation, relative FROM costs"))


def to_result(proposal: Proposal, trainings: list[tuple[float | None, int, list[float | None]]]) -> Result:
    """A proposal's result from (accuracy, rungs, accuracy after each epoch) of its trainings: the fittest counts."""
    alive = [(rungs, accuracy) for accuracy, rungs, _ in trainings if accuracy is not None]
    rungs, accuracy = max(alive) if alive else (0, None)
    curves = tuple(tuple(v for v in curve if v is not None) for _, _, curve in trainings)
    return Result(proposal.id, proposal.equation, accuracy, rungs, curves)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
