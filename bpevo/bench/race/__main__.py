"""A race of controllers: `python -m bpevo.bench.race --workdir=runs/race --equations=2000 --seeds=20`.

Searches of every arm on every data set, from as many search seeds, one after the other; bpevo.bench.race says what is measured.
The report, race.html and race.md in --workdir, is written anew whenever all arms have finished a seed. Starting again on the
same folder continues. A search's own database is in a temporary folder: TMPDIR=/dev/shm keeps it in memory.
"""

import dataclasses
import os
import pathlib
import sys
import time

from bpevo.command.jax_setup import configure_jax  # isort: skip (sets the log level before jax loads)
from absl import app, flags
from rich.console import Console

from bpevo import data, models
from bpevo.bench.race import page, protocol, running
from bpevo.bench.race.memory import Memory, digest
from bpevo.command import process
from bpevo.runs.provenance import versions
from bpevo.search import SEMANTICS


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the race: its database and its report.", required=True)
    flags.DEFINE_list("arms", list(protocol.ARMS), f"Some of {', '.join(protocol.ARMS)}.")
    flags.DEFINE_list(
        "datasets", [], f"Some of {', '.join(protocol.SETTINGS)}. Default: those whose packages are installed."
    )
    flags.DEFINE_list("unseen_models", ["mlp-64-64-64"], "Networks for the final rules, beside the searched one.")
    flags.DEFINE_integer(
        "equations", 2000, "The budget: what so many equations cost with trials.", lower_bound=protocol.LAG
    )
    flags.DEFINE_integer("seeds", 20, "Search seeds of each arm; no verdict before all are done.", lower_bound=1)
    flags.DEFINE_integer("slots", 8, "Candidates in training at once; results do not depend on it.", lower_bound=1)


class Course:
    """A data set with its tracks, and where its results are stored."""

    def __init__(self, name: str, memory: Memory):
        values = flags.FLAGS
        self.setting = protocol.SETTINGS[name]
        self.track = running.Track(self.setting, memory, values.slots)
        self.unseen = [running.Track(s, memory, values.slots) for s in self._elsewhere(values.unseen_models)]
        tasks = [track.task.hex() for track in (self.track, *self.unseen)]
        budget = self.setting.budget(values.equations)
        self.race = digest([protocol.VERSION, SEMANTICS, values.equations, budget, tasks]).hex()
        self._memory = memory

    def _elsewhere(self, models: list[str]) -> list[protocol.Setting]:
        networks = [dataclasses.replace(self.setting, model=model) for model in models]
        others = [protocol.SETTINGS[name] for name in self.setting.unseen if protocol.importable(name)]
        return [*networks, *(dataclasses.replace(s, model=self.setting.model) for s in others[:1])]

    def report(self) -> page.Race:
        budget = self.setting.budget(flags.FLAGS.equations)
        results = self._memory.results(self.race)
        return page.Race(name=self.setting.name, budget=budget, planned=flags.FLAGS.seeds, results=results)


def write(folder: pathlib.Path, courses: list[Course], console: Console) -> None:
    """The report of what every arm has finished."""
    races = [race for race in (course.report() for course in courses) if race.arms and race.seeds]
    said = ", ".join(f"{k} {v}" for k, v in versions().items() if v)
    for name, text in (("race.html", page.report_html(races, said)), ("race.md", page.markdown(races, said))):
        unfinished = folder / f"{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, folder / name)
    for race in races:
        for sentence in page.verdict(race):
            console.print(f"{race.name}: {sentence}", highlight=False, soft_wrap=True)


def race(memory: Memory, folder: pathlib.Path, console: Console) -> None:
    values = flags.FLAGS
    names = values.datasets or [name for name in protocol.SETTINGS if protocol.importable(name)]
    arms = [running.BACKPROP, *values.arms]
    seeds = range(values.seeds)
    courses = [Course(name, memory) for name in names]
    open_ = [
        (seed, course, arm)
        for seed in seeds
        for course in courses
        for arm in arms
        if (arm, seed) not in memory.results(course.race)
    ]
    console.print(
        f"{len(seeds) * len(courses) * len(arms) - len(open_)} of {len(seeds) * len(courses) * len(arms)} are stored"
    )
    start = time.monotonic()
    for i, (seed, course, arm) in enumerate(open_, 1):
        before, lines = time.monotonic(), list[str]()
        result = running.run(course.track, course.unseen, protocol.ARMS.get(arm), values.equations, seed, lines.append)
        memory.store(course.race, arm, seed, result)
        now = time.monotonic()
        left = (now - start) / i * (len(open_) - i) / 60
        console.print(
            f"{i}/{len(open_)} {course.setting.dataset}, {arm}, seed {seed}: {now - before:.0f} s; {lines[-1]}; "
            f"{left:.0f} min left", highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
        if i == len(open_) or open_[i][0] != seed:
            write(folder, courses, console)
    if not open_:
        write(folder, courses, console)


def main(argv: list[str]) -> int:
    del argv
    values, console = flags.FLAGS, Console(width=None if sys.stdout.isatty() else 150)
    command = "bpevo.bench.race"
    for name, given, known in (
        ("arms", values.arms, protocol.ARMS),
        ("datasets", values.datasets, protocol.SETTINGS),
    ):
        if unknown := [each for each in given if each not in known]:
            return process.fail(command, f"--{name}={unknown[0]} must be one of {', '.join(known)}")
    try:
        for name in values.unseen_models:
            models.by_name(name)
    except ValueError as error:
        return process.fail(command, f"--unseen_models: {error}")
    configure_jax()
    console.print(", ".join(f"{k} {v}" for k, v in versions().items()), highlight=False)
    folder = pathlib.Path(values.workdir)
    try:
        with Memory.opened(folder) as memory:
            race(memory, folder, console)
    except data.DataError as error:
        return process.fail(command, error)
    except KeyboardInterrupt:
        return process.fail(command, "interrupted: the same command continues", 130)
    return 0


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=process.parse_flags("bpevo.bench.race"))
