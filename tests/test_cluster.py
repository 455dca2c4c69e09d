"""On a real Ray: whatever happens to workers, nodes and heads, a run has the rows of this process, bit for bit.

    python -m pytest -m cluster -n 0

needs '.[cluster]' and takes minutes.
"""

# ruff: noqa: E402
import contextlib
import functools
import os
import re
import signal
import sqlite3
import subprocess
import sys
import warnings

import pytest
from test_runs import REPOSITORY, rows

pytest.importorskip("ray", reason="ray is not installed")

import clusters
from clusters import Events, small_cluster, until

import bpevo
from bpevo.command import searching
from bpevo.workers import Patience

pytestmark = pytest.mark.cluster

SEARCH = dict(
    dataset="digits", model="mlp-8", train_examples=256, batch_size=32, epochs=3, learning_rates=1, max_evaluations=60,
    elite_size=8, initial="known", lag=16, top=2, repeats=1, slots=4, selfcheck=False,
)  # fmt: skip
INTERRUPTED = "interrupted: every finished training is kept; the same command continues"


@pytest.fixture(scope="session")
def cluster():
    with small_cluster() as made:
        yield made


@pytest.fixture(scope="session")
def single(tmp_path_factory):
    """The rows of a search in this process, by its seed."""
    made = {}

    def of(seed: int) -> dict:
        if seed not in made:
            folder = tmp_path_factory.mktemp(f"single{seed}")
            bpevo.Search(folder, **SEARCH, seed=seed).run()
            made[seed] = rows(folder)
        return made[seed]

    return of


def started(folder, **settings) -> subprocess.Popen:
    """A search as a command, with a pool."""
    given = SEARCH | {"workdir": folder, "pool": "ray"} | settings
    command = [sys.executable, "-m", "bpevo.launch", *(f"--{name}={value}" for name, value in given.items())]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    with open(folder / "output", "w") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)


def stored(folder) -> int:
    """Trainings so far."""
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{folder}/run.sqlite?mode=rw", uri=True)) as c,
    ):
        return c.execute("SELECT count(*) FROM evaluations").fetchone()[0]
    return 0


def until_stored(process, folder, count: int) -> None:
    until(lambda: stored(folder) >= count or process.poll() is not None)
    assert process.poll() is None, (folder / "output").read_text()


def test_a_search_whose_workers_and_nodes_come_and_go_has_the_rows_of_this_process(
    cluster, single, tmp_path, monkeypatch, capsys
):
    events, second, third = Events(monkeypatch), cluster.add(), []

    def hang() -> None:
        events.pool._patience = Patience(least=3.0)
        (worker,) = clusters.workers(third[0])
        os.kill(worker, signal.SIGSTOP)

    events.steps = [
        (events.trained_on(cluster.head), lambda: os.kill(clusters.workers(cluster.head)[0], signal.SIGKILL)),
        (events.trained_on(second), lambda: cluster.kill(second)),
        (events.later(3), lambda: third.append(cluster.add())),
        (events.gone_from(second), lambda: None),
        (lambda: events.trained_on(third[0])(), hang),
        (events.trained_on(cluster.head), lambda: None),
    ]
    bpevo.Search(tmp_path, **SEARCH, pool="ray", ray_address=cluster.address, workers=3).run()
    assert not events.steps, "the search was over first"
    assert rows(tmp_path) == single(0)
    said = capsys.readouterr().out
    for reason in ("its process died", "its node is gone", r"no answer for \d s"):
        assert re.search(rf"lost the worker \S+ \({reason}\): \d trainings begin again\n", said), reason
    assert "raylet" not in said  # Ray's own pages
    cluster.kill(third[0])


def test_two_searches_share_a_cluster_and_one_whose_head_is_killed_or_ended_goes_on(
    cluster, single, tmp_path, monkeypatch
):
    first, other = tmp_path / "first", tmp_path / "other"
    first.mkdir()
    second, events = cluster.add(), Events(monkeypatch)
    heads = [started(first, ray_address=cluster.address, workers=1)]

    def kill() -> None:
        until_stored(heads[-1], first, 4)
        heads[-1].kill()
        heads[-1].wait()
        heads.append(started(first, ray_address=cluster.address, workers=1))

    def end() -> None:
        until_stored(heads[-1], first, stored(first) + 4)
        heads[-1].terminate()
        assert heads[-1].wait(60) == 143

    events.steps = [(events.later(1), kill), (events.later(1), end)]
    bpevo.Search(other, **SEARCH, seed=1, pool="ray", ray_address=cluster.address, workers=1).run()
    assert not events.steps and rows(other) == single(1)
    assert said_last(first, INTERRUPTED)
    bpevo.Search(first, **SEARCH, pool="ray", ray_address=cluster.address, workers=1).run()
    assert rows(first) == single(0)
    cluster.kill(second)


