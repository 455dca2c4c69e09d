"""Settings that may change when a run goes on, and forks: a new run that begins with what another one found."""

import contextlib
import copy
import dataclasses
import importlib.metadata
import io
import json
import os
import sqlite3
import sys

import jax
import pytest
from absl import flags
from rich.console import Console
from test_runs import StandIn, outcome, plan, rows

from bpevo import launch
from bpevo.command import definitions, plans
from bpevo.evaluation.treatments import winners
from bpevo.evolution import Networks, Rung, SearchSpace
from bpevo.report.build import build
from bpevo.rules import parse
from bpevo.runs import RunDatabase, RunError, provenance
from bpevo.search import SearchPlan, fork
from bpevo.search.search import CONFIRMATION_REPLICATE
from bpevo.training import plan as training_plan
from bpevo.workers import Recipe

SMALL = (
    "--dataset=digits", "--model=mlp-8-8", "--train_examples=128", "--batch_size=32", "--epochs=4", "--noselfcheck",
    "--top=1", "--repeats=1", "--elite_size=4", "--noequivalence",
)  # fmt: skip


@pytest.fixture
def start(monkeypatch):
    """Runs the command in this process on a stand-in for training; returns what it printed."""
    if "max_evaluations" not in flags.FLAGS:
        definitions.define_common()
        definitions.define_search()
    monkeypatch.setattr(Recipe, "trainers", lambda self: {name: StandIn(self.slots or 4) for name in self.tasks})

    def start(workdir, *arguments) -> str:
        values = copy.deepcopy(flags.FLAGS)
        values.unparse_flags()
        values(["launch", f"--workdir={workdir}", *SMALL, *map(str, arguments)])
        output = io.StringIO()
        assert launch.run(plans.search_command(values), Console(file=output, width=300)) == 0
        return output.getvalue()

    return start


def test_budget_slots_and_selection_may_change_and_the_lag_stays(start, tmp_path):
    start(tmp_path / "a", "--max_evaluations=20", "--slots=4")
    start(tmp_path / "a", "--max_evaluations=40", "--slots=64", "--top=2", "--repeats=2", "--checkpoint_minutes=0")
    start(tmp_path / "b", "--max_evaluations=20", "--slots=2")
    start(tmp_path / "b", "--max_evaluations=40", "--slots=2")
    assert (
        rows(tmp_path / "a")["proposals"] == rows(tmp_path / "b")["proposals"]
    )  # 64 slots alone would mean a lag of 256


@pytest.mark.parametrize(
    "change", ["--optimizer=momentum", "--epochs=3", "--model=mlp-8", "--lag=3", "--operands=g,h", "--seed=1"]
)
def test_other_changes_are_refused_with_the_difference_and_the_way_out(start, tmp_path, change):
    start(tmp_path, "--max_evaluations=8", "--slots=4")
    name, value = change.removeprefix("--").split("=")
    with pytest.raises(
        RunError, match=f"(?s)  {name}: .* in the run, .*{value.split(',')[0]}.* now.*--fork_from={tmp_path}"
    ):
        start(tmp_path, "--max_evaluations=8", "--slots=4", change)


def test_a_release_with_other_numerics_is_refused(start, tmp_path, monkeypatch):
    start(tmp_path, "--max_evaluations=8")
    monkeypatch.setattr(training_plan, "NUMERICS", 10**6)
    with pytest.raises(RunError, match="numerics: 1 in the run, 1000000 now"):
        start(tmp_path, "--max_evaluations=8")


def test_another_release_of_a_library_is_told(start, tmp_path, monkeypatch):
    start(tmp_path, "--max_evaluations=8")
    now = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: now | {"jax": "99.0"})
    assert f"not bit-identical to its beginning: jax {now['jax']} then, 99.0 now" in start(
        tmp_path, "--max_evaluations=8"
    )


def test_a_fork_with_comparable_trainings_takes_over_everything(start, tmp_path):
    start(tmp_path / "old", "--max_evaluations=30")
    old = rows(tmp_path / "old")
    said = start(
        tmp_path / "new",
        "--max_evaluations=50",
        "--operands=g,h,dh",
        "--elite_probability=0.5",
        f"--fork_from={tmp_path / 'old'}",
    )
    new = rows(tmp_path / "new")
    assert "30 proposals and their trainings are taken over" in said
    assert new["proposals"][:30] == old["proposals"] or set(old["proposals"]) <= set(new["proposals"])
    assert set(old["evaluations"]) <= set(new["evaluations"]) and len(new["proposals"]) == 50
    born = [p for p in new["proposals"] if p[0] >= 30]
    assert any(p[3] is not None and p[3] < 30 for p in born)  # parents among what was taken over
    assert rows(tmp_path / "old") == old
    again = ("--max_evaluations=60", "--operands=g,h,dh", "--elite_probability=0.5")
    start(tmp_path / "new", *again)  # without the flag
    start(tmp_path / "new", *again, f"--fork_from={tmp_path / 'old'}")  # and with it: the run exists, nothing is copied
    assert len(rows(tmp_path / "new")["proposals"]) == 60
    with pytest.raises(RunError, match="holds a run already"):
        start(tmp_path / "new", *again, f"--fork_from={tmp_path}")
    with RunDatabase.reading(tmp_path / "new") as database:
        source = os.path.realpath(tmp_path / "old")
        assert database.settings()["fork"] == {"from": source, "proposals": 30, "trainings": True}


