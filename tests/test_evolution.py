"""The search's decisions: the space, mutations, the proposer, and the keys under which duplicates are found."""

import collections
import dataclasses
import hashlib
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from bpevo import evolution
from bpevo.evolution import (
    EvolutionSettings,
    PaperController,
    Result,
    Rung,
    SearchSpace,
    SpaceExhausted,
    controllers,
    functional_key,
)
from bpevo.evolution.space import ALL_OPERANDS, ALL_UNARIES, component_name, feasible
from bpevo.rules import BINARIES, NAMED, UNARIES, Equation, parse

GENES = ("operand1", "unary1", "operand2", "unary2", "binary")


def equation(text: str, max_parts: int = 3) -> Equation:
    return parse(text).to_equation(max_parts)


def genome(e: Equation) -> dict[tuple[int, str], str]:
    """Every gene by part and name, previous results left out."""
    genes = {}
    for i, part in enumerate(e.to_parts()):
        for side, argument in (("1", part.left), ("2", part.right)):
            if argument.operand:
                genes[i, "operand" + side] = str(argument.operand)
            genes[i, "unary" + side] = component_name((argument.unary, argument.constant))
        genes[i, "binary"] = part.binary
    return genes


def listed(space: SearchSpace, gene: str) -> list[str]:
    lists = {
        "o": [str(o) for o in space.operands],
        "u": [component_name(u) for u in space.unaries],
        "b": space.binaries,
    }
    return lists[gene[0]]


# The space.


def test_the_whole_space_holds_every_component_of_the_language_once():
    space = SearchSpace()
    assert len(space.operands) == len(set(space.operands)) == 4 * 17
    assert len(space.unaries) == len(set(space.unaries)) == 1 + sum(len(u.constants) or 1 for u in UNARIES.values())
    assert space.binaries == list(BINARIES)


def test_subsets_keep_only_what_they_name():
    space = SearchSpace(2, ["g", "mean(h)"], ["clip", "scale:3", "relu", "identity"], ["add", "min"])
    assert [str(o) for o in space.operands] == ["g", "mean(h)"]
    names = ["clip:0.01", "clip:0.1", "clip:0.5", "clip:1.0", "scale:3.0", "relu", "identity"]
    assert [component_name(u) for u in space.unaries] == names
    assert space.binaries == ["add", "min"]
    rng = np.random.default_rng(0)
    for _ in range(100):
        e = space.random(rng)
        assert all(v in listed(space, gene) for (_, gene), v in genome(e).items())


def test_a_component_named_twice_is_as_likely_as_others():
    space = SearchSpace(1, ["g", "g", "h"], ["clip", "clip:0.5", "clip:0.50", "relu"], ["add", "add", "min"])
    assert len(space.operands) == 2 and len(space.unaries) == 5 and len(space.binaries) == 2


