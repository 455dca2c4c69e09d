"""Duplicates: what must merge, what must not, and that a continued search finds the same ones."""

import jax
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
from bpevo.evolution.equivalence import _WIDTH, same
from bpevo.evolution.space import operand_choices
from bpevo.rules import UNARIES, CompiledRule, InfeasibleEquation, Operand, Unary, parse, register


def test_wide_operands_have_both_signs_many_magnitudes_and_zeros():
    values = probe._values(0, probe.REGIMES.index("wide"))["values"]
    for x in (values.hp, values.b_next, values.b_L, values.hp_next, values.W, *values.constants.values()):
        assert 0.3 < np.mean(x < 0) < 0.6 and 0.3 < np.mean(x > 0) < 0.6
        size = np.abs(x[x != 0])
        assert 1e-4 <= size.min() < 1e-3 and 10 < size.max() <= 100
    for x in (values.hp, values.b_next, values.b_L, values.hp_next):
        assert 0.05 < np.mean(x == 0) < 0.15
    assert np.all(values.W != 0) and all(np.all(x != 0) for x in values.constants.values())


def test_the_early_operands_are_those_of_a_network_that_begins_to_learn():
    found = probe._values(0, probe.REGIMES.index("early"))
    values, hp = found["values"], found["values"].hp
    assert hp.shape == (5, 127, 17) and np.all(found["reads"] == 1)
    assert np.all(hp[:, 0] > 1) and hp[:, 0].max() < 350  # a sample that activates all features
    assert np.all(np.delete(hp[:, :, 6].ravel(), 4 * 127 + 7) > 0)  # and one that is active, but for
    assert np.median(hp[:, :, 6]) == pytest.approx(8 * -hp[4, 7, 6], rel=0.03)  # a sample of the last step
    rest = np.delete(hp[:, 1:], 6, 2)
    size, shift = rest.std((0, 1)), rest.mean((0, 1)) / rest.std((0, 1))
    assert 0.09 < size.min() < 0.4 and 2.5 < size.max() < 11
    assert shift.min() == pytest.approx(-1.5, abs=0.2) and shift.max() == pytest.approx(5, abs=0.5)
    assert np.mean(np.delete(hp[:, 0], 6, 1) / size - shift) == pytest.approx(20, abs=0.5)
    for x in (values.b_next, values.b_L):
        assert x.std() == pytest.approx(3e-3, rel=0.1)
    assert_drawn(values)


def assert_drawn(values) -> None:
    """Weights change little from step to step; constants are those of a layer of deviation 0.5 and three classes."""
    assert values.W.std() == pytest.approx(0.5, rel=0.3) and np.diff(values.W, axis=0).std() == pytest.approx(
        0.028, rel=0.1
    )
    assert np.array_equal(values.h, np.maximum(values.hp, 0)) and np.array_equal(values.dh, values.hp > 0)
    assert values.constants["R"].std() == pytest.approx(0.5, rel=0.3)
    assert np.all(np.abs(values.constants["S"]) == 0.5) and np.any(values.constants["S"] < 0)
    assert values.constants["R_L"].std() == pytest.approx(3**-0.5, rel=0.3)
    assert all(np.all(x == x[0]) and x.shape[0] == 5 for x in values.constants.values())


def test_the_late_operands_are_those_of_a_network_that_has_learnt():
    found = probe._values(0, probe.REGIMES.index("late"))
    values, hp = found["values"], found["values"].hp
    assert list(np.flatnonzero(found["reads"][0] == 0)) == [3, 10, 12] and found["reads"].sum() == 5 * 14
    assert np.all(np.delete(hp[:, 0], 8, 1) < 0)  # a sample that activates none of the features
    assert hp[:, :, 8].std() == pytest.approx(0.02, rel=0.1)  # a small one
    dead = hp[:, :, [3, 6, 7, 10]]
    alive = {tuple(map(int, place)) for place in np.argwhere(dead > 0)}
    assert alive == {(4, 7, 0), (4, 7, 1), *((t, 9, 2) for t in range(5))}  # a sample, and two of the last step
    for of_dead, sample in ((0, 7), (1, 7), (2, 9)):
        assert np.median(dead[..., of_dead]) == pytest.approx(-8 * dead[4, sample, of_dead], rel=0.03)
    assert np.delete(dead[..., 3], 9, 1).std() == pytest.approx(0.3 / 8 * -np.median(dead[..., 3]), rel=0.1)
    kept = np.all(
        hp[:, 11:15] == hp[:1, 11:12], (0, 1)
    )  # features that send nothing in samples that send next to nothing
    assert 4 <= kept.sum() <= 8 and np.all(hp[:, 11:15, kept] < 0)
    ordinary = np.delete(hp, [3, 6, 7, 8, 10], 2)
    size, shift = ordinary[:, 20:].std((0, 1)), ordinary[:, 20:].mean((0, 1)) / ordinary[:, 20:].std((0, 1))
    assert shift.min() == pytest.approx(-4, abs=0.8) and shift.max() == pytest.approx(2, abs=0.5)
    assert np.mean(ordinary[:, 0] / size - shift) == pytest.approx(-20, abs=0.5)

    def deviations(x):
        return np.sqrt(np.mean(x**2, -1))

    b = values.b_next
    assert np.all(b[:, 5] == 0) and np.all(b[:, :, 0] == 0) and np.all(np.abs(np.delete(b[:, 9], 0, 1)) < 5e-9)
    assert deviations(b[:, 3, 2:]).mean() == pytest.approx(1.2e-2, rel=0.3)
    ordinary = deviations(np.delete(b, [3, 5, 9], 1)[..., 2:])
    assert np.median(np.log10(ordinary)) == pytest.approx(-6, abs=0.25) and 3e-4 < ordinary.max() < 3e-3
    assert np.median(np.abs(b[:, 10:, 1] / b[:, 10:, 2])) == pytest.approx(1e-3, rel=0.3)
    late = values.b_L
    assert np.all(np.abs(late[[0, 1, 3, 4], 20:28]) == 2.5) and np.all(np.abs(late[2, 20:28]) == 0.025)
    for sample, size in ((11, 1e-7), (12, 1e-8), (13, 1e-9)):
        assert size / 5 < deviations(late[:, sample]).max() < 3 * size
    assert np.all(late[:, 14] == 0)
    others = np.delete(late, [*range(11, 15), *range(20, 28)], 1)
    assert others[[0, 1, 3, 4]].std() == pytest.approx(0.19, rel=0.1) and others[2].std() == pytest.approx(
        0.0019, rel=0.1
    )
    assert_drawn(values)


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


