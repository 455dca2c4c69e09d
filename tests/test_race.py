"""The race of controllers: its statistics and charges by hand, its memory, and a whole one on a stand-in for training."""

import dataclasses
import hashlib
import itertools
import math
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from scipy import stats
from test_evolution import equation
from test_race_report import result
from test_runs import EPOCHS, REPOSITORY, StandIn, epoch_result

from bpevo.bench.race import protocol, running, statistics
from bpevo.bench.race.memory import RECORD, Memory, RememberingWorkers, digest, program
from bpevo.bench.race.protocol import ARMS, RATES, Arm, Setting
from bpevo.evolution import Change, Proposal, SpaceExhausted
from bpevo.rules import without_idle
from bpevo.runs import Row, Rows
from bpevo.training import EpochResult, Training, TrainingPlan
from bpevo.workers import Job, LocalWorkers, Outcome, Stage

# Statistics.


def test_a_curve_reaches_a_target_between_two_budgets_on_a_line_in_their_logarithm():
    fractions, curve = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0), [80.0, 84.0, 82.0, 90.0, 94.0]
    by_hand = {
        70.0: 1 / 16,  # from the start
        80.0: 1 / 16,
        82.0: 1 / 16 * 2**0.5,  # half of the way from 80 to 84
        84.0: 1 / 8,
        86.0: 1 / 4 * 2**0.5,  # not on the way down
        91.0: 1 / 2 * 2**0.25,
        94.0: 1.0,
        94.1: math.inf,
    }
    for target, share in by_hand.items():
        assert statistics.reached(fractions, curve, target) == pytest.approx(share)


def test_savings_are_those_of_the_means_and_their_interval_that_of_resampled_seeds():
    fractions = (0.25, 0.5, 1.0)
    arm = np.array([[10.0, 20.0, 30.0], [10.0, 30.0, 30.0]])
    reference = np.array([[0.0, 0.0, 20.0], [0.0, 0.0, 20.0]])
    found = statistics.savings(fractions, arm, reference)
    # Means 10, 25, 30 reach 20 after two thirds of the first doubling. Of the four equally likely resamples the first seed
    # alone reaches it at 0.5, the second alone after half of that doubling.
    assert found.share == pytest.approx(0.25 * 2 ** (2 / 3))
    assert (found.low, found.high) == pytest.approx((0.25 * 2**0.5, 0.5))
    never = statistics.savings(fractions, arm[:1], reference[:1] + 11)
    assert never.share == never.low == never.high == math.inf
    one_never = statistics.savings(fractions, np.array([[0.0, 0.0, 9.0], [0.0, 0.0, 31.0]]), reference)
    assert one_never.share == pytest.approx(1.0) and one_never.high == math.inf and one_never.low < 1


def test_a_reference_always_reaches_its_own_end():
    for seed in range(20):  # of which a mean summed in another order than the target misses it every fourth time
        values = np.random.default_rng(seed).uniform(90, 99, (20, 3)).cumsum(1)
        found = statistics.savings((0.25, 0.5, 1.0), values, values)
        assert found.share == found.high == pytest.approx(1.0)


def test_the_interval_of_savings_leaves_a_fortieth_of_the_resamples_out_at_each_end():
    """Of ten seeds five are at 10 after a quarter of the budget and five at 0; all end at 10, the reference at 5.

    A resample with K of the former, binomial, begins at K: it reaches 5 within the first doubling after 5 / K of it where K
    is above 5, within the second after (5 - K) / (10 - K) of it where K is below. P(K >= 8) = P(K <= 2) = 5.5 % and
    P(K >= 9) = P(K <= 1) = 1.1 %.
    """
    arm = np.array([[0.0, x, 10.0] for x in 5 * [10.0] + 5 * [0.0]])
    reference = np.full((10, 3), 5.0)
    found = statistics.savings((0.25, 0.5, 1.0), arm, reference)
    assert found.share == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx((0.25 * 2 ** (5 / 8), 0.5 * 2 ** (3 / 8)))


