"""The pool over a simulated fleet in virtual time: whatever happens to workers, every job ends once."""

import collections
import types

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from test_runs import DISTURBED, StandIn, rows, search

from bpevo.bench import simulated
from bpevo.bench.simulated import Misfortune, SimulatedFleet
from bpevo.rules import parse
from bpevo.training import OutOfMemory, Training
from bpevo.workers import Job, LocalWorkers, Pool, PoolError, Stage
from bpevo.workers.fleet import Cause, Epoch, Lost, Place, Prepare, Ready, Report

EPOCHS, SLOTS, JOBS = 4, 4, 60
NAMES = ("nodes", "start", "call", "kill")
TRAINED = parse("g").to_equation(3)


def job(number: int) -> Job:
    return Job(
        stage=Stage.SEARCH,
        subject=str(number),
        training=Training(TRAINED, 0.1, replicate=number),
        bars=((2, 0.3),),
        rung_epochs=(2,),
        epochs=3 if number % 5 == 0 else None,
    )


def pool_on(fleet: SimulatedFleet, workers: int | None = None, kind: type[Pool] = Pool) -> Pool:
    return kind(fleet, "recipe", workers, say=lambda line: None, clock=fleet.now)


def trained(pool, polls: int = 20_000) -> list:
    """The outcomes of all jobs, submitted as a search submits them."""
    outcomes, jobs = [], iter(range(JOBS))
    left = JOBS
    for _ in range(polls):
        while left and pool.wanted > 0:
            pool.submit(job(next(jobs)))
            left -= 1
        if not left and pool.idle:
            return outcomes
        outcomes += pool.poll()
    raise AssertionError(f"{len(outcomes)} outcomes, and no end")


def results(outcomes) -> dict:
    return {o.job.identity: (o.status, o.curve) for o in outcomes}


@pytest.fixture(scope="module")
def undisturbed() -> dict:
    """What one worker, to which nothing happens, makes of all jobs."""
    return results(trained(LocalWorkers(simulated.StandIn(SLOTS, EPOCHS))))


FATES = st.builds(
    Misfortune,
    dies=st.sampled_from([0, 0.02, 0.1]),
    hangs=st.sampled_from([0, 0.02]),
    twice=st.sampled_from([0, 0.3]),
    halves=st.sampled_from([0, 0.05]),
    fails=st.sampled_from([0, 0.1]),
    leaves=st.sampled_from([0, 0.01]),
)
FLEETS = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 3), min_size=1)


@settings(max_examples=100, phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate])
@given(FLEETS, st.sampled_from([None, 1, 4]), FATES, st.integers(0, 2**32))
def test_every_job_ends_once_and_as_undisturbed_whatever_happens_to_workers(undisturbed, nodes, workers, fate, seed):
    fleet = SimulatedFleet(nodes, SLOTS, EPOCHS, fate, seed)
    pool = pool_on(fleet, workers)
    try:
        outcomes = trained(pool)
    except PoolError:
        assert fate.fails  # three failed starts on the last node
        return
    assert len(outcomes) == JOBS and results(outcomes) == undisturbed
    # What died or hung holds nothing any more.
    assert pool.wanted == pool.capacity == pool.ahead and pool.idle
    pool.close()
    assert fleet.living == 0


def disturbed(kind: type[Pool], seed: int) -> list:
    fate = Misfortune(dies=0.1, hangs=0.1, twice=0.5)
    return trained(pool_on(SimulatedFleet({"a": 2, "b": 2}, SLOTS, EPOCHS, fate, seed), kind=kind), polls=200_000)


class Forgetful(Pool):
    """Issues nothing again."""

    def _lose(self, worker, lost):
        jobs = self._members[worker].jobs
        self._assigned -= len(jobs)
        jobs.clear()
        super()._lose(worker, lost)