@pytest.mark.parametrize("change", ["--optimizer=momentum", "--stop_epochs=1", "--max_parts=2", "--learning_rates=0.2"])
def test_a_fork_with_other_trainings_starts_from_the_best_equations(start, tmp_path, change):
    start(tmp_path / "old", "--max_evaluations=30")
    with RunDatabase.reading(tmp_path / "old") as database:
        trained = [e for e in database.judged().of(stage="search") if e.accuracy is not None]
    said = start(tmp_path / "new", "--max_evaluations=20", change, f"--fork_from={tmp_path / 'old'}")
    assert "best equations are the initial ones and train anew" in said and " differ" in said
    with RunDatabase.reading(tmp_path / "new") as database:
        initial, count = database.settings()["initial"], len(database.proposals())
        assert all(e.replicate in (0, 1, CONFIRMATION_REPLICATE) for e in database.rows())
    best = max(trained, key=lambda e: e.accuracy).equation
    assert 1 <= len(initial) <= 8 and count == 20 and (initial[0] == best or "max_parts" in change)
    start(tmp_path / "old", "--max_evaluations=60")  # the old one goes on: that does not change the fork
    start(tmp_path / "new", "--max_evaluations=24", change, f"--fork_from={tmp_path / 'old'}")
    start(tmp_path / "new", "--max_evaluations=26", change)
    assert len(rows(tmp_path / "new")["proposals"]) == 26


def test_a_fork_needs_another_run_and_leaves_nothing_behind_when_it_fails(start, tmp_path):
    with pytest.raises(RunError, match="there is no run in"):
        start(tmp_path / "new", f"--fork_from={tmp_path / 'missing'}")
    with pytest.raises(RunError, match="is the workdir itself"):
        start(tmp_path / "new", f"--fork_from={tmp_path / 'new'}")
    with RunDatabase.reading(tmp_path / "new") as database:
        assert not database.settings() and not database.rows()
    start(tmp_path / "new", "--max_evaluations=8")
    assert len(rows(tmp_path / "new")["proposals"]) == 8 and sys.exc_info() == (None, None, None)


def test_a_run_that_is_being_searched_can_be_forked(start, tmp_path):
    start(tmp_path / "old", "--max_evaluations=16")
    with RunDatabase.writing(tmp_path / "old"):
        start(tmp_path / "new", "--max_evaluations=20", f"--fork_from={tmp_path / 'old'}")
    assert set(rows(tmp_path / "old")["proposals"]) <= set(rows(tmp_path / "new")["proposals"])


def test_a_run_of_older_semantics_is_read_reported_evaluated_and_forked_but_not_continued(start, tmp_path, monkeypatch):
    old = tmp_path / "old"
    start(old, "--max_evaluations=20")
    with contextlib.closing(sqlite3.connect(old / "run.sqlite")) as c, c:
        settings = json.loads(c.execute("SELECT value FROM meta WHERE key = 'settings'").fetchone()[0])
        del settings["semantics"]  # as the first releases wrote it
        c.execute("UPDATE meta SET value = ? WHERE key = 'settings'", (json.dumps(settings),))
    before = rows(old)
    with pytest.raises(RunError, match=rf"by version 1 .* not continued.*--fork_from={old}"):
        start(old, "--max_evaluations=30")
    assert rows(old) == before
    with RunDatabase.reading(old) as database:
        assert list(winners(database))
    assert build(old)
    said = start(tmp_path / "new", "--max_evaluations=30", f"--fork_from={old}")
    assert "best equations are the initial ones and train anew" in said and "semantics" in said


def test_a_package_that_is_not_installed_is_a_version_too(monkeypatch):
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "optax":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert provenance.versions()["optax"] == "not installed" and provenance.versions()["jax"] == jax.__version__


# By hand.

SMALL_SPACE = SearchSpace(1, operands=["g", "h"], unaries=["identity", "clip:0.5"], binaries=["add"])


def of(space=SMALL_SPACE, **changes) -> SearchPlan:
    rungs, initial = (Rung(2, 0.5), Rung(3, 0.25)), [parse("fa").to_equation(1)]
    made = plan(60, (0.1, 0.3), lag=7, rungs=rungs, initial=initial, elite_size=2)
    return dataclasses.replace(made, space=space, **changes)


