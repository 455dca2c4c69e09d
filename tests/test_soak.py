"""The soak test: one search under hundreds of kills and faults, and millions of inputs, with its figures as JSON.

    python -m pytest -m soak -s -n 0 tests/test_soak.py

takes about an hour on two cores; SOAK_KILLS and SOAK_INPUTS in the environment change its size. Short versions of all
its parts are in test_survival.py, test_faults.py and test_bad_input.py.
"""

import collections
import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import subprocess
import sys

import pytest
import test_faults
import test_survival
from test_faults import limited_search  # noqa: F401 (named in a child's code)
from test_runs import DISTURBED, StandIn, python, rows, search
from test_survival import Shuffled, saving

from bpevo.training import OutOfMemory

KILLS = int(os.environ.get("SOAK_KILLS", 1000))
INPUTS = int(os.environ.get("SOAK_INPUTS", 10_000_000))

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    search(workdir, DISTURBED, StandIn(4))
    return rows(workdir)


@pytest.fixture(scope="module")
def figures():
    counted = collections.Counter()
    yield counted
    print("\nsoak:", json.dumps(dict(counted)))


def compare(figures, expected: dict, found: dict) -> None:
    """Counts rows lost, duplicated and changed; all must be 0."""
    for table, wanted in expected.items():
        keys = {"proposals": 1, "evaluations": 5}[table]
        have, want = collections.Counter(r[:keys] for r in found[table]), {r[:keys]: r for r in wanted}
        figures["results lost"] += sum(k not in have for k in want)
        figures["results duplicated"] += sum(n - 1 for n in have.values()) + sum(k not in want for k in have)
        figures["results changed"] += sum(want.get(r[:keys], r) != r for r in found[table])
        figures["results compared"] += len(wanted)
    assert not any(figures[f"results {what}"] for what in ("lost", "duplicated", "changed"))
    assert found == expected


def test_kills_of_searches_on_a_stand_in(figures, undisturbed, tmp_path):
    seed = 0
    while figures["kills of a stand-in"] < KILLS:
        seed += 1
        figures["kills of a stand-in"] += test_survival.killed(tmp_path / str(seed), KILLS, seed)
        figures["searches killed"] += 1
        compare(figures, undisturbed, rows(tmp_path / str(seed)))


def test_kills_in_real_training(figures, tmp_path):
    test_survival.real_search(tmp_path / "undisturbed", 1)
    code = "import sys, test_survival as t; t.kill_real_training(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
    kills = max(10, KILLS // 25)
    process = python(code, tmp_path / "run", tmp_path / "cache", kills)
    output, _ = process.communicate(timeout=3600)
    assert process.returncode == 0 and int(output.split()[0]) >= 10
    figures["kills in real training"] += int(output.split()[0])
    compare(figures, rows(tmp_path / "undisturbed"), rows(tmp_path / "run"))


def test_one_search_through_every_fault(figures, undisturbed, tmp_path):
    """Interruptions, memory that runs out, disks that fill, slots and orders that change, and checkpoints that rot."""
    chosen = random.Random(5)
    for attempt in range(max(20, KILLS // 4)):
        fault = chosen.choice(("interrupt", "memory", "write", "order", "checkpoint"))
        figures[f"faults injected: {fault}"] += 1
        slots = chosen.choice((1, 2, 4, 8))
        if fault == "write":
            size = sum(f.stat().st_size for f in tmp_path.glob("run.sqlite*"))
            code = "import sys, test_faults as t; t.limited_search(sys.argv[1], int(sys.argv[2]))"
            process = python(code, tmp_path, max(200, size // 2 + chosen.randrange(30_000)))
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0 and len(output.splitlines()) <= 1
            continue
        if fault == "checkpoint":
            for path in (tmp_path / "checkpoints").glob("*.npz"):
                chosen.choice((test_survival.truncate, test_survival.flip, test_survival.empty))(path)
        trainer = StandIn(slots, interrupt_after=chosen.randrange(1, 6))
        if fault == "memory":
            trainer = test_faults.Small(8, chosen.choice((0, 1)), chosen.randrange(8, 60))
        if fault == "order":
            trainer = Shuffled(slots, attempt)
            trainer._left = chosen.randrange(1, 12)
        with contextlib.suppress(KeyboardInterrupt, OutOfMemory):
            search(tmp_path, DISTURBED, trainer, workers=saving(tmp_path))
    search(tmp_path, DISTURBED, StandIn(4), workers=saving(tmp_path))
    compare(figures, undisturbed, rows(tmp_path))


def test_millions_of_inputs(figures):
    script = pathlib.Path(__file__).with_name("fuzz_language.py")
    command = [sys.executable, str(script), f"--inputs={INPUTS}", f"--processes={multiprocessing.cpu_count()}"]
    environment = os.environ | {"PYTHONPATH": str(script.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures["inputs fuzzed"] += json.loads(done.stdout)["inputs"]
