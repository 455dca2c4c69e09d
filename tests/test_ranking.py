"""One ranking, whoever asks: leaderboard, selection, evaluation, report and fork agree on what is best and on what is no find."""

import collections
import dataclasses
import types

import pytest
from test_runs import DISTURBED, PARTS, StandIn, plan, search

from bpevo.evaluation.treatments import winners
from bpevo.evolution import CONTROLLERS
from bpevo.report import leaderboard
from bpevo.report.build import build
from bpevo.rules import parse
from bpevo.runs import Row, RunDatabase, fittest, ranked
from bpevo.search import CONTROL_KEYS, MOST_REPEATS, Search, fork

DISGUISE = "gh * dh"  # backprop's function under another text


def row(equation: str, accuracy, rungs=0, rate=0.1, proposal=0, **changes) -> Row:
    values = dict(stage="search", equation=equation, learning_rate=rate, replicate=0, proposal=proposal, rungs=rungs)
    values |= dict(
        status="done" if accuracy is not None else "diverged", reason="", accuracy=accuracy, curve={"eval_accuracy": []}
    )
    return Row(**values | dict(seconds=1.0, finished="") | changes)


def test_rules_rank_by_rungs_then_accuracy_then_age_and_trainings_by_the_higher_rate():
    rows = [
        row("fa", 0.9, rungs=1, proposal=1),
        row("g", 0.5, rungs=2, rate=0.1, proposal=2),
        row("g", 0.5, rungs=2, rate=0.3, proposal=2),
        row("h", 0.5, rungs=2, proposal=0),
        row("dh", None, rungs=2, proposal=3),
        row("dfa", 0.7, rungs=2, proposal=4),
        row("dfa", 0.8, rungs=1, rate=0.5, proposal=4),
    ]
    assert [(r.equation, r.accuracy, r.learning_rate) for r in ranked(rows)] == [
        ("dfa", 0.7, 0.1), ("h", 0.5, 0.1), ("g", 0.5, 0.3), ("fa", 0.9, 0.1),
    ]  # fmt: skip
    assert list(fittest(rows)) == ["fa", "g", "h", "dfa"]
    alike = [row("fa", 0.5, proposal=1), row("g", 0.5, proposal=None), row("h", 0.5, proposal=2)]
    assert [r.equation for r in ranked(alike)] == ["g", "fa", "h"]  # without a proposal: as the first one


def test_a_rule_that_computes_as_a_control_is_left_out_whatever_its_text():
    rows = [row(DISGUISE, 0.9), row("dh * gh", 0.8), row("h - h", 0.5), row("fa", 0.4)]
    assert [r.equation for r in ranked(rows, CONTROL_KEYS)] == ["h - h", "fa"]  # another way to nothing is a rule found


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A search whose first initial equation is backprop in disguise, and its fittest."""
    folder = tmp_path_factory.mktemp("disguise")
    initial = [parse(text).to_equation(PARTS) for text in (DISGUISE, "fa")]

    class Fair(StandIn):
        """Backprop's function reaches 100 %."""

        def advance(self, meanwhile=lambda: None):
            busy = {k: self._slots[k][0].equation.key for k in self.busy()}
            return {
                k: result if busy[k] != parse("g").key else best(result)
                for k, result in super().advance(meanwhile).items()
            }

    def best(result):
        return result if result.reason else dataclasses.replace(result, eval_accuracy=1.0)

    search(folder, plan(30, lag=12, initial=initial), Fair(4))
    return folder


def test_backprop_in_disguise_is_backprop_for_leaderboard_selection_evaluation_and_report(workdir):
    with RunDatabase.reading(workdir) as database:
        rows = database.rows()
        board = leaderboard(rows, 30)
        found = [str(t) for t in winners(database)]
    assert next(ranked(rows.of(stage="search"))).accuracy == 1.0  # it would be the first of all
    assert [r.label for r in board if parse(r.equation).key in CONTROL_KEYS] == ["backprop", "zero_signal"]
    assert found and not [t for t in found if parse(t).key in CONTROL_KEYS]
    selected = {r.equation for r in rows.of(stage="selection")}
    assert {t for t in selected if parse(t).key == parse("g").key} == {"g"}
    page = build(workdir)[0].read_text(encoding="utf-8")
    assert DISGUISE not in page.partition("Lineage of the best rule")[2].partition("</table>")[0].split("<tr")[-1]