def test_a_run_records_what_two_sessions_must_share_and_nothing_that_may_change():
    rungs = ({"epoch": 2, "quantile": 0.5}, {"epoch": 3, "quantile": 0.25})
    evolution = {"elite_size": 2, "elite_probability": 0.7, "mutations": (1.0,), "rungs": rungs, "seed": 3}
    recorded = {
        "semantics": 4, "controller": "paper", "max_parts": 1, "operands": ["g", "h"], "unaries": ["identity:0.0", "clip:0.5"],
        "binaries": ["add"], "evolution": evolution, "initial": ["fa"], "lag": 7, "trial_epochs": 2, "equivalence": True,
    }  # fmt: skip
    assert of().fingerprint() == recorded and of(top=9, repeats=9, max_evaluations=9).fingerprint() == recorded
    assert (of().rung_epochs, of().charge, of(learning_rates=(0.1,)).charge) == ((2, 3), 3, 1)
    both = of(networks=Networks(names=("a", "b"), epochs=3, over="mean"))
    assert both.fingerprint() == recorded | {"fitness_over": "mean"} and both.charge == 6
    held = of(evolution=dataclasses.replace(of().evolution, tournament=4)).fingerprint()
    assert held == recorded | {"evolution": evolution | {"tournament": 4}}


def test_a_run_goes_on_with_its_own_lag_and_elite_and_the_equations_of_its_fork():
    stored = {"lag": 3, "evolution": {"elite_size": 5}, "initial": ["dfa", "h"]}
    own = of()
    assert own.continuing({}, None, None) == own == own.continuing(stored, 7, 2)
    assert own.continuing(stored, None, 2) == dataclasses.replace(own, lag=3)
    larger = dataclasses.replace(own.evolution, elite_size=5)
    assert own.continuing(stored, 7, None) == dataclasses.replace(own, evolution=larger)
    assert own.continuing(stored | {"fork": {"trainings": True}}, 7, 2) == own
    forked = own.continuing(stored | {"fork": {"trainings": False}}, 7, 2)
    assert [str(e) for e in forked.initial] == ["dfa", "h"]


SOURCE = {"epochs": 4, "operands": ["g"], "lag": 2, "rates": (0.1,), "evolution": {"rungs": (), "elite_size": 9}}


def begun(folder, settings, *texts: str):
    """What a fork with these settings takes from a run whose rules, of falling accuracy, are these."""
    with RunDatabase.writing(folder / "old") as database:
        database.check_settings(SOURCE, {}, ())
        database.add_rows([outcome(t, accuracies=(0.9 - i / 10,), proposal=None) for i, t in enumerate(texts)])
        old = database.rows()
    with RunDatabase.writing(folder / "new") as database:
        found = fork.begin(database, folder / "old", of(), settings, {"jax": "1"})
        return *found, old, database.rows(), database.settings()


def test_a_fork_takes_the_best_equations_that_its_search_allows_and_says_why_they_train_anew(tmp_path):
    settings = SOURCE | {"epochs": 5, "seed": 1, "operands": ["h"], "evolution": {"rungs": [{"epoch": 1}]}}
    made, said, line, _, rows, stored = begun(tmp_path, settings, "(g + fa) * h", "g + fa", "(h + g) * h", "dfa", "h")
    assert [str(e) for e in made.initial] == ["g + fa", "dfa"] and dataclasses.replace(made, initial=()) == of(
        initial=()
    )
    assert said == {"from": os.path.realpath(tmp_path / "old"), "proposals": 2, "trainings": False}
    assert line == (
        f"forked from {tmp_path / 'old'}: its 2 best equations are the initial ones and train anew, for epochs, evolution, seed "
        "differ"
    )
    assert rows == [] and stored == {}
    with pytest.raises(
        RunError, match=f"^there is no equation in {tmp_path / 'b' / 'old'} that this search could start from"
    ):
        begun(tmp_path / "b", settings, "(g + fa) * h")


def test_a_fork_that_trains_alike_takes_everything_whatever_else_differs(tmp_path):
    free = {"controller": "niches", "operands": ["h"], "unaries": [], "binaries": [], "initial": [], "lag": 3, "data_dir": "a",
            "max_evaluations": 9, "fork": None}  # fmt: skip
    settings = SOURCE | free | {"evolution": {"rungs": [], "elite_size": 2}}
    made, said, line, old, rows, stored = begun(tmp_path, settings, "fa", "dfa")
    assert made == of() and rows == old and len(rows) == 2
    assert said == {"from": os.path.realpath(tmp_path / "old"), "proposals": 0, "trainings": True}
    assert line == f"forked from {tmp_path / 'old'}: 0 proposals and their trainings are taken over"
    assert stored == json.loads(json.dumps(settings | {"fork": said}))
