"""Controllers: what proposals depend on, parents, restarts, bars; the incremental ones against the definition."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from test_evolution import equation, genome

from bpevo.evolution import (
    CONTROLLERS,
    EvolutionSettings,
    PaperController,
    Proposal,
    RandomController,
    Result,
    Rung,
    SameText,
    SearchSpace,
    SpaceExhausted,
    controllers,
    fitness,
    population,
)
from bpevo.evolution.space import feasible
from bpevo.rules import Equation


def plain_key(e: Equation) -> str:
    return e.key


def result(n: int, text: str, accuracy: float | None, rungs: int = 0, curves=()) -> Result:
    return Result(id=n, equation=equation(text), accuracy=accuracy, rungs=rungs, curves=tuple(curves))


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


def parents(settings: EvolutionSettings, results, tries: int = 60) -> set[int]:
    return {after(settings, 10 + i, results, SIGNALS).ask().parent for i in range(tries)}


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
    drawn = [after(settings, 10 + i, POPULATION, SIGNALS).ask().parent for i in range(600)]
    assert abs(drawn.count(1) / 600 - 0.7) < 0.08


def test_fitness_orders_by_rungs_then_accuracy_then_age():
    ranked = [result(0, "g", 0.9, 0), result(1, "fa", 0.2, 2), result(2, "dfa", 0.3, 2), result(3, "h", 0.3, 2)]
    assert parents(EvolutionSettings(elite_size=1, elite_probability=1), ranked, 10) == {2}
    assert parents(EvolutionSettings(elite_size=3, elite_probability=1), ranked) == {1, 2, 3}
    assert result(0, "g", None, 5).fitness < result(1, "g", 0.0, 0).fitness
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
    results = [Result(id=p.id, equation=p.equation, accuracy=0.5, rungs=0, curves=()) for p in drawn]
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
        made.tell(result(i, "g", 0.5, curves=[(i / 20,)]))
    later = [made.ask() for _ in range(30)]
    assert all(p.parent is None and not p.changes and p.bars == ((1, 9 / 20),) for p in later)


@pytest.mark.parametrize(
    "change",
    [
        {"elite_size": 0},
        {"elite_probability": 1.1},
        {"elite_probability": float("nan")},
        {"mutations": ()},
        {"mutations": (0.0,)},
        {"mutations": (1.0, -0.5)},
    ],
)
def test_evolution_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        EvolutionSettings(**change)


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
    made.tell(Result(id=0, equation=equation("g", 1), accuracy=0.5, rungs=0, curves=()))
    with pytest.raises(SpaceExhausted):
        made.ask()
    assert made.next_id == 1


# Bars.


def test_bars_are_the_quantiles_of_the_results_from_twenty_values_on():
    settings = EvolutionSettings(rungs=(Rung(1, 0.5), Rung(2, 0.25), Rung(3, 0.9)), elite_size=1000)
    accuracies = np.random.default_rng(0).permutation(40) / 40  # every curve reaches epoch 1, 21 epoch 2, 19 epoch 3

    def curve(i):
        return tuple(accuracies[i] + 0.001 * e for e in range(1 + (i < 21) + (i < 19)))

    results = [result(i, "g", 0.5, curves=[curve(2 * i), curve(2 * i + 1)]) for i in range(20)]
    bars = dict(after(settings, 50, results).ask().bars)
    assert set(bars) == {1, 2}
    assert bars[1] == sorted(accuracies)[19]  # the lower of the two middle ones
    assert bars[2] == sorted(a + 0.001 for a in accuracies[:21])[5]
    assert dict(after(settings, 50, results[:10]).ask().bars).keys() == {1, 2}  # exactly 20 values each
    assert after(settings, 50, results[:9]).ask().bars == ()
    assert population.MIN_REFERENCES == 20


# The definition, visiting every result each time.


def defined(
    n: int,
    results: Sequence[Result],
    seen: set[str],
    space: SearchSpace,
    settings: EvolutionSettings,
    initial: Sequence[Equation],
    roots: Sequence[int],
    key: Callable[[Equation], str],
) -> Proposal:
    """Proposal n of the paper's controller."""
    rng = np.random.default_rng([settings.seed, n])
    alive = [r for r in results if r.accuracy is not None]
    elite = sorted(alive, key=lambda r: (r.rungs, r.accuracy, -r.id), reverse=True)[: settings.elite_size]
    chosen = {r.id for r in elite}
    rest = [r for r in alive if r.id not in chosen]
    bars = []
    for rung in settings.rungs:
        reached = [c[rung.epoch - 1] for r in results for c in r.curves if len(c) >= rung.epoch]
        if len(reached) >= 20:
            bars.append((rung.epoch, float(np.quantile(reached, rung.quantile, method="lower"))))
    infeasible = duplicates = 0
    while True:
        parent, changes = None, []
        if n < len(initial) and not infeasible + duplicates:
            e = space.padded(rng, initial[n])
        elif not initial and (n < settings.elite_size or not elite):
            e = space.random(rng)
        else:
            if elite:
                pool = elite if not rest or rng.random() < settings.elite_probability else rest
                drawn = pool[int(rng.integers(len(pool)))]
                e, parent = drawn.equation, drawn.id
            else:
                parent = roots[int(rng.integers(len(roots)))]
                e = space.padded(rng, initial[parent])
            weights = np.asarray(settings.mutations, float)
            for _ in range(1 + int(rng.choice(len(weights), p=weights / weights.sum()))):
                e, change = space.mutated(rng, e)
                changes.append(change)
        if not feasible(e):
            infeasible += 1
        elif key(e) in seen:
            duplicates += 1
        else:
            return Proposal(
                id=n, equation=e, key=key(e), parent=parent, changes=tuple(changes), bars=tuple(bars),
                infeasible=infeasible, duplicates=duplicates,
            )  # fmt: skip