@pytest.mark.parametrize(
    "subset, message",
    [
        ({"operands": ["mean(gg)"]}, r"no operand 'mean\(gg\)'; the nearest is 'mean\(g\)'"),
        ({"unaries": ["rellu"]}, "no unary function 'rellu'; the nearest is 'relu'"),
        ({"unaries": ["clip:0.5x"]}, "constant of 'clip:0.5x' must be a number"),
        ({"unaries": ["clip:-1"]}, "must be a number in"),
        ({"unaries": ["drop:1"]}, "must be a number in"),
        ({"unaries": ["scale:nan"]}, "must be a number in"),
        ({"unaries": ["scale:1e7"]}, "must be a number in"),
        ({"unaries": ["relu:1"]}, "no unary function 'relu:1'; the nearest is 'relu'"),
        ({"binaries": ["adds"]}, "no binary function 'adds'; the nearest is 'add'"),
        ({"max_parts": 0}, "max_parts must be at least 1"),
    ],
)
def test_unknown_components_are_refused_with_the_nearest_name(subset, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(**subset)


def test_random_equations_are_uniform_in_their_number_of_parts_and_in_each_gene():
    space, rng = (
        SearchSpace(3, ["g", "h", "dh"], ["relu", "abs", "neg", "clip"], ["add", "mul", "left"]),
        np.random.default_rng(0),
    )
    drawn = [space.random(rng) for _ in range(3000)]
    parts = collections.Counter(len(e.to_parts()) for e in drawn)
    assert set(parts) == {1, 2, 3} and all(abs(n - 1000) < 120 for n in parts.values())  # 4.6 deviations
    for gene in GENES:
        counts = collections.Counter(genome(e)[0, gene] for e in drawn)
        expected = 3000 / len(listed(space, gene))
        assert set(counts) == set(listed(space, gene))
        assert all(abs(n - expected) < 5 * expected**0.5 for n in counts.values())


@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from(["all", "few"]))
@hypothesis.settings(max_examples=150)
def test_a_mutation_changes_exactly_one_gene_never_to_itself_and_stays_in_its_list(seed, which):
    rng = np.random.default_rng(seed)
    space = SearchSpace(3) if which == "all" else SearchSpace(3, ["g", "h"], ["relu", "clip:0.5"], ["add", "min"])
    before = space.random(rng)
    after, change = space.mutated(rng, before)
    old, new = genome(before), genome(after)
    assert old.keys() == new.keys()
    assert [g for g in old if old[g] != new[g]] == [(change.part, change.gene)]
    assert (change.before, change.after) == (old[change.part, change.gene], new[change.part, change.gene])
    assert change.after in listed(space, change.gene)


def test_mutations_reach_every_gene_of_every_part_equally_often():
    space, rng = SearchSpace(2), np.random.default_rng(0)
    e = space.padded(rng, equation("g + h", 2))
    counts = collections.Counter((c.part, c.gene) for c in (space.mutated(rng, e)[1] for _ in range(4500)))
    assert len(counts) == 9 and all(abs(n - 500) < 110 for n in counts.values())


def test_a_space_without_alternatives_cannot_mutate():
    with pytest.raises(ValueError, match="nothing can be mutated"):
        SearchSpace(1, ["g"], ["identity"], ["left"]).mutated(np.random.default_rng(0), equation("g", 1))


@pytest.mark.parametrize("text", sorted({t for t in NAMED.values()}))
def test_padding_fills_up_with_idle_parts_and_keeps_the_function(text):
    rng, original = np.random.default_rng(1), equation(text)
    padded = SearchSpace(3).padded(rng, original)
    assert len(padded.to_parts()) == 3
    assert padded.to_parts()[: len(original.to_parts())] == original.to_parts()
    assert all(part.binary == "left" for part in padded.to_parts()[len(original.to_parts()) :])
    assert padded.key == original.key and functional_key(padded) == functional_key(original)


# The proposer.


def plain_key(e: Equation) -> str:
    return e.key


def result(n: int, text: str, accuracy: float | None, rungs: int = 0, curves=()) -> Result:
    return Result(n, equation(text), accuracy, rungs, tuple(curves))


G, ALL, SIGNALS = (
    equation("g"),
    SearchSpace(3),
    SearchSpace(3, ["g", "h", "dh", "fa"], ["relu", "abs", "neg", "scale"], ["add", "mul"]),
)


def after(settings: EvolutionSettings, n: int, space: SearchSpace = ALL) -> PaperController:
    """A proposer about to draw proposal n."""
    made = PaperController(space, settings, (), plain_key)
    for i in range(n):
        made.adopt(evolution.Proposal(i, G, f"earlier {i}"))
    return made


POPULATION = [
    result(i, t, a) for i, (t, a) in enumerate([("g", 0.1), ("fa", 0.5), ("dfa", 0.3), ("h", 0.4), ("dh", None)])
]


def parents(settings: EvolutionSettings, snapshot, tries: int = 60) -> set[int]:
    return {after(settings, 10 + i, SIGNALS).propose(snapshot).parent for i in range(tries)}


