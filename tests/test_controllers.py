"""Controllers: what proposals depend on, parents, restarts, bars."""

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from test_evolution import equation, genome

from bpevo.evolution import (
    CONTROLLERS,
    BreedingController,
    DrawingController,
    EvolutionSettings,
    PaperController,
    Proposal,
    RandomController,
    Result,
    Rung,
    SameText,
    SearchSpace,
    SpaceExhausted,
    Trained,
    controllers,
    fitness,
    population,
)
from bpevo.evolution.population import bar
from bpevo.evolution.space import feasible


def result(n: int, text: str, accuracy: float | None, rungs: int = 0, curve=(), bars=()) -> Result:
    trained = Trained(accuracy=accuracy, rungs=rungs, curve=tuple(curve))
    return Result(proposal=Proposal(id=n, equation=equation(text), key=text, bars=bars), trained=trained)


G, ALL, SIGNALS = (
    equation("g"),
    SearchSpace(3),
    SearchSpace(3, ["g", "h", "dh", "fa"], ["relu", "abs", "neg", "scale"], ["add", "mul"]),
)


def after(
    settings: EvolutionSettings, n: int, results: Sequence[Result] = (), space: SearchSpace = ALL
) -> PaperController:
    """A controller about to draw proposal n, told some results."""
    made = PaperController(space, settings, (), SameText())
    for i in range(n):
        made.adopt(Proposal(id=i, equation=G, key=f"earlier {i}"))
    for r in results:
        made.tell(r)
    return made


POPULATION = [
    result(i, t, a) for i, (t, a) in enumerate([("g", 0.1), ("fa", 0.5), ("dfa", 0.3), ("h", 0.4), ("dh", None)])
]


def places(count: int) -> list[int]:
    """Ids from 11 on at which nothing is confirmed."""
    return list(itertools.islice((n for n in itertools.count(11) if n % 11 != 10), count))


def parents(settings: EvolutionSettings, results, tries: int = 60) -> set[int]:
    return {after(settings, n, results, SIGNALS).ask().parent for n in places(tries)}


# What a proposal depends on.


def test_a_proposal_depends_only_on_seed_number_and_results():
    settings = EvolutionSettings(elite_size=2, seed=5)
    first = after(settings, 7, POPULATION).ask()
    assert first == after(settings, 7, POPULATION).ask()
    assert first.equation != after(settings, 8, POPULATION).ask().equation
    assert first.equation != after(dataclasses.replace(settings, seed=6), 7, POPULATION).ask().equation


@pytest.mark.parametrize("make", CONTROLLERS.values())
def test_drawing_earlier_proposals_changes_later_ones_only_through_what_was_seen(make):
    settings, space = EvolutionSettings(elite_size=50, seed=1), SearchSpace(3)
    drawn = make(space, settings, (), SameText())
    proposals = [drawn.ask() for _ in range(12)]
    resumed = make(space, settings, (), SameText())
    for p in proposals[:9]:
        resumed.adopt(p)
    assert [resumed.ask() for _ in range(3)] == proposals[9:]
    assert len({p.key for p in proposals}) == 12 and [p.id for p in proposals] == list(range(12))
    assert all(p.parent is None and not p.changes and feasible(p.equation) for p in proposals)


# Parents.


def test_parents_come_from_the_elite_with_probability_1_and_from_the_rest_with_probability_0():
    assert parents(EvolutionSettings(elite_size=2, elite_probability=1), POPULATION) == {1, 3}
    assert parents(EvolutionSettings(elite_size=2, elite_probability=0), POPULATION) == {0, 2}


def test_a_population_of_at_most_n_is_drawn_from_whole_and_diverged_ones_are_never_parents():
    assert parents(EvolutionSettings(elite_size=4, elite_probability=0), POPULATION) == {0, 1, 2, 3}
    assert parents(EvolutionSettings(elite_size=9, elite_probability=1), POPULATION) == {0, 1, 2, 3}


def test_the_elite_is_chosen_with_the_given_probability():
    settings = EvolutionSettings(elite_size=1, elite_probability=0.7)
    drawn = [after(settings, n, POPULATION, SIGNALS).ask().parent for n in places(600)]
    assert abs(drawn.count(1) / 600 - 0.7) < 0.08


def test_fitness_orders_by_rungs_then_accuracy_then_age():
    ranked = [result(0, "g", 0.9, 0), result(1, "fa", 0.2, 2), result(2, "dfa", 0.3, 2), result(3, "h", 0.3, 2)]
    assert parents(EvolutionSettings(elite_size=1, elite_probability=1), ranked, 10) == {2}
    assert parents(EvolutionSettings(elite_size=3, elite_probability=1), ranked) == {1, 2, 3}
    assert fitness(0.1, 1) > fitness(0.9, 0) > fitness(0.8, 0) > fitness(None, 3) == fitness(None, 0)