EPOCHS = 4


def history(rng: np.random.Generator, proposal: Proposal, rungs: Sequence[Rung], rates: int) -> Result:
    """How trainings of a proposal might end: many ties, some diverge, some stop at a rung."""
    survived, curves = [], []
    for _ in range(rates):
        curve = [float(rng.integers(8)) / 8 for _ in range(EPOCHS)]
        fate = rng.random()
        if fate < 0.2:
            curves.append(curve[: rng.integers(EPOCHS)])
            continue
        stops = int(rng.integers(len(rungs) + 1)) if fate < 0.7 else len(rungs)
        curve = curve[: rungs[stops].epoch] if stops < len(rungs) else curve
        survived.append((stops, curve[-1]))
        curves.append(curve)
    stops, accuracy = max(survived, default=(0, None))
    return Result(
        id=proposal.id, equation=proposal.equation, accuracy=accuracy, rungs=stops, curves=tuple(map(tuple, curves))
    )


@hypothesis.given(
    st.integers(0, 2**16),
    st.integers(1, 12),
    st.sampled_from([0, 0.5, 0.7, 1]),
    st.sampled_from([(), (Rung(1, 0.5),), (Rung(1, 0.75), Rung(3, 0.3))]),
    st.integers(1, 15),
    st.integers(1, 3),
    st.sampled_from([(), ("g", "fa"), ("g", "g", "dh")]),
    st.booleans(),
)
@hypothesis.settings(max_examples=30)
def test_proposals_equal_their_definition(seed, elite_size, probability, rungs, lag, rates, initial, interrupted):
    """Whatever the results, with ties, divergence and rungs, and also in a session that continues another."""
    settings = EvolutionSettings(
        elite_size=elite_size, elite_probability=probability, mutations=(2, 1), rungs=rungs, seed=seed
    )
    initial = [equation(t) for t in initial]
    made = PaperController(ALL, settings, initial, SameText())
    rng, results, proposals, told = np.random.default_rng(seed), [], [], 0
    for n in range(45):
        if interrupted and n == 30:
            made, told = PaperController(ALL, settings, initial, SameText()), 0
            for p in proposals:
                made.adopt(p)
        known = results[: max(0, n - lag + 1)]
        for r in known[told:]:
            made.tell(r)
        told = len(known)
        roots = [p.id for p in proposals[: len(initial)] if p.parent is None]
        expected = defined(n, known, {p.key for p in proposals}, ALL, settings, initial, roots, plain_key)
        proposals.append(made.ask())
        assert proposals[-1] == expected
        results.append(history(rng, expected, rungs, rates))


def test_a_proposal_visits_as_many_results_after_3000_as_after_300():
    visits = []

    class Counted(Result):
        def __getattribute__(self, name):
            if not name.startswith("__"):
                visits.append(name)
            return super().__getattribute__(name)

    rng, equations = np.random.default_rng(0), [equation(t) for t in ("g", "fa", "h", "dh * fa")]
    made = PaperController(ALL, EvolutionSettings(elite_size=200, rungs=(Rung(1, 0.5),)), (), SameText())
    asked, told = {}, []
    for n in range(3001):
        if n in (300, 3000):
            visits.clear()
            draws = [made.ask() for _ in range(20)]
            asked[n] = len(visits) / sum(1 + p.infeasible + p.duplicates for p in draws)
        if made.next_id <= n:
            made.adopt(Proposal(id=made.next_id, equation=G, key=f"earlier {n}"))
        visits.clear()
        made.tell(
            Counted(id=n, equation=equations[n % 4], accuracy=float(rng.random()), rungs=0, curves=((n / 4000,),))
        )
        told.append(len(visits))
    assert asked == {300: 2, 3000: 2}  # a draw reads its parent's id and equation
    assert max(told[300:]) <= 20
