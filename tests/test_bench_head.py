"""The head's bench: a search over a simulated pool whose workers die, every training checked as it is stored."""

import collections
import dataclasses
import itertools
import types

import pytest

from bpevo.bench import head
from bpevo.bench.simulated import Misfortune, SimulatedFleet
from bpevo.rules import parse
from bpevo.runs import RunDatabase
from bpevo.training import Training
from bpevo.workers import Job, Pool, Stage

WORKERS, SLOTS = 6, 4
PLAN = head.plan(120, WORKERS, SLOTS, "--elite_size=20", "--top=2", "--repeats=2", "--noequivalence")


def fleet() -> SimulatedFleet:
    return SimulatedFleet({"a": 3, "b": 3}, SLOTS, head.EPOCHS, Misfortune(dies=0.03, hangs=0.005, twice=0.1), seed=1)


def test_every_training_of_a_search_on_workers_that_die_ends_once_and_figures_say_what_it_cost(tmp_path):
    (figures,) = head.measure(PLAN, tmp_path, fleet(), WORKERS)
    with RunDatabase.reading(tmp_path) as database:
        assert len(database.rows()) == figures.results and len(database.rows("search", "confirmation")) == 120
        proposals = database.proposals()
        assert database.settings()["lag"] == PLAN.lag  # what the run began with, however many died
    assert figures.deaths > 5 and figures.reissued > 5
    assert figures.drawn == len(proposals) and figures.controller > 0 and 0 < figures.database < figures.milliseconds
    assert figures.per_hour > 0 and figures.memory > 2**20


class Clock:
    """Each look at the processor's time takes it a millisecond further, each at the other clock that one three."""

    def __init__(self):
        self._ticks = itertools.count(), itertools.count()

    def process_time(self) -> float:
        return next(self._ticks[0]) / 1000

    def perf_counter(self) -> float:
        return next(self._ticks[1]) * 3 / 1000


class Counting(head.Account):
    """Which tells a test how often each part was called."""

    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()
        Counting.made = self

    def __call__(self, part, function, *arguments, **named):
        self.calls[part] += 1
        return super().__call__(part, function, *arguments, **named)


def test_an_account_has_the_time_of_the_processor_by_part_and_what_was_waited_beside_it(monkeypatch):
    monkeypatch.setattr(head, "time", Clock())
    account = head.Account()
    assert account("disk", max, 3, 4, key=lambda x: -x) == 3 and account("disk", int) == 0 and account("draw", int) == 0
    with pytest.raises(ZeroDivisionError):
        account("draw", lambda: 1 / 0)
    assert account.seconds == pytest.approx({"disk": 0.002, "draw": 0.002})
    assert account.waited == pytest.approx({"disk": 0.004, "draw": 0.004})
    timed = head.Timed(types.SimpleNamespace(ask=lambda: 5, name="inner"), account, "asked", ("ask",))
    assert timed.ask() == 5 and timed.name == "inner" and account.seconds["asked"] == pytest.approx(0.001)


