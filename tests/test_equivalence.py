"""Duplicates: what must merge, what must not, and that a continued search finds the same ones."""

import numpy as np
import pytest
from test_evolution import equation

from bpevo.bench.start import Compilations
from bpevo.evolution import (
    Duplicates,
    EvolutionSettings,
    PaperController,
    Proposal,
    SameFunction,
    SameText,
    SearchSpace,
    probe,
)
from bpevo.evolution.equivalence import _WIDTH
from bpevo.evolution.space import operand_choices
from bpevo.rules import UNARIES, InfeasibleEquation, Operand, Unary, register


def test_wide_operands_have_both_signs_many_magnitudes_and_zeros():
    values = probe._values(0, probe.REGIMES.index("wide"))["values"]
    for x in (values.hp, values.b_next, values.b_L, values.hp_next, values.W):
        assert 0.3 < np.mean(x < 0) < 0.6 and 0.3 < np.mean(x > 0) < 0.6
        size = np.abs(x[x != 0])
        assert size.min() < 1e-3 and size.max() > 10
    assert 0.05 < np.mean(values.hp == 0) < 0.15 and np.all(values.W != 0)


def first_of(duplicates: Duplicates, *texts: str) -> list[int | None]:
    """The first proposal of which each equation is a duplicate; those that are new become proposals."""
    found = []
    for text in texts:
        e = equation(text)
        key = duplicates.key(e)
        found.append(duplicates.find(e, key))
        if found[-1] is None:
            duplicates.add(Proposal(id=len(found) - 1, equation=e, key=key))
    return found


SAME = [
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
    ("unit_fro(0.5*g)", "unit_fro(2.0*g)"),
    ("g * dh", "g"),
    ("drop(g, 0.1) + h", "h + drop(g, 0.1)"),
]


@pytest.mark.parametrize("one, other", SAME)
def test_rules_that_compute_the_same_are_duplicates(one, other):
    assert first_of(SameFunction(), one, other) == [None, 0]


# What the key of the first release merged, though networks tell each pair apart.
DIFFERENT = [
    ("unit_elem2(g)", "min(unit_fro(g), std(g))"),
    ("clip(g, 1.0)", "unit_elem_inf(clip(g, 1.0))"),
    ("min(2.0*std(gh), unit_fro(g))", "min(0.5*std(gh), unit_fro(g))"),
    ("unit_mat1(g)", "unit_mat1(drop(g, 0.01))"),
    ("abs(g)", "max(abs(g), unit_elem2(g))"),
    ("g * clip(dh, 0.1)", "g * clip(mean(dh), 0.1)"),
    ("min(std(gh) + 0.1, unit_fro(g))", "min(std(gh) + 2.0, unit_fro(g))"),
    ("unit_row_ninf(bn(fah))", "unit_elem_ninf(bn(fah))"),
    ("unit_col_ninf(h) + bn(g)", "unit_elem_ninf(h) + bn(g)"),
    ("dfa * step(std(gh))", "dfa"),
    ("min(sqrt(std(dfah)), unit_row1(bn(dfa)))", "unit_row1(bn(dfa))"),
    ("relu(bn(gh) - 10.0)", "g - g"),
    ("max(unit_col1(fa), bn(gh) - 10.0)", "unit_col1(fa)"),
    ("unit_row2(fa)", "unit_row2(unit_row_inf(fa))"),
    ("cube(hp) + unit_col0(hp)", "cube(hp)"),
]


@pytest.mark.parametrize("one, other", DIFFERENT)
def test_rules_that_networks_tell_apart_are_no_duplicates(one, other):
    assert first_of(SameFunction(), one, other) == [None, None]


FAMILIES = {n: [u.spelling.format(x="{x}", c=c) for c in u.constants] for n, u in UNARIES.items() if u.constants}
CONTEXTS = [
    "{u}",
    "min({u}, h)",
    "max({u}, fa)",
    "unit_fro({u})",
    "unit_col1({u})",
    "unit_row_inf({u})",
    "unit_mat1({u})",
]


CASES = [
    (n, c) for n in FAMILIES for c in CONTEXTS if not (n == "scale" and c.startswith("unit"))
]  # a norm takes it away


@pytest.mark.parametrize("operand", ["g", "hp", "bn(g)"])
@pytest.mark.parametrize("name, context", CASES)
def test_no_two_constants_of_a_function_merge_nor_with_no_function_at_all(name, context, operand):
    functions = ["{x}", *FAMILIES[name]]
    texts = [context.format(u=f.format(x=operand).replace("+ -", "- ")) for f in functions]
    assert first_of(SameFunction(), *texts) == [None] * len(texts)


@pytest.mark.parametrize("rule", ["{g}", "unit_fro({g})", "{g} + std(gh)", "min({g}, clip(h, 1.0))"])
def test_scaled_rules_are_never_merged(rule):
    texts = [rule.format(g="g"), *(f"{a}*({rule.format(g='g')})" for a in (0.5, 2.0, 1.0001, -1.0))]
    assert first_of(SameFunction(), *texts) == [None] * 5


def test_norms_and_operands_that_differ_are_no_duplicates():
    norms = [f"{name}(g)" for name, u in UNARIES.items() if u.norm and name != "unit_elem2"]
    operands = [str(o) for o in operand_choices().values() if o.type == equation("g").to_expression().type]
    texts = sorted({*norms, *operands})
    assert first_of(SameFunction(), *texts) == [None] * len(texts)


def test_closeness_is_measured_from_proposals_not_from_their_duplicates():
    """Each is close to the one before; the third is not close to the first, so it is a proposal, and then the fourth is not."""
    texts = ["g", "1.00004*g", "1.00008*g", "1.0001*g"]
    assert first_of(SameFunction(), *texts) == [None, 0, None, 2]