def test_a_fork_takes_it_over_as_the_parent_that_it_was(workdir, tmp_path):
    with RunDatabase.writing(tmp_path) as database:
        begun, forked, _ = fork.begin(database, workdir, plan(30, elite_size=5), {"epochs": 99}, {})
    assert not forked["trainings"] and begun.initial[0].key == parse("g").key


def test_what_a_search_tells_while_it_runs_is_what_its_rows_say_also_after_a_new_start(tmp_path):
    for made in (search(tmp_path, DISTURBED, StandIn(4)), search(tmp_path, DISTURBED, StandIn(4))):
        own = [r for r in made.rows if r.proposal is not None]
        confirming = [p for p in made.proposals if p.confirms is not None]
        assert made.done == len(own) and confirming and set(made.failures) == {"loss not finite", "stopped"}
        assert made.issued == 3 * (len(made.proposals) - len(confirming)) + len(confirming) <= 120 < made.issued + 3
        assert made.failures == collections.Counter(r.reason or r.status for r in own if r.status != "done")
        draws = [(p.infeasible, p.duplicates) for p in made.proposals]
        assert (made.infeasible, made.duplicates) == tuple(map(sum, zip(*draws, strict=True))) and made.infeasible > 0
        best, accuracy = made.best
        leader = made.leaders()[0]
        assert (str(best), accuracy) == (leader.equation, pytest.approx(leader.accuracy)) and made.occupancy == 0.5
        tuned = max(made.rows.of(stage="control", equation="g"), key=lambda r: (r.accuracy or 0.0, r.learning_rate))
        assert (
            made.control("backprop") == (tuned.learning_rate, tuned.accuracy) and made.control("backprop", "b") is None
        )
        replicates = {
            stage: {r.replicate for r in made.rows.of(stage=stage)} for stage in ("trial", "search", "control")
        }
        assert replicates == dict.fromkeys(("trial", "search", "control"), {0})
        assert {r.replicate for r in made.rows.of(stage="confirmation")} == {10_000} and MOST_REPEATS == 999
        assert not made.exhausted and len(made.leaders()) == 3


def test_before_anything_is_trained_there_is_no_best(tmp_path):
    with RunDatabase.writing(tmp_path) as database:
        controller = types.SimpleNamespace(adopt=None)
        made = Search(database, controller, types.SimpleNamespace(occupancy=0.0), plan(8))
    assert made.best is None and made.control("backprop") is None and made.leaders() == []
    made._count(row("g", 0.0, stage="control", proposal=None))
    assert made.control("backprop") == (0.1, 0.0)
    assert (made.issued, made.done, made.infeasible, made.duplicates, made.exhausted) == (0, 0, 0, 0, "")


def test_a_proposal_is_drawn_when_all_results_up_to_the_lag_are_told_and_no_other(tmp_path, monkeypatch):
    told, asked = [], []

    class Watched(CONTROLLERS["paper"]):
        def tell(self, result):
            told.append(result.id)
            super().tell(result)

        def ask(self):
            asked.append((self.next_id, list(told)))
            return super().ask()

    monkeypatch.setitem(CONTROLLERS, "paper", Watched)
    search(tmp_path, plan(30, lag=5), StandIn(4))
    assert asked == [(n, list(range(n - 5 + 1))) for n in range(30)]


def test_only_the_fresh_seeds_of_the_best_are_judged_by_what_was_held_out(tmp_path):
    trained = set()

    class Noting(StandIn):
        def start(self, slot, training, epoch=0, state=()):
            trained.add((training.replicate, training.held_out))
            super().start(slot, training, epoch, state)

    search(tmp_path, plan(30, lag=5, repeats=2), Noting(4))
    assert trained == {(0, False), (1, True), (2, True), (10_000, False)}
