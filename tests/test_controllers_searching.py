"""Controllers in searches: what arrives when, and interruptions, change nothing; tournaments and niches by hand."""

import collections
import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from test_controllers import ALL, result
from test_evolution import equation
from test_runs import RUNGS, StandIn, plan, rows, search

from bpevo.evolution import CONTROLLERS, AgingController, EvolutionSettings, NichesController, Proposal, SameText, kinds
from bpevo.workers import LocalWorkers


class Late(LocalWorkers):
    """Workers that hand out what ended late and in any order."""

    def __init__(self, trainer: StandIn, seed: int):
        super().__init__(trainer)
        self._rng, self._held = np.random.default_rng(seed), []

    @property
    def idle(self) -> bool:
        return super().idle and not self._held

    def poll(self, meanwhile=lambda: None) -> list:
        self._held += [] if super().idle else super().poll(meanwhile)
        self._rng.shuffle(self._held)
        keep = 0 if super().idle else int(self._rng.integers(len(self._held) + 1))
        handed, self._held = self._held[keep:], self._held[:keep]
        return handed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Rows of a search by each controller."""
    found = {}
    for name in CONTROLLERS:
        folder = tmp_path_factory.mktemp(name)
        search(folder, searching(name), StandIn(4))
        found[name] = rows(folder)
    return found


def searching(name: str):
    made = plan(75, (0.1, 0.3), rungs=RUNGS, elite_size=6, tournament=3)
    return dataclasses.replace(made, controller=name)


@pytest.mark.parametrize("name", ["aging", "niches"])
@hypothesis.given(st.integers(0, 2**16), st.integers(2, 9), st.lists(st.integers(1, 12), max_size=1))
@hypothesis.settings(max_examples=3)
def test_neither_order_of_arrival_nor_slots_nor_interruptions_change_a_row(
    undisturbed, tmp_path_factory, name, seed, slots, interrupts
):
    folder = tmp_path_factory.mktemp("late")
    for epochs in interrupts:
        try:
            search(folder, searching(name), StandIn(slots, epochs), workers=lambda trainer: Late(trainer, seed))
        except KeyboardInterrupt:
            continue
    search(folder, searching(name), StandIn(slots), workers=lambda trainer: Late(trainer, seed))
    same = rows(folder) == undisturbed[name]
    assert same


def test_controllers_search_differently(undisturbed):
    texts = {name: tuple(row[1] for row in found["proposals"]) for name, found in undisturbed.items()}
    assert len(set(texts.values())) == len(CONTROLLERS)


# Parents, by hand.


def parents(make, settings: EvolutionSettings, results, draws: int = 400) -> collections.Counter:
    """How often each result is the parent."""
    made = make(ALL, settings, (), SameText())
    for r in results:
        made.tell(r)
    rng = np.random.default_rng(0)
    drawn = [made.parent(rng) for _ in range(draws)]
    return collections.Counter(r if r is None else r.id for r in drawn)


FIVE = [result(i, t, a) for i, (t, a) in enumerate([("g", 0.9), ("fa", 0.5), ("dfa", 0.3), ("h", None), ("dh", 0.4)])]


def test_the_parent_of_an_aging_population_is_the_best_of_a_tournament_among_its_youngest():
    # The three youngest that are alive: 1 (0.5), 2 (0.3), 4 (0.4). Each is drawn with probability 1/3.
    alone = parents(AgingController, EvolutionSettings(elite_size=3, tournament=1), FIVE, 3000)
    assert alone.keys() == {1, 2, 4} and all(abs(n - 1000) < 120 for n in alone.values())
    pairs = parents(AgingController, EvolutionSettings(elite_size=3, tournament=2), FIVE, 3600)
    for who, ninths in ((1, 5), (4, 3), (2, 1)):  # the best of two is drawn unless both miss it: 1 - (2/3)^2
        assert abs(pairs[who] - 400 * ninths) < 140
    assert parents(AgingController, EvolutionSettings(elite_size=3, tournament=50), FIVE).keys() == {1}
    assert parents(AgingController, EvolutionSettings(elite_size=9, tournament=50), FIVE).keys() == {0}
    assert parents(AgingController, EvolutionSettings(elite_size=3), [FIVE[3]]).keys() == {None}


def test_who_diverges_in_its_confirmation_leaves_an_aging_population_to_the_next_older_one():
    made = AgingController(ALL, EvolutionSettings(elite_size=2, tournament=50), (), SameText())
    for r in FIVE:
        made.adopt(r.proposal)
    made.adopt(Proposal(id=5, equation=FIVE[4].equation, key="dh", parent=4))
    for r in FIVE[:3] + FIVE[4:]:
        made.tell(r)
    rng = np.random.default_rng(0)
    assert made.parent(rng).id == 4  # of 2 and 4
    confirmation = result(5, "dh", None)
    made.tell(dataclasses.replace(confirmation, proposal=Proposal(id=5, equation=FIVE[4].equation, key="dh", parent=4)))
    assert made.parent(rng).id == 1  # of 1 and 2


def test_every_kind_of_rule_has_as_many_children_however_many_results_it_has_and_however_bad():
    texts = ["unit_fro(g)", "0.5*unit_fro(-g)", "h + g", "h", "fa", "fa - h", "g - g", "drop(unit_fro(g), 0.1)", "2*g"]
    accuracies = [0.2, 0.1, 0.5, 0.6, 0.9, 0.8, 0.95, 0.3, 0.1]
    results = [result(i, t, a) for i, (t, a) in enumerate(zip(texts, accuracies, strict=True))]
    assert [kinds.plain(kinds.kind(r.equation)) for r in results] == [
        kinds.PER_UNIT, kinds.PER_UNIT, *4 * [kinds.OTHER], kinds.NO_SIGNAL, kinds.PER_UNIT, kinds.SCALED,
    ]  # fmt: skip
    found = parents(NichesController, EvolutionSettings(tournament=50), results, 3000)
    assert found.keys() == {4, 7, 8}  # the best of each kind that sends a signal
    assert all(abs(n - 1000) < 120 for n in found.values())
    assert parents(NichesController, EvolutionSettings(), [result(0, "g - g", 0.9)]).keys() == {None}


def test_the_size_of_tournaments_is_recorded_where_it_is_not_the_default():
    """So a run of before there were any can be continued."""
    assert "tournament" not in plan().fingerprint()["evolution"]
    assert plan(tournament=3).fingerprint()["evolution"]["tournament"] == 3


def test_a_tournament_of_no_one_is_refused():
    with pytest.raises(ValueError, match="tournament must be at least 1, not 0"):
        EvolutionSettings(tournament=0)


@pytest.mark.parametrize("name", ["aging", "niches"])
def test_the_initial_equations_are_bred_from_while_nothing_is_known(name):
    made = CONTROLLERS[name](ALL, EvolutionSettings(), [equation("g"), equation("fa")], SameText())
    drawn = [made.ask() for _ in range(8)]
    assert all(p.parent is None for p in drawn[:2]) and all(p.parent in (0, 1) and p.changes for p in drawn[2:])
