"""Extension points of running: workers and controllers of one's own, used without touching the package."""

import dataclasses

import pytest
from test_evaluate import PLAN, Places
from test_evaluate import evaluate as evaluation
from test_runs import DISTURBED, PARTS, StandIn, plan, rows, search

from bpevo.evolution import CONTROLLERS, BreedingController
from bpevo.runs import RunDatabase
from bpevo.workers import LocalWorkers, Workers


class Pool:
    """Workers over others: a job goes to whoever has a slot, all of them are polled in turn."""

    def __init__(self, members: list[Workers]):
        self._members = members
        self.closed = False

    @property
    def capacity(self) -> int:
        return sum(m.capacity for m in self._members)

    @property
    def occupancy(self) -> float:
        return sum(m.occupancy * m.capacity for m in self._members) / self.capacity

    @property
    def wanted(self) -> int:
        return sum(m.wanted for m in self._members)

    @property
    def ahead(self) -> int:
        return sum(m.ahead for m in self._members)

    @property
    def idle(self) -> bool:
        return all(m.idle for m in self._members)

    def submit(self, job) -> None:
        max(self._members, key=lambda m: (m.wanted, m.ahead)).submit(job)

    def poll(self, meanwhile=lambda: None) -> list:
        meanwhile()
        return [outcome for m in self._members for outcome in m.poll()]

    def suspend(self) -> list:
        return [outcome for m in self._members for outcome in m.suspend()]

    def close(self) -> None:
        self.closed = True


def pool(*slots: int) -> Pool:
    return Pool([LocalWorkers(StandIn(n)) for n in slots])


@pytest.mark.parametrize("slots", [(1,), (3, 1, 4)])
def test_a_search_on_a_pool_of_ones_own_has_the_rows_of_any_other(tmp_path, slots):
    made = search(tmp_path / "pool", DISTURBED, StandIn(1), workers=lambda _: pool(*slots))
    search(tmp_path / "local", DISTURBED, StandIn(4))
    assert rows(tmp_path / "pool") == rows(tmp_path / "local") and made.occupancy == 0.5


def test_an_evaluation_takes_workers_of_ones_own(tmp_path):
    class OwnPlaces(Places):
        def __call__(self, on_test, rule):
            super().__call__(on_test, rule)
            return pool(2, 2)

    places = OwnPlaces()
    evaluation(tmp_path / "pool", places=places)
    evaluation(tmp_path / "local")
    assert places.asked and rows(tmp_path / "pool") == rows(tmp_path / "local")
    assert PLAN.max_parts == PARTS


class Oldest(BreedingController):
    """Every mutant is one of the oldest result."""

    oldest = None

    def tell(self, result):
        super().tell(result)
        self.oldest = self.oldest or result

    def parent(self, rng):
        return self.oldest


def test_a_controller_of_ones_own_may_say_no_more_than_who_the_parent_is(tmp_path, monkeypatch):
    monkeypatch.setitem(CONTROLLERS, "oldest", Oldest)
    search(tmp_path, dataclasses.replace(plan(20, lag=4, elite_size=6), controller="oldest"), StandIn(3))
    with RunDatabase.reading(tmp_path) as database:
        parents = [p.parent for p in database.proposals() if p.confirms is None]
    assert parents == [None] * 6 + [0] * 13  # and a confirmation
