"""The search's decisions: the space, mutations, and the keys under which duplicates are found."""

import collections

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from bpevo.evolution import SearchSpace
from bpevo.evolution.space import component_name, feasible
from bpevo.rules import BINARIES, NAMED, UNARIES, Binary, Equation, Operand, Statistic, Unary, parse, register

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


def test_registered_components_are_in_a_space_that_names_them_or_asks_for_all_and_in_no_other():
    half = Unary("half", "half({x})", "{x}/2", "x/2", fn=lambda x, c: x / 2)
    share = Unary("share", "share({x}, {c})", "{c}{x}", "c x", fn=lambda x, c: c * x, constants=(0.25,))
    mine = Operand("mine", "m", "a product", formula="g * h")
    rms = Statistic("rms", "r({x})", "root mean square", average=lambda m, var: (var + m * m) ** 0.5)
    far = Binary("far", "far({x}, {y})", "{x}{y}", "distance", lambda x, y: abs(x - y))
    with register(half, share, mine, rms, far):
        for paper in (
            SearchSpace(),
            SearchSpace(operands=["g"]),
            SearchSpace(unaries=["relu"]),
            SearchSpace(binaries=["add"]),
        ):
            names = {*map(str, paper.operands), *(name for name, _ in paper.unaries), *paper.binaries}
            assert not names & {"half", "share", "mine", "rms(g)", "rms(mine)", "far"}
        everything = SearchSpace(3, ["all"], ["all"], ["all"])
        assert len(everything.operands) == 18 * 5 and everything.binaries == [*BINARIES]
        assert everything.unaries[-2:] == [("half", 0.0), ("share", 0.25)]
        assert SearchSpace(3, ["rms(mine)"], ["share"], ["far"]).unaries == [("share", 0.25)]


def test_a_random_equation_survives_its_text_and_neighbours_are_all_single_mutations():
    space, rng = SearchSpace(), np.random.default_rng(4)
    assert space.max_parts == 3 and space.unaries[0] == ("identity", 0.0)
    texts = 0
    while texts < 30:
        if feasible(drawn := space.random(rng)):
            assert parse(str(drawn)).to_equation() == drawn
            texts += 1
    few = SearchSpace(2, ["g", "h"], ["identity", "neg", "clip:0.5"], ["add"])
    found = [str(e) for e in few.neighbours(equation("g + h", 2))]
    assert found == ["h + h", "(-g) + h", "clip(g, 0.5) + h", "g + g", "g + (-h)", "g + clip(h, 0.5)"]
    second = [str(e) for e in few.neighbours(equation("-(g + h) + g", 2))][6:]
    assert second == [
        "(g + h) + g", "clip(g + h, 0.5) + g", "(-(g + h)) + h", "(-(g + h)) + (-g)", "(-(g + h)) + clip(g, 0.5)"
    ]  # fmt: skip


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
        ({"unaries": ["clip:"]}, "no unary function 'clip:'; the nearest is 'clip:0.1'"),
        (
            {"unaries": ["drop:2"]},
            r"constant of 'drop:2' must be a number in \[0, 0.99999994\]: the constant of drop must lie",
        ),
        ({"unaries": ["clip:-1"]}, "must be a number in"),
        ({"unaries": ["drop:1"]}, "must be a number in"),
        ({"unaries": ["scale:nan"]}, "must be a number in"),
        ({"unaries": ["scale:1e7"]}, "must be a number in"),
        ({"unaries": ["scale:1e-40"]}, "must be a number in .*too small, 1e-40"),
        ({"unaries": ["tanh"]}, "no unary function 'tanh'; there are identity, transpose, inv,"),
        ({"unaries": ["relu:1"]}, "no unary function 'relu:1'; the nearest is 'relu'"),
        ({"binaries": ["adds"]}, "no binary function 'adds'; the nearest is 'add'"),
        ({"max_parts": 0}, "max_parts must be at least 1, not 0"),
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
    assert padded.key == original.key