def test_an_arm_is_better_below_five_percent_and_not_at_it():
    def comparison(p: float) -> statistics.Comparison:
        return statistics.Comparison(arm="aging", reference="paper", difference=None, p=p)

    assert comparison(0.0499).better and not comparison(0.05).better and not comparison(0.3).better
    assert statistics.comparisons({"paper": {0: 1.0, 1: 2.0}, "aging": {1: 3.0, 2: 4.0}}, ("paper",)) == []


def test_arms_are_compared_by_seed_and_holm_corrected_over_all_comparisons():
    final = {
        "paper": dict(enumerate([50.0, 52.0, 54.0, 56.0])),
        "random": dict(enumerate([50.0, 51.0, 52.0, 53.0])),
        "aging": {0: 53.0, 1: 54.5, 2: 57.5, 3: 59.0, 4: 99.0},  # a seed that the others lack
    }
    found = {(c.arm, c.reference): c for c in statistics.comparisons(final, ("paper", "random"))}
    assert found.keys() == {("random", "paper"), ("aging", "paper"), ("paper", "random"), ("aging", "random")}
    assert found["aging", "paper"].difference.pairs.mean == pytest.approx(3.0)
    assert found["aging", "random"].difference.pairs.mean == pytest.approx(4.5)
    # By hand: differences 3, 2.5, 3.5, 3 have mean 3 and deviation 0.40825; of four tests the smallest p counts four times.
    alone = stats.t.sf(3 / (0.4082483 / 2), 3)
    assert found["aging", "paper"].difference.greater == pytest.approx(alone, rel=1e-5)
    assert found["aging", "paper"].better and not found["random", "paper"].better
    ordered = sorted(found.values(), key=lambda c: c.difference.greater)
    by_hand = itertools.accumulate((min(1.0, (4 - i) * c.difference.greater) for i, c in enumerate(ordered)), max)
    assert [c.p for c in ordered] == pytest.approx(list(by_hand))


def test_a_trial_takes_a_quarter_of_the_epochs_and_at_least_one():
    epochs = {3: 1, 4: 1, 7: 1, 8: 2, 16: 4}
    assert {n: dataclasses.replace(SETTING, epochs=n).trial_epochs for n in epochs} == epochs


def test_what_diverged_on_a_new_seed_counts_as_0_and_is_counted():
    assert statistics.value([0.5, 1.0, None, 0.5]) == 50.0 and statistics.diverged([0.5, 1.0, None, 0.5]) == 0.25
    assert statistics.value([None]) == 0.0


# What an arm is charged.

SETTING = Setting("digits", "mlp-32-32", 4, 0.5, ())


def test_the_budget_is_what_equations_cost_with_trials_and_confirmations():
    assert protocol.SETTINGS["digits"].budget(100) == 100 * (3 * 1 + 2 + 1.0) + 10 * 3
    assert protocol.SETTINGS["mnist_1d"].budget(100) == pytest.approx(100 * (3 * 1 + 3 + 0.4) + 10 * 4)


def proposal(n: int, text: str, confirms: int | None = None, duplicates: int = 0) -> Proposal:
    changes = () if confirms is not None else (Change(0, "unary1", "relu", "abs"),)
    return Proposal(
        id=n, equation=equation(text), key=text, parent=confirms or 0, changes=changes, duplicates=duplicates
    )


def row(stage: str, n: int | None, text: str, accuracy: float | None, epochs: int, rate: float = 0.2) -> Row:
    return Row(
        stage=stage, equation=text, learning_rate=rate, replicate=0, proposal=n, rungs=0, seconds=0.0, finished="",
        status="diverged" if accuracy is None else "done", reason="", accuracy=accuracy,
        curve={"eval_accuracy": [accuracy] * epochs},
    )  # fmt: skip