def test_a_child_is_its_parent_after_the_recorded_changes():
    settings = EvolutionSettings(elite_size=1, elite_probability=1, mutations=(0, 0, 1))
    child = after(settings, 9, POPULATION).ask()
    genes = genome(POPULATION[child.parent].equation)
    for change in child.changes:
        assert genes[change.part, change.gene] == change.before != change.after
        genes[change.part, change.gene] = change.after
    assert len(child.changes) == 3 and genes == genome(child.equation)


def test_the_number_of_mutations_follows_its_weights():
    settings = EvolutionSettings(elite_size=9, mutations=(2, 0, 6))
    made, rng = after(settings, 50, POPULATION), np.random.default_rng(0)  # draws, for restarts favour what is feasible
    counts = collections.Counter(len(made.draw(rng).changes) for _ in range(2000))
    assert set(counts) == {1, 3} and abs(counts[1] - 500) < 100


def test_initial_equations_come_first_padded_and_their_mutants_after():
    texts = ["g", "fa", "g", "dfa"]  # a repeated one becomes a mutant
    made = PaperController(SearchSpace(3), EvolutionSettings(elite_size=100), [equation(t) for t in texts], SameText())
    drawn = [made.ask() for _ in range(8)]
    for place in (0, 1, 3):
        assert drawn[place].key == equation(texts[place]).key and drawn[place].parent is None
        assert len(drawn[place].equation.to_parts()) == 3
    assert drawn[2].duplicates >= 1 and drawn[2].changes
    assert all(p.changes and 0 <= p.parent < 4 for p in drawn[4:])
    assert len({p.key for p in drawn}) == 8


def test_random_starts_last_for_n_proposals_then_come_mutants():
    made = PaperController(SearchSpace(3), EvolutionSettings(elite_size=3), (), SameText())
    drawn = [made.ask() for _ in range(4)]  # still random: no result has come in
    results = [Result(proposal=p, trained=Trained(accuracy=0.5, rungs=0, curve=())) for p in drawn]
    for r in results:
        made.tell(r)
    assert all(p.parent is None for p in drawn) and made.ask().parent in range(4)
    other = PaperController(SearchSpace(3), EvolutionSettings(elite_size=30), (), SameText())
    for r in results:
        other.tell(r)
    assert all(other.ask().parent is None for _ in range(5))


def test_random_search_never_breeds_but_keeps_initial_equations_duplicates_and_bars():
    settings = EvolutionSettings(elite_size=2, rungs=(Rung(1, 0.5),))
    made = RandomController(ALL, settings, [equation("g"), equation("g")], SameText())
    first = [made.ask() for _ in range(2)]
    assert first[0].key == G.key and first[1].duplicates == 1 and first[1].key != G.key
    for i in range(20):
        made.tell(result(i, "g", 0.5, curve=(i / 20,)))
    later = [made.ask() for _ in range(30)]
    assert all(p.parent is None and not p.changes and p.bars == ((1, 10 / 20),) for p in later)


WEIGHTS = "mutations are non-negative weights of k = 1, 2, …, not all 0: "


@pytest.mark.parametrize(
    "change, message",
    [
        ({"elite_size": 0}, "elite_size must be at least 1, not 0"),
        ({"elite_probability": 1.1}, "elite_probability must lie in [0, 1], not 1.1"),
        ({"elite_probability": -0.1}, "elite_probability must lie in [0, 1], not -0.1"),
        ({"elite_probability": float("nan")}, "elite_probability must lie in [0, 1], not nan"),
        ({"mutations": ()}, WEIGHTS + "()"),
        ({"mutations": (0.0,)}, WEIGHTS + "(0.0,)"),
        ({"mutations": (1.0, -0.5)}, WEIGHTS + "(1.0, -0.5)"),
    ],
)
def test_evolution_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError) as caught:
        EvolutionSettings(**change)
    assert str(caught.value) == message


def test_settings_default_to_the_papers_and_their_bounds_are_allowed():
    papers = EvolutionSettings(
        elite_size=1000, elite_probability=0.7, mutations=(1.0,), rungs=(), seed=0, tournament=10
    )
    assert EvolutionSettings() == papers
    for bounds in ({"elite_size": 1, "tournament": 1}, {"elite_probability": 0}, {"elite_probability": 1}):
        EvolutionSettings(**bounds, mutations=(0.0, 0.5))


def test_a_controller_without_a_draw_or_without_a_parent_is_none():
    for kind, missing in ((DrawingController, "draw"), (BreedingController, "parent")):
        with pytest.raises(TypeError, match=f"abstract.*{missing}"):
            kind(ALL, EvolutionSettings(), (), SameText())