class Credulous(Pool):
    """Takes every report, also a late one and one that came before."""

    def _hear(self, seconds):
        fleet, self._fleet = self._fleet, types.SimpleNamespace(**{n: getattr(self._fleet, n) for n in NAMES})
        self._fleet.wait = lambda seconds: self._believed(fleet.wait(seconds))
        super()._hear(seconds)
        self._fleet = fleet

    def _believed(self, answers):
        for worker, number, answer in answers:
            if isinstance(answer, Report) and self._expecting(worker, number) is None:
                self._ended += answer.outcomes
        return answers


def test_the_disturbed_fleet_does_no_harm_to_the_pool(undisturbed):
    for seed in range(3):
        assert results(disturbed(Pool, seed)) == undisturbed


def test_a_pool_that_issues_nothing_again_is_noticed(undisturbed):
    assert any(len(disturbed(Forgetful, seed)) < JOBS for seed in range(3))


def test_a_pool_that_takes_late_answers_is_noticed():
    counts = collections.Counter()
    for seed in range(3):
        counts.update(o.job.identity for o in disturbed(Credulous, seed))
    assert max(counts.values()) > 5


def test_a_search_over_a_disturbed_pool_has_the_rows_of_this_process(tmp_path):
    """The real head and database: StandIn's accuracies, whoever trains."""
    fate = Misfortune(dies=0.05, hangs=0.02, twice=0.2, halves=0.02, leaves=0.01)
    fleet = SimulatedFleet({"a": 2, "b": 1}, SLOTS, EPOCHS, fate, seed=1, make=StandIn)
    search(tmp_path / "pool", DISTURBED, StandIn(1), workers=lambda _: pool_on(fleet))
    search(tmp_path / "local", DISTURBED, StandIn(4))
    assert fleet.deaths > 5 and rows(tmp_path / "pool") == rows(tmp_path / "local")


def test_a_search_that_is_stopped_stores_the_epochs_under_way_and_goes_on(tmp_path):
    fleet = SimulatedFleet({"a": 3}, SLOTS, EPOCHS, make=StandIn)

    def stopping(made, fresh):
        if len(made.rows) > 20:
            made.stop()

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "pool", DISTURBED, StandIn(1), stopping, workers=lambda _: pool_on(fleet))
    assert fleet.unheard == 0
    fleet = SimulatedFleet({"a": 1}, SLOTS, EPOCHS, make=StandIn)
    search(tmp_path / "pool", DISTURBED, StandIn(1), workers=lambda _: pool_on(fleet))
    search(tmp_path / "local", DISTURBED, StandIn(4))
    assert rows(tmp_path / "pool") == rows(tmp_path / "local")


def test_an_equation_that_crashes_ranks_as_one_that_diverged_and_the_search_goes_on(tmp_path):
    search(tmp_path / "sound", DISTURBED, StandIn(4))
    stored = rows(tmp_path / "sound")
    parents = [parent for _, _, _, parent, *_ in stored["proposals"] if parent is not None]
    culprit = max(parents, key=parents.count)
    text = next(equation for number, equation, *_ in stored["proposals"] if number == culprit)
    fleet = SimulatedFleet({"a": 2, "b": 1}, SLOTS, EPOCHS, make=StandIn, fatal={text})
    made = search(tmp_path / "crashing", DISTURBED, StandIn(1), workers=lambda _: pool_on(fleet))
    own = [row for row in made.rows if row.equation == text]
    assert own and {row.status for row in own} == {"crashed"} and {row.accuracy for row in own} == {None}
    assert (
        not [p for p in made.proposals if p.parent == culprit] and len(made.proposals) >= len(stored["proposals"]) - 2
    )
    again = search(tmp_path / "crashing", DISTURBED, StandIn(1))
    assert len(again.rows) == len(made.rows) and text not in {row.equation for row in again.leaders()}


# What a job can do to workers.