def test_the_figures_are_those_since_the_figures_before_by_a_clock_that_counts_calls(tmp_path, monkeypatch):
    """Each timed call takes 1 ms of the processor, between two looks at its clock, and waits for 2 ms more."""
    monkeypatch.setattr(head, "time", Clock())
    monkeypatch.setattr(head, "Account", Counting)
    monkeypatch.setattr(head, "marks", lambda trainings: iter([trainings // 2, trainings - 1]))
    monkeypatch.setattr(head.resource, "getrusage", lambda who: types.SimpleNamespace(ru_maxrss=7))
    simulated, said, states = fleet(), [], []

    def say(figures: head.Figures) -> None:
        said.append(figures)
        states.append((Counting.made.calls.copy(), simulated.time, simulated.deaths))

    assert head.measure(PLAN, tmp_path, simulated, WORKERS, say) == said and len(said) == 3
    with RunDatabase.reading(tmp_path) as database:
        assert said[-1].results == len(database.rows()) and sum(f.drawn for f in said) == len(database.proposals())
    assert said[-1].drawn == 0 < said[1].drawn  # all are drawn before the last one ends
    calls, results, seconds, looked = collections.Counter(), 0, 0.0, 0
    for number, (figures, (now, time, deaths)) in enumerate(zip(said, states, strict=True), 1):
        looks = 2 * now.total() + number - now["simulation"]
        each = figures.results - results
        assert figures.milliseconds * each == pytest.approx(looks - looked)
        assert figures.controller * max(1, figures.drawn) == pytest.approx((now - calls)["controller"])
        assert figures.database * each == pytest.approx((now - calls)["database"])
        assert figures.disk == pytest.approx(2 * figures.database)
        assert figures.per_hour * (time - seconds) / 3600 == pytest.approx(each)
        assert (figures.memory, figures.deaths) == (7168, deaths)
        calls, results, seconds, looked = now, figures.results, time, looks


def test_trainings_that_begin_again_are_counted_and_travel_as_copies():
    class Fleet:
        calls, told = [], []

        def call(self, worker, number, request):
            self.told.append((worker, number, request))
            self.calls.append(1)

    inner, account = Fleet(), Counting()
    measured = head.MeasuredFleet(inner, account)
    one, two = job(1), job(2)
    for jobs in ([one, two], [two], []):
        measured.call(3, 4, head.Epoch(jobs=jobs))
    assert measured.reissued == 1 and inner.calls == [] and account.calls == {"simulation": 3}
    assert inner.told[0] == (3, 4, head.Epoch(jobs=[one, two])) and inner.told[0][2].jobs[0] is not one
    measured.ended(two)
    measured.call(3, 4, head.Epoch(jobs=[two]))
    assert measured.reissued == 1


def job(number: int) -> Job:
    return Job(stage=Stage.SEARCH, subject="g", training=Training(parse("g").to_equation(3), 0.1, replicate=number))


def test_a_job_that_is_submitted_while_it_is_open_is_noticed():
    submitted = []
    pool = types.SimpleNamespace(submit=submitted.append, idle="the pool's")
    checked = head.CheckedWorkers(pool, None, Counting())
    checked.submit(job(1))
    checked.submit(job(2))
    with pytest.raises(AssertionError):
        checked.submit(job(1))
    assert submitted == [job(1), job(2)] and checked.idle == "the pool's"


def test_the_search_of_the_bench_is_the_papers_with_one_rate_on_500_workers():
    assert (head.WORKERS, head.SLOTS, head.NODE, head.EPOCHS) == (500, 16, 4, 20)
    asked = head.plan(15_000, head.WORKERS, head.SLOTS)
    assert (asked.max_evaluations, asked.learning_rates, asked.evolution.elite_size, asked.top) == (
        15_000,
        (0.1,),
        1000,
        10,
    )
    assert [rung.epoch for rung in asked.evolution.rungs] == [5, 10] and asked.equivalence
    assert (PLAN.max_evaluations, PLAN.evolution.elite_size, PLAN.top, PLAN.repeats) == (120, 20, 2, 2)
    assert asked.lag > PLAN.lag and not PLAN.equivalence


def test_some_30_workers_of_500_die_in_an_hour_and_20_nodes_and_the_rest_is_rare():
    odds, calls = head.MISFORTUNE, 500 * 360
    assert calls * odds.dies == pytest.approx(36) and calls * odds.leaves == pytest.approx(18)
    assert all(0 < odd <= 1e-3 for odd in dataclasses.astuple(odds))


@pytest.mark.parametrize("workers", [1, head.NODE, head.NODE + 1, 500])
def test_its_fleet_has_room_for_the_workers_and_no_node_too_many(workers):
    room = head.fleet(workers, SLOTS).nodes()
    assert set(room.values()) == {head.NODE} and workers <= sum(room.values()) < workers + head.NODE


class Doubling(Pool):
    """Gives what ended a second time."""

    def poll(self, meanwhile=lambda: None):
        return [outcome for outcome in super().poll(meanwhile) for _ in range(2)]


class Changing(Pool):
    def poll(self, meanwhile=lambda: None):
        return [dataclasses.replace(outcome, curve=outcome.curve[:1]) for outcome in super().poll(meanwhile)]


@pytest.mark.parametrize(("pool", "error"), [(Doubling, KeyError), (Changing, AssertionError)])
def test_a_pool_that_repeats_or_changes_an_outcome_is_noticed(tmp_path, monkeypatch, pool, error):
    monkeypatch.setattr(head, "Pool", pool)
    with pytest.raises(error):
        head.measure(PLAN, tmp_path, fleet(), WORKERS)