def test_trials_trainings_confirmations_and_the_probe_are_charged_and_the_leader_is_that_of_its_part_of_the_budget():
    proposals = [
        proposal(0, "fa"), proposal(1, "h", duplicates=3), proposal(2, "dfa"), proposal(3, "h", confirms=1), proposal(4, "g"),
    ]  # fmt: skip
    rows = Rows(
        [
            *(row(Stage.TRIAL, 0, "fa", 0.1, 1, rate) for rate in RATES),
            row(Stage.SEARCH, 0, "fa", 0.5, 4),
            *(row(Stage.TRIAL, 1, "h", 0.2, 1, rate) for rate in RATES),
            row(Stage.SEARCH, 1, "h", 0.9, 4),
            *(row(Stage.TRIAL, 2, "dfa", None, 1, rate) for rate in RATES),
            row(Stage.CONFIRMATION, 3, "h", 0.2, 4),
            *(row(Stage.TRIAL, 4, "g", 0.9, 1, rate) for rate in RATES),
            row(Stage.SEARCH, 4, "g", 0.99, 4),  # backprop
        ]
    )
    spending = running.Spending(ARMS["paper"], SETTING)
    spending.add(rows)
    charges = [6 + 0.5, 6 + 0.5 * 4, 3 + 0.5, 4, 6 + 0.5]
    assert [spending.of(p) for p in proposals] == charges
    # Shares of 104: 6.5, 13, 26, 52, 104; of them fit 1, 1, 5 proposals and so on.
    found = running.leaders(proposals, rows, spending, 104)
    assert [n for n, _ in found] == [1, 1, 3, 4, 4]
    leading = [(r.equation, r.accuracy) for _, r in found]
    assert leading[:2] == [("fa", 0.5)] * 2
    assert leading[2:] == [("h", pytest.approx(0.55))] * 3  # the mean with its confirmation, ahead of fa; g is no find
    assert running.leaders(proposals, rows, spending, 100)[0] == (0, None)
    # Backprop in other words is none either: on a network's units clip(g, 1.0) is g.
    hidden = [dataclasses.replace(r, equation="clip(g, 1.0)") if r.proposal == 4 else r for r in rows]
    assert [r and r.equation for _, r in running.leaders(proposals, Rows(hidden), spending, 104)] == [
        r.equation for _, r in found
    ]
    niches = running.Spending(ARMS["niches"], SETTING)
    assert niches.of(proposals[1]) == 0.5 * (4 + 2) and niches.of(proposals[3]) == 0  # nothing was trained
    single = running.Spending(Arm("paper", (0.2,)), SETTING)
    single.add([row(Stage.SEARCH, 0, "fa", 0.5, 4)])
    assert single.of(proposals[0]) == 4.5  # no trial was before it


def test_controls_are_free_and_the_epochs_of_a_proposal_add_up_over_what_came_in():
    spending = running.Spending(ARMS["paper"], SETTING)
    spending.add([row(Stage.CONTROL, None, "g", 0.5, 4), row(Stage.TRIAL, 0, "fa", 0.1, 1)])
    spending.add([row(Stage.TRIAL, 0, "fa", 0.1, 1, 0.8), row(Stage.SEARCH, 0, "fa", 0.1, 4)])
    assert spending.of(proposal(0, "fa")) == 2 + 4 - 1 + 0.5


def test_nothing_more_is_asked_for_once_the_budget_is_spent():
    class Told:
        next_id, told, adopted = 7, (), ()

        def tell(self, result):
            self.told += (result,)

        def adopt(self, proposal):
            self.adopted += (proposal,)

        def ask(self):
            return "another"

    controller, charges = Told(), {0: 2.5, 1: 2.25, 2: 0.25}
    spending = types.SimpleNamespace(of=lambda proposal: charges[proposal])
    budgeted = running.Budgeted(controller, spending, 5.0)
    results = [types.SimpleNamespace(proposal=n) for n in charges]
    for each in results[:2]:
        budgeted.tell(each)
        assert budgeted.ask() == "another"
    budgeted.tell(results[2])  # 5.0 of 5.0
    with pytest.raises(SpaceExhausted, match="the budget is spent"):
        budgeted.ask()
    budgeted.adopt("stored")
    assert budgeted.next_id == 7 and controller.told == (*results,) and controller.adopted == ("stored",)