@pytest.mark.parametrize("nodes", [{"a": 1}, {"a": 2, "b": 1}, {"a": 1, "b": 1, "c": 3}])
def test_what_brings_workers_down_crashes_alone_and_hurts_nothing_else(undisturbed, nodes):
    fleet = SimulatedFleet(nodes, SLOTS, EPOCHS, fatal={"7", "30"})
    made = trained(pool_on(fleet))
    crashed = [o for o in made if o.status == "crashed"]
    assert [o.job.subject for o in crashed] == ["7", "30"] and all(o.accuracy is None and not o.rungs for o in crashed)
    whole = {k: v for k, v in undisturbed.items() if k not in results(crashed)}
    assert results(o for o in made if o.status != "crashed") == whole
    for subject in ("7", "30"):
        assert len(fleet.crashed_on(subject)) == 2 and len(set(fleet.crashed_on(subject))) == min(2, len(nodes))


def test_workers_whose_nodes_go_leave_no_job_suspected(undisturbed):
    """However often: only deaths that a job may have caused count."""
    fleet = SimulatedFleet({"a": 2, "b": 2}, SLOTS, EPOCHS, Misfortune(leaves=0.1), seed=1)
    assert results(trained(pool_on(fleet))) == undisturbed and fleet.deaths > 20 and not fleet.alone


@pytest.mark.parametrize("nodes", [{"a": 2}, {"a": 1, "b": 1}])
def test_a_job_alone_gets_room_also_where_others_have_what_seems_to_be_there(undisturbed, nodes):
    fleet = SimulatedFleet(nodes, SLOTS, EPOCHS, fatal={"7"})
    fleet.occupy(list(nodes)[-1], 1)
    made = results(trained(pool_on(fleet)))
    assert [status for status, _ in made.values()].count("crashed") == 1 and made.keys() == undisturbed.keys()


def test_a_job_alone_gets_room_when_the_node_that_had_some_goes(monkeypatch):
    """By hand: it waits for a node that another search has filled, and which goes for good."""
    monkeypatch.setattr(simulated, "NODE_GONE", 1e9)
    fleet = SimulatedFleet({"a": 1, "b": 1}, SLOTS, EPOCHS, fatal={"7"})
    fleet.occupy("b", 1)
    pool, jobs, outcomes = pool_on(fleet), [job(number) for number in range(2 * SLOTS)], []
    for one in jobs:
        pool.submit(one)
    while pool._lone is None:
        outcomes += pool.poll()
    begin = fleet.time
    fleet.leave("b")
    while not pool.idle:
        outcomes += pool.poll()
        assert fleet.time < begin + 2000
    assert {o.job.identity for o in outcomes} == {one.identity for one in jobs}


# What workers and nodes can do to a pool.


def test_a_node_where_three_workers_could_not_start_gets_no_more(undisturbed):
    fleet = SimulatedFleet({"bad": 2, "good": 2}, SLOTS, EPOCHS, broken={"bad"})
    assert results(trained(pool_on(fleet))) == undisturbed
    assert 3 <= fleet.starts["bad"] <= 4


def test_a_pool_without_a_node_that_works_says_why_and_ends():
    pool = pool_on(SimulatedFleet({"bad": 2}, SLOTS, EPOCHS, broken={"bad"}))
    with pytest.raises(PoolError, match="no machine can run workers; the last one that failed: simulated death"):
        pool.meet()


def test_workers_of_another_version_are_left_out_and_named(undisturbed):
    said, fleet = [], SimulatedFleet({"a": 1, "b": 1}, SLOTS, EPOCHS, versions={"b": {"jax": "0.1", "device": "cpu"}})
    pool = Pool(fleet, "recipe", versions=dict(simulated.VERSIONS), say=said.append, clock=fleet.now)
    assert results(trained(pool)) == undisturbed
    assert any("it is unlike the others: jax is 0.1, not simulated" in line for line in said)


def test_the_first_worker_settles_what_the_others_must_be():
    fleet = SimulatedFleet({"a": 1}, SLOTS, EPOCHS)
    pool = pool_on(fleet)
    pool.meet()
    assert pool.versions == simulated.VERSIONS and pool.capacity == SLOTS


