"""Several searches over the product of what varies: each a `bpevo.launch` in a process and a workdir of its own.

On a pool they share one cluster, each with `--workers` as its quota; without one they run one after the other.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import pathlib
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import flags
from rich.console import Console

from bpevo import report
from bpevo.command import definitions, plans, pools, process
from bpevo.data import DataError
from bpevo.report.writing import write
from bpevo.rules.text import suggestion
from bpevo.runs import Glance, RunDatabase, RunError, printable

OWN = ("workdir", "max_hours")  # flags of the sweep that its searches do not get
SHARED = ("workdir", "pool", "ray_address", "workers", "worker_cpus")  # flags that cannot vary
LOOK = 2.0  # seconds between looks at what searches have reached
TAIL = 4000  # bytes of a search's output that may tell why it failed
# On Linux a search is told when its sweep ends, also by kill -9.
_LAUNCH = (
    "import ctypes, runpy, signal; ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
    "runpy.run_module('bpevo.launch', run_name='__main__', alter_sys=True)"
)
LAUNCH = [sys.executable, *(("-c", _LAUNCH) if sys.platform == "linux" else ("-m", "bpevo.launch"))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One search of a sweep."""

    name: str  # of its folder: what varies, as optimizer=sgd,seed=0
    workdir: pathlib.Path
    flags: tuple[str, ...]  # of its command
    planned: int  # trainings
    settings: str  # what decides its results, as text

    @property
    def finished(self) -> bool:
        """Whether a search with these settings has ended here."""
        try:
            return (self.workdir / "run.sqlite").is_file() and self._mark.read_text("utf-8") == self.settings
        except (OSError, ValueError):
            return False

    def finish(self) -> None:
        """Raises OSError."""
        self._mark.write_text(self.settings, "utf-8")

    @property
    def log(self) -> pathlib.Path:
        """Where its output goes."""
        return self.workdir / "log.txt"

    @property
    def _mark(self) -> pathlib.Path:
        return self.workdir / "finished.json"


def members(values: flags.FlagValues) -> list[Member]:
    """The searches that were asked for, every one of them checked, data loaded. Raises UsageError or DataError."""
    if not values.workdir:
        raise plans.UsageError("--workdir=FOLDER is needed: each search gets a folder of its own in it")
    workdir = pathlib.Path(plans.path_of("workdir", values.workdir))
    if values.pool != "local" and not values.workers:
        raise plans.UsageError("a sweep on a pool needs --workers: how many each search may have at most")
    varied = _varied(values)
    passed = [n for n in _launch_flags() if values[n].present and n not in OWN and n not in varied]
    given = [values[name].serialize() for name in passed]
    return [
        _member(workdir, given, dict(zip(varied, combination, strict=True)))
        for combination in itertools.product(*varied.values())
    ]


def _launch_flags() -> flags.FlagValues:
    known = flags.FlagValues()
    definitions.define_common(known)
    definitions.define_search(known)
    return known


def _varied(values: flags.FlagValues) -> dict[str, list[str]]:
    """What each `--vary` says, by the flag's name. Raises UsageError."""
    known, varied = sorted(_launch_flags()), dict[str, list[str]]()
    for text in values.vary:
        name, equals, alternatives = text.partition("=")
        name = name.strip().removeprefix("--")
        if name not in known:
            raise plans.UsageError(f"--vary={text}: there is no flag {name!r}; {suggestion(name, known)}")
        if name in SHARED:
            raise plans.UsageError(f"--vary={text}: all searches share --{name}")
        if name in varied:
            raise plans.UsageError(f"--vary={text}: --{name} varies already: write all its values into one --vary")
        varied[name] = [alternative.strip() for alternative in alternatives.split("|")]
        if not equals or not all(varied[name]):
            raise plans.UsageError(f"--vary={text}: a value is empty; write --vary='{name}=FIRST|SECOND'")
        if len(set(varied[name])) < len(varied[name]):
            raise plans.UsageError(f"--vary={text}: a value is there twice")
    if not varied:
        raise plans.UsageError("--vary='FLAG=VALUE|VALUE' is needed: what the searches differ in")
    return varied


def _member(workdir: pathlib.Path, given: Sequence[str], own: Mapping[str, str]) -> Member:
    name = ",".join(f"{flag}={urllib.parse.quote(value, safe=_PLAIN)}" for flag, value in own.items())
    if len(name.encode()) > 200:
        raise plans.UsageError(f"{name} is too long for the name of a folder: put long values into files")
    folder = workdir / name
    arguments = (*given, *(f"--{flag}={value}" for flag, value in own.items()), f"--workdir={folder}")
    known = _launch_flags()
    try:
        known(["bpevo.launch", *arguments])
        command = plans.search_command(known)
    except (flags.Error, plans.UsageError) as error:
        raise plans.UsageError(f"{name}: {error}") from error
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    plan = command.search
    budget = {"max_evaluations": plan.max_evaluations, "top": plan.top, "repeats": plan.repeats}
    return Member(
        name=name,
        workdir=folder,
        flags=arguments,
        planned=plan.max_evaluations,
        settings=json.dumps(command.fingerprint() | budget),
    )


_PLAIN = " ,;:=+@()[]*'^~"  # beside letters, digits and _.-: what a folder's name may hold