def test_the_elite_is_a_tenth_of_what_an_arm_affords_its_probes_and_confirmations_included():
    setting = dataclasses.replace(SETTING, epochs=4, probe=0.5)
    # 2,000 equations of 3 trials and 3 more epochs, a probe, and 200 confirmations: 13,000 + 800.
    assert setting.budget(2000) == 13_800
    sizes = {name: arm.plan(setting, 2000, 0).evolution.elite_size for name, arm in ARMS.items()}
    assert sizes["paper"] == sizes["random"] == sizes["aging"] == 200
    assert sizes["niches"] == 174  # 13,800 / (6 + 1.5 + 0.4) = 1,746
    assert sizes["paper-one-rate"] == 281 and sizes["niches-one-rate"] == 233  # 13,800 / 4.9 and / 5.9


# The memory.


@pytest.fixture
def memory(tmp_path):
    with Memory.opened(tmp_path) as opened:
        yield opened


def job(text: str, epochs: int | None = None, rate: float = 0.1, replicate: int = 0, held_out: bool = False) -> Job:
    training = Training(equation(text), rate, replicate=replicate, held_out=held_out)
    return Job(stage=Stage.TRIAL if epochs else Stage.SEARCH, subject=text, training=training, epochs=epochs)


def outcomes(jobs, memory, slots: int = 3, seed: int = 0, task: bytes = b"task"):
    """How jobs ended, by what they are, and how many of them were trained."""
    workers = RememberingWorkers(LocalWorkers(StandIn(slots)), memory, task, EPOCHS, seed)
    for each in jobs:
        workers.submit(each)
    ended = []
    while not workers.idle:
        ended += workers.poll()
    found = {o.job: (o.status, o.reason, [(e.epoch, e.eval_accuracy) for e in o.curve]) for o in ended}
    assert len(found) == len(ended) == len(jobs)
    return {(j.identity, j.epochs): v for j, v in found.items()}, workers.trained


TEXTS = [
    "g",
    "fa",
    "dfa",
    "h",
    "g + h",
    "g * dh",
    "unit_fro(g)",
    "unit_fro(fa)",
    "g - h",
    "g + fa",
    "g + dfa",
    "abs(g)",
]


def curve(*accuracies: float, reason: str = "") -> list[EpochResult]:
    """Numbers that float32 holds; the last epoch has the reason."""
    last = len(accuracies)
    return [
        EpochResult(
            epoch=i, train_loss=0.5 + i, train_accuracy=0.25, gradient_norm=i / 8, eval_loss=1.5, eval_accuracy=accuracy,
            reason=reason if i == last else "",
        )
        for i, accuracy in enumerate(accuracies, 1)
    ]  # fmt: skip


def test_a_stored_curve_comes_back_as_it_was_and_only_a_longer_one_replaces_it(tmp_path):
    with Memory.opened(tmp_path / "in" / "folders") as memory:
        key, other = (b"task", b"program", 0.1, 0, 0), (b"task", b"program", 0.1, 0, 1)
        memory.keep([(key, curve(0.5, 0.25, reason="loss not finite")), (other, curve(0.125))])
        assert memory.training(key) == curve(0.5, 0.25, reason="loss not finite")
        assert memory.training(other) == curve(0.125) and memory.training((b"none", *key[1:])) == []
        memory.keep([(key, curve(0.75)), (other, curve(0.0625))])
        assert memory.training(key) == curve(0.5, 0.25, reason="loss not finite") and memory.training(other) == curve(
            0.125
        )
        memory.keep([(key, curve(0.5, 0.25, 0.75)), (other, [])])
        assert memory.training(key) == curve(0.5, 0.25, 0.75) and memory.training(other) == curve(0.125)


