"""Metrics to follow a run with: a CSV file or a TensorBoard event file in its folder, a record per epoch of what has ended.

But for the occupancy, which only the process that trains knows, the records are a function of the database's rows in their
order. So a run that goes on, also after a kill, writes what is missing and nothing twice.
"""

import csv
import datetime
import io
import itertools
import os
import pathlib
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Protocol

from bpevo.rules import NAMED, parse
from bpevo.runs import Row, RunError
from bpevo.workers import Stage, on

KINDS = ("csv", "tensorboard")
CURVE = ("train_loss", "train_accuracy", "gradient_norm", "eval_loss", "eval_accuracy")
OF_SEARCH = (Stage.CONTROL, Stage.TRIAL, Stage.SEARCH, Stage.CONFIRMATION)  # one contest; every other stage is its own
COLUMNS = (
    *(
        "training",
        "finished",
        "stage",
        "equation",
        "learning_rate",
        "replicate",
        "status",
        "reason",
        "seconds",
        "epoch",
    ),
    *CURVE,
    *("contest", "accuracy", "best", "best_equation", "backprop", "slot_epochs", "diverged", "stopped", "occupancy"),
)
_BACKPROP = str(parse(NAMED["backprop"]))


class Figures:
    """The running figures of a run, row by row; each costs the same however many there are.

    `best` and `backprop` are the highest accuracies so far of a whole training, of a rule that is no control and of backprop,
    within what the row competes in: the search, or its stage.
    """

    def __init__(self, is_control: Callable[[str], bool]):
        self._is_control = is_control
        self._best: dict[str, tuple[float, str]] = {}
        self._backprop: dict[str, float] = {}
        self._trials: dict[tuple[str, float], int] = {}  # epochs, from which a search's training may go on
        self.trainings = self.slot_epochs = self.diverged = self.stopped = 0

    def take(self, row: Row) -> None:
        self.trainings += 1
        self.diverged += row.status == "diverged"
        self.stopped += row.status == "stopped"
        at = row.subject, row.learning_rate
        self.slot_epochs += row.epochs_after(self._trials.get(at, 0))
        if row.stage == Stage.TRIAL:
            self._trials[at] = row.epochs
        if row.status == "done" and row.accuracy is not None and row.stage not in (Stage.TRIAL, Stage.CONFIRMATION):
            self._compare(contest(row), row.equation, row.accuracy)

    def _compare(self, contest: str, equation: str, accuracy: float) -> None:
        if equation == _BACKPROP:
            self._backprop[contest] = max(accuracy, self._backprop.get(contest, 0.0))
        elif accuracy > self._best.get(contest, (-1.0, ""))[0] and not self._is_control(equation):
            self._best[contest] = accuracy, equation

    def told(self, row: Row) -> dict[str, Any]:
        """The figures after `row`, which was taken last, by COLUMNS."""
        of = contest(row)
        best, equation = self._best.get(of, (None, None))
        return {
            "contest": of,
            "accuracy": row.accuracy,
            "best": best,
            "best_equation": equation,
            "backprop": self._backprop.get(of),
            "slot_epochs": self.slot_epochs,
            "diverged": self.diverged,
            "stopped": self.stopped,
        }


def contest(row: Row) -> str:
    """What the accuracy of `row` may be compared within."""
    return on("search" if row.stage in OF_SEARCH else row.stage, row.network)


class Format(Protocol):
    """How records are written: a head that is always the same, then one after the other."""

    name: str  # of the file
    head: bytes

    def ends(self, file: BinaryIO) -> Iterator[int]:
        """Where the head and each whole record of a file end; after a kill the last one may be cut off. Raises ValueError."""

    def record(self, step: int, values: dict[str, Any], last: bool) -> bytes:
        """A record of `values` by COLUMNS; `step` counts records from 1, `last` says that the training ended with it."""


