"""A race's data sets, each with its searches, and the processes that run them."""

import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
import time

from bpevo.command.jax_setup import configure_jax  # isort: skip (sets the log level before jax loads)
from bpevo.bench.race import page, protocol, running
from bpevo.bench.race.memory import Memory, digest
from bpevo.search import SEMANTICS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """What races, from the flags."""

    workdir: str
    arms: tuple[str, ...]
    datasets: tuple[str, ...]
    unseen_models: tuple[str, ...]
    equations: int
    seeds: int
    slots: int


class Course:
    """A data set with its tracks, and where its results are stored."""

    def __init__(self, name: str, entry: Entry, memory: Memory):
        self.setting = protocol.SETTINGS[name]
        self.track = running.Track(self.setting, memory, entry.slots)
        self.unseen = [running.Track(s, memory, entry.slots) for s in self._elsewhere(entry.unseen_models)]
        tasks = [track.task.hex() for track in (self.track, *self.unseen)]
        self.budget = self.setting.budget(entry.equations)
        self.race = digest([protocol.VERSION, SEMANTICS, entry.equations, self.budget, tasks]).hex()
        self._entry, self._memory = entry, memory

    def _elsewhere(self, models: tuple[str, ...]) -> list[protocol.Setting]:
        networks = [dataclasses.replace(self.setting, model=model) for model in models]
        others = [protocol.SETTINGS[name] for name in self.setting.unseen if protocol.importable(name)]
        return [*networks, *(dataclasses.replace(s, model=self.setting.model) for s in others[:1])]

    def left(self, seed: int) -> list[str]:
        """Arms of a seed that have no result yet."""
        stored = self._memory.results(self.race)
        return [arm for arm in (running.BACKPROP, *self._entry.arms) if (arm, seed) not in stored]

    def run(self, seed: int) -> None:
        for arm in self.left(seed):
            before, lines = time.monotonic(), list[str]()
            chosen = protocol.ARMS.get(arm)
            result = running.run(self.track, self.unseen, chosen, self._entry.equations, seed, lines.append)
            self._memory.store(self.race, arm, seed, result)
            took = time.monotonic() - before
            print(f"{self.setting.dataset}, {arm}, seed {seed}: {took:.0f} s; {lines[-1]}", flush=True)

    def report(self) -> page.Race:
        arms = [arm for arm in protocol.ARMS if arm in self._entry.arms]
        results = self._memory.results(self.race)
        return page.Race(
            name=self.setting.name, budget=self.budget, planned=self._entry.seeds, arms=arms, results=results
        )


def _end_with_parent() -> None:
    """However that ends: what it has not stored is drawn anew."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def settle(cpus: multiprocessing.Queue) -> None:
    """A process keeps to its own CPUs: two searches of small programs gain more by that than one by both."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if own := cpus.get():
        os.sched_setaffinity(0, own)
    configure_jax()


@functools.cache
def _course(name: str, entry: Entry) -> Course:
    return Course(name, entry, Memory(entry.workdir))


def run(name: str, entry: Entry, seed: int) -> None:
    _course(name, entry).run(seed)