def test_one_worker_of_a_node_compiles_before_the_others_begin():
    fleet = SimulatedFleet({"a": 3, "b": 2}, SLOTS, EPOCHS)
    pool = pool_on(fleet)
    trained(pool)
    for node, workers in (("a", 3), ("b", 2)):
        calls = [(kind, worker) for n, worker, kind in fleet.calls if n == node]
        assert [kind for kind, _ in calls[:3]] == [Prepare, Epoch, Prepare] and calls[0][1] == calls[1][1]
        assert len({worker for _, worker in calls}) == workers


def test_the_occupancy_is_the_share_of_all_slots_epochs_that_trained():
    """Also of workers that are gone; by what the simulated trainers counted."""
    made = []

    def make(slots: int) -> simulated.StandIn:
        made.append(simulated.StandIn(slots, EPOCHS))
        return made[-1]

    fleet = SimulatedFleet({"a": 1, "b": 1}, SLOTS, EPOCHS, make=make)
    pool = pool_on(fleet)
    trained(pool)
    run, offered = (sum(getattr(t, name) for t in made) for name in ("epochs_run", "epochs_offered"))
    assert len(made) == 2 and pool.occupancy == run / offered and 0.5 < pool.occupancy < 1


def test_few_jobs_are_spread_over_the_workers():
    fleet = SimulatedFleet({"a": 4}, SLOTS, EPOCHS)
    pool = pool_on(fleet)
    trained(pool)
    fleet.calls.clear()
    for number in range(JOBS, JOBS + 4):
        pool.submit(job(number))
    pool.poll()
    assert len({worker for _, worker, kind in fleet.calls if kind is Epoch}) == 4


def test_workers_that_nothing_is_left_for_are_not_looked_at():
    class Watched(dict):
        looked = 0

        def __getitem__(self, key):
            self.looked += 1
            return super().__getitem__(key)

    pool = pool_on(SimulatedFleet({"a": 100}, SLOTS, EPOCHS))
    trained(pool)
    while pool.capacity < 100 * SLOTS:
        pool.poll()
    pool._members = Watched(pool._members)
    for _ in range(10):
        pool.poll()
    assert pool._members.looked < 100
    pool.submit(job(JOBS))
    assert not pool.poll() and not pool.idle  # one of them got it


def test_a_node_that_joins_is_used(undisturbed):
    fleet = SimulatedFleet({"a": 1}, SLOTS, EPOCHS)
    pool = pool_on(fleet)
    pool.meet()
    fleet.join("b", 2)
    assert results(trained(pool)) == undisturbed and fleet.starts == {"a": 1, "b": 2} and pool.capacity == 3 * SLOTS


def test_another_recipe_makes_every_worker_anew_and_none_is_replaced(undisturbed):
    fleet = SimulatedFleet({"a": 2}, SLOTS, EPOCHS)
    pool = pool_on(fleet)
    trained(pool)
    pool.use("another")
    assert results(trained(pool)) == undisturbed and fleet.starts == {"a": 2}
    assert [kind for *_, kind in fleet.calls].count(Prepare) == 4


def test_a_pool_that_is_suspended_waits_for_the_epochs_under_way():
    fleet = SimulatedFleet({"a": 2}, SLOTS, EPOCHS)
    pool = pool_on(fleet)
    trained(pool)
    for number in range(JOBS, JOBS + 2 * SLOTS):
        pool.submit(job(number))
    outcomes = []
    while not outcomes:  # the first of two workers has answered
        outcomes += pool.poll()
    others = pool.suspend()
    before = len(fleet.calls)
    assert others and pool.suspend() == [] and len(fleet.calls) == before


def test_the_simulated_fleet_answers_when_the_first_event_is_due():
    fleet = SimulatedFleet({"a": 2}, SLOTS, EPOCHS)
    started = [fleet.start(alone=False, without=()) for _ in range(2)]
    assert fleet.wait(0.5) == [] and fleet.now() == 0.5
    assert [
        worker for worker, _, _ in fleet.wait(100.0)
    ] == started and fleet.now() == 1.0  # both have their places then
    fleet.call(started[0], 7, Prepare(recipe=None))
    assert [number for _, number, _ in fleet.wait(100.0)] == [7] and fleet.now() == 1.0 + simulated.START
    assert fleet.wait(3.0) == [] and fleet.now() == 4.0 + simulated.START


