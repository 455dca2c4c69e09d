"""Runs: the database, the search on a deterministic stand-in for training, interruptions and kills, the leaderboard."""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import random
import sqlite3
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from rich.console import Console

from bpevo.evolution import (
    CONTROLLERS,
    Change,
    EvolutionSettings,
    Proposal,
    Rung,
    SameText,
    SearchSpace,
    Trained,
    budget,
)
from bpevo.evolution.space import feasible
from bpevo.report import leaderboard, table
from bpevo.rules import NAMED, parse
from bpevo.runs import Rows, RunDatabase, RunError
from bpevo.search import CONTROLS, Search, SearchPlan
from bpevo.search.search import CONFIRMATION_REPLICATE, to_trained
from bpevo.training import EpochResult, Training
from bpevo.workers import Job, LocalWorkers, Outcome, Stage

REPOSITORY = pathlib.Path(__file__).parents[1]
EPOCHS, PARTS = 4, 3
SETTINGS = {"max_parts": PARTS, "epochs": EPOCHS}


def chance(*what) -> float:
    """A number in [0, 1) that depends on `what` alone."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:6]) / 2**48


class StandIn:
    """A Trainer whose accuracies are hashes, folded into a state epoch by epoch: one equation in eight diverges.

    Raises `interrupt` after some epochs.
    """

    state_shapes = (((2,), "float64"),)

    def __init__(self, capacity: int, interrupt_after: float = float("inf"), seconds: float = 0.0):
        self.capacity, self.max_parts, self.occupancy = capacity, PARTS, 0.5
        self.task = types.SimpleNamespace(
            settings=types.SimpleNamespace(epochs=EPOCHS, batch_size=1), steps_per_epoch=1
        )
        self.devices, self.bytes_needed, self.bytes_estimated = jax.local_devices(), (1, 1), capacity
        self.trained, self.epochs, self.most = 0, 0, 0
        self._left, self._seconds, self._slots = interrupt_after, seconds, {}

    @property
    def free(self) -> list[int]:
        return [k for k in range(self.capacity) if k not in self._slots]

    def start(self, slot: int, training: Training, epoch: int = 0, state=()) -> None:
        assert slot in self.free
        self._slots[slot] = [training, epoch, np.array(state[0]) if epoch else np.zeros(2)]
        self.trained += not epoch
        self.most = max(self.most, len(self._slots))

    def state(self, slot: int) -> list[np.ndarray]:
        return [self._slots[slot][2].copy()]

    def stop(self, slot: int) -> None:
        self._slots.pop(slot, None)

    def busy(self) -> list[int]:
        return sorted(self._slots)

    def advance(self, meanwhile=lambda: None) -> dict[int, EpochResult]:
        if self._left <= 0:
            raise KeyboardInterrupt
        self._left -= 1
        meanwhile()
        time.sleep(self._seconds)
        results = {}
        for slot in self.busy():
            self.epochs += 1
            entry = self._slots[slot]
            entry[1] += 1
            training, epoch, state = entry
            what = (str(training.equation), training.learning_rate, training.replicate)
            state[:] = epoch, state[1] / 2 + chance(epoch, *what)
            reason = "loss not finite" if epoch == 2 and chance("diverges", *what) < 0.125 else ""
            accuracy = 0.0 if reason else (chance(*what) + 0.1 * state[1]) / 1.2
            results[slot] = epoch_result(epoch, accuracy, reason, eval_loss=float("nan"))
            if reason or epoch >= EPOCHS:
                self.stop(slot)
        return results


def epoch_result(epoch: int, accuracy: float, reason: str, eval_loss: float) -> EpochResult:
    return EpochResult(
        epoch=epoch,
        train_loss=1.5,
        train_accuracy=0.5,
        gradient_norm=2.0,
        eval_loss=eval_loss,
        eval_accuracy=accuracy,
        reason=reason,
    )


def plan(max_evaluations=60, rates=(0.1,), lag=12, rungs=(), top=3, repeats=2, initial=(), **settings) -> SearchPlan:
    return SearchPlan(
        space=SearchSpace(PARTS),
        evolution=EvolutionSettings(**({"elite_size": 10, "seed": 3} | settings), rungs=tuple(rungs)),
        initial=tuple(initial),
        max_evaluations=max_evaluations,
        learning_rates=rates,
        trial_epochs=rungs[0].epoch if rungs else 1,
        lag=lag,
        top=top,
        repeats=repeats,
    )


RUNGS = (Rung(1, 0.5), Rung(3, 0.3))


def search(
    workdir, plan: SearchPlan, trainer: StandIn, watch=lambda search, outcomes: None, workers=LocalWorkers
) -> Search:
    """Runs or continues a search until its end or the trainer's interrupt."""
    with RunDatabase.writing(workdir) as database:
        database.check_settings(SETTINGS, {}, ())
        proposer = CONTROLLERS[plan.controller](plan.space, plan.evolution, plan.initial, SameText())
        made = Search(database, proposer, workers(trainer), plan, watch)
        made.run()
    return made