def test_noise_is_told_apart_by_its_position_alone():
    """Two draws of noise differ; which operand is named first does not matter."""
    assert first_of(SameFunction(), "drop(g, 0.1) - drop(g, 0.1)", "g - g") == [None, None]


def test_of_several_proposals_the_first_is_found():
    made, e = SameFunction(), equation("unit_fro(g)")
    for i, text in enumerate(["g", "unit_fro(g)", "unit_elem2(g)"]):  # an earlier session merged nothing
        made.add(Proposal(id=i, equation=equation(text), key=made.key(equation(text))))
    assert made.find(e, made.key(e)) == 1


def test_idle_genes_change_no_key_and_infeasible_equations_have_none():
    for made in (SameFunction(), SameText()):
        padded = SearchSpace(3).padded(np.random.default_rng(5), equation("g"))
        assert made.key(equation("g")) == made.key(padded)
    with pytest.raises(InfeasibleEquation):
        SameFunction().key(SearchSpace(1, ["W"], ["identity"], ["left"]).random(np.random.default_rng(0)))


def test_one_compiled_program_serves_all_equations_and_both_steps():
    first_of(SameFunction(), "g", "g")
    compilations = Compilations()
    assert first_of(SameFunction(), "unit_fro(g)", "unit_elem2(g)", "drop(bn(fa), 0.1) * g")[1] == 0
    assert compilations.count == 0


# Sessions.

FEW = SearchSpace(2, ["g", "gh", "dh"], ["identity", "unit_fro", "unit_elem2", "neg", "relu"], ["mul", "add", "left"])


def test_a_search_that_is_continued_proposes_what_an_uninterrupted_one_does():
    def controller():
        return PaperController(FEW, EvolutionSettings(elite_size=8, seed=3), [equation("g", 2)], SameFunction())

    whole = controller()
    proposals = [whole.ask() for _ in range(12)]
    assert sum(p.duplicates for p in proposals) > 12  # in a space this small most draws are
    for stop in (1, 7, 11):
        resumed = controller()
        for p in proposals[:stop]:
            resumed.adopt(p)
        assert [resumed.ask() for _ in range(12 - stop)] == proposals[stop:]


def test_a_key_of_the_first_release_is_made_anew():
    made = SameFunction()
    made.add(Proposal(id=0, equation=equation("unit_fro(g)"), key="0123456789abcdef" * 2))
    e = equation("unit_elem2(g)")
    assert made.find(e, made.key(e)) == 0


def test_more_proposals_than_there_was_room_for_are_all_found():
    made, e, other = SameFunction(), equation("g"), equation("h")
    keys = made.key(e), made.key(other)
    for i in range(2500):
        made.add(Proposal(id=i, equation=other, key=keys[1]))
    made.add(Proposal(id=2500, equation=e, key=keys[0]))
    assert made.find(e, keys[0]) == 2500 and made.find(other, keys[1]) == 0


def test_components_registered_later_are_understood_and_change_no_key():
    made = SameFunction()
    before = made.key(equation("unit_fro(g)"))
    with register(
        Unary("twice", "twice({x})", "2{x}", "2x", lambda x, c: 2 * x),
        Operand("Q", "Q", "its own", base="K", draw=lambda gaussian, std: 3 * gaussian),
    ):
        assert made.key(equation("unit_fro(g)")) == before
        assert first_of(SameFunction(), "2.0*g", "twice(g)", "b_next @ Q.T", "b_next @ R.T") == [None, 0, None, None]
    assert made.key(equation("unit_fro(g)")) == before


def test_a_search_that_starts_with_what_was_taken_for_the_papers_winner_still_trains_the_winner():
    initial = [equation(text) for text in ("min(unit_fro(g), std(g))", "unit_elem2(g)", "unit_fro(g)")]
    made = PaperController(SearchSpace(3), EvolutionSettings(elite_size=5), initial, SameFunction())
    drawn = [made.ask() for _ in range(3)]
    assert [p.equation.key for p in drawn[:2]] == [e.key for e in initial[:2]]
    assert drawn[2].duplicates and drawn[2].parent is not None  # unit_fro(g) is unit_elem2(g) on a dense unit


def test_the_near_ones_are_those_that_a_look_at_all_proposals_finds():
    """Around circles of equal size, across the angle where it wraps, at and near the origin, and just about the tolerance."""
    random = np.random.default_rng(0)
    rule = equation("g")
    angles = np.concatenate([random.uniform(-np.pi, np.pi, 150), np.pi - random.uniform(-0.02, 0.02, 50)])
    first = np.stack([np.cos(angles), np.sin(angles)], 1) * random.choice([1.0, 1e-6, 1e30, 0.0], 200)[:, None]
    others = np.ones((200, _WIDTH - 2))
    sketches = np.concatenate([first, others], 1)
    close = 1 + random.uniform(-1.2e-2, 1.2e-2, (4, *sketches.shape)) * random.choice([0, 1], (4, 200, 1))
    sketches = np.concatenate([sketches, *(sketches * close)]).astype("<f4")
    known = SameFunction()
    for i, sketch in enumerate(sketches):
        known.add(Proposal(id=i, equation=rule, key=sketch.tobytes().hex()))
    found = 0
    for sketch in sketches.astype(float):
        parts = [(x.reshape(-1, _WIDTH // 2, 2)) for x in (sketches.astype(float), sketch)]
        sizes = [np.linalg.norm(x, axis=2) for x in parts]
        distance = np.linalg.norm(parts[0] - parts[1], axis=2)
        expected = np.flatnonzero(np.all(distance <= 1e-2 * np.maximum(*sizes), 1))
        assert list(known._near(sketch)) == list(expected)
        found += len(expected)
    assert found > 1.5 * len(sketches)
