"""Do the tests notice changes? A random sample of small changes to the package, each against the tests of its subject.

    pip install '.[test,mutation]'
    python tests/mutation.py --sample=150 --folder=runs/mutation

cosmic-ray (https://cosmic-ray.readthedocs.io) makes the changes: another operator, comparison, number or constant, a `break`
for a `continue`, a missing `not` or decorator. They are made in copies of the working tree, one at a time in each. A change is
noticed if a test fails, or the tests take more processor time than three times their usual duration and a minute. All state is
in --folder: the same command continues where it was stopped, and ends with the share noticed and `survivors.md`, a table of the
others for a person to judge, as some change nothing.
"""

import argparse
import ast
import collections
import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures

from cosmic_ray.commands import init
from cosmic_ray.modules import find_modules
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkItem, WorkResult

ROOT = pathlib.Path(__file__).parents[1]

# The tests of each subject, by the name of a room or a module: those of the longest name that fits. Quick ones come first.
SUBJECTS = {
    "bpevo": "package bad_input launch",
    "bpevo.bench": "bench_tables bench",
    "bpevo.bench.accounting": "bench_accounting bench_hlo bench_described",
    **{f"bpevo.bench.{name}": "bench_hlo bench_accounting" for name in ("hlo", "thunks")},
    **{f"bpevo.bench.{name}": "bench_described_tables bench_described" for name in ("described", "described_table")},
    "bpevo.bench.targets": "bench_targets bench_described",
    "bpevo.bench.accelerator": "bench_accelerator",
    "bpevo.bench.equivalence": "bench_equivalence",
    "bpevo.bench.first_release": "bench_first_release bench_equivalence",
    "bpevo.bench.networks": "bench_equivalence",
    "bpevo.bench.false_finds": "false_finds",
    "bpevo.bench.head": "bench_head",
    "bpevo.bench.race": "race_report race_command race",
    "bpevo.bench.sample": "bench_sample kernels",
    "bpevo.bench.simulated": "pool bench_head",
    "bpevo.command": "launch search_command environment bad_input",
    "bpevo.command.clusters": "command_pools ray_stand_in doctor_cluster",
    "bpevo.command.definitions": "launch terminal bad_input",
    "bpevo.command.evaluating": "evaluate_command evaluate",
    **{f"bpevo.command.{name}": "environment" for name in ("flag_files", "jax_setup")},
    "bpevo.command.funnelling": "funnel",
    "bpevo.command.inherited": "evaluate_command",
    **{f"bpevo.command.{name}": "search_command terminal fork networks launch" for name in ("main", "searching")},
    "bpevo.command.plans": "launch bad_input environment networks fork evaluate_command evaluate",
    "bpevo.command.pools": "command_pools ray_stand_in",
    "bpevo.command.process": "environment search_command terminal faults",
    "bpevo.command.python": "python funnel",
    "bpevo.command.selfcheck": "doctor environment",
    "bpevo.command.sweeping": "sweep",
    "bpevo.command.trainings": "launch own_networks bad_input",
    "bpevo.data": "data data_tfds data_folders bad_input",
    "bpevo.data.own": "own_data",
    "bpevo.doctor": "doctor",
    "bpevo.evaluate": "evaluate",
    "bpevo.evaluation": "verdict figures significance ranking evaluate_command evaluate report",
    "bpevo.evaluation.funnel": "funnel",
    "bpevo.evolution": "rates budget ranking controllers standing kinds equivalence runs evolution controllers_searching",
    "bpevo.evolution.controllers": "controllers controllers_growth standing evolution controllers_searching",
    "bpevo.evolution.networks": "networks",
    "bpevo.evolution.population": "controllers controllers_growth standing evolution ranking",
    "bpevo.evolution.simplify": "front",
    "bpevo.evolution.space": "evolution controllers",
    "bpevo.funnel": "funnel",
    "bpevo.launch": "search_command launch",
    "bpevo.layers": "layers layers_positions models shared_units training",
    **{f"bpevo.layers.{name}": "evolve evolve_networks evolve_rules" for name in ("discovery", "evaluation", "evolve")},
    **{f"bpevo.layers.{name}": "evolve evolve_networks evolve_rules" for name in ("graph", "traced_map", "varying")},
    "bpevo.layers.constants": "layers_positions evolve_rules registering",
    **{
        f"bpevo.layers.{name}": "layers layers_positions models shared_units training evolve_rules"
        for name in ("linear", "unit")
    },
    "bpevo.models": "models own_networks",
    **{f"bpevo.models.{name}": "own_networks" for name in ("importing", "own")},
    "bpevo.report": "pages tables figures plots opened ranking runs terminal report",
    "bpevo.report.forecast": "forecast",
    "bpevo.report.front": "pages front",
    "bpevo.report.funnel": "funnel",
    **{f"bpevo.report.{name}": "tables figures ranking networks terminal report" for name in ("leaderboard", "tables")},
    "bpevo.report.metrics": "metrics",
    "bpevo.report.opened": "opened front python",
    "bpevo.report.overview": "pages tables sweep",
    "bpevo.report.plots": "plots report",
    **{f"bpevo.report.{name}": "tables figures terminal" for name in ("progress", "terminal")},
    "bpevo.rules": "rules_forms rules rules_values rules_interpreter registering",
    "bpevo.rules.canonical": "rules_forms registering rules front",
    "bpevo.rules.components": "rules_forms rules rules_values rules_interpreter registering layers",
    **{f"bpevo.rules.{name}": "drawing" for name in ("drawing", "svg")},
    "bpevo.rules.export": "export",
    **{f"bpevo.rules.{name}": "kernels" for name in ("kernels", "loops", "tile_programs", "tiled", "tiles")},
    "bpevo.rules.own": "own_rules",
    "bpevo.rules.program": "rules_interpreter rules_forms registering rules_values extensions",
    "bpevo.runs": "database ranking standing networks runs places faults fork",
    "bpevo.search": "ranking networks runs figures fork",
    "bpevo.sweep": "sweep",
    "bpevo.training": "training_slots training_alignment training extensions_training",
    "bpevo.training.cpus": "budget",
    "bpevo.training.graphs": "graphs",
    "bpevo.training.kernel": "kernel_trial kernels",
    "bpevo.training.optimizers": "optimizers training",
    "bpevo.training.slots": "training_slots graphs training",
    "bpevo.training.trainer": "training_slots training_alignment training extensions_training graphs faults",
    "bpevo.training.transforms": "training_alignment extensions_training",
    "bpevo.workers": "workers runs faults",
    "bpevo.workers.checkpoints": "workers survival",
    "bpevo.workers.networks": "workers networks",
    "bpevo.workers.pool": "pool_by_hand pool",
    **{f"bpevo.workers.{name}": "ray_stand_in" for name in ("ray_cluster", "ray_fleet")},
    "bpevo.workers.suspects": "workers pool",
}
UNTESTED = "torch_backprop"  # PyTorch is not among what tests need


