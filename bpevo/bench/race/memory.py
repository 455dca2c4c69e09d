"""What a race has measured: one SQLite file with every training that any arm asked for, and how each search ended.

The latter is also a text, the record: what the report is made of, and small.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from bpevo.rules import Equation, assemble
from bpevo.training import EpochResult, Training
from bpevo.workers import Job, Outcome, Workers

_SCHEMA = """
CREATE TABLE IF NOT EXISTS trainings (
  task BLOB NOT NULL,               -- digest of data, network and settings
  program BLOB NOT NULL,            -- digest of the rule's program
  learning_rate REAL NOT NULL,
  replicate INTEGER NOT NULL,
  held_out INTEGER NOT NULL,        -- which examples it is evaluated on
  reason TEXT NOT NULL,             -- why it diverged after its last epoch; empty: it did not
  curve BLOB NOT NULL,              -- float32, the numbers of _COLUMNS for each epoch
  PRIMARY KEY (task, program, learning_rate, replicate, held_out)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS searches (
  race TEXT NOT NULL, arm TEXT NOT NULL, seed INTEGER NOT NULL, result TEXT NOT NULL, PRIMARY KEY (race, arm, seed)
);
"""
_COLUMNS = ("train_loss", "train_accuracy", "gradient_norm", "eval_loss", "eval_accuracy")
RECORD = "race.jsonl"
REPLICATES = 20_000  # of a search seed, which shift those of its jobs: more than any stage uses


class Memory:
    """An open file, which several processes may have open."""

    def __init__(self, folder: str | os.PathLike):
        """Takes over what a record in the folder holds beside it."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(folder / "race.sqlite", timeout=60, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(_SCHEMA)
        record = folder / RECORD
        if record.is_file():
            lines = map(json.loads, record.read_text(encoding="utf-8").splitlines())
            known = [(line["race"], line["arm"], line["seed"], json.dumps(line["result"])) for line in lines]
            with self._transaction():
                self._connection.executemany("INSERT OR IGNORE INTO searches VALUES (?, ?, ?, ?)", known)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: str | os.PathLike) -> Iterator["Memory"]:
        memory = cls(folder)
        with contextlib.closing(memory._connection):
            yield memory

    def training(self, key: tuple) -> list[EpochResult]:
        """The curve of what was trained under a key; empty where nothing was."""
        row = self._connection.execute(
            "SELECT reason, curve FROM trainings WHERE task = ? AND program = ? AND learning_rate = ? AND replicate = ? "
            "AND held_out = ?", key,
        ).fetchone()  # fmt: skip
        if row is None:
            return []
        numbers = np.frombuffer(row[1], "<f4").reshape(-1, len(_COLUMNS)).astype(float).tolist()
        return [
            EpochResult(epoch=i, reason=row[0] if i == len(numbers) else "", **dict(zip(_COLUMNS, epoch, strict=True)))
            for i, epoch in enumerate(numbers, 1)
        ]

    def keep(self, trained: Sequence[tuple[tuple, Sequence[EpochResult]]]) -> None:
        """Keys and curves; the longer curve of a training stays."""
        rows = []
        for key, curve in trained:
            if len(curve) > len(self.training(key)):
                numbers = np.array([[getattr(e, c) for c in _COLUMNS] for e in curve], "<f4")
                rows.append((*key, curve[-1].reason, numbers.tobytes()))
        if rows:
            with self._transaction():
                self._connection.executemany("INSERT OR REPLACE INTO trainings VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def results(self, race: str) -> dict[tuple[str, int], Any]:
        """What was stored of each (arm, seed)."""
        rows = self._connection.execute("SELECT arm, seed, result FROM searches WHERE race = ?", (race,))
        return {(arm, seed): json.loads(result) for arm, seed, result in rows}

    def record(self) -> str:
        """All results, a line of JSON each."""
        rows = self._connection.execute("SELECT race, seed, arm, result FROM searches ORDER BY race, seed, arm")
        return "".join(
            json.dumps({"race": race, "arm": arm, "seed": seed, "result": json.loads(result)}) + "\n"
            for race, seed, arm, result in rows
        )

    def store(self, race: str, arm: str, seed: int, result: Any) -> None:
        with self._transaction():
            row = (race, arm, seed, json.dumps(result))
            self._connection.execute("INSERT OR REPLACE INTO searches VALUES (?, ?, ?, ?)", row)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise


def digest(what: Any) -> bytes:
    """A digest of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).digest()[:16]


def program(equation: Equation) -> bytes:
    """Equal for equations that run the same instructions: what differs in idle genes alone trains alike, bit for bit."""
    arrays = (np.asarray(x) for x in jax.tree.leaves(assemble(equation)))
    return hashlib.sha256(b"".join(x.tobytes() for x in arrays)).digest()[:16]


class RememberingWorkers:
    """Workers that train only what the memory does not hold; each search seed has trainings of its own.

    Jobs may have no bars: what is remembered was never stopped by one.
    """

    def __init__(self, workers: Workers, memory: Memory, task: bytes, epochs: int, seed: int):
        self._workers, self._memory, self._task, self._epochs, self._seed = workers, memory, task, epochs, seed
        self._known: list[Outcome] = []
        self.asked = self.trained = 0  # jobs

    @property
    def capacity(self) -> int:
        return self._workers.capacity

    @property
    def occupancy(self) -> float:
        return self._workers.occupancy

    @property
    def wanted(self) -> int:
        return self._workers.wanted

    @property
    def ahead(self) -> int:
        return self._workers.ahead

    @property
    def idle(self) -> bool:
        return not self._known and self._workers.idle

    def submit(self, job: Job) -> None:
        assert not job.bars
        self.asked += 1
        curve = self._memory.training(self._key(job.training))[: job.epochs or self._epochs]
        if curve and (curve[-1].reason or len(curve) == (job.epochs or self._epochs)):
            status = "diverged" if curve[-1].reason else "done"
            known = Outcome(job=job, status=status, reason=curve[-1].reason, curve=tuple(curve), seconds=0.0)
            self._known.append(known)
        else:
            self.trained += 1
            self._workers.submit(_shifted(job, self._seed * REPLICATES))

    def poll(self, meanwhile: Callable[[], None] = lambda: None) -> list[Outcome]:
        if self._known:
            known, self._known = self._known, []
            return known
        ended = [] if self._workers.idle else self._workers.poll(meanwhile)
        back = [_back(outcome, self._seed * REPLICATES) for outcome in ended]
        self._memory.keep([(self._key(o.job.training), o.curve) for o in back])
        return back

    def suspend(self) -> list[Outcome]:
        return [_back(outcome, self._seed * REPLICATES) for outcome in self._workers.suspend()]

    def close(self) -> None:
        self._workers.close()

    def _key(self, training: Training) -> tuple:
        assert isinstance(training.equation, Equation) and 0 <= training.replicate < REPLICATES
        replicate = training.replicate + self._seed * REPLICATES
        return self._task, program(training.equation), training.learning_rate, replicate, int(training.held_out)


def _shifted(job: Job, replicates: int) -> Job:
    training = dataclasses.replace(job.training, replicate=job.training.replicate + replicates)
    return dataclasses.replace(job, training=training)


def _back(outcome: Outcome, replicates: int) -> Outcome:
    return dataclasses.replace(outcome, job=_shifted(outcome.job, -replicates))
