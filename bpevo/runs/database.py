"""The run database: one SQLite file per workdir. Every proposal and every finished training is a row; nothing that was
measured is only in memory. Reading works while a search writes (write-ahead log); one process at a time may write.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from bpevo.evolution import Change, Proposal
from bpevo.rules import NAMED, extensions, parse
from bpevo.runs.errors import RunError, printable
from bpevo.runs.lock import locked, same, unwritable
from bpevo.runs.provenance import registered
from bpevo.runs.ranking import judged, networks
from bpevo.runs.rows import Row, Rows, row_of
from bpevo.workers import ON, Outcome, Stage, on

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE proposals (
  id INTEGER PRIMARY KEY,           -- order of drawing, from 0
  equation TEXT NOT NULL,           -- the whole genome, idle genes included
  key TEXT NOT NULL,                -- equal for duplicates
  parent INTEGER REFERENCES proposals(id),
  changes TEXT NOT NULL,            -- JSON: [{part, gene, before, after}]; none of a child: it confirms its parent
  bars TEXT NOT NULL,               -- JSON: [[epoch, accuracy]]
  infeasible INTEGER NOT NULL,      -- restarts before this one
  duplicates INTEGER NOT NULL,
  created TEXT NOT NULL
);
CREATE TABLE evaluations (
  stage TEXT NOT NULL,              -- control, trial, search, confirmation, selection, tuning, ablation, test
  equation TEXT NOT NULL,           -- in an evaluation a treatment: the rule, and " | " and its gradient transform; over several
                                    -- networks the rule, " on " and the one on which it was trained
  learning_rate REAL NOT NULL,
  replicate INTEGER NOT NULL,       -- training seed = fold_in(root, replicate)
  proposal INTEGER REFERENCES proposals(id),
  status TEXT NOT NULL,             -- done, stopped, diverged, crashed
  reason TEXT NOT NULL,
  accuracy REAL,                    -- after the last epoch, null if diverged or crashed
  rungs INTEGER NOT NULL,
  curve TEXT NOT NULL,              -- JSON: a list per column, an entry per epoch
  seconds REAL NOT NULL,
  finished TEXT NOT NULL,
  PRIMARY KEY (stage, equation, learning_rate, replicate)
);
CREATE INDEX evaluations_of_proposal ON evaluations (proposal);
"""
# What people read, written anew whenever a search ends or is interrupted; nothing reads it back.
_TABLES = """
CREATE TABLE IF NOT EXISTS leaderboard (
  place INTEGER PRIMARY KEY,
  rule TEXT NOT NULL,               -- without idle genes
  control TEXT NOT NULL,            -- its name where it is one
  kind TEXT NOT NULL,               -- what it keeps of backprop's signal
  learning_rate REAL,               -- over several networks that on the first
  search REAL,                      -- accuracy that selected it, %
  fresh REAL,                       -- mean over n fresh seeds, %
  n INTEGER NOT NULL,               -- over several networks on each, at least
  vs_backprop REAL                  -- mean paired difference, %
);
CREATE TABLE IF NOT EXISTS front (
  components INTEGER PRIMARY KEY,   -- of the rule, those that have an effect
  rule TEXT NOT NULL,               -- of these alone
  kind TEXT NOT NULL,
  proposal INTEGER,
  learning_rate REAL NOT NULL,
  search REAL NOT NULL              -- accuracy that selected it, %
);
"""


_COLUMNS = [f.name for f in dataclasses.fields(Row) if f.name not in ("network", "members")]  # of `evaluations`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glance:
    """How far a search is."""

    trained: int = 0  # trainings of its proposals that ended
    best: float | None = None  # accuracy of a rule, as it was measured; None: not yet, or over several networks
    backprop: float | None = None  # likewise, of the control at its best learning rate


