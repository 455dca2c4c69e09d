"""Fitness over several networks: by hand, and in whole searches on a stand-in for training, against what each network alone
gives; and once for real, from the command to the report."""

import dataclasses
import statistics
import sys
import types
from collections import Counter

import pytest
from test_runs import EPOCHS, SETTINGS, StandIn, plan, rows

import bpevo
from bpevo.command.plans import UsageError
from bpevo.evolution import CONTROLLERS, Networks, Rung, SameText
from bpevo.report import leaderboard, remarks
from bpevo.rules import parse
from bpevo.runs import Row, RunDatabase, backprop_on, joined, judged, ranked
from bpevo.search import Search
from bpevo.search.search import CONFIRMATION_REPLICATE
from bpevo.training import Training
from bpevo.training.slots import fitting
from bpevo.workers import Job, LocalWorkers, Stage, WorkersByNetwork
from bpevo.workers.process import WorkerProcess

NAMES, RATES = ("mlp-1", "mlp-2"), (0.1, 0.3)
RUNGS = (Rung(2, 0.4), Rung(EPOCHS, 0.4), Rung(EPOCHS + 2, 0.3))  # on the first network, at its end, on the second


@pytest.mark.parametrize(
    "over, accuracies, backprop, expected",
    [
        ("worst", (0.75, 0.5), (0.5, 0.75), 0.375),  # leads of +0.25 and -0.25, on backprop's mean of 0.625
        ("worst", (0.5, 0.75), (0.5, 0.75), 0.625),  # as backprop
        ("worst", (0.625, 0.875), (0.5, 0.75), 0.75),
        ("mean", (0.75, 0.5), (0.5, 0.75), 0.625),
        ("mean", (0.75, 0.75), (0.5, 0.75), 0.75),
        ("worst", (0.0, 0.5), (1.0, 0.5), 0.0),  # no accuracy lies below 0
        ("worst", (1.0, 1.0), (0.5, 0.5), 1.0),
    ],
)
def test_fitness_is_backprops_mean_and_the_worst_or_the_mean_lead(over, accuracies, backprop, expected):
    assert Networks(names=NAMES, epochs=4, over=over).fitness(accuracies, backprop) == expected


def row(network: str, stage: str, equation: str, curve, rate=0.1, status="done", proposal=None, rungs=0) -> Row:
    return Row(
        stage=stage, equation=equation, learning_rate=rate, replicate=0, proposal=proposal, status=status, reason="",
        accuracy=None if status == "diverged" else curve[-1], rungs=rungs, curve={"eval_accuracy": list(curve)}, seconds=1.0,
        finished="", network=network,
    )  # fmt: skip


CONTROL_ROWS = [
    row("mlp-1", "control", "g", (0.25, 0.5), 0.1),
    row("mlp-1", "control", "g", (0.25, 0.75), 0.2),  # its best on the first network
    row("mlp-2", "control", "g", (0.25, 0.5), 0.1),  # and on the second
    row("mlp-2", "control", "g", (0.25, 0.25), 0.2),
]


def test_rules_are_ranked_by_their_lead_over_backprop_tuned_on_each_network():
    on = Networks(names=NAMES, epochs=2)
    found = [
        row("mlp-1", "search", "fa", (0.5, 0.75), proposal=0),  # leads of 0 and -0.25
        row("mlp-2", "search", "fa", (0.25, 0.25), proposal=0),
        row("mlp-1", "search", "dfa", (0.5, 0.625), proposal=1),  # -0.125 and +0.25
        row("mlp-2", "search", "dfa", (0.5, 0.75), 0.2, proposal=1),
        row("mlp-1", "search", "h", (0.5, 1.0), proposal=2),  # diverged on the second network
        row("mlp-2", "search", "h", (0.0,), proposal=2, status="diverged"),
        row("mlp-1", "search", "hp", (0.5, 1.0), proposal=3),  # not there yet
    ]
    assert backprop_on(CONTROL_ROWS, on) == [0.75, 0.5]
    together = judged([*CONTROL_ROWS, *found], dict.fromkeys(range(4), ()), (), on)
    best = list(ranked(together.of(stage="search")))
    assert [(r.equation, r.accuracy) for r in best] == [("dfa", 0.5), ("fa", 0.375)]  # of a mean of 0.625
    assert [(m.network, m.learning_rate, m.accuracy) for m in best[0].members] == [
        ("mlp-1", 0.1, 0.625),
        ("mlp-2", 0.2, 0.75),
    ]
    assert best[0].curve["eval_accuracy"] == [0.5, 0.625, 0.5, 0.75]
    mean = judged([*CONTROL_ROWS, *found], dict.fromkeys(range(4), ()), (), dataclasses.replace(on, over="mean"))
    assert [(r.equation, r.accuracy) for r in ranked(mean.of(stage="search"))] == [("dfa", 0.6875), ("fa", 0.5)]
    assert together.slot_epochs == 2 * 4 + 13  # nothing counts twice