def test_a_proposal_depends_only_on_seed_number_and_snapshot():
    settings = EvolutionSettings(elite_size=2, seed=5)
    first = after(settings, 7).propose(POPULATION)
    assert first == after(settings, 7).propose(POPULATION)
    assert first.equation != after(settings, 8).propose(POPULATION).equation
    assert first.equation != after(dataclasses.replace(settings, seed=6), 7).propose(POPULATION).equation


def test_drawing_earlier_proposals_changes_later_ones_only_through_what_was_seen():
    settings, space = EvolutionSettings(elite_size=50, seed=1), SearchSpace(3)
    drawn = PaperController(space, settings, (), plain_key)
    proposals = [drawn.propose([]) for _ in range(12)]
    resumed = PaperController(space, settings, (), plain_key)
    for p in proposals[:9]:
        resumed.adopt(p)
    assert [resumed.propose([]) for _ in range(3)] == proposals[9:]
    assert len({p.key for p in proposals}) == 12 and [p.id for p in proposals] == list(range(12))
    assert all(p.parent is None and not p.changes and feasible(p.equation) for p in proposals)


def test_parents_come_from_the_elite_with_probability_1_and_from_the_rest_with_probability_0():
    assert parents(EvolutionSettings(elite_size=2, elite_probability=1), POPULATION) == {1, 3}
    assert parents(EvolutionSettings(elite_size=2, elite_probability=0), POPULATION) == {0, 2}


def test_a_population_of_at_most_n_is_drawn_from_whole_and_diverged_ones_are_never_parents():
    assert parents(EvolutionSettings(elite_size=4, elite_probability=0), POPULATION) == {0, 1, 2, 3}
    assert parents(EvolutionSettings(elite_size=9, elite_probability=1), POPULATION) == {0, 1, 2, 3}


def test_the_elite_is_chosen_with_the_given_probability():
    settings = EvolutionSettings(elite_size=1, elite_probability=0.7)
    drawn = [after(settings, 10 + i, SIGNALS).propose(POPULATION).parent for i in range(600)]
    assert abs(drawn.count(1) / 600 - 0.7) < 0.08


def test_fitness_orders_by_rungs_then_accuracy_then_age():
    ranked = [result(0, "g", 0.9, 0), result(1, "fa", 0.2, 2), result(2, "dfa", 0.3, 2), result(3, "h", 0.3, 2)]
    assert parents(EvolutionSettings(elite_size=1, elite_probability=1), ranked, 10) == {2}
    assert parents(EvolutionSettings(elite_size=3, elite_probability=1), ranked) == {1, 2, 3}
    assert result(0, "g", None, 5).fitness < result(1, "g", 0.0, 0).fitness


def test_a_child_is_its_parent_after_the_recorded_changes():
    settings = EvolutionSettings(elite_size=1, elite_probability=1, mutations=(0, 0, 1))
    child = after(settings, 9).propose(POPULATION)
    genes = genome(POPULATION[child.parent].equation)
    for change in child.changes:
        assert genes[change.part, change.gene] == change.before != change.after
        genes[change.part, change.gene] = change.after
    assert len(child.changes) == 3 and genes == genome(child.equation)


def test_the_number_of_mutations_follows_its_weights():
    settings = EvolutionSettings(elite_size=9, mutations=(2, 0, 6))
    made, rng = after(settings, 0), np.random.default_rng(0)  # draws, for restarts favour what is feasible
    counts = collections.Counter(len(made._draw(50, rng, POPULATION[:4], [], 0)[2]) for _ in range(2000))
    assert set(counts) == {1, 3} and abs(counts[1] - 500) < 100


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