# What it says where nothing new is found.


def test_an_exhausted_space_says_what_became_of_every_attempt(monkeypatch):
    monkeypatch.setattr(controllers, "MAX_RESTARTS", 1000)
    settings, nowhere = EvolutionSettings(), SearchSpace(1, ["W"], ["identity"], ["add"])
    with pytest.raises(SpaceExhausted, match=r"^space exhausted: .* 1,000 attempts \(1,000 infeasible, 0 seen\)$"):
        RandomController(nowhere, settings, (), SameText()).ask()
    one = RandomController(SearchSpace(1, ["g"], ["identity"], ["left"]), settings, (), SameText())
    one.ask()
    with pytest.raises(SpaceExhausted, match=r"no new equation in 1,000 attempts \(0 infeasible, 1,000 seen\)$"):
        one.ask()
    initial = [nowhere.random(np.random.default_rng(0))]
    with pytest.raises(SpaceExhausted, match="the first initial equation is not feasible in this space"):
        PaperController(nowhere, settings, initial, SameText()).ask()


# Restarts.


@pytest.mark.parametrize("make", CONTROLLERS.values())
def test_restarts_for_infeasible_and_duplicate_draws_are_counted_and_cost_no_id(make, monkeypatch):
    assert controllers.MAX_RESTARTS == 10_000
    monkeypatch.setattr(controllers, "MAX_RESTARTS", 1000)
    space = SearchSpace(1, ["g", "W"], ["identity", "neg"], ["add"])
    made = make(space, EvolutionSettings(elite_size=100, seed=2), (), SameText())
    drawn = []
    with pytest.raises(SpaceExhausted, match="space exhausted: no new equation in 1,000 attempts"):
        for _ in range(10):
            drawn.append(made.ask())
    # ±g + ±g, commuted once: three functions; W fits nowhere.
    assert {p.key for p in drawn} == {equation(t).key for t in ("g + g", "g + (-g)", "(-g) + (-g)")}
    assert [p.id for p in drawn] == [0, 1, 2] == list(range(made.next_id))
    assert sum(p.infeasible for p in drawn) > 0 and sum(p.duplicates for p in drawn) > 0


def test_counters_equal_the_draws_that_were_thrown_away(monkeypatch):
    class Sixteen(SameText):
        """Of 16 keys."""

        def key(self, equation):
            return hashlib.sha256(equation.key.encode()).hexdigest()[0]

    key = Sixteen().key
    settings, seen = EvolutionSettings(elite_size=100, seed=4), []
    made = PaperController(SearchSpace(2), settings, (), Sixteen())
    draw = made.draw
    monkeypatch.setattr(made, "draw", lambda rng: seen.append(draw(rng)) or seen[-1])
    keys = set()
    for _ in range(10):
        seen.clear()
        p = made.ask()
        assert p.infeasible == sum(not feasible(d.equation) for d in seen)
        assert p.duplicates == sum(feasible(d.equation) and key(d.equation) in keys for d in seen)
        assert p.infeasible + p.duplicates == len(seen) - 1
        keys.add(p.key)


@pytest.mark.parametrize("elite_size", [1, 1000])
@pytest.mark.parametrize("initial", [[], ["g"]])
def test_a_space_of_one_equation_is_exhausted_after_it(elite_size, initial, monkeypatch):
    monkeypatch.setattr(controllers, "MAX_RESTARTS", 200)
    space, initial = SearchSpace(1, ["g"], ["identity"], ["left"]), [equation(t, 1) for t in initial]
    made = PaperController(space, EvolutionSettings(elite_size=elite_size), initial, SameText())
    assert str(made.ask().equation) == "g"
    with pytest.raises(SpaceExhausted):
        made.ask()
    made.tell(result(0, "g", 0.5))
    with pytest.raises(SpaceExhausted):
        made.ask()
    assert made.next_id == 1


# Bars.


def test_bars_are_the_quantiles_of_the_results_from_twenty_values_on():
    settings = EvolutionSettings(rungs=(Rung(1, 0.5), Rung(2, 0.25), Rung(3, 0.9)), elite_size=1000)
    accuracies = np.random.default_rng(0).permutation(40) / 40  # every curve reaches epoch 1, 21 epoch 2, 19 epoch 3

    def curve(i):
        return tuple(accuracies[i] + 0.001 * e for e in range(1 + (i < 21) + (i < 19)))

    results = [result(i, "g", 0.5, curve=curve(i)) for i in range(40)]
    bars = dict(after(settings, 50, results).ask().bars)
    assert set(bars) == {1, 2}
    assert bars[1] == sorted(accuracies)[20]  # 20 of 40 reach it
    assert bars[2] == sorted(a + 0.001 for a in accuracies[:21])[6]  # 15 of 21; 16 would be more than three quarters
    assert dict(after(settings, 50, results[:20]).ask().bars).keys() == {1, 2}  # exactly 20 values each
    assert after(settings, 50, results[:19]).ask().bars == ()
    assert population.MIN_REFERENCES == 20