def test_the_leaderboard_tells_of_every_network_what_a_rule_did_there(monkeypatch):
    monkeypatch.setattr(sys.modules["bpevo.report.leaderboard"], "kind", lambda _: "")  # costs seconds
    on, found = Networks(names=NAMES, epochs=2), []
    for equation, proposal, (first, second) in (("fa", 0, (0.5, 0.75)), ("dfa", 1, (0.75, 0.25))):
        found += [row("mlp-1", "search", equation, (0.0, first), 0.1, proposal=proposal)]
        found += [row("mlp-2", "search", equation, (0.0, second), 0.2, proposal=proposal)]
    for equation, rate, network, values in (
        ("g", 0.2, "mlp-1", (0.5, 0.75)),
        ("g", 0.1, "mlp-2", (0.5, 0.5)),
        ("fa", 0.1, "mlp-1", (0.75, 0.75)),
        ("fa", 0.2, "mlp-2", (0.25, 0.5)),
    ):
        for replicate, value in enumerate(values, 1):
            fresh = row(network, "selection", equation, (0.0, value), rate)
            found.append(dataclasses.replace(fresh, replicate=replicate))
    board = leaderboard(judged([*CONTROL_ROWS, *found], {0: (), 1: ()}, (), on), 2, (0.1, 0.2), on)
    by_rule = {r.equation: r for r in board}
    fa = by_rule["fa"]
    assert (fa.search, [r.search for r in fa.on]) == (37.5, [50.0, 75.0])  # 62.5 less 25
    assert [r.learning_rate for r in fa.on] == [0.1, 0.2] and [r.mean for r in fa.on] == [75.0, 37.5]
    assert [r.difference.mean for r in fa.on] == [12.5, -12.5]  # paired by seed
    assert fa.mean == 56.25 - 12.5 and by_rule["g"].mean == 56.25  # of fresh seeds backprop has 62.5 and 50
    assert [r.equation for r in board if r.label != "zero_signal"] == ["g", "fa", "dfa"]  # dfa has no fresh seeds
    assert any(line.startswith("a / b: on the networks") for line in remarks(board, 1, 1))


class On(StandIn):
    """A stand-in on a network of its own: other accuracies for the same trainings."""

    def __init__(self, network: str, capacity: int, **options):
        super().__init__(capacity, **options)
        self._other = 1_000_000 * NAMES.index(network)

    def start(self, slot, training, epoch=0, state=()):
        super().start(slot, dataclasses.replace(training, replicate=training.replicate + self._other), epoch, state)


def several(workdir, capacity=4, evaluations=400, over="worst", **options) -> Search:
    settings = plan(evaluations, RATES, rungs=RUNGS)
    networks = Networks(names=NAMES, epochs=EPOCHS, over=over)
    settings = dataclasses.replace(settings, networks=networks, trial_epochs=1)
    of_run = SETTINGS | {
        "model": ";".join(NAMES),
        "fitness_over": over,
        "evolution": {"rungs": [{"epoch": r.epoch} for r in RUNGS]},
    }
    with RunDatabase.writing(workdir) as database:
        database.check_settings(of_run, {}, ())
        controller = CONTROLLERS["paper"](settings.space, settings.evolution, (), SameText())
        workers = WorkersByNetwork({name: LocalWorkers(On(name, capacity, **options)) for name in NAMES})
        made = Search(database, controller, workers, settings)
        made.run()
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Search:
    workdir = tmp_path_factory.mktemp("several")
    made = several(workdir)
    made.workdir = workdir
    return made


def trained(network: str, equation, rate: float, replicate: int, epochs: int = EPOCHS) -> list[float | None]:
    """The curve of one training alone on a network; None ends it where it diverged."""
    trainer, curve = On(network, 1), []
    trainer.start(0, Training(equation, rate, replicate=replicate))
    while len(curve) < epochs:
        result = trainer.advance()[0]
        curve.append(None if result.reason else result.eval_accuracy)
        if result.reason:
            break
    return curve