def rows(workdir) -> dict[str, list[tuple]]:
    """All that a run holds but times, in an order that does not depend on when it came in."""
    columns = {
        "proposals": "id, equation, key, parent, changes, bars, infeasible, duplicates",
        "evaluations": "stage, proposal, equation, learning_rate, replicate, status, reason, accuracy, rungs, curve",
    }
    with contextlib.closing(sqlite3.connect(pathlib.Path(workdir) / "run.sqlite")) as c:
        return {t: sorted(c.execute(f"SELECT {names} FROM {t}"), key=repr) for t, names in columns.items()}


def python(code: str, *arguments, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **options)


# The database.


def outcome(
    text: str, status="done", accuracies=(0.25, 0.5), rate=0.1, replicate=0, stage=Stage.SEARCH, proposal=0
) -> Outcome:
    reason = "loss not finite" if status == "diverged" else ""
    training = Training(parse(text).to_equation(PARTS), rate, replicate=replicate)
    curve = tuple(epoch_result(i + 1, a, reason, eval_loss=float("inf")) for i, a in enumerate(accuracies))
    return Outcome(
        job=Job(stage=stage, subject=str(training.equation), proposal=proposal, training=training, rung_epochs=(1, 2)),
        status=status, reason=reason, curve=curve, seconds=1.25,
    )  # fmt: skip


def test_proposals_come_back_as_they_were_stored(tmp_path):
    rng, space = (
        np.random.default_rng(0),
        SearchSpace(PARTS, unaries=["scale:-2", "shift:-0.5", "clip", "identity", "transpose"]),
    )
    equations = [e for e in (s.random(rng) for _ in range(150) for s in (space, SearchSpace(PARTS))) if feasible(e)]
    equations += [SearchSpace(PARTS).padded(rng, parse(t).to_equation(PARTS)) for t in sorted(set(NAMED.values()))]
    changes = (Change(1, "unary1", "clip:0.5", "relu"), Change(0, "binary", "add", "mul"))
    stored = [
        Proposal(
            id=i,
            equation=e,
            key=f"key {i}",
            parent=i - 1 if i else None,
            changes=changes[: i % 3],
            bars=((1, 0.1 + 0.2), (3, 1 / 3)),
            infeasible=5,
            duplicates=7,
        )
        for i, e in enumerate(equations)
    ]
    with RunDatabase.writing(tmp_path) as database:
        database.check_settings(SETTINGS, {}, ())
        for p in stored:
            database.add_proposal(p)
    with RunDatabase.reading(tmp_path) as database:
        assert database.proposals() == stored


def test_evaluations_come_back_as_they_were_stored(tmp_path):
    with RunDatabase.writing(tmp_path) as database:
        database.check_settings(SETTINGS, {}, ())
        proposal = Proposal(id=0, equation=parse("g").to_equation(PARTS), key="key")
        database.add_proposal(proposal)
        first, second = database.add_rows([outcome("g"), outcome("g", "diverged", (0.0,), 0.2)])
        (control,) = database.add_rows([outcome("g", stage=Stage.CONTROL, proposal=None)])
        assert database.add_rows([]) == []
        assert database.rows() == [first, second, control]
        assert database.rows("control") == [control]
    assert (first.status, first.accuracy, first.rungs, first.seconds) == ("done", 0.5, 2, 1.25)
    assert first.curve["eval_accuracy"] == [0.25, 0.5] and first.curve["eval_loss"] == [None, None]
    assert (second.accuracy, second.reason) == (None, "loss not finite")
    assert to_trained(first) == Trained(accuracy=0.5, rungs=2, curve=(0.25, 0.5))
    assert to_trained(second) == Trained(accuracy=None, rungs=1, curve=(0.0,))
    assert to_trained(None) == Trained(accuracy=None, rungs=0, curve=())