def test_answers_that_nobody_expects_are_not_heard():
    """By hand: an answer to no call, one of a worker that was given up, and the same one twice."""

    class Fleet(SimulatedFleet):
        def wait(self, seconds):
            return queue.pop(0) if queue else []

        def call(self, worker, number, request):
            pass

    fleet = Fleet({"a": 1}, SLOTS, EPOCHS)
    pool = pool_on(fleet)
    queue: list[list] = [[]]
    pool.poll()
    (worker,) = pool._members
    ready = Ready(capacity=SLOTS, versions=simulated.VERSIONS)
    place = Place(node="a", name="a")
    queue[:] = [[(worker, 7, place), (worker + 1, 0, place), (worker, 0, place), (worker, 0, place)]]
    pool.poll()
    assert pool._members[worker].place == place and pool._calls == 1
    queue[:] = [[(worker, 1, ready), (worker, 1, ready)]]
    pool.submit(job(0))
    pool.poll()
    assert pool.capacity == SLOTS and pool._calls == 2


# The simulated fleet itself, by hand.


class Fate:
    """In place of chance: what is given, then good luck; the middle of every range."""

    def __init__(self, *fates: float):
        self.fates = list(fates)

    def random(self) -> float:
        return self.fates.pop(0) if self.fates else 0.999

    def uniform(self, low: float, high: float) -> float:
        return (low + high) / 2


TENTHS = Misfortune(dies=0.1, hangs=0.1, leaves=0.1, halves=0.1, twice=0.1, fails=0.1)
DIES, HANGS, LEAVES, HALVES, TWICE, WELL = 0.05, 0.15, 0.25, 0.35, 0.45, 0.55


def prepared(nodes=None, count: int = 1, **options) -> tuple[SimulatedFleet, list[int]]:
    """A fleet and workers of it that are ready, at 6 s."""
    fleet = SimulatedFleet(nodes or {"a": 2}, 2, EPOCHS, TENTHS, **options)
    fleet._random = Fate()
    workers = [fleet.start(alone=False, without=()) for _ in range(count)]
    assert {type(answer) for *_, answer in fleet.wait(10)} == {Place}
    for worker in workers:
        fleet.call(worker, 1, Prepare(recipe=None))
    assert [answer for *_, answer in fleet.wait(10)] == [Ready(capacity=2, versions=simulated.VERSIONS)] * count
    assert fleet.now() == 6
    return fleet, workers


def asked(
    fleet: SimulatedFleet, worker: int, fate: float, jobs=(), seconds: float = 10_000
) -> list[tuple[float, object]]:
    """What a worker answers to an epoch, and when, in seconds after it was asked."""
    fleet._random.fates.append(fate)
    begin, answers = fleet.now(), []
    fleet.call(worker, 2, Epoch(jobs=jobs))
    while fleet.now() < begin + seconds:
        answers += [(fleet.now() - begin, answer) for _, _, answer in fleet.wait(begin + seconds - fleet.now())]
    return answers


def test_an_epoch_of_a_worker_takes_ten_seconds_and_its_report_counts_slots_that_trained():
    fleet, (worker,) = prepared()
    ((took, report),) = asked(fleet, worker, WELL, [job(1), job(2)])
    assert took == 10 and (report.outcomes, report.capacity, report.epochs_run, report.epochs_offered) == ([], 2, 2, 2)
    ((_, report),) = asked(fleet, worker, WELL)
    assert (report.epochs_run, report.epochs_offered) == (4, 4)
    with pytest.raises(AssertionError, match="more jobs than slots"):
        fleet.call(worker, 2, Epoch(jobs=[job(3), job(4), job(6)]))