class RunDatabase:
    """`<workdir>/run.sqlite`. Open for writing with `writing`, for reading with `reading`."""

    def __init__(self, connection: sqlite3.Connection, path: pathlib.Path, check: Callable[[], None] | None = None):
        self._connection, self.path, self._check_lock = connection, path, check
        self._file = os.stat(path)

    @classmethod
    @contextlib.contextmanager
    def writing(cls, workdir: str | os.PathLike) -> Iterator["RunDatabase"]:
        """Creates or continues a run. Raises RunError if another process writes, or the files cannot be used."""
        folder = pathlib.Path(workdir)
        with locked(folder) as check, cls._open(folder / "run.sqlite", check) as database:
            yield database

    @classmethod
    @contextlib.contextmanager
    def reading(cls, workdir: str | os.PathLike) -> Iterator["RunDatabase"]:
        """Raises RunError if there is no run, or it cannot be read."""
        path = pathlib.Path(workdir) / "run.sqlite"
        if not os.path.isfile(path):  # unlike path.is_file(), False also for names that no file can have
            raise RunError(
                f"there is no run in {workdir}: {path.name} is missing; start one with python -m bpevo.launch"
            )
        with cls._open(path) as database:
            yield database

    @classmethod
    @contextlib.contextmanager
    def _open(cls, path: pathlib.Path, check: Callable[[], None] | None = None) -> Iterator["RunDatabase"]:
        """For writing with the lock's `check`, else for reading."""
        write = check is not None
        try:
            if write and not path.exists():
                try:
                    _create(path)
                except OSError as error:
                    raise unwritable(path.parent, error) from error
            if not path.stat().st_size:
                raise sqlite3.DatabaseError("the file is empty, which no run ever is")
            with contextlib.closing(_connect(path, write)) as connection:
                connection.execute("PRAGMA foreign_keys = ON")
                if write:
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.execute("PRAGMA synchronous = FULL")
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version != SCHEMA_VERSION:
                    raise RunError(
                        f"{path} has schema version {version} but this bpevo reads {SCHEMA_VERSION}; "
                        "use the release that wrote it or choose another --workdir"
                    )
                database = cls(connection, path, check)
                if write and (fault := database.fault()):
                    raise sqlite3.DatabaseError(fault)
                yield database
        except sqlite3.Error as error:
            raise RunError(f"{path}: {printable(str(error))}; {_remedy(error)}") from error

    def fault(self) -> str:
        """What SQLite's check of the file finds wrong; empty if nothing."""
        row = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        return "" if row == ("ok",) else printable(" ".join(row[0].replace("*** in database main ***", "").split()))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._check_place()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite itself rolls back when the disk is full
                self._connection.execute("ROLLBACK")
            raise

    def _check_place(self) -> None:
        """Raises RunError where what is written would be lost: the file is gone or another one, or the lock is."""
        if not same(self.path, self._file):
            raise RunError(
                f"{self.path} was deleted, moved or replaced while this process wrote into it: nothing more can be stored, so "
                "it stops. Put the file back, or start again in another --workdir"
            )
        if self._check_lock:
            self._check_lock()

    def copy_to(self, folder: pathlib.Path) -> None:
        """A complete copy of the run as it is now, also of one that is being written. Raises RunError."""
        target = folder / self.path.name
        new = target.with_name(target.name + ".new")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if target.exists():
                raise RunError(f"{target} is there already: a copy needs a new folder")
            new.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as copy:
                self._connection.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")  # all of it in one file
            os.rename(new, target)
        except OSError as error:
            raise unwritable(folder, error) from error

    # Settings

    def settings(self) -> dict[str, Any]:
        return self._meta("settings")

    def versions(self) -> dict[str, str]:
        return self._meta("versions")

    def first_versions(self) -> dict[str, str]:
        """Those with which it began, where `versions` are those of its last session."""
        return self._meta("first_versions") or self.versions()

    def _meta(self, key: str) -> dict[str, Any]:
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else {}

    def check_settings(self, settings: dict[str, Any], versions: dict[str, str], free: tuple[str, ...]) -> None:
        """Stores the settings of a new run; for an old one, refuses a difference outside `free`. Raises RunError."""
        settings = json.loads(json.dumps(settings))
        old = self.settings()
        if any(self.versions().get(n) != versions.get(n) for n in ("jax", "flax")):
            free = (*free, "model_code_crc32")  # each release traces a network in its own way
        free = (*free, *(name for name in ("augmentation", "classes") if name not in old))  # of an older bpevo
        changed = [k for k in sorted({*old, *settings}) if old.get(k) != settings.get(k) and k not in free]
        if old and changed:
            lines = "\n".join(f"  {k}: {old.get(k)!r} in the run, {settings.get(k)!r} now" for k in changed)
            raise RunError(
                f"{self.path.parent} holds a run with other settings; results would not be comparable:\n{lines}\n"
                "go back to those settings, or begin another run: an evaluation with another --scenario, a search in another "
                f"--workdir, from this one with --fork_from={self.path.parent}"
            )
        with self._transaction() as c:
            self._store_meta(c, settings, versions, self.first_versions())

    @staticmethod
    def _store_meta(c: sqlite3.Connection, settings: dict[str, Any], versions: dict[str, str], first: dict[str, str]):
        for key, value in (("settings", settings), ("versions", versions), ("first_versions", first or versions)):
            c.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def take_over(self, other: "RunDatabase", settings: dict[str, Any], versions: dict[str, str]) -> None:
        """Everything in `other`, which may be growing, into this empty run together with its settings, or nothing."""
        other.proposals(), other.rows()  # damage shows before anything is written
        with self._transaction() as c:
            other._connection.execute("BEGIN")  # one state of it for all tables
            try:
                for table in ("proposals", "evaluations"):
                    for row in other._connection.execute(f"SELECT * FROM {table} ORDER BY rowid"):
                        c.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
            finally:
                other._connection.execute("COMMIT")
            self._store_meta(c, settings, versions, other.first_versions())

    # Proposals and evaluations

    def add_proposal(self, p: Proposal) -> None:
        """Waits for no disk: where the machine fails before a later row is stored, it is drawn again as it was."""
        changes = json.dumps([dataclasses.asdict(c) for c in p.changes])
        row = (p.id, str(p.equation), p.key, p.parent, changes, json.dumps(p.bars), p.infeasible, p.duplicates, _now())
        self._connection.execute("PRAGMA synchronous = NORMAL")
        try:
            with self._transaction() as c:
                c.execute("INSERT INTO proposals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        finally:
            self._connection.execute("PRAGMA synchronous = FULL")

    def proposals(self) -> list[Proposal]:
        """In id order."""
        max_parts = self.settings().get("max_parts", 1)  # a run killed before its settings were stored has no proposal
        rows = self._connection.execute("SELECT * FROM proposals ORDER BY id")

        def proposal(position: int, row: tuple) -> Proposal:
            number, text, key, parent, changes, bars, infeasible, duplicates, _ = row
            if number != position:
                raise ValueError(f"proposal {position} is missing")
            return Proposal(
                id=number,
                equation=parse(text).to_equation(max_parts),
                key=key,
                parent=parent,
                changes=tuple(Change(**c) for c in json.loads(changes)),
                bars=tuple((int(e), float(a)) for e, a in json.loads(bars)),
                infeasible=infeasible,
                duplicates=duplicates,
            )

        return self._read("proposals", rows, proposal)

    def add_rows(self, outcomes: Sequence[Outcome]) -> list[Row]:
        """In one transaction: all of them or none."""
        rows = [row_of(outcome, _now()) for outcome in outcomes]
        if rows:
            values = [_values(row) for row in rows]
            with self._transaction() as c:
                c.executemany(f"INSERT INTO evaluations VALUES ({', '.join('?' * len(values[0]))})", values)
        return rows

    def glance(self) -> Glance:
        """How far a search is; costs little, also while it is written."""

        def one(query: str, *values: Any) -> Any:
            return self._connection.execute(f"SELECT {query}", values).fetchone()[0]

        on_each = [on(NAMED["backprop"], name) for name in networks(self.settings()).names]
        marks = ", ".join("?" * len(on_each))
        tuned = f"SELECT MAX(accuracy) AS tuned FROM evaluations WHERE stage = ? AND equation IN ({marks}) GROUP BY equation"
        of_rules = "MAX(accuracy) FROM evaluations WHERE stage = ?"
        return Glance(
            trained=one("COUNT(*) FROM evaluations WHERE proposal IS NOT NULL"),
            best=one(of_rules, Stage.SEARCH) if len(on_each) == 1 else None,
            backprop=one(f"AVG(tuned) FROM ({tuned})", Stage.CONTROL, *on_each),
        )

    def rows(self, *stages: str) -> Rows:
        """All, or those of some stages, in order of finishing."""
        marks = ", ".join("?" * len(stages))
        where = f"WHERE stage IN ({marks})" if stages else ""
        rows = self._connection.execute(f"SELECT * FROM evaluations {where} ORDER BY rowid", stages)
        return Rows(self._read("evaluations", rows, lambda _, row: _row(row)))

    def judged(self) -> Rows:
        """All rows as they rank, see bpevo.runs.ranking."""
        settings = self.settings()
        epochs = [rung["epoch"] for rung in settings.get("evolution", {}).get("rungs", ())]
        bars = {p.id: p.bars for p in self.proposals()} if "max_parts" in settings else {}
        return judged(self.rows(), bars, epochs, networks(settings))

    def store_tables(self, leaderboard: Iterable[tuple], front: Iterable[tuple]) -> None:
        """Rows as the columns of the table `leaderboard` after `place`, best first, and as those of the table `front`."""
        placed = ((place, *row) for place, row in enumerate(leaderboard, 1))
        with self._transaction() as c:
            for create in filter(str.strip, _TABLES.split(";")):
                c.execute(create)
            for table, rows, columns in (("leaderboard", placed, 9), ("front", front, 6)):
                c.execute(f"DELETE FROM {table}")
                c.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})", rows)

    def _read(self, table: str, rows: Iterable[tuple], convert: Callable[[int, tuple], Any]) -> list[Any]:
        """`convert(position, row)` of each; a row that it cannot take is a RunError."""
        items = []
        for position, row in enumerate(rows):
            try:
                items.append(convert(position, row))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
                known = {component.name for component in extensions()}
                if missing := [name for name in registered(self.versions()) if name not in known]:
                    raise RunError(
                        f"{self.path.parent} uses {', '.join(map(repr, missing))}, registered in the process that wrote it and "
                        "not in this one: register it first, then open, evaluate or continue the run from Python (bpevo.open, "
                        "bpevo.Evaluation, bpevo.Search)"
                    ) from error
                raise RunError(
                    f"{self.path}: row {position + 1} of {table} is damaged ({reason}); move the file away or restore a copy"
                ) from error
        return items