def tests_of(module: pathlib.Path) -> tuple[str, ...]:
    """Paths of the test files that a change in `module` is run against."""
    name = ".".join(module.with_suffix("").parts)
    subject = max((k for k in SUBJECTS if name == k or name.startswith(f"{k}.")), key=len)
    return tuple(f"tests/test_{test}.py" for test in SUBJECTS[subject].split())


def command(tests: tuple[str, ...], module: pathlib.Path | None = None) -> list[str]:
    """Runs the examples in a module and these tests, quickest first; what XLA compiles is kept in the tree's .pytest_cache for
    the next change."""
    options = ["-x", "-q", "-n", "0", "-m", "not slow and not soak"]
    if module and ">>> " in module.read_text(encoding="utf-8"):
        return [sys.executable, "-m", "pytest", *options, "--doctest-modules", str(module), *tests]
    return [sys.executable, "-m", "pytest", *options, *tests]


def declarations(tree: ast.AST) -> Iterator[ast.expr]:
    """Types, and whether a dataclass may be changed or takes its fields by place: what no test runs."""
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if found := getattr(node, field, None):
                yield found
        for decorator in getattr(node, "decorator_list", ()):
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "dataclasses.dataclass":
                yield decorator


def inside(position: tuple[int, int], node: ast.expr) -> bool:
    return (node.lineno, node.col_offset) <= position < (node.end_lineno or 0, node.end_col_offset or 0)


def sample(items: list[WorkItem], tree: pathlib.Path, size: int, seed: int) -> list[WorkItem]:
    """`size` places of the package at random, and a random change of each."""
    declared = {
        path: list(declarations(ast.parse((tree / path).read_text(encoding="utf-8"))))
        for path in {item.mutations[0].module_path for item in items}
    }
    places = collections.defaultdict(list)
    for item in items:
        m = item.mutations[0]
        if not any(inside(m.start_pos, node) for node in declared[m.module_path]):
            places[str(m.module_path), m.start_pos, m.operator_name.split("_")[0]].append(item)
    rng = random.Random(seed)
    return [rng.choice(places[place]) for place in rng.sample(sorted(places), min(size, len(places)))]


