"""Whether two runs hold the same rows, bit for bit, whatever their times: `python tests/compare_runs.py OLD NEW`, workdirs.

Compares every database under the two folders: all that proposals and trainings hold but when they ran and how long. Exit code
1 if anything differs.
"""

import contextlib
import pathlib
import sqlite3
import sys

COLUMNS = {
    "proposals": "id, equation, key, parent, changes, bars, infeasible, duplicates",
    "evaluations": "stage, equation, learning_rate, replicate, proposal, status, reason, accuracy, rungs, curve",
}


def rows(path: pathlib.Path) -> dict[str, set[tuple]]:
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        return {table: set(connection.execute(f"SELECT {names} FROM {table}")) for table, names in COLUMNS.items()}


def main(old: str, new: str) -> int:
    found = {side: sorted(pathlib.Path(side).rglob("run.sqlite")) for side in (old, new)}
    names = {side: {str(p.relative_to(side)) for p in paths} for side, paths in found.items()}
    different = names[old] ^ names[new]
    for name in sorted(different):
        print(f"{name}: only on one side")
    for name in sorted(names[old] & names[new]):
        before, after = (rows(pathlib.Path(side) / name) for side in (old, new))
        for table in COLUMNS:
            missing, added = before[table] - after[table], after[table] - before[table]
            print(
                f"{name} {table}: {len(before[table] & after[table])} equal, {len(missing)} missing, {len(added)} new"
            )
            if missing or added:
                different.add(name)
    return 1 if different or not names[old] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