class Sweep:
    """Runs searches, so many at once."""

    def __init__(self, searches: Sequence[Member], at_once: int, launch: Sequence[str], more: Sequence[str] = ()):
        """`more`: flags of every search, after its own."""
        self._launch, self._more, self._at_once = launch, more, at_once
        self._waiting = collections.deque(m for m in searches if not m.finished)
        self._running: dict[str, tuple[Member, subprocess.Popen]] = {}
        self._codes: list[int] = []  # of those that failed
        self.stopped = False
        self.said: list[str] = []  # about those that failed
        self.states = {
            m.name: report.SearchState(
                state="done before" if m.finished else "waiting", planned=m.planned, reached=Glance()
            )
            for m in searches
        }
        for member in searches:  # of an earlier start
            self._look(member)

    @property
    def code(self) -> int:
        """The exit code of what failed; 0 where nothing did."""
        again = process.EXIT_AGAIN
        return again if again in self._codes else next(iter(self._codes), 0)

    def stop(self) -> None:
        """For a signal handler: ends the searches as SIGTERM ends each; called again, at once."""
        self.stopped = True
        self._terminate()

    def _terminate(self) -> None:
        for _, child in list(self._running.values()):
            child.send_signal(signal.SIGTERM)  # none if it has ended

    def run(self, watch: Callable[[], None]) -> None:
        """Returns when all have ended, or after a `stop` or the loss of a device those that run. Raises RunError."""
        looked = 0.0
        watch()
        try:
            while self._running or (self._waiting and not self.stopped):
                while self._waiting and len(self._running) < self._at_once and not self.stopped:
                    self._start(self._waiting.popleft())
                time.sleep(0.1)
                for name, (member, child) in list(self._running.items()):
                    code = child.poll()
                    if code is not None:
                        del self._running[name]
                        self._look(member)
                        self._end(member, code)
                if time.monotonic() - looked > LOOK:
                    looked = time.monotonic()
                    for member, _ in self._running.values():
                        self._look(member)
                watch()
        finally:
            self._terminate()  # none is left, but after an error
            for _, child in self._running.values():
                child.wait()

    def _start(self, member: Member) -> None:
        try:
            member.workdir.mkdir(parents=True, exist_ok=True)
            with open(member.log, "ab") as log:
                child = subprocess.Popen(
                    [*self._launch, *member.flags, *self._more],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a terminal's signals reach the sweep alone
                )
        except OSError as error:
            raise RunError(f"cannot start a search in {member.workdir}: {error.strerror}") from error
        self._running[member.name] = member, child
        self.states[member.name].state = "running"
        if self.stopped:  # meanwhile
            child.send_signal(signal.SIGTERM)

    def _end(self, member: Member, code: int) -> None:
        state = self.states[member.name]
        if code == 0:
            state.state = "done"
            with contextlib.suppress(OSError):  # then it is started again, and has nothing to do
                member.finish()
        elif code > process.EXIT_SIGNAL:
            state.state = "interrupted"
            self._codes.append(code)
        else:
            state.state = "failed"
            self.said.append(f"{member.name}: {_last_words(member, code)}")
            # Whoever was killed may go on; where a device or a cluster failed, the others would fail too.
            self._codes.append(code if code > 0 else process.EXIT_AGAIN)
            if code == process.EXIT_AGAIN:
                self._waiting.clear()

    def _look(self, member: Member) -> None:
        with contextlib.suppress(RunError), RunDatabase.reading(member.workdir) as database:
            self.states[member.name].reached = database.glance()


def _last_words(member: Member, code: int) -> str:
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    try:
        lines = member.log.read_bytes()[-TAIL:].decode("utf-8", "replace").strip().splitlines()
    except OSError:
        lines = []
    return printable(lines[-1]) if lines else f"exit code {code}, see {member.log}"


def run(values: flags.FlagValues, console: Console, interruption: process.Interruption) -> int:
    """Runs a sweep; returns the exit code."""

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    searches, pool = members(values), plans.pool_plan(values)
    if all(member.finished for member in searches):
        pool = None  # nothing is left to run on one
    with process.time_limit(values.max_hours), _place(pool, len(searches), interruption) as (at_once, more):
        sweep = interruption.search = Sweep(searches, at_once, LAUNCH, more)
        watch = report.Searches(console, sweep.states)
        interruption.notice = watch.notice
        say(f"{len(searches)} searches, {min(at_once, len(searches))} at once")
        with watch.running():
            sweep.run(watch)
        interruption.search = None
    for line in sweep.said:
        say(line)
    if rows := [row for member in searches if (row := _found(member))]:
        console.print(report.overview_table(rows, f"the best rule of each search in {values.workdir}"))
    if sweep.stopped:
        say("interrupted: every finished training is kept; the same command continues")
        return interruption.code
    if sweep.code:
        say("not all have ended: what was trained is kept; the same command continues")
        return sweep.code
    page, *_ = write(searches[0].workdir.parent)
    say(f"report: {page}")
    return 0


def _found(member: Member) -> report.Found | None:
    try:
        with RunDatabase.reading(member.workdir) as database:
            return report.best_found(member.name, database.judged(), database.settings())
    except RunError:  # there is none yet
        return None


@contextlib.contextmanager
def _place(
    plan: pools.PoolPlan | None, searches: int, interruption: process.Interruption
) -> Iterator[tuple[int, list[str]]]:
    """How many searches run at once, and the flags by which they share a cluster."""
    if plan is None:
        yield 1, []
        return
    with pools.shared(plan, searches, interruption) as (at_once, own):
        cpus = [f"--worker_cpus={own.cpus}"] if own.cpus else []
        yield at_once, [f"--ray_address={own.address}", *cpus]