def test_digests_are_half_of_sha_256_and_do_not_depend_on_the_order_of_names():
    whole = hashlib.sha256(b'{"a": 2, "b": 1}').digest()
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1}) == whole[:16]
    assert len(program(equation("g"))) == 16


class Inner:
    """Workers of which a test sees what they are asked for."""

    capacity, occupancy, wanted, ahead = 9, 0.25, 3, 4

    def __init__(self):
        self.jobs, self.ended, self.closed = [], [], False

    @property
    def idle(self):
        return not self.jobs

    def submit(self, job):
        self.jobs.append(job)

    def poll(self, meanwhile=lambda: None):
        meanwhile()
        ended, self.jobs = self.jobs, []
        return [Outcome(job=j, status="done", reason="", curve=tuple(curve(0.5)), seconds=1.0) for j in ended]

    def suspend(self):
        return self.poll()

    def close(self):
        self.closed = True


def test_workers_that_remember_train_each_seeds_replicates_elsewhere_and_give_them_back_as_asked(memory):
    inner, called = Inner(), []
    workers = RememberingWorkers(inner, memory, b"task", 4, seed=2)
    assert (workers.capacity, workers.occupancy, workers.wanted, workers.ahead) == (9, 0.25, 3, 4) and workers.idle
    asked = [job("g", epochs=1, replicate=3), job("fa", replicate=19_999)]
    for each in asked:
        workers.submit(each)
    assert [j.training.replicate for j in inner.jobs] == [40_003, 59_999] and not workers.idle
    assert [o.job for o in workers.poll(lambda: called.append(1))] == asked and called == [1]
    assert (workers.asked, workers.trained) == (2, 2) and workers.idle
    workers.submit(asked[0])
    assert not workers.idle and not inner.jobs  # it is remembered
    (known,) = workers.poll()
    assert known == Outcome(job=asked[0], status="done", reason="", curve=tuple(curve(0.5)), seconds=0.0)
    assert workers.idle and workers.poll() == [] and (workers.asked, workers.trained) == (3, 2)
    workers.submit(asked[1])  # of four epochs it has one
    assert [o.job for o in workers.suspend()] == asked[1:] and workers.trained == 3
    workers.close()
    assert inner.closed
    for replicate in (-1, 20_000):
        with pytest.raises(AssertionError):
            workers.submit(job("g", replicate=replicate))
    with pytest.raises(AssertionError):
        workers.submit(dataclasses.replace(asked[0], bars=((1, 0.5),)))


def test_a_training_that_diverged_is_remembered_by_jobs_of_more_epochs(memory):
    inner = Inner()
    workers = RememberingWorkers(inner, memory, b"task", 4, seed=0)
    lost = job("h")
    memory.keep([(workers._key(lost.training), curve(0.5, 0.0, reason="loss not finite"))])
    workers.submit(lost)
    workers.submit(job("h", epochs=1))
    ended = [(o.status, o.reason, len(o.curve)) for o in workers.poll()]
    assert ended == [("diverged", "loss not finite", 2), ("done", "", 1)] and not inner.jobs


def test_what_is_remembered_ends_as_it_did_when_it_was_trained(memory):
    jobs = [job(text) for text in TEXTS] + [job(text, epochs=1, rate=0.3) for text in TEXTS]
    first, trained = outcomes(jobs, memory)
    assert trained == len(jobs) and {status for status, *_ in first.values()} == {"done", "diverged"}
    again, trained = outcomes(jobs, memory, slots=1)
    assert trained == 0
    for key, (status, reason, curve) in first.items():
        assert again[key][:2] == (status, reason)
        assert np.allclose(again[key][2], curve, rtol=1e-7)  # float32


