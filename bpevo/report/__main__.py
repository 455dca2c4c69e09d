"""Tables, plots and a page of a workdir: `python -m bpevo.report --workdir=runs/mine`.

Reads the search in --workdir and the evaluations in its folders, also while they are running, and writes report.html (one
file, no network), table.md, table.tex and the plots as SVG and PNG into --workdir/report.
"""

import os
import sys

from absl import app, flags

from bpevo.command import process
from bpevo.runs import RunError


def run(workdir: str | None) -> int:
    """Writes the report and prints what to open; returns the exit code."""
    if not workdir:
        raise RunError("--workdir=FOLDER is needed: the folder of the run")
    os.environ.pop("MPLBACKEND", None)  # a name that matplotlib does not know fails its import
    try:
        import matplotlib  # noqa: F401
    except (ImportError, ValueError) as error:
        raise RunError(f"matplotlib cannot be imported: {error}; check the matplotlibrc that it reads") from error
    from bpevo.report.build import build  # takes a second to load; --help should not

    output = process.Output(sys.stdout)
    for path in build(workdir):
        output.write(f"{path}\n")
    output.flush()
    return 0


def main(argv: list[str]) -> None:
    del argv
    interruption = process.Interruption()
    interruption.install()
    try:
        code = run(flags.FLAGS.workdir)
    except RunError as error:
        code = process.fail("bpevo.report", error)
    except KeyboardInterrupt:
        code = interruption.code
    sys.exit(code)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    app.run(main, flags_parser=process.parse_flags("bpevo.report"))
