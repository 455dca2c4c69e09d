"""Tables, plots and a page of a workdir: `python -m bpevo.report --workdir=runs/mine`.

Reads the search in --workdir and the evaluations in its folders, also while they are running, and writes report.html (one
file, no network), table.md, table.tex and the plots as SVG and PNG into --workdir/report.
"""

import sys

from absl import app, flags

from bpevo.runs import RunError


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}: settings are flags, --name=value")
    from bpevo.report.build import build  # matplotlib takes a second to load, --help should not

    try:
        if not flags.FLAGS.workdir:
            raise RunError("--workdir=FOLDER is needed: the folder of the run")
        for path in build(flags.FLAGS.workdir):
            print(path)
    except RunError as error:
        print(f"bpevo.report: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    app.run(main)