def prepare(folder: pathlib.Path, size: int, seed: int) -> None:
    """A copy of the tracked files, and the session with its sample."""
    tree = folder / "tree"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(tree, ignore_errors=True)
    (folder / "session.new").unlink(missing_ok=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    found = sorted(path.relative_to(tree) for path in find_modules([tree / "bpevo"]))
    modules = [module for module in found if module.stem != UNTESTED]
    missing = {test for module in modules for test in tests_of(module) if not (tree / test).is_file()}
    if missing:
        sys.exit(f"SUBJECTS names tests that are not there: {', '.join(sorted(missing))}")
    with use_db(str(folder / "session.new"), WorkDB.Mode.create) as db, contextlib.chdir(tree):
        init(modules, db, {})
        chosen = sample(list(db.work_items), tree, size, seed)
        total = db.num_work_items
        db.clear()
        db.add_work_items(chosen)
    (folder / "session.new").rename(folder / "session.sqlite")
    print(f"{len(chosen)} of {total:,} changes, seed {seed}", flush=True)


def seconds_of(tests: tuple[str, ...], durations: pathlib.Path) -> float:
    """How long these tests take on the unchanged tree in the current folder; they must pass. Measured once."""

    def known() -> dict[str, float]:
        return json.loads(durations.read_text()) if durations.is_file() else {}

    key = " ".join(tests)
    if key not in known():
        begin = time.monotonic()
        done = subprocess.run(command(tests), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"these tests fail without any change: {key}\n{done.stdout[-3000:]}")
        measured = known() | {key: time.monotonic() - begin}  # another process may have written meanwhile
        whole = durations.with_suffix(f".{os.getpid()}")
        whole.write_text(json.dumps(measured, indent=1))
        whole.rename(durations)
    return known()[key]


def settle(folder: pathlib.Path, numbers: multiprocessing.Queue) -> None:
    """A process that tries changes has a tree of its own, anew: a killed run leaves its change."""
    tree = folder / f"tree{numbers.get()}"
    for name in ("bpevo", "tests"):
        shutil.rmtree(tree / name, ignore_errors=True)
    shutil.copytree(folder / "tree", tree, dirs_exist_ok=True)
    os.environ["PYTHONPATH"] = str(tree)  # commands that tests start are those with the change, too
    os.chdir(tree)


def attempt(item: WorkItem) -> tuple[WorkResult, float]:
    """Tries a change in this process's tree; the result, and seconds."""
    module = item.mutations[0].module_path
    tests = tests_of(module)
    usual = seconds_of(tests, pathlib.Path.cwd().parent / "durations.json")
    limited = (
        f"ulimit -t {60 + 3 * usual:.0f}; exec {shlex.join(command(tests, module))}"  # no other process's load counts
    )
    begin = time.monotonic()
    return mutate_and_test(
        item.mutations, shlex.join(["bash", "-c", limited]), 60 + 6 * usual
    ), time.monotonic() - begin


def run(folder: pathlib.Path, jobs: int) -> None:
    """Tries every change that has no result yet."""
    numbers: multiprocessing.Queue = multiprocessing.Queue()
    for number in range(jobs):
        numbers.put(number)
    with (
        use_db(str(folder / "session.sqlite"), WorkDB.Mode.open) as db,
        futures.ProcessPoolExecutor(jobs, initializer=settle, initargs=(folder, numbers)) as pool,
    ):
        pending = {pool.submit(attempt, item): item for item in db.pending_work_items}
        try:
            for future in futures.as_completed(pending):
                item, (result, seconds) = pending[future], future.result()
                db.set_result(item.job_id, result)
                told = "not noticed" if result.test_outcome == TestOutcome.SURVIVED else "noticed"
                where = f"{item.mutations[0].module_path}:{item.mutations[0].start_pos[0]}"
                print(f"{db.num_results} of {db.num_work_items}  {told:<11}  {seconds:4.0f} s  {where}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def report(folder: pathlib.Path) -> str:
    """Writes survivors.md; returns the sentence with the share."""
    lines, ended, noticed = [], 0, 0
    with use_db(str(folder / "session.sqlite"), WorkDB.Mode.open) as db:
        for item, result in db.completed_work_items:
            ended += 1
            if result.test_outcome != TestOutcome.SURVIVED:
                noticed += 1
                continue
            m = item.mutations[0]
            changed = [d for d in (result.diff or "").splitlines() if d[:1] in "+-" and d[:3] not in ("+++", "---")]
            before, after = ("<br>".join(f"`{d[1:].strip()}`" for d in changed if d[0] == sign) for sign in "-+")
            where = f"{m.module_path}:{m.start_pos[0]}"
            lines.append(f"| {where} | {before.replace('|', chr(92) + '|')} | {after.replace('|', chr(92) + '|')} |")
    text = f"{noticed} of {ended} changes ({noticed / max(1, ended):.0%}) were noticed."
    table = "\n".join([text, "", "| not noticed | before | after |", "|---|---|---|", *sorted(lines)])
    (folder / "survivors.md").write_text(table + "\n", encoding="utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=150, help="Changes that are tried.")
    parser.add_argument("--seed", type=int, default=0, help="Of the sample.")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="Changes tried at once.")
    parser.add_argument(
        "--folder", type=pathlib.Path, default=ROOT / "runs" / "mutation", help="All state, to continue from."
    )
    values = parser.parse_args()
    folder = values.folder.resolve()
    if not (folder / "session.sqlite").is_file():
        prepare(folder, values.sample, values.seed)
    run(folder, values.jobs)
    print(report(folder))


if __name__ == "__main__":
    main()