def said_last(folder, line: str) -> bool:
    """Whether it was said once, and after it nothing but the leaderboard."""
    lines = (folder / "output").read_text().splitlines()
    assert not any("Traceback" in text for text in lines)
    return lines.count(line) == 1


def test_a_cluster_of_ones_own_is_on_loopback_and_a_search_goes_on_when_it_breaks(single, tmp_path, capsys):
    process = started(tmp_path, workers=2)
    until_stored(process, tmp_path, 5)
    below = clusters.children(process.pid)
    assert len(below) >= 5 and clusters.listening([process.pid, *below]) == {"127.0.0.1"}
    (control,) = (pid for pid, line in below.items() if "gcs_server" in line.split()[0])
    assert b"\0RAY_AUTH_MODE=token\0" in (clusters.PROC / str(control) / "environ").read_bytes()
    working = [pid for pid, line in below.items() if line.startswith("ray::_Actor")]
    for worker in working:  # else the search might end before it misses anything
        os.kill(worker, signal.SIGSTOP)
    os.kill(control, signal.SIGKILL)
    assert process.wait(90) == 75
    *_, line = (tmp_path / "output").read_text().splitlines()
    assert line == (
        "bpevo.launch: Ray's control service is gone: every finished training is kept, the same command continues"
    )
    assert stored(tmp_path) >= 5
    for worker in working:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
    until(lambda: not any(map(clusters.alive, working)))

    process = started(tmp_path, workers=2)
    until_stored(process, tmp_path, stored(tmp_path) + 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and said_last(tmp_path, INTERRUPTED)

    def settings() -> dict:
        return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}

    before = settings()
    with warnings.catch_warnings(record=True) as caught:
        bpevo.Search(tmp_path, **SEARCH, pool="ray", workers=2).run()
    assert rows(tmp_path) == single(0)
    assert settings() == before and not [str(w.message) for w in caught if "fork" in str(w.message)]


def test_what_brings_workers_down_is_stored_as_crashed_and_the_search_goes_on(cluster, single, tmp_path, monkeypatch):
    """It would have diverged, which ranks alike: so all else is as ever."""
    diverged = [row for row in single(1)["evaluations"] if row[0] == "search" and row[5] == "diverged"]
    *which, _, _, accuracy, rungs, _ = diverged[0]
    monkeypatch.setattr(searching, "Recipe", functools.partial(clusters.FatalRecipe, equation=which[2]))
    bpevo.Search(tmp_path, **SEARCH, seed=1, pool="ray", ray_address=cluster.address, workers=1).run()
    found = rows(tmp_path)
    (crashed,) = (row for row in found["evaluations"] if row[5] == "crashed")
    assert [*crashed[:5], *crashed[7:9]] == [*which, accuracy, rungs] and "SIGSEGV" in crashed[6]
    assert found["proposals"] == single(1)["proposals"]
    others = [row for row in single(1)["evaluations"] if row != diverged[0]]
    assert [row for row in found["evaluations"] if row != crashed] == others


def test_an_evaluation_with_a_specialised_rule_has_the_rows_of_this_process(cluster, tmp_path):
    settings = dict(
        rules=["unit_fro(g)", "(g + fa) - (fa * dh)"], dataset="digits", model="mlp-8", train_examples=128, batch_size=32,
        epochs=1, learning_rates=[0.3, 0.1], tuning_repeats=1, selection_repeats=1, repeats=2, slots=4, scenario="mine",
    )  # fmt: skip
    bpevo.Evaluation(tmp_path / "single", **settings).run()
    second = cluster.add()
    bpevo.Evaluation(tmp_path / "pool", **settings, pool="ray", ray_address=cluster.address, workers=2).run()
    assert rows(tmp_path / "pool" / "mine") == rows(tmp_path / "single" / "mine")
    cluster.kill(second)


def test_a_search_over_two_networks_has_the_rows_of_this_process(cluster, tmp_path):
    settings = SEARCH | dict(model=["mlp-8", "mlp-8-8"], train_examples=128, epochs=2, max_evaluations=24, elite_size=2)
    bpevo.Search(tmp_path / "single", **settings).run()
    second = cluster.add()
    bpevo.Search(tmp_path / "pool", **settings, pool="ray", ray_address=cluster.address, workers=2).run()
    assert rows(tmp_path / "pool") == rows(tmp_path / "single")
    cluster.kill(second)