def test_the_beginning_of_a_training_is_remembered_but_not_what_it_never_reached(memory):
    whole, _ = outcomes([job("g"), job("fa", epochs=2)], memory)
    begun, trained = outcomes([job("g", epochs=1), job("fa")], memory)
    assert trained == 1  # the end of fa
    (identity,) = [key for key in begun if key[1] == 1]
    (curve,) = (curve for (i, _), (*_, curve) in whole.items() if i[1] == "g")
    assert np.allclose(begun[identity][2], curve[:1], rtol=1e-7)


def test_other_seeds_tasks_rates_and_replicates_are_other_trainings_and_idle_genes_are_none(memory):
    outcomes([job("g")], memory)
    for changed in ({"seed": 1}, {"task": b"other"}):
        assert outcomes([job("g")], memory, **changed)[1] == 1
    assert outcomes([job("g", rate=0.2), job("g", replicate=1), job("g", held_out=True)], memory)[1] == 3
    assert program(equation("left(g, h)")) == program(equation("left(g, relu(fa))")) != program(equation("h"))


def test_the_record_has_a_line_for_each_search_by_race_seed_and_arm(memory):
    for race, arm, seed in (("b", "paper", 0), ("a", "random", 1), ("a", "paper", 10), ("a", "paper", 1)):
        memory.store(race, arm, seed, {"points": [seed]})
    assert memory.record() == (
        '{"race": "a", "arm": "paper", "seed": 1, "result": {"points": [1]}}\n'
        '{"race": "a", "arm": "random", "seed": 1, "result": {"points": [1]}}\n'
        '{"race": "a", "arm": "paper", "seed": 10, "result": {"points": [10]}}\n'
        '{"race": "b", "arm": "paper", "seed": 0, "result": {"points": [0]}}\n'
    )
    assert memory.results("a").keys() == {("paper", 1), ("random", 1), ("paper", 10)}


def test_the_record_alone_holds_all_results(tmp_path):
    stored = {("paper", 1): result([1, 2, 3, 4, 5.5]), ("random", 0): result([0.1] * 5)}
    (tmp_path / "b").mkdir()
    with Memory.opened(tmp_path / "a") as memory:
        for (arm, seed), found in stored.items():
            memory.store("race", arm, seed, found)
        memory.store("another", "paper", 1, result([0] * 5))
        (tmp_path / "b" / RECORD).write_text(memory.record())
        record = memory.record()
    for _ in range(2):
        with Memory.opened(tmp_path / "b") as memory:
            assert memory.results("race") == stored and memory.record() == record
    with Memory.opened(tmp_path / "b") as memory:  # what is there stays
        memory.store("race", "paper", 1, result([9] * 5))
    with Memory.opened(tmp_path / "b") as memory:
        assert memory.results("race")["paper", 1] == result([9] * 5)


def test_what_cannot_be_stored_leaves_the_memory_as_it_was(memory):
    with pytest.raises(TypeError):
        memory.store("race", "paper", 1, {"not JSON": object()})
    memory.store("race", "paper", 2, {})
    assert memory.results("race") == {("paper", 2): {}}


# How good a rule is.


class ByRate:
    """Workers by whose hand a training's accuracy is that of its rate, or on held out examples another."""

    def __init__(self, of_rate: dict[float, float | None]):
        self.jobs, self._of_rate, self._open = [], of_rate, []

    @property
    def idle(self) -> bool:
        return not self._open

    def submit(self, job) -> None:
        self.jobs.append(job.training)
        self._open.append(job)

    def poll(self, meanwhile=lambda: None) -> list:
        ended, self._open = self._open[::-1], []
        return [self._outcome(job) for job in ended]

    def _outcome(self, job) -> Outcome:
        accuracy = self._of_rate.get(job.training.learning_rate, 0.1)
        if job.training.held_out:
            accuracy = 0.77 if job.training.replicate % 2 else None
        curve = (epoch_result(EPOCHS, accuracy or 0.0, "" if accuracy else "loss not finite", 0.0),)
        return Outcome(
            job=job, status="done" if accuracy else "diverged", reason=curve[0].reason, curve=curve, seconds=0.0
        )