class Csv:
    """A line per epoch."""

    name = "metrics.csv"

    def __init__(self) -> None:
        self.head = self._line(COLUMNS)

    def ends(self, file: BinaryIO) -> Iterator[int]:
        return itertools.accumulate(len(line) for line in file if line.endswith(b"\n"))

    def record(self, step: int, values: dict[str, Any], last: bool) -> bytes:
        return self._line([values[name] for name in COLUMNS])

    def _line(self, cells: Sequence[Any]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        return text.getvalue().encode()


class TensorBoard:
    """An event per epoch, that of a training's last epoch with the running figures."""

    name = "events.out.tfevents.bpevo"
    _FRAME = struct.Struct("<QI")  # length and its checksum; the checksum of the content follows it

    def __init__(self) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c
        from tensorboardX.summary import scalar, text

        self._event, self._checksum, self._scalar, self._text = Event, masked_crc32c, scalar, text
        self.head = self._framed(Event(file_version="brain.Event:2"))

    def ends(self, file: BinaryIO) -> Iterator[int]:
        size, end = os.fstat(file.fileno()).st_size, 0
        while len(frame := file.read(self._FRAME.size)) == self._FRAME.size:
            length, checksum = self._FRAME.unpack(frame)
            if checksum != self._checksum(frame[:8]):
                raise ValueError("it is damaged")
            end += self._FRAME.size + length + 4
            if end > size:
                return
            file.seek(end)
            yield end

    def record(self, step: int, values: dict[str, Any], last: bool) -> bytes:
        of = values["contest"]
        scalars = {f"epoch/{name}": values[name] for name in CURVE}
        if last:
            scalars |= {f"{of}/{name}": values[name] for name in ("accuracy", "best", "backprop")}
            scalars |= {"run/trainings": values["training"]}
            scalars |= {f"run/{name}": values[name] for name in ("slot_epochs", "diverged", "stopped", "occupancy")}
        event = self._event(step=step, wall_time=datetime.datetime.fromisoformat(values["finished"]).timestamp())
        for tag, value in scalars.items():
            if value is not None:
                event.summary.MergeFrom(self._scalar(tag, value))
        if last and values["best_equation"]:
            event.summary.MergeFrom(self._text(f"{of}/best_equation", values["best_equation"]))
        return self._framed(event)

    def _framed(self, event: Any) -> bytes:
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        checksums = [struct.pack("<I", self._checksum(part)) for part in (length, content)]
        return length + checksums[0] + content + checksums[1]


class Metrics:
    """Writes a run's metrics into its folder: first what its file lacks of `rows`, then what is added.

    Args:
      kind: one of KINDS.
      folder: of the run; the file is `metrics.csv` or `events.out.tfevents.bpevo` there.
      rows: all rows of the run so far.
      is_control: whether an equation of a row is a control's.
      say: is told, once, when no more can be written; the run goes on.

    Raises:
      RunError: nothing can be written, or the file is another run's.
    """

    def __init__(
        self,
        kind: str,
        folder: str | os.PathLike,
        rows: Sequence[Row],
        is_control: Callable[[str], bool],
        say: Callable[[str], None],
    ):
        self._format: Format = Csv() if kind == "csv" else TensorBoard()
        self._path, self._say = pathlib.Path(folder) / self._format.name, say
        self._figures, self._step, self._lost = Figures(is_control), 0, False
        try:
            ends = self._ends()
            there = len(ends) - 1  # records
            known = 0
            for row in rows:
                if self._step + row.epochs > there:
                    break
                self._figures.take(row)
                self._step += row.epochs
                known += 1
            if known == len(rows) and self._step < there:
                raise RunError(f"{self._path} holds metrics of another run: move it away")
            os.truncate(self._path, ends[self._step])  # of a training that was half written nothing stays
            self._write(rows[known:])
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise RunError(
                f"cannot write metrics to {self._path}: {reason}; correct that or move it away, or do without --metrics"
            ) from error

    def add(self, rows: Sequence[Row], occupancy: float | None = None) -> None:
        """Rows that ended after all others, and the share of the slots' epochs so far that trained something."""
        if self._lost or not rows:
            return
        try:
            self._write(rows, occupancy)
        except OSError as error:
            self._lost = True
            self._say(
                f"metrics are no longer written to {self._path}: {error.strerror}; the run goes on, and when the same command "
                "starts again it writes what is missing"
            )

    def _ends(self) -> list[int]:
        """Ends of the head and of the whole records of the file, which is made if need be."""
        head = self._format.head
        if self._path.exists():
            with open(self._path, "rb") as file:
                begin = file.read(len(head))
                if begin == head:
                    file.seek(0)
                    return list(self._format.ends(file))
                if not head.startswith(begin):
                    raise ValueError("it is there and holds something else")
        self._path.write_bytes(head)
        return [len(head)]

    def _write(self, rows: Sequence[Row], occupancy: float | None = None) -> None:
        text = b"".join(itertools.chain.from_iterable(self._records(row, occupancy) for row in rows))
        file = os.open(
            self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        )  # one that is gone is not made anew, headless
        try:
            while text:
                text = text[os.write(file, text) :]
        finally:
            os.close(file)

    def _records(self, row: Row, occupancy: float | None) -> Iterator[bytes]:
        self._figures.take(row)
        names = ("finished", "stage", "equation", "learning_rate", "replicate", "status", "reason", "seconds")
        values = {name: getattr(row, name) for name in names} | self._figures.told(row)
        values |= {"training": self._figures.trainings, "occupancy": occupancy}
        for epoch in range(row.epochs):
            self._step += 1
            of_epoch = {name: row.curve[name][epoch] for name in CURVE} | {"epoch": epoch + 1}
            yield self._format.record(self._step, values | of_epoch, epoch + 1 == row.epochs)