def test_other_settings_are_refused_with_the_difference_and_free_ones_allowed(tmp_path):
    with RunDatabase.writing(tmp_path) as database:
        database.check_settings({"epochs": 4, "rates": (0.1, 0.2), "limit": 10}, {"jax": "1"}, ("limit",))
        database.check_settings({"epochs": 4, "rates": (0.1, 0.2), "limit": 99}, {"jax": "2"}, ("limit",))
        with pytest.raises(RunError, match=r"(?s)epochs: 4 in the run, 5 now.*extra: None in the run, 1 now") as error:
            database.check_settings({"epochs": 5, "rates": (0.1, 0.2), "limit": 10, "extra": 1}, {}, ("limit",))
        assert "rates" not in str(error.value) and "limit" not in str(error.value)
        assert database.settings()["limit"] == 99 and database.versions() == {"jax": "2"}


HOLD = """
import sys, time
from bpevo.runs import RunDatabase
with RunDatabase.writing(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_readers_are_not_and_a_dead_owners_lock_is_taken_over(tmp_path):
    owner = python(HOLD, tmp_path)
    try:
        assert owner.stdout.readline() == "held\n"
        with (
            pytest.raises(
                RunError, match=rf"another process writes in [^:]+: host .+, pid {owner.pid}, since \d{{4}}-"
            ),
            RunDatabase.writing(tmp_path),
        ):
            pass
        with RunDatabase.reading(tmp_path) as database:
            assert database.rows() == []
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    with RunDatabase.writing(tmp_path):
        assert f"pid {os.getpid()}," in (tmp_path / "lock").read_text()


def test_reading_sees_every_finished_training_while_a_search_writes(tmp_path):
    seen = []

    def watch(search, outcomes):
        with RunDatabase.reading(tmp_path) as database:
            seen.append((len(database.rows()), len(search.rows), len(database.proposals())))

    search(tmp_path, plan(12), StandIn(4), watch)
    assert seen and all(stored == known for stored, known, _ in seen)
    assert seen[0][0] < seen[-1][0] and seen[-1][2] == 12


def test_there_is_nothing_to_read_in_an_empty_folder(tmp_path):
    with pytest.raises(RunError, match="there is no run in .*bpevo.launch"), RunDatabase.reading(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path):
    path.write_bytes(b"garbage " * 4096)


def scramble(path):
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, overwrite, scramble])
def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path, damage):
    search(tmp_path, plan(20), StandIn(4))
    damage(tmp_path / "run.sqlite")
    for opened in (RunDatabase.reading, RunDatabase.writing):
        with pytest.raises(RunError, match=r"run\.sqlite: .*the file is damaged"), opened(tmp_path) as database:
            database.settings(), database.proposals(), database.rows()


def test_a_file_of_a_newer_release_is_refused(tmp_path):
    search(tmp_path, plan(2), StandIn(4))
    with contextlib.closing(sqlite3.connect(tmp_path / "run.sqlite")) as c:
        c.execute("PRAGMA user_version = 99")
    for opened in (RunDatabase.reading, RunDatabase.writing):
        with (
            pytest.raises(RunError, match="schema version 99 .*reads 1; use the release that wrote it"),
            opened(tmp_path),
        ):
            pass


def test_a_workdir_that_cannot_be_written_is_an_error_that_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match="cannot write in the workdir .*choose another"),
        RunDatabase.writing(tmp_path / "file"),
    ):
        pass
    (tmp_path / "taken" / "run.sqlite").mkdir(parents=True)
    with pytest.raises(RunError, match="unable to open"), RunDatabase.writing(tmp_path / "taken"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_workdir_is_an_error_that_says_so(tmp_path):
    tmp_path.chmod(0o500)
    with (
        pytest.raises(RunError, match="cannot write in the workdir .*Permission denied"),
        RunDatabase.writing(tmp_path),
    ):
        pass


# Workers.


def job(text: str, bars=(), rung_epochs=()) -> Job:
    training = Training(parse(text).to_equation(PARTS), 0.1)
    return Job(stage=Stage.SEARCH, subject=text, training=training, bars=bars, rung_epochs=rung_epochs)


def drain(workers: LocalWorkers) -> list[Outcome]:
    outcomes = []
    while not workers.idle:
        outcomes += workers.poll()
    return outcomes


def test_a_freed_slot_takes_the_next_job_at_once_and_no_slot_is_left_empty():
    workers = LocalWorkers(StandIn(2))
    for text in ("g", "fa", "dfa", "h", "dh"):
        workers.submit(job(text))
    assert workers.wanted == 0
    outcomes = drain(workers)
    assert sorted(o.job.subject for o in outcomes) == ["dfa", "dh", "fa", "g", "h"]
    assert workers.trainer.most == 2 and workers.wanted == 2
    assert all(o.seconds >= 0 and [e.epoch for e in o.curve] == list(range(1, len(o.curve) + 1)) for o in outcomes)


def test_a_job_below_its_bar_stops_there_and_one_above_goes_on():
    reached = drain_one("g", ())
    accuracy = [e.eval_accuracy for e in reached.curve]
    assert (reached.status, len(accuracy), reached.rungs) == ("done", EPOCHS, 2)
    stopped = drain_one("g", ((1, 0.0), (3, np.nextafter(accuracy[2], 1))))
    assert (stopped.status, stopped.rungs, stopped.accuracy) == ("stopped", 1, accuracy[2])
    assert drain_one("g", ((1, accuracy[0]), (3, accuracy[2]))).status == "done"
    assert drain_one("g", ((EPOCHS, 1.0),)).status == "stopped"  # another network may follow


def drain_one(text: str, bars) -> Outcome:
    workers = LocalWorkers(StandIn(1))
    workers.submit(job(text, bars, (1, 3)))
    return drain(workers)[0]


def test_cancelled_jobs_leave_every_slot_free():
    workers = LocalWorkers(StandIn(2))
    for text in ("g", "fa", "dfa"):
        workers.submit(job(text))
    workers.poll()
    workers.close()
    assert workers.idle and workers.trainer.free == [0, 1] and workers.poll() == []


def test_a_job_goes_on_where_an_earlier_one_of_its_training_ended_and_stops_at_once_below_its_bar():
    whole = drain_one("g", ())
    first = dataclasses.replace(job("g"), stage=Stage.TRIAL, epochs=1)
    for bars, epochs in (((), EPOCHS), (((1, 1.0),), 1)):
        trainer = StandIn(1)
        workers = LocalWorkers(trainer)
        workers.submit(first)
        (trial,) = drain(workers)
        workers.submit(job("g", bars, (1, 3)))
        (then,) = drain(workers)
        assert (trial.status, trial.rungs, len(trial.curve), trainer.epochs) == ("done", 0, 1, epochs)
        assert [e.eval_accuracy for e in then.curve] == [e.eval_accuracy for e in whole.curve[:epochs]]
        assert then.status == ("stopped" if bars else "done")


# The search.


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Rows of a search with early stopping and two learning rates that nothing disturbs."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    search(workdir, DISTURBED, StandIn(4))
    return rows(workdir)


DISTURBED = plan(120, (0.1, 0.3), rungs=RUNGS)


@pytest.mark.parametrize("slots", [1, 8])
def test_results_do_not_depend_on_the_number_of_slots(undisturbed, tmp_path, slots):
    trainer = StandIn(slots)
    search(tmp_path, DISTURBED, trainer)
    assert rows(tmp_path) == undisturbed and trainer.most == slots


def test_a_search_trains_what_it_promises_once(undisturbed):
    of = {s: [r for r in undisturbed["evaluations"] if r[0] == s] for s in Stage}
    confirming = {p[0] for p in undisturbed["proposals"] if p[3] is not None and p[4] == "[]"}
    equations = {p[0] for p in undisturbed["proposals"]} - confirming
    assert {(r[1], r[3]) for r in of[Stage.TRIAL]} == {(n, rate) for n in equations for rate in (0.1, 0.3)}
    trained = {r[1] for r in of[Stage.SEARCH]}
    lost = {n for n in equations if all(r[5] == "diverged" for r in of[Stage.TRIAL] if r[1] == n)}
    assert trained == equations - lost and len(of[Stage.SEARCH]) == len(trained)
    assert {r[1] for r in of[Stage.CONFIRMATION]} == confirming and len(confirming) >= 2
    spent = len(of[Stage.TRIAL]) + len(of[Stage.SEARCH]) + len(of[Stage.CONFIRMATION])
    assert 117 < spent <= 120
    assert {r[4] for r in of[Stage.SELECTION]} == {1, 2} and {r[4] for r in of[Stage.SEARCH]} == {0}
    assert {r[4] for r in of[Stage.CONFIRMATION]} == {CONFIRMATION_REPLICATE}
    assert len(of[Stage.SELECTION]) == 2 * (len(CONTROLS) + 3)
    assert {r[5] for r in of[Stage.SEARCH]} == {"done", "stopped", "diverged"}


def test_a_trial_is_the_beginning_of_the_training_at_its_rate_and_the_best_one_goes_on(undisturbed):
    whole = {r[1]: r for r in undisturbed["evaluations"] if r[0] == Stage.SEARCH}
    for number, training in whole.items():
        trials = [r for r in undisturbed["evaluations"] if r[0] == Stage.TRIAL and r[1] == number]
        best = max((r for r in trials if r[7] is not None), key=lambda r: (r[7], r[3]))
        assert training[3] == best[3]
        assert json.loads(training[9])["eval_accuracy"][:1] == json.loads(best[9])["eval_accuracy"]
        assert {r[8] for r in trials} == {0} and {r[5] for r in trials} <= {"done", "diverged"}


def test_trials_are_continued_from_their_state_not_trained_again(tmp_path):
    trainer = StandIn(4)
    made = search(tmp_path, plan(120, (0.1, 0.3)), trainer)
    assert trainer.epochs == made.rows.slot_epochs


def test_a_search_confirms_its_best_after_every_ten_proposals_on_a_seed_of_its_own(tmp_path):
    made = search(tmp_path, plan(200, lag=12, top=30), StandIn(8))
    confirming = [p for p in made.proposals if p.confirms is not None]
    assert [p.id for p in confirming] == [n for n in range(len(made.proposals)) if n % 11 == 10 and n >= 12]
    asked = set()
    for p in confirming:
        known = [q for q in made.proposals if q.id <= p.id - 12 and q.confirms is None and q.id not in asked]
        trained = {q.id: made.results[q.id].trained.accuracy for q in known}
        confirmed = {q.confirms: made.results[q.id].trained.accuracy for q in confirming if q.id <= p.id - 12}
        assert not confirmed.keys() & trained.keys()
        best = max((n for n in trained if trained[n] is not None), key=lambda n: (trained[n], -n))
        assert (p.confirms, p.equation) == (best, made.proposals[best].equation)
        asked.add(best)
    for row in made.judged.of(stage="search"):
        first = made.results[row.proposal].trained.accuracy
        second = [made.results[p.id].trained.accuracy for p in confirming if p.confirms == row.proposal]
        expected = first if not second else None if None in second else (first + second[0]) / 2
        assert row.accuracy == (None if expected is None else pytest.approx(expected))
    lost = {p.confirms for p in confirming if made.results[p.id].trained.accuracy is None}
    assert lost and not lost & {r.proposal for r in made.leaders()}
    later = {p.parent for p in made.proposals[-60:] if p.changes}
    assert not later & {n for n in lost if n < 100}


def test_controls_are_tuned_on_a_grid_that_grows_free_of_the_budget(tmp_path, monkeypatch):
    def best_at(rate):  # the stand-in's accuracies of backprop peak at 0.8
        return lambda *what: 1 / (1 + abs(math.log2(what[-2] / rate))) if what[-3] == "g" else 0.5

    monkeypatch.setattr(sys.modules[__name__], "chance", best_at(0.8))
    trainer = StandIn(2)
    made = search(tmp_path, plan(6, rates=(0.1,)), trainer)
    rates = {
        name: sorted(r.learning_rate for r in made.rows.of(stage="control", equation=NAMED[name])) for name in CONTROLS
    }
    assert rates["backprop"] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6]
    assert rates["zero_signal"] == [0.05, 0.1, 0.2, 0.4]  # a plateau
    assert made.control("backprop")[0] == 0.8 and made.done == 6
    assert {r.learning_rate for r in made.rows.of(stage="selection", equation="g")} == {0.8}


def test_starting_a_finished_search_again_trains_nothing(undisturbed, tmp_path):
    search(tmp_path, DISTURBED, StandIn(4))
    trainer = StandIn(4)
    again = search(tmp_path, DISTURBED, trainer)
    assert trainer.trained == 0 and rows(tmp_path) == undisturbed and 117 < again.done <= 120


def test_a_larger_budget_continues_as_if_it_had_been_there_from_the_start(tmp_path):
    search(tmp_path / "continued", plan(30, rungs=RUNGS), StandIn(4))
    search(tmp_path / "continued", plan(60, rungs=RUNGS), StandIn(4))
    search(tmp_path / "whole", plan(60, rungs=RUNGS), StandIn(4))
    continued, whole = rows(tmp_path / "continued"), rows(tmp_path / "whole")
    assert continued["proposals"] == whole["proposals"]
    assert set(continued["evaluations"]) >= set(whole["evaluations"])  # and the selection of the smaller budget


def test_twenty_interruptions_change_no_row(undisturbed, tmp_path):
    chosen, interruptions = random.Random(0), 0
    while interruptions < 20:
        trainer = StandIn(chosen.choice([1, 4, 8]), chosen.randrange(1, 8))
        with contextlib.suppress(KeyboardInterrupt):
            search(tmp_path, DISTURBED, trainer)
            break
        interruptions += 1
    search(tmp_path, DISTURBED, StandIn(4))
    assert interruptions == 20 and rows(tmp_path) == undisturbed


class Counted(StandIn):
    offered = 0

    def advance(self, meanwhile=lambda: None):
        self.offered += self.capacity
        return super().advance(meanwhile)


@pytest.mark.parametrize("rates", [(0.1,), (0.1, 0.3, 0.5)])
def test_slots_stay_busy_when_most_candidates_stop_early(tmp_path, rates):
    rungs = (Rung(1, 0.9),)
    trainer = Counted(8)
    lag = budget.busy_lag(8, len(rates), EPOCHS, rungs)
    made = search(tmp_path, plan(600, rates, lag=lag, rungs=rungs, top=1, repeats=1), trainer)
    trained = made.rows.of(stage="search")
    assert sum(len(e.curve["eval_accuracy"]) <= 2 for e in trained) > 0.5 * len(trained) > 50
    assert trainer.epochs > 0.85 * trainer.offered  # the end of each stage included


def test_every_proposal_is_drawn_from_results_at_least_lag_older(tmp_path):
    made = search(tmp_path, plan(60, lag=12), StandIn(8))
    children = [p for p in made.proposals if p.changes]
    assert len(children) > 30 and all(p.parent <= p.id - 12 for p in children)
    diverged = {i for i, r in made.results.items() if r.trained.accuracy is None}
    assert diverged and not diverged & {p.parent for p in children}


@pytest.mark.parametrize("rungs", [RUNGS, (Rung(1, 0.5), Rung(2, 0.5))], ids=["quantiles", "halving"])
def test_candidates_stop_exactly_where_they_are_below_their_proposals_bar(tmp_path, rungs):
    made = search(tmp_path, plan(100, rungs=rungs), StandIn(4))
    trained = {e.proposal: e for e in made.rows if e.stage == "search"}
    assert all(not p.bars for p in made.proposals[: 12 + 19]) and any(p.bars for p in made.proposals[-2:])
    stopped = 0
    for p in made.proposals:
        if p.confirms is not None:
            assert not p.bars
            continue
        e = trained[p.id]
        below = [epoch for epoch, bar in p.bars if epoch <= len(e.curve["eval_accuracy"]) and not e.reason
                 and e.curve["eval_accuracy"][epoch - 1] < bar]  # fmt: skip
        assert (e.status == "stopped") == bool(below)
        if below:
            stopped += 1
            assert below == [len(e.curve["eval_accuracy"])] and e.rungs == [r.epoch for r in rungs].index(below[0])
        elif e.status == "done":
            assert len(e.curve["eval_accuracy"]) == EPOCHS and e.rungs == len(rungs)
    assert stopped > 10


def test_max_evaluations_counts_trials_and_trainings(tmp_path):
    made = search(tmp_path, plan(14, rates=(0.1, 0.2, 0.4)), StandIn(4))
    assert len(made.proposals) == 3 and 9 < made.done <= 12
    for p in made.proposals:
        trained = made.rows.of(proposal=p.id, stage="search")
        assert made.results[p.id].trained.accuracy == (trained[0].accuracy if trained else None)


def test_an_exhausted_space_ends_the_search_with_its_leaderboard(tmp_path, monkeypatch):
    monkeypatch.setattr("bpevo.evolution.controllers.MAX_RESTARTS", 200)
    small = dataclasses.replace(plan(60), space=SearchSpace(1, ["g", "h"], ["identity"], ["add"]))
    made = search(tmp_path, small, StandIn(4))
    assert made.exhausted.startswith("space exhausted") and made.done == 3
    assert len(leaderboard(made.rows, 5)) == 3 + len(CONTROLS)


def test_a_rule_that_is_also_a_control_is_selected_once_and_keeps_its_name(tmp_path):
    known = [parse(NAMED[n]).to_equation(PARTS) for n in ("backprop", "zero_signal")]
    made = search(tmp_path, plan(2, rungs=(Rung(1, 0.5),), initial=known), StandIn(8))
    searched = {e.equation for e in made.rows if e.stage == "search"}
    assert made.done == 2 and not searched & {NAMED[n] for n in CONTROLS}  # padded with other idle genes
    assert {e.equation for e in made.rows if e.stage == "selection"} <= {NAMED[n] for n in CONTROLS}
    board = leaderboard(made.rows, 5)
    assert sorted(r.label for r in board) == sorted(CONTROLS)
    assert all(len(r.fresh) == 2 or r.status for r in board)


def test_initial_equations_that_are_the_same_give_way_to_mutants_of_the_others(tmp_path):
    texts = ("0.5*g", "0.5*g", "g", "g", "fa", "unit_fro(g)")
    initial = [parse(t).to_equation(PARTS) for t in texts]
    made = search(tmp_path, plan(12, lag=12, initial=initial), StandIn(4))
    parents = [p.parent for p in made.proposals]
    assert made.done == 12 and [i for i in range(6) if parents[i] is None] == [0, 2, 4, 5]
    assert parents[1] == 0 and parents[3] in (0, 2) and set(parents[6:]) <= {0, 2, 4, 5}


# The leaderboard.


def test_leaderboards_hold_the_controls_and_the_best_rules_by_fresh_seeds(tmp_path):
    made = search(tmp_path, DISTURBED, StandIn(4))
    board = leaderboard(made.judged, 3)
    assert {"backprop", "zero_signal"} <= {r.label for r in board} and len(board) == 5
    means = [r.mean for r in board if r.mean is not None]
    assert means == sorted(means, reverse=True) and all(len(r.fresh) <= 2 for r in board)
    assert all(row.fresh for row in board if not row.status)
    leaders = {r.equation for r in made.leaders()}
    selected = {e.equation for e in made.rows if e.stage == "selection"}
    assert selected == leaders | {NAMED[n] for n in CONTROLS}


def test_a_leaderboard_before_the_first_fresh_seeds_ranks_by_the_search(tmp_path):
    made = search(tmp_path, plan(20), StandIn(4))
    early = Rows(e for e in made.rows if e.stage != "selection")
    board = leaderboard(early, 4)
    assert {"backprop", "zero_signal"} <= {r.label for r in board} and len(board) == 6
    assert [r.search for r in board] == sorted((r.search for r in board), key=lambda s: -(s or 0))
    assert all(r.mean is None for r in board)
    nothing = leaderboard(Rows(), 4)
    assert [(row.label, row.learning_rate, row.status) for row in nothing] == [
        (name, None, "not trained yet") for name in CONTROLS
    ]
    Console(file=(output := io.StringIO()), width=100).print(table(nothing, "title"))
    assert output.getvalue().count("not trained yet") == 2


def test_ties_show_the_rules_and_learning_rates_that_were_selected(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "chance", lambda *what: 0.5)
    made = search(tmp_path, plan(24, rates=(0.1, 0.3)), StandIn(8))
    for order in (made.rows, Rows(made.rows[::-1])):
        board = leaderboard(order, 3)
        assert len(board) == 5 and all(len(r.fresh) == 2 for r in board)
        assert all(r.learning_rate == (1.2 if r.label else 0.3) for r in board)  # a plateau ends after two steps


def test_texts_in_the_table_are_never_read_as_markup(tmp_path):
    made = search(tmp_path, plan(5), StandIn(4))
    output = io.StringIO()
    Console(file=output, width=200).print(table(leaderboard(made.rows, 3), "title"))
    assert "backprop: g " in output.getvalue() and "zero_signal: g - g " in output.getvalue()
