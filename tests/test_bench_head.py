"""The head's bench: a search over a simulated pool whose workers die, every training checked as it is stored."""

import dataclasses

import pytest

from bpevo.bench import head
from bpevo.bench.simulated import Misfortune, SimulatedFleet
from bpevo.runs import RunDatabase
from bpevo.workers import Pool

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