def _values(row: Row) -> list[Any]:
    """Those of _COLUMNS."""
    stored = vars(row) | {"equation": row.subject, "curve": json.dumps(row.curve)}
    return [stored[name] for name in _COLUMNS]


def _row(values: tuple) -> Row:
    columns = dict(zip(_COLUMNS, values, strict=True))
    equation, _, network = columns["equation"].partition(ON)
    e = Row(**columns | {"equation": equation, "network": network, "curve": json.loads(columns["curve"])})
    texts, whole, real = (
        (e.stage, e.equation, e.status, e.reason, e.finished),
        (e.replicate, e.rungs),
        (e.learning_rate, e.seconds),
    )
    if not (
        all(isinstance(v, str) and v.isprintable() for v in texts)
        and all(isinstance(v, int) for v in whole)
        and all(isinstance(v, float | int) for v in real)
        and (e.accuracy is None or 0 <= e.accuracy <= 1)
        and isinstance(e.curve, dict)
        and datetime.datetime.fromisoformat(e.finished)
    ):
        raise ValueError(f"{values!r} are no values of its columns")
    return e


def _create(path: pathlib.Path) -> None:
    """An empty run, moved to its place when it is whole: run.sqlite is never seen half made."""
    if path.with_name(path.name + "-wal").exists():
        raise sqlite3.DatabaseError(f"it is missing, though {path.name}-wal is there: the run lost its main file")
    new = path.with_name(path.name + ".new")
    for leftover in (new, new.with_name(new.name + "-journal")):
        leftover.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    os.rename(new, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _connect(path: pathlib.Path, write: bool) -> sqlite3.Connection:
    def connect(mode: str) -> sqlite3.Connection:
        return sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=60, isolation_level=None)

    connection = connect("mode=rw" if write else "mode=ro")
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        wal = path.with_name(path.name + "-wal")
        if write or os.access(path.parent, os.W_OK) or (wal.exists() and wal.stat().st_size):
            raise
        return connect("mode=ro&immutable=1")  # a finished run where nothing can be written, such as a read-only mount
    except BaseException:
        connection.close()
        raise
    return connection


def _remedy(error: sqlite3.Error) -> str:
    """What to do. Only a file that SQLite or this module found damaged is called so."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_IOERR_SHMMAP", "SQLITE_IOERR_SHMOPEN", "SQLITE_IOERR_SHMLOCK", "SQLITE_IOERR_LOCK")):
        return "its file system cannot share memory or locks between processes: put --workdir on a local disk"
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        return "the disk is full or failing: free some space and start again, nothing that was stored is lost"
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return "it cannot be opened: check its permissions or choose another --workdir"
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "another program keeps it locked: end that and start again"
    if name.startswith("SQLITE_CONSTRAINT"):
        return "another process wrote into this run at the same time: end it, then the same command continues"
    if not name or name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return "the file is damaged: move it away or restore a copy"
    return "nothing that was stored is lost: start again"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