def by_hand(search: Search, proposal, backprop, over) -> tuple[float | None, int]:
    """(accuracy, rungs) of a proposal, from trainings on each network alone."""
    parent = proposal.confirms
    accuracies, rungs = [], 0
    for place, name in enumerate(NAMES):
        trials = {rate: trained(name, proposal.equation, rate, 0, epochs=1)[-1] for rate in RATES}
        rate = max(RATES, key=lambda r: (trials[r], r))
        replicate = 0 if parent is None else CONFIRMATION_REPLICATE
        for epoch, accuracy in enumerate(trained(name, proposal.equation, rate, replicate), 1 + place * EPOCHS):
            if accuracy is None:
                return None, rungs
            if parent is None and epoch in [rung.epoch for rung in RUNGS]:
                if accuracy < dict(proposal.bars).get(epoch, 0.0):
                    return accuracy, rungs
                rungs += 1
        accuracies.append(accuracy)
    leads = [a - b for a, b in zip(accuracies, backprop, strict=True)]
    lead = min(leads) if over == "worst" else sum(leads) / 2
    return max(0.0, sum(backprop) / 2 + lead), rungs


def test_a_result_is_what_the_trainings_on_each_network_alone_give(whole):
    best = [
        max(r.accuracy or 0.0 for r in whole.rows.of(stage="control", equation="g", network=name)) for name in NAMES
    ]
    ends = []
    for proposal in whole.proposals:
        accuracy, rungs = by_hand(whole, proposal, best, "worst")
        found = whole.results[proposal.id].trained
        assert found.accuracy == (None if accuracy is None else pytest.approx(accuracy))
        assert accuracy is None or found.rungs == rungs
        ends.append((accuracy is None, rungs, len(found.curve)))
    # Stopped on the first network, at its end, on the second; diverged on either; to the end: all of it happened.
    assert {(False, 0, 2), (False, 1, EPOCHS), (False, 2, EPOCHS + 2), (False, 3, 2 * EPOCHS)} <= set(ends)
    assert {length <= EPOCHS for diverged, _, length in ends if diverged} == {True, False}
    assert [p for p in whole.proposals if p.confirms is not None]


def test_what_ends_on_a_network_costs_nothing_on_those_after_it(whole):
    for proposal in whole.proposals:
        if len(whole.results[proposal.id].trained.curve) <= EPOCHS:
            assert {r.network for r in whole.rows.of(proposal=proposal.id)} <= {NAMES[0]}
    reasons = [r.reason or r.status for r in whole.rows if r.proposal is not None and r.status != "done"]
    assert whole.failures == Counter(reasons) and len(set(reasons)) == 2
    assert 380 < whole.issued <= 400 and whole.done < 0.9 * whole.issued


def test_over_several_networks_the_controls_come_first_and_are_tuned_on_each(whole):
    stages = [r.stage for r in whole.rows]
    assert "control" not in stages[stages.index("trial") :]
    rates = {name: {r.learning_rate for r in whole.rows.of(stage="control", network=name)} for name in NAMES}
    assert all(set(RATES) < of for of in rates.values())


def test_a_search_over_several_networks_ranks_what_it_stored_as_it_did_itself(whole):
    with RunDatabase.reading(whole.workdir) as database:
        stored, glance = database.judged(), database.glance()
    backprop = [100 * a for a in backprop_on(whole.rows, whole.plan.networks)]
    assert (
        glance.trained == whole.done and glance.best is None and 200 * glance.backprop == pytest.approx(sum(backprop))
    )
    assert stored == whole.judged and [r.network for r in stored.trainings] == [r.network for r in whole.rows]
    found = list(ranked(stored.of(stage="search")))
    fresh = whole.rows.of(stage="selection", equation=found[0].equation)
    assert {(r.network, r.learning_rate) for r in fresh} == {(m.network, m.learning_rate) for m in found[0].members}
    second = {r.proposal.confirms: r.trained for r in whole.results.values() if r.proposal.confirms is not None}
    confirmed = [row for row in found if row.proposal in second]
    for row in confirmed:
        both = [whole.results[row.proposal].trained.accuracy, second[row.proposal].accuracy]
        assert row.accuracy == pytest.approx(statistics.fmean(both)) and row.rungs == len(RUNGS)
        for member in row.members:
            own = whole.rows.of(equation=row.equation, network=member.network)
            both = [r.accuracy for r in own if r.stage in ("search", "confirmation")]
            assert len(both) == 2 and member.accuracy == pytest.approx(statistics.fmean(both))
    assert len(confirmed) > 1


def test_it_is_the_same_search_with_other_slots_and_after_interruptions(whole, tmp_path):
    several(tmp_path / "slots", capacity=1)
    assert rows(tmp_path / "slots") == rows(whole.workdir)
    interruptions = 0
    while True:
        try:
            several(tmp_path / "interrupted", interrupt_after=25)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions > 3 and rows(tmp_path / "interrupted") == rows(whole.workdir)


class Counting(On):
    epochs_run = epochs_offered = 0

    def advance(self, meanwhile=lambda: None):
        found = super().advance(meanwhile)
        self.epochs_run, self.epochs_offered = self.epochs_run + len(found), self.epochs_offered + self.capacity
        return found