def test_a_rule_is_tuned_on_validation_and_scored_at_its_best_rate_on_new_seeds_and_held_out_examples():
    workers = ByRate({3.2: 0.8, 6.4: None, 1.6: 0.7})
    found = running.score("unit_fro(g)", workers)
    tuned, fresh = ([t for t in workers.jobs if t.held_out == held_out] for held_out in (False, True))
    assert {t.learning_rate for t in tuned} == {0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4}  # the grid grew until 3.2 was inside
    assert len(tuned) == 7 * protocol.TUNING and len({t.replicate for t in tuned}) == protocol.TUNING
    assert {t.learning_rate for t in fresh} == {3.2} and len({t.replicate for t in fresh}) == protocol.FRESH
    assert {t.replicate for t in tuned} == set(range(1000, 1005)) and [t.replicate for t in fresh] == [
        *range(3000, 3010)
    ]
    assert found == running.Score(rate=3.2, at_edge=False, fresh=(None, 0.77) * (protocol.FRESH // 2))
    lost = running.score("unit_fro(g)", ByRate({0.1 * 2**i: None for i in range(-9, 9)}))
    assert lost == running.Score(rate=None, at_edge=False, fresh=(None,) * protocol.FRESH)


def test_the_rate_of_the_best_mean_over_its_own_seeds_is_taken_and_accuracies_are_rounded():
    class BySeed(ByRate):
        def _outcome(self, job):
            t = job.training
            accuracy = (
                0.12345678 if t.held_out else {0.2: 0.5, 0.4: 0.1 * (t.replicate % 5) + 0.31}.get(t.learning_rate, 0.1)
            )
            return Outcome(job=job, status="done", reason="", curve=tuple(curve(accuracy)), seconds=0.0)

    found = running.score("g", BySeed({}))  # 0.4: from 0.31 to 0.71, 0.51 in the mean
    assert found == running.Score(rate=0.4, at_edge=False, fresh=(0.123457,) * 10)


def test_what_is_stored_of_a_search_is_what_it_had_found_after_each_share(monkeypatch):
    monkeypatch.setattr(
        running, "score", lambda rule, workers: running.Score(rate=0.1, at_edge=True, fresh=(len(rule), workers))
    )
    said, searched = [], types.SimpleNamespace(trained=1234, asked=5678)

    def track(name, number, leading=()):
        return types.SimpleNamespace(
            setting=types.SimpleNamespace(name=name), workers=lambda seed: number, search=lambda *_: (leading, searched)
        )

    found = row(Stage.SEARCH, 3, "unit_fro(g)", 0.5, 4)
    nameless = dataclasses.replace(found, accuracy=None)
    one = track("here", 7, [(0, None), (12, nameless), (1500, found)])
    unseen = [track("there", 8), track("yonder", 9)]
    score = {"rate": 0.1, "at_edge": True}
    nothing = {"rate": None, "at_edge": False, "fresh": (None,) * 10}
    assert running.run(one, unseen, ARMS["paper"], 1500, 0, said.append) == {
        "points": [
            {"equations": 0, "rule": "", "search": 0.0, "score": nothing},
            {"equations": 12, "rule": "unit_fro(g)", "search": 0.0, "score": score | {"fresh": (11, searched)}},
            {"equations": 1500, "rule": "unit_fro(g)", "search": 0.5, "score": score | {"fresh": (11, searched)}},
        ],
        "unseen": {"there": score | {"fresh": (11, 8)}, "yonder": score | {"fresh": (11, 9)}},
    }
    lost = running.run(track("here", 7, [(5, found), (9, None)]), unseen, ARMS["paper"], 9, 0, said.append)
    assert lost["unseen"] == {} and lost["points"][0]["equations"] == 5 and lost["points"][1]["rule"] == ""
    assert said == [
        "1,500 equations, 1,234 of 5,678 trainings not remembered: unit_fro(g)",
        "9 equations, 1,234 of 5,678 trainings not remembered: ",
    ]
    seven = types.SimpleNamespace(trained=0, asked=0)
    backprop = running.run(track("here", seven), unseen[:1], None, 9, 0, said.append)
    point = {"equations": 0, "rule": "g", "search": 0.0, "score": score | {"fresh": (1, seven)}}
    assert backprop == {"points": [point] * 5, "unseen": {"there": score | {"fresh": (1, 8)}}}


# A whole race.


class Exact(StandIn):
    """Its accuracies are float32, as those of a Trainer, and depend on the program alone."""

    def start(self, slot, training, epoch=0, state=()):
        text = str(without_idle(training.equation.to_expression()))
        super().start(slot, dataclasses.replace(training, equation=equation(text)), epoch, state)

    def advance(self, meanwhile=lambda: None):
        found = super().advance(meanwhile)
        return {k: dataclasses.replace(e, eval_accuracy=float(np.float32(e.eval_accuracy))) for k, e in found.items()}


@pytest.fixture
def stand_in(monkeypatch):
    """Trainings are the stand-in's; the number of slots is that of each plan."""
    slots = iter(itertools.cycle([4, 1, 7]))
    monkeypatch.setattr(TrainingPlan, "trainer", lambda plan, parts, count: Exact(next(slots)))
    monkeypatch.setattr(protocol, "SETTINGS", {"digits": SETTING})


ARM_NAMES = ("paper", "niches-one-rate")


def test_a_race_has_the_same_results_whatever_was_remembered_and_however_many_slots(stand_in, tmp_path):
    found = []
    for folder, arms in ((tmp_path / "a", ARM_NAMES), (tmp_path / "b", ARM_NAMES[::-1]), (tmp_path / "a", ARM_NAMES)):
        with Memory.opened(folder) as memory:
            track, said = running.Track(SETTING, memory, None), []
            results = {name: running.run(track, [track], ARMS[name], 24, 1, said.append) for name in arms}
            results["backprop"] = running.run(track, [track], None, 24, 1, said.append)
            found.append(results)
    assert all(" 0 of " in line for line in said)  # all was remembered
    assert found[0] == found[1] == found[2]
    for name in ARM_NAMES:
        counts = [p["equations"] for p in found[0][name]["points"]]
        assert counts == sorted(counts) and counts[0] < counts[-1]
        assert found[0][name]["points"][-1]["rule"] and list(found[0][name]["unseen"]) == [SETTING.name]
    one_rate = found[0]["niches-one-rate"]["points"][-1]["equations"]
    assert one_rate > found[0]["paper"]["points"][-1]["equations"] >= 20


@pytest.mark.slow
def test_the_command_races_seeds_at_once_and_goes_on_from_the_record_alone(tmp_path):
    def raced(folder) -> list[str]:
        given = dict(workdir=folder, equations=16, seeds=2, arms="paper", datasets="digits", unseen_models="", jobs=2)
        command = [sys.executable, "-m", "bpevo.bench.race", *(f"--{name}={value}" for name, value in given.items())]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert not done.stderr
        return done.stdout.splitlines()

    first, again = tmp_path / "first", tmp_path / "again"
    said = raced(first)
    assert "0 of 4 searches are stored" in said and any(line.startswith("4 of 4 searches") for line in said)
    again.mkdir()
    shutil.copy(first / RECORD, again)
    assert "4 of 4 searches are stored" in raced(again)
    for name in ("race.md", RECORD):
        assert (again / name).read_bytes() == (first / name).read_bytes()


@pytest.mark.slow
def test_no_search_goes_on_when_its_race_was_killed(tmp_path):
    command = [sys.executable, "-m", "bpevo.bench.race", f"--workdir={tmp_path}", "--datasets=digits"]
    command += ["--jobs=1", "--equations=100", "--arms=paper", "--unseen_models="]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as race:
        for line in race.stdout:
            if "backprop, seed 0" in line:  # by a process of its own
                break
        race.kill()
        race.communicate(timeout=60)  # what it started writes into the same pipe, which ends with the last of them