def test_restarts_for_infeasible_and_duplicate_draws_are_counted_and_cost_no_id(monkeypatch):
    assert controllers.MAX_RESTARTS == 10_000
    monkeypatch.setattr(controllers, "MAX_RESTARTS", 1000)
    space = SearchSpace(1, ["g", "W"], ["identity", "neg"], ["add"])
    made = PaperController(space, EvolutionSettings(elite_size=100, seed=2), (), plain_key)
    drawn = []
    with pytest.raises(SpaceExhausted, match="space exhausted: no new equation in 1,000 attempts"):
        for _ in range(10):
            drawn.append(made.propose([]))
    # ±g + ±g, commuted once: three functions; W fits nowhere.
    assert {p.key for p in drawn} == {equation(t).key for t in ("g + g", "g + (-g)", "(-g) + (-g)")}
    assert [p.id for p in drawn] == [0, 1, 2] == list(range(made.next_id))
    assert sum(p.infeasible for p in drawn) > 0 and sum(p.duplicates for p in drawn) > 0


def test_counters_equal_the_draws_that_were_thrown_away(monkeypatch):
    settings, seen = EvolutionSettings(elite_size=100, seed=4), []
    made = PaperController(
        SearchSpace(2), settings, (), lambda e: hashlib.sha256(e.key.encode()).hexdigest()[0]
    )  # 16 keys
    draw = made._draw
    monkeypatch.setattr(made, "_draw", lambda *a: seen.append(draw(*a)) or seen[-1])
    keys = set()
    for _ in range(10):
        seen.clear()
        p = made.propose([])
        assert p.infeasible == sum(not feasible(e) for e, _, _ in seen)
        assert p.duplicates == sum(feasible(e) and made._key(e) in keys for e, _, _ in seen)
        assert p.infeasible + p.duplicates == len(seen) - 1
        keys.add(p.key)


@pytest.mark.parametrize("elite_size", [1, 1000])
@pytest.mark.parametrize("initial", [[], ["g"]])
def test_a_space_of_one_equation_is_exhausted_after_it(elite_size, initial, monkeypatch):
    monkeypatch.setattr(controllers, "MAX_RESTARTS", 200)
    space, initial = SearchSpace(1, ["g"], ["identity"], ["left"]), [equation(t, 1) for t in initial]
    made = PaperController(space, EvolutionSettings(elite_size=elite_size), initial, plain_key)
    assert str(made.propose([]).equation) == "g"
    with pytest.raises(SpaceExhausted):
        made.propose([Result(0, equation("g", 1), 0.5, 0, ())])
    with pytest.raises(SpaceExhausted):
        made.propose([])
    assert made.next_id == 1


def test_bars_are_the_quantiles_of_the_snapshot_from_twenty_values_on():
    settings = EvolutionSettings(rungs=(Rung(1, 0.5), Rung(2, 0.25), Rung(3, 0.9)), elite_size=1000)
    accuracies = np.random.default_rng(0).permutation(40) / 40  # every curve reaches epoch 1, 21 epoch 2, 19 epoch 3

    def curve(i):
        return tuple(accuracies[i] + 0.001 * e for e in range(1 + (i < 21) + (i < 19)))

    snapshot = [result(i, "g", 0.5, curves=[curve(2 * i), curve(2 * i + 1)]) for i in range(20)]
    bars = dict(after(settings, 50).propose(snapshot).bars)
    assert set(bars) == {1, 2}
    assert bars[1] == sorted(accuracies)[19]  # the lower of the two middle ones
    assert bars[2] == sorted(a + 0.001 for a in accuracies[:21])[5]
    assert dict(after(settings, 50).propose(snapshot[:10]).bars).keys() == {1, 2}  # exactly 20 values each
    assert after(settings, 50).propose(snapshot[:9]).bars == ()
    assert controllers.MIN_REFERENCES == 20