def test_what_happens_to_a_worker_at_a_call():
    fleet, (worker, other) = prepared(count=2)
    assert [took for took, _ in asked(fleet, worker, HANGS)] == [5010]
    assert [took for took, _ in asked(fleet, worker, TWICE)] == [10, 25]
    assert [answer.capacity for _, answer in asked(fleet, worker, HALVES, [job(1)])] == [1]
    assert [answer.capacity for _, answer in asked(fleet, worker, HALVES, [])] == [1]  # one slot is not halved
    assert fleet.deaths == 0 and fleet.living == 2 and fleet.unheard == 0
    waiting = fleet.start(alone=False, without=())
    assert asked(fleet, worker, DIES)[0] == (1.0, Place(node="a", name=f"a/{waiting}"))  # the room that it leaves
    assert fleet.deaths == 1 and fleet.living == 2
    fleet.call(worker, 3, Epoch(jobs=[]))
    assert fleet.wait(1) == [(worker, 3, Lost(reason="it had died"))] and fleet.deaths == 1
    with pytest.raises(AssertionError, match="one call at a time"):
        fleet.call(other, 3, Epoch(jobs=[]))
        fleet.call(other, 4, Epoch(jobs=[]))
    assert fleet.unheard == 1


def test_a_death_is_answered_within_the_epoch_and_none_comes_of_making_slots():
    fleet, (worker,) = prepared()
    assert asked(fleet, worker, DIES, [job(1)]) == [(5, Lost(reason="simulated death", cause=Cause.UNKNOWN))]
    fleet, (worker,) = prepared()
    fleet._random.fates.append(DIES)
    fleet.call(worker, 2, Prepare(recipe=None))
    ((_, _, answer),) = fleet.wait(10)
    assert answer == Ready(capacity=2, versions=simulated.VERSIONS) and fleet.deaths == 0


def test_chances_are_of_their_own_stretch_each_its_end_left_out():
    fleet, (worker,) = prepared()
    assert [took for took, _ in asked(fleet, worker, 0.1)] == [5010]  # no death: that hangs
    assert [took for took, _ in asked(fleet, worker, 0.5)] == [10]


def test_a_node_goes_with_all_workers_on_it_and_is_back_after_a_minute():
    fleet, (one, two, three) = prepared({"a": 2, "b": 1}, 3)
    assert asked(fleet, one, LEAVES, seconds=20) == [(10, Lost(reason="its node is gone", cause=Cause.OUTSIDE))]
    assert (fleet.deaths, fleet.living) == (2, 1) and fleet.nodes() == {"b": 1}
    waiting = fleet.start(alone=False, without=())
    begin = fleet.now()
    assert fleet.wait(100) == [(waiting, 0, Place(node="a", name=f"a/{waiting}"))]
    assert fleet.now() - begin == 41 and fleet.nodes() == {"a": 2, "b": 1} and fleet.starts == {"a": 3, "b": 1}
    fleet.call(two, 3, Epoch(jobs=[]))
    assert fleet.wait(1)[0][2] == Lost(reason="its node is gone", cause=Cause.OUTSIDE)
    fleet.kill(three)
    assert fleet.living == 1
    fleet.close()
    assert fleet.living == 0


def test_a_start_can_fail_or_wait_for_room_and_be_withdrawn():
    fleet = SimulatedFleet({"a": 1, "b": 1}, 2, EPOCHS, TENTHS)
    fleet._random = Fate(0.05, 0.1)
    failing = fleet.start(alone=True, without=("a",))
    assert fleet.wait(10) == [(failing, 0, Lost(reason="simulated death", cause=Cause.UNKNOWN))] and fleet.now() == 1
    alone = fleet.start(alone=True, without=("a",))
    fleet.wait(10)
    fleet.call(alone, 1, Prepare(recipe=None))
    assert fleet.wait(10)[0][2].capacity == 1 and fleet.alone == 2 and fleet.starts == {"b": 2}
    second, third = fleet.start(alone=False, without=()), fleet.start(alone=False, without=())
    assert fleet.unheard == 2  # their starts
    assert [worker for worker, *_ in fleet.wait(10)] == [second] and fleet.starts == {"b": 2, "a": 1}
    fleet.kill(third)
    fleet.kill(second)
    fleet.kill(second)  # frees its room once
    placed = [fleet.start(alone=False, without=()) for _ in range(2)]
    assert [worker for worker, *_ in fleet.wait(10)] == placed[:1] and fleet.starts == {"b": 2, "a": 2}
    fleet.join("c", 1)
    assert [answer.node for *_, answer in fleet.wait(10)] == ["c"] and fleet.nodes() == {"a": 1, "b": 1, "c": 1}


