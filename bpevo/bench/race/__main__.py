"""A race of controllers: `python -m bpevo.bench.race --workdir=runs/race --equations=2000 --seeds=20`.

Searches of every arm on every data set, from as many search seeds; bpevo.bench.race says what is measured. The report, race.html
and race.md in --workdir, and its record, race.jsonl, are written anew whenever all arms have finished a seed on a data set, and
when the command ends. Starting again on the same folder continues, also where it holds the record alone. A search's own database
is in a temporary folder: TMPDIR=/dev/shm keeps it in memory.
"""

import multiprocessing
import os
import pathlib
import sys
import time
from concurrent import futures

from bpevo.command.jax_setup import configure_jax  # isort: skip (sets the log level before jax loads)
from absl import app, flags
from rich.console import Console

from bpevo import data, models
from bpevo.bench.race import courses, page, protocol
from bpevo.bench.race.courses import Course, Entry
from bpevo.bench.race.memory import RECORD, Memory
from bpevo.command import process
from bpevo.runs.provenance import versions
from bpevo.training import usable_cpus


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
    flags.DEFINE_integer(
        "jobs", usable_cpus(), "Seeds under way at once, each in a process on its share of the CPUs.", lower_bound=1
    )


def write(folder: pathlib.Path, there: list[Course], memory: Memory, console: Console) -> None:
    """The report of what every arm has finished, and the record."""
    races = [race for race in (course.report() for course in there) if race.seeds]
    said = ", ".join(f"{k} {v}" for k, v in versions().items() if v)
    texts = {"race.html": page.report_html(races, said), "race.md": page.markdown(races, said)}
    for name, text in (texts | {RECORD: memory.record()}).items():
        unfinished = folder / f"{name}.unfinished"
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, folder / name)
    for race in races:
        for sentence in page.verdict(race):
            console.print(f"{race.name}: {sentence}", highlight=False, soft_wrap=True)


def race(entry: Entry, jobs: int, memory: Memory, console: Console) -> None:
    folder = pathlib.Path(entry.workdir)
    there = {name: Course(name, entry, memory) for name in entry.datasets}
    arms, open_ = 1 + len(entry.arms), {}
    for seed in range(entry.seeds):
        for name, course in there.items():
            if count := len(course.left(seed)):
                open_[name, seed] = count
    total, left = entry.seeds * len(there) * arms, sum(open_.values())
    console.print(f"{total - left} of {total} searches are stored")
    context = multiprocessing.get_context("spawn")
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    shares = context.Queue()
    for job in range(jobs):
        shares.put(set(cpus[job::jobs]) or set(cpus))
    start, done = time.monotonic(), 0
    with futures.ProcessPoolExecutor(jobs, context, courses.settle, (shares,)) as pool:
        try:
            started = {pool.submit(courses.run, name, entry, seed): count for (name, seed), count in open_.items()}
            for future in futures.as_completed(started):
                future.result()
                done += started[future]
                minutes = (time.monotonic() - start) / done * (left - done) / 60
                console.print(f"{total - left + done} of {total} searches; {minutes:.0f} min left", highlight=False)
                if done < left:
                    write(folder, list(there.values()), memory, console)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
        finally:
            write(folder, list(there.values()), memory, console)


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
    entry = Entry(
        workdir=values.workdir,
        arms=tuple(values.arms),
        datasets=tuple(values.datasets or filter(protocol.importable, protocol.SETTINGS)),
        unseen_models=tuple(values.unseen_models),
        equations=values.equations,
        seeds=values.seeds,
        slots=values.slots,
    )
    try:
        with Memory.opened(entry.workdir) as memory:
            race(entry, values.jobs, memory, console)
    except data.DataError as error:
        return process.fail(command, error)
    except KeyboardInterrupt:
        return process.fail(command, "interrupted: the same command continues", 130)
    return 0


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=process.parse_flags("bpevo.bench.race"))
