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
from bpevo.workers.networks import WorkersByNetwork
from bpevo.workers.recipe import Recipe

Begin = Callable[[], Mapping[str, str]]


class WorkerProcess:
    """LocalWorkers of each network, by a pool's requests. Whatever goes wrong is an answer."""

    def __init__(self, begin: Begin):
        """`begin` sets this process up, raises what is wrong with it, and returns what decides its numbers."""
        self._begin = begin
        self._versions: Mapping[str, str] = {}
        self._of: dict[str, LocalWorkers] = {}  # by network
        self._said: list[str] = []

    def prepare(self, recipe: Recipe) -> Ready | Lost:
        try:
            self._versions = self._versions or self._begin()
            self._of = {}  # frees its slots before the next are allocated
            trainers = recipe.trainers()
            self._of = {name: LocalWorkers(each, None, self._said.append) for name, each in trainers.items()}
        except Exception as error:
            return Lost(reason=_line(error))
        return Ready(capacity=WorkersByNetwork(self._of).capacity, versions=self._versions)

    def epoch(self, jobs: Sequence[Job]) -> Report | Lost:
        workers = WorkersByNetwork(self._of)
        for job in jobs:
            workers.submit(job)
        try:
            outcomes = workers.poll()
        except (DeviceLost, OutOfMemory) as error:
            return Lost(reason=_line(error))
        said, self._said[:] = tuple(self._said), ()
        trainers = [local.trainer for local in self._of.values()]
        return Report(
            outcomes=outcomes,
            capacity=workers.capacity,
            epochs_run=sum(trainer.epochs_run for trainer in trainers),
            epochs_offered=sum(trainer.epochs_offered for trainer in trainers),
            said=said,
        )

    def close(self) -> None:
        self._of = {}


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