def test_what_is_fatal_brings_down_a_worker_and_is_known_of_one_that_is_alone():
    fleet, (worker,) = prepared(fatal={"7"}, broken={"b"})
    assert asked(fleet, worker, WELL, [job(1), job(7)]) == [(1, Lost(reason="simulated death", cause=Cause.UNKNOWN))]
    assert fleet.crashed_on("7") == []
    alone = fleet.start(alone=True, without=())
    fleet.wait(10)
    fleet.call(alone, 1, Prepare(recipe=None))
    fleet.wait(10)
    assert asked(fleet, alone, WELL, [job(7)]) == [(1, Lost(reason="simulated death", cause=Cause.ITSELF))]
    assert fleet.crashed_on("7") == ["a"] and fleet.crashed_on("1") == [] and fleet.deaths == 2
    fleet.join("b", 1)
    bad = fleet.start(alone=False, without=("a",))
    fleet.wait(10)
    begin = fleet.now()
    fleet.call(bad, 1, Prepare(recipe=None))
    assert (
        fleet.wait(10) == [(bad, 1, Lost(reason="simulated death", cause=Cause.UNKNOWN))] and fleet.now() - begin == 1
    )


def test_accuracies_of_the_stand_in_lie_between_0_and_1_and_an_eighth_of_its_trainings_diverges_in_the_second_epoch():
    trainer = simulated.StandIn(800, 3)
    for slot in trainer.free:
        trainer.start(slot, Training(TRAINED, 0.1, replicate=slot))
    called = []
    first, second = trainer.advance(lambda: called.append(1)), trainer.advance()
    assert called == [1] and trainer.free == [slot for slot, result in second.items() if result.reason]
    assert {r.reason for r in first.values()} == {""} and {r.epoch for r in second.values()} == {2}
    assert 70 < len(trainer.free) < 130 and {second[slot].eval_accuracy for slot in trainer.free} == {0.0}
    found = sorted(r.eval_accuracy for r in first.values())
    assert 0 <= found[0] < 0.1 and 0.9 < found[-1] < 1 and 0.46 < sum(found) / 800 < 0.54
    last = trainer.advance()
    assert trainer.free == list(range(800)) and all(
        r.eval_accuracy != first[slot].eval_accuracy for slot, r in last.items()
    )
    assert all(abs(r.eval_accuracy - first[slot].eval_accuracy) < 0.1 / 1.1 for slot, r in last.items())
    assert trainer.epochs_run == 1600 + len(last) and trainer.epochs_offered == 2400
    trainer.advance()
    assert trainer.epochs_offered == 2400  # nothing was in a slot
    trainer.start(5, Training(TRAINED, 0.1), epoch=2)
    assert trainer.state(5) == [] and trainer.advance()[5].epoch == 3 and trainer.free == list(range(800))


def test_the_stand_in_is_halved_with_its_counts_and_runs_out_of_memory_when_it_is_told_to():
    trainer = simulated.StandIn(3, 3)
    trainer.start(0, Training(TRAINED, 0.1))
    trainer.advance()
    trainer.short_of_memory = True
    with pytest.raises(OutOfMemory):
        trainer.advance()
    half = trainer.halved()
    assert (half.capacity, half.epochs_run, half.epochs_offered, half.task.settings.epochs) == (1, 1, 3, 3)
    assert half.halved().capacity == 1 and simulated.StandIn(8, 1).halved().capacity == 4 and not half.short_of_memory