def test_a_pools_worker_trains_each_job_on_its_network(whole):
    jobs = [
        Job(stage=Stage.TEST, subject=f"{number}", training=Training(p.equation, 0.1, replicate=number), network=name)
        for number, p in enumerate(whole.proposals[:5])
        for name in NAMES
    ]
    worker, outcomes = WorkerProcess(dict), []
    recipe = types.SimpleNamespace(trainers=lambda: {name: Counting(name, 2) for name in NAMES})
    assert worker.prepare(recipe).capacity == 4
    fresh, reports = jobs, []
    while len(outcomes) < len(jobs):
        reports.append(worker.epoch(fresh))
        outcomes, fresh = outcomes + list(reports[-1].outcomes), []
    for outcome in outcomes:
        training, curve = outcome.job.training, [e.eval_accuracy for e in outcome.curve if not e.reason]
        alone = trained(outcome.job.network, training.equation, 0.1, training.replicate)
        assert curve == [a for a in alone if a is not None]
    last = reports[-1]
    assert last.capacity == 4 and last.epochs_run == sum(len(o.curve) for o in outcomes) < last.epochs_offered


def test_the_mean_over_networks_makes_another_search(whole, tmp_path):
    other = several(tmp_path, over="mean", evaluations=150)
    best = backprop_on(other.rows, other.plan.networks)
    for proposal in other.proposals:
        accuracy, _ = by_hand(other, proposal, best, "mean")
        assert other.results[proposal.id].trained.accuracy == (None if accuracy is None else pytest.approx(accuracy))
    assert rows(tmp_path)["proposals"] != rows(whole.workdir)["proposals"][: len(other.proposals)]


def test_one_network_needs_no_join():
    alone = row("", "search", "fa", (0.5, 0.75), proposal=0)
    assert joined([alone], Networks(), []) is alone and parse(alone.subject) == parse("fa")


def test_a_second_networks_slots_are_those_that_fit_beside_the_first():
    def gpu(**memory):
        return types.SimpleNamespace(platform="gpu", memory_stats=lambda: memory)

    assert fitting((2, 8), [gpu(bytes_limit=1000)] * 2) == 120  # 60 % of 1,000 are 60 slots of 10, on each of two
    assert fitting((2, 8), [gpu(bytes_limit=1000, bytes_in_use=500)]) == 30
    assert fitting((2, 8), [types.SimpleNamespace(memory_stats=lambda: None)]) is None  # a CPU


TINY = {
    "dataset": "digits", "train_examples": 128, "batch_size": 32, "epochs": 2, "learning_rates": [0.8, 0.2], "slots": 2,
    "selfcheck": False, "equivalence": False,
}  # fmt: skip


def test_the_command_searches_over_several_networks_and_an_evaluation_takes_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["bpevo.report.leaderboard"], "kind", lambda _: "")
    monkeypatch.setattr(sys.modules["bpevo.report.front"], "LOOKED_AT", 0)
    search = bpevo.Search(
        tmp_path,
        model=["mlp-8", "mlp-8-8"],
        max_evaluations=18,
        lag=1,
        initial="fa;unit_fro(g)",
        top=1,
        repeats=2,
        **TINY,
    )
    found = search.run()
    printed = " ".join(capsys.readouterr().out.split())
    assert "mlp-8 / mlp-8-8 on digits" in printed and "over 2 networks, fitness over the worst" in printed
    trainings = found.trainings
    assert set(trainings.network) == {"mlp-8", "mlp-8-8"} and set(trainings.stage) >= {
        "control",
        "trial",
        "search",
        "selection",
    }
    backprop = found.leaderboard.set_index("label").loc["backprop"]
    assert backprop.search == pytest.approx((backprop["search on mlp-8"] + backprop["search on mlp-8-8"]) / 2)
    page = found.report()[0].read_text()
    assert "mlp-8;mlp-8-8 on digits" in page or "mlp-8;mlp-8-8; on digits" in page
    assert search.run().trainings.equals(trainings)

    alone = bpevo.Search(
        tmp_path / "alone", model="mlp-8-8", max_evaluations=5, controller="random", top=1, repeats=1, **TINY
    )
    control = {(r.equation, r.learning_rate): r.curve for r in alone.run().rows.of(stage="control")}
    there = {(r.equation, r.learning_rate): r.curve for r in found.rows.of(stage="control", network="mlp-8-8")}
    assert control == there  # bit for bit

    with pytest.raises(UsageError, match="one network"):
        bpevo.Evaluation(tmp_path).run()
    with pytest.raises(UsageError, match="different ones"):
        bpevo.Search(tmp_path / "twice", model="mlp-8;mlp-8", **TINY).run()
