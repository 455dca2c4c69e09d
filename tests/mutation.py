"""Do the tests notice changes? A random sample of small changes to the package, each against the tests of its subject.

    pip install '.[test,mutation]'
    python tests/mutation.py --sample=150 --folder=runs/mutation

cosmic-ray (https://cosmic-ray.readthedocs.io) makes the changes: another operator, comparison, number or constant, a `break`
for a `continue`, a missing `not` or decorator. They are made in a copy of the working tree, one at a time; a change is noticed if a
test fails or outlasts three times its usual duration. All state is in --folder: the same command continues where it was stopped
and ends with the share noticed and `survivors.md`, a table of the others for a person to judge: some change nothing.
"""

import argparse
import ast
import collections
import json
import pathlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

from cosmic_ray.commands import init
from cosmic_ray.modules import find_modules
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkItem

ROOT = pathlib.Path(__file__).parents[1]

# The tests of each subject, those that fail soonest first. The longest prefix of a module's name counts.
SUBJECTS = {
    "bpevo": "launch bad_input",
    "bpevo.bench": "bench",
    "bpevo.command": "launch bad_input terminal faults survival",
    "bpevo.data": "data data_tfds bad_input",
    "bpevo.doctor": "doctor",
    "bpevo.evaluate": "evaluate",
    "bpevo.evaluation": "figures significance evaluate ranking report",
    "bpevo.evolution": "evolution ranking runs",
    "bpevo.layers": "layers models training training_alignment",
    "bpevo.models": "models training",
    "bpevo.report": "figures terminal report ranking runs",
    "bpevo.rules": "rules rules_values rules_interpreter evolution",
    "bpevo.runs": "runs ranking places survival faults",
    "bpevo.search": "runs ranking fork survival figures",
    "bpevo.training": "training training_alignment models survival",
    "bpevo.workers": "runs survival faults",
}
OF_MODULE = {  # where one file says more than its room's
    "bpevo.search.fork": "fork",
    "bpevo.training.transforms": "training_alignment",
    "bpevo.workers.checkpoints": "survival faults",
}


def tests_of(module: pathlib.Path) -> tuple[str, ...]:
    """Paths of the test files that a change in `module` is run against."""
    name = ".".join(module.with_suffix("").parts)
    known = SUBJECTS | OF_MODULE
    subject = max((k for k in known if name == k or name.startswith(f"{k}.")), key=len)
    return tuple(f"tests/test_{test}.py" for test in known[subject].split())


def command(tests: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow and not soak", "-p", "no:cacheprovider", *tests]


def annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Types, which no test runs."""
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if found := getattr(node, field, None):
                yield found


def inside(position: tuple[int, int], node: ast.expr) -> bool:
    return (node.lineno, node.col_offset) <= position < (node.end_lineno or 0, node.end_col_offset or 0)


def sample(items: list[WorkItem], tree: pathlib.Path, size: int, seed: int) -> list[WorkItem]:
    """`size` places of the package at random, and a random change of each."""
    types = {
        path: list(annotations(ast.parse((tree / path).read_text(encoding="utf-8"))))
        for path in {item.mutations[0].module_path for item in items}
    }
    places = collections.defaultdict(list)
    for item in items:
        m = item.mutations[0]
        if not any(inside(m.start_pos, node) for node in types[m.module_path]):
            places[str(m.module_path), m.start_pos, m.operator_name.split("_")[0]].append(item)
    rng = random.Random(seed)
    return [rng.choice(places[place]) for place in rng.sample(sorted(places), min(size, len(places)))]


def prepare(folder: pathlib.Path, size: int, seed: int) -> None:
    """A copy of the tracked files, and the session with its sample."""
    tree = folder / "tree"
    folder.mkdir(parents=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    modules = sorted(path.relative_to(tree) for path in find_modules([tree / "bpevo"]))
    missing = {test for module in modules for test in tests_of(module) if not (tree / test).is_file()}
    if missing:
        sys.exit(f"SUBJECTS names tests that are not there: {', '.join(sorted(missing))}")
    with use_db(str(folder / "session.new"), WorkDB.Mode.create) as db, contextlib_chdir(tree):
        init.init(modules, db, {})
        chosen = sample(list(db.work_items), tree, size, seed)
        total = db.num_work_items
        db.clear()
        db.add_work_items(chosen)
    (folder / "session.new").rename(folder / "session.sqlite")
    print(f"{len(chosen)} of {total:,} changes, seed {seed}", flush=True)


def seconds_of(tests: tuple[str, ...], folder: pathlib.Path) -> float:
    """How long these tests take on the unchanged tree; they must pass. Measured once."""
    path = folder / "durations.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    key = " ".join(tests)
    if key not in known:
        begin = time.monotonic()
        done = subprocess.run(command(tests), cwd=folder / "tree", capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"these tests fail without any change: {key}\n{done.stdout[-3000:]}")
        known[key] = time.monotonic() - begin
        path.write_text(json.dumps(known, indent=1))
    return known[key]