def test_initial_equations_come_first_padded_and_their_mutants_after():
    texts = ["g", "fa", "g", "dfa"]  # a repeated one becomes a mutant
    made = PaperController(SearchSpace(3), EvolutionSettings(elite_size=100), [equation(t) for t in texts], plain_key)
    drawn = [made.propose([]) for _ in range(8)]
    for place in (0, 1, 3):
        assert drawn[place].key == equation(texts[place]).key and drawn[place].parent is None
        assert len(drawn[place].equation.to_parts()) == 3
    assert drawn[2].duplicates >= 1 and drawn[2].changes
    assert all(p.changes and 0 <= p.parent < 4 for p in drawn[4:])
    assert len({p.key for p in drawn}) == 8


def test_random_starts_last_for_n_proposals_then_come_mutants():
    made = PaperController(SearchSpace(3), EvolutionSettings(elite_size=3), (), plain_key)
    drawn = [made.propose([]) for _ in range(4)]  # still random: no result has come in
    snapshot = [Result(p.id, p.equation, 0.5, 0, ()) for p in drawn]
    assert all(p.parent is None for p in drawn) and made.propose(snapshot).parent in range(4)
    other = PaperController(SearchSpace(3), EvolutionSettings(elite_size=30), (), plain_key)
    drawn = [other.propose(snapshot) for _ in range(5)]
    assert all(p.parent is None for p in drawn)


# Functional equivalence.


@pytest.mark.parametrize(
    "one, other",
    [
        ("unit_fro(g)", "unit_elem2(g)"),
        ("g + h", "h + g"),
        ("unit_fro(g) * sgn(h)", "sgn(h) * unit_elem2(g)"),
        ("g", "(b_next @ W.T) * dh"),
        ("gh * dh", "g"),
        ("relu(hp)", "h"),
        ("left(g, h)", "left(g, abs(fa))"),
        ("step(hp)", "dh"),
        ("g - g", "h - h"),
        ("max(g, g)", "g"),
    ],
)
def test_rules_that_compute_the_same_have_one_key(one, other):
    assert functional_key(equation(one)) == functional_key(equation(other))


FAMILIES = [(n, [u.spelling.format(x="{x}", c=c) for c in u.constants]) for n, u in UNARIES.items() if u.takes_constant]


@pytest.mark.parametrize("operand", ["g", "hp", "b_next @ W.T"])
@pytest.mark.parametrize("name, spellings", FAMILIES)
def test_no_two_constants_of_a_function_merge_nor_with_no_function_at_all(name, spellings, operand):
    x = operand if " " not in operand else f"({operand})"
    texts = [x, *(s.format(x=x).replace("+ -", "- ") for s in spellings)]
    keys = {t: functional_key(equation(t)) for t in texts}
    assert len(set(keys.values())) == len(texts), keys


def test_norms_and_operands_that_differ_have_different_keys():
    norms = [f"{name}(g)" for name, u in UNARIES.items() if u.norm and name != "unit_elem2"]
    operands = [str(o) for o in ALL_OPERANDS.values() if o.type == equation("g").to_expression().type]
    keys = {t: functional_key(equation(t)) for t in {*norms, *operands}}
    merged = [(a, b) for a, b in itertools.combinations(sorted(keys), 2) if keys[a] == keys[b]]
    assert not merged


def test_the_key_is_the_same_in_every_process_and_names_what_is_infeasible():
    assert functional_key(equation("g")) == functional_key(
        SearchSpace(3).padded(np.random.default_rng(5), equation("g"))
    )
    with pytest.raises(ValueError, match="infeasible|must be|is"):
        functional_key(SearchSpace(1, ["W"], ["identity"], ["left"]).random(np.random.default_rng(0)))
    assert len(ALL_UNARIES) > 50


def test_rules_that_differ_by_a_ten_thousandth_are_no_duplicates():
    """1.0001 moves some of a few hundred signals across a boundary of their 10 significant bits; of 4 bits it moves none."""
    keys = [functional_key(equation(t)) for t in ("g", "gh * dh", "1.0001*g")]
    assert keys[0] == keys[1] != keys[2]