def test_signals_are_the_same_within_5e_5_of_each_unit_and_5_hundredths_of_each_sample_and_feature():
    """Two units of three samples and four features; the first is a thousand times the second, where all changes are."""
    signals = np.ones((2, 3, 4)) * [[[1000.0]], [[1.0]]]
    for change, expected in ((1e-4, True), (2e-4, False)):  # of sqrt(12): 2.9e-5 and 5.8e-5
        other = signals.copy()
        other[1, 0, 0] += change
        assert same(signals, other) is same(other, signals) is expected
    for line in (np.s_[1, :, 3], np.s_[1, 2, :]):  # one that the rest of the signal hides
        small = signals.copy()
        small[line] = 1e-6
        for factor, expected in ((1.04, True), (1.06, False)):  # 0.038 and 0.057 of the larger
            other = small.copy()
            other[line] *= factor
            assert same(small, other) is same(other, small) is expected
    assert same(0 * signals, 0 * signals) and not same(0 * signals, signals)


def test_a_key_holds_two_random_sums_of_the_first_and_the_last_step_of_every_regime():
    """So keys that an earlier session stored stay comparable. The signals of the second rule are not finite."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (127 * 17, 2))
    for text in ("bn(g) + h", "cube(cube(cube(hp)))"):
        signals = probe.signals(probe.rule(parse(text)), 1)[[0, 4, 5, 9, 10, 14]].reshape(6, -1)
        expected = np.clip(signals @ signs / np.sqrt(127 * 17), -1e38, 1e38)
        found = np.frombuffer(bytes.fromhex(SameFunction().key(equation(text))), "<f4")
        np.testing.assert_allclose(found, expected.ravel(), rtol=1e-5)
    assert np.abs(found).max() == np.float32(1e38)


def test_what_is_not_finite_is_a_large_number_of_its_own():
    hp = probe._values(1, 2)["values"].hp  # of the wide regime; its ninth power overflows
    down, up = hp < -0.1, hp > 0.1
    for text, below, above in (
        ("cube(cube(1000000.0*hp)) - dh", -2e39, 2e39),
        ("cube(cube(1000000.0*hp)) * dh", 1e39, 2e39),
    ):
        found = probe.signals(probe.rule(parse(text)), 1)[10:]
        assert np.all(found[down] == below) and np.all(found[up] == above)


def test_chains_of_up_to_eight_parts_are_interpreted_short_ones_in_one_program():
    for plus, instructions in ((1, 6), (3, 6), (4, 8), (8, 16)):
        assert len(probe.rule(parse("g" + " + h" * plus)).program.load) == instructions
    for text in ("g" + " + h" * 9, "g * (h + dh)"):
        assert isinstance(probe.rule(parse(text)), CompiledRule)


def test_the_probe_runs_on_a_cpu_or_where_there_is_none_on_the_first_device(monkeypatch):
    def devices(backend=None):
        if backend:
            raise RuntimeError("left out")
        return ["first", "last"]

    assert probe._device().platform == "cpu"
    monkeypatch.setattr(jax, "local_devices", devices)
    assert probe._device.__wrapped__() == "first"


def test_of_equal_texts_the_first_is_found():
    made = SameText()
    for i, text in enumerate(("h", "g", "g")):
        made.add(Proposal(id=i, equation=equation(text), key=text))
    assert (made.find(equation("g"), "g"), made.find(equation("g"), "fa")) == (1, None)


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
