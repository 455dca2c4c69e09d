"""What a pool's worker does in its process, and a worker that survives its process's death."""

import contextlib
import dataclasses
import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection

from bpevo.training import DeviceLost, OutOfMemory
from bpevo.workers.fleet import Cause, Lost, Ready, Report
from bpevo.workers.job import Job
from bpevo.workers.local import LocalWorkers
from bpevo.workers.recipe import Recipe

Begin = Callable[[], Mapping[str, str]]


class WorkerProcess:
    """LocalWorkers, by a pool's requests. Whatever goes wrong is an answer."""

    def __init__(self, begin: Begin):
        """`begin` sets this process up, raises what is wrong with it, and returns what decides its numbers."""
        self._begin = begin
        self._versions: Mapping[str, str] = {}
        self._workers: LocalWorkers | None = None
        self._said: list[str] = []

    def prepare(self, recipe: Recipe) -> Ready | Lost:
        try:
            self._versions = self._versions or self._begin()
            self._workers = None  # frees its slots before the next are allocated
            self._workers = LocalWorkers(recipe.trainer(), None, self._said.append)
        except Exception as error:
            return Lost(reason=_line(error))
        return Ready(capacity=self._workers.capacity, versions=self._versions)

    def epoch(self, jobs: Sequence[Job]) -> Report | Lost:
        assert self._workers
        for job in jobs:
            self._workers.submit(job)
        try:
            outcomes = self._workers.poll()
        except (DeviceLost, OutOfMemory) as error:
            return Lost(reason=_line(error))
        said, self._said[:] = tuple(self._said), ()
        trainer = self._workers.trainer
        return Report(
            outcomes=outcomes,
            capacity=trainer.capacity,
            epochs_run=trainer.epochs_run,
            epochs_offered=trainer.epochs_offered,
            said=said,
        )

    def close(self) -> None:
        self._workers = None


class LoneProcess:
    """A WorkerProcess with one slot in a child process, whose death is an answer: it tells a crash from a kill."""

    def __init__(self, begin: Begin):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs, begin), daemon=True)
        self._child.start()
        theirs.close()

    def prepare(self, recipe: Recipe) -> Ready | Lost:
        return self._ask("prepare", dataclasses.replace(recipe, slots=1))

    def epoch(self, jobs: Sequence[Job]) -> Report | Lost:
        return self._ask("epoch", jobs)

    def close(self) -> None:
        self._child.kill()
        self._child.join()

    def _ask(self, method: str, argument):
        try:
            self._connection.send((method, argument))
            return self._connection.recv()
        except (EOFError, OSError):
            self._child.join()
            return ended(self._child.exitcode or 0)


def ended(code: int) -> Lost:
    """How a process ended, by its exit code: below 0 a signal's number, of which nobody sends those of a crash.

    >>> ended(-11).reason, str(ended(-11).cause), str(ended(-9).cause)
    ('its process crashed: SIGSEGV', 'itself', 'unknown')
    """
    if code >= 0:
        return Lost(reason=f"its process ended with exit code {code}", cause=Cause.ITSELF)
    name = signal.Signals(-code).name
    if name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"):  # SIGKILL also where the machine is out of memory
        return Lost(reason=f"its process was ended by {name}")
    return Lost(reason=f"its process crashed: {name}", cause=Cause.ITSELF)


def _serve(connection: Connection, begin: Begin) -> None:
    worker = WorkerProcess(begin)
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, argument = connection.recv()
            connection.send(getattr(worker, method)(argument))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
