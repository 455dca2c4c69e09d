"""Tables, plots and a page of a workdir: `python -m bpevo.report --workdir=runs/mine`.

Reads the search in --workdir and the evaluations in its folders, also while they are running, and writes report.html (one
file, no network), table.md, table.tex and the plots as SVG and PNG into --workdir/report. With --every=60 it does so once a
minute, and the page in a browser follows, until Ctrl-C.
"""

import time

from absl import flags
from rich.console import Console

from bpevo.command import main, process
from bpevo.command.plans import UsageError, path_of
from bpevo.report.writing import write
from bpevo.runs import RunError


def run(values: flags.FlagValues, console: Console, interruption: process.Interruption) -> int:
    """Writes the report and prints what to open; returns the exit code."""
    every = values.every
    if every is not None and not 1 <= every < 10**6:
        raise UsageError(f"--every={every:g} must be at least 1 second")
    if not values.workdir:
        raise RunError("--workdir=FOLDER is needed: the folder of the run")
    workdir = path_of("workdir", values.workdir)
    for path in write(workdir, every):
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    try:
        while every is not None:
            time.sleep(every)
            try:
                write(workdir, every)
            except RunError as error:  # a disk that is full now may have room later
                console.print(f"not written: {error}", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        write(workdir)  # the last word does not reload itself
        return interruption.code
    return 0


def _define() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_float(
        "every", None, "Write again after so many seconds, until Ctrl-C; the page reloads itself as often."
    )


if __name__ == "__main__":
    main.start("bpevo.report", (_define,), run)