def test_no_more_than_the_share_reaches_a_bar_and_with_the_next_lower_reference_more_would():
    distinct = [i / 100 for i in range(100)]
    for count, eta, pass_ in (
        (20, 4, 5),
        (20, 2, 10),
        (21, 2, 10),
        (30, 3, 10),
        (31, 3, 10),
        (99, 4, 24),
        (100, 10, 10),
    ):
        found = bar(distinct[:count], 1 - 1 / eta)
        assert sum(v >= found for v in distinct[:count]) == pass_
    assert bar(distinct[:19], 0.5) is None and bar(distinct[:20], 0.96) is None  # not even one of 20


def test_references_that_tie_pass_a_bar_together_only_if_they_are_few_enough():
    assert bar([0.1] * 15 + [0.5] * 5, 0.75) == 0.5  # a quarter; at 0.1 all would pass
    for tied in ([0.1] * 14 + [0.5] * 6, [0.5] * 20, [0.1] * 10 + [0.5] * 6 + [0.9] * 4):  # six or more are too many
        assert 0.5 < bar(tied, 0.75) < 0.5 + 1e-9
    assert bar([0.0] * 10 + [1.0] * 10, 0.75) == 1.0  # nothing can be better
    assert 0 < bar([0.0] * 20, 0.5) < 1e-300


@hypothesis.given(
    st.lists(st.integers(0, 12).map(lambda i: i / 12), min_size=20, max_size=60), st.integers(2, 9), st.booleans()
)
def test_who_passes_a_bar_is_among_the_best_share_and_who_does_not_is_not(references, eta, all_alike):
    references = [references[0]] * len(references) if all_alike else references
    found, share = bar(sorted(references), 1 - 1 / eta), len(references) // eta
    if found < 1:
        assert sum(v >= found for v in references) <= share
    for candidate in np.linspace(0, 1, 61):
        better, ties = sum(v > candidate for v in references), sum(v == candidate for v in references)
        if candidate < 1:
            assert (candidate >= found) == (better < share and better + ties <= share)


def test_every_diverged_training_counts_as_0_at_every_rung_whenever_it_diverged():
    settings = EvolutionSettings(rungs=(Rung(1, 0.5), Rung(3, 0.5)))
    alive = [result(i, "g", 0.9, 2, (0.5 + i / 100, 0.6, 0.7 + i / 100, 0.9)) for i in range(10)]
    for lost in ([], [0.9], [0.9, 0.9, 0.9, 0.9]):  # in the first epoch, after one, after the last
        diverged = [result(i, "g", None, 0, lost) for i in range(10, 20)]
        bars = dict(after(settings, 50, alive + diverged).ask().bars)
        assert bars == {1: 0.5, 3: 0.7}  # ten of twenty pass
        more = [result(i, "g", None, 0, lost) for i in range(20, 40)]  # 10 of 40 alive are half of what may pass
        bars = dict(after(settings, 50, alive + diverged + more).ask().bars)
        assert bars.keys() == {1, 3} and all(0 < b < 1e-300 for b in bars.values())


# Those that were drawn before there was a bar.


def test_candidates_drawn_before_a_bar_are_bred_from_as_if_it_had_stopped_them():
    settings = EvolutionSettings(elite_size=2, elite_probability=1, rungs=(Rung(1, 0.5),), mutations=(1,))
    early = [result(0, "g", 0.9, 1, (0.1, 0.9)), result(1, "fa", 0.8, 1, (0.32, 0.8))]
    later = [result(2, "dfa", 0.35, 0, (0.35,), ((1, 0.4),)), result(3, "h", 0.7, 1, (0.6, 0.7), ((1, 0.4),))]

    def parents(bars: dict[int, tuple]) -> set[int]:
        """Of twenty proposals after the results, where proposal i was stored with bars[i]."""
        found = set()
        for n in range(10, 30):
            made = PaperController(SIGNALS, settings, (), SameText())
            for i in range(n):
                made.adopt(Proposal(id=i, equation=G, key=f"earlier {i}", bars=bars.get(i, ())))
            for r in early + later:
                made.tell(r)
            found.add(made.ask().parent)
        return found

    assert parents({}) == {0, 1}  # nothing is known against them
    assert parents({2: ((1, 0.3),), 3: ((1, 0.95),)}) == {1, 3}  # 0 ranks as stopped at 0.1; the first bar counts
    assert parents({5: ((1, 0.55),)}) == {3, 2}  # 1 too, at 0.32: below 2, which reached 0.35 there
