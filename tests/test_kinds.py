"""The kind of a rule, by hand, for the known rules and for disguises of backprop."""

import numpy as np
import pytest

from bpevo.evolution import kinds, probe
from bpevo.evolution.kinds import KINDS, kind
from bpevo.rules import NAMED, InfeasibleEquation, parse
from bpevo.rules.text import read

BY_HAND = {
    kinds.NO_SIGNAL: ["g - g", "relu(-abs(g))", "g * (dh - dh)", "step(-h)", "b_next @ bn(R).T"],
    kinds.BACKPROP: [
        "g", "gh * dh", "left(g, fa)", "g * dh", "clip(g, 1.0)", "(dh - 0.5) * (2.0*g)", "relu(dh) * clip(gh, 1.0)",
    ],
    kinds.SCALED: ["2*g", "g + g", "0.5*g", "g + (0.5*g)", "(0.5*dh) * gh", "1.01*g", "(dh - 0.5) * g"],
    kinds.PER_UNIT: [
        "unit_fro(g)", "unit_elem_inf(g)", "unit_mat1(g)", "2.0*unit_elem2(g)", "unit_fro(g) + (0.5*g)",
        "max(gh - 10.0, unit_elem2(g))", "unit_elem0(dh) * gh", "clip((hp + 0.01) - relu(hp), 0.01) * unit_elem_inf(g)",
    ],
    kinds.PER_SAMPLE: ["unit_row2(g)", "unit_row1(g)", "unit_fro(unit_row_inf(g))", "unit_row0(dh) * gh"],
    kinds.PER_FEATURE: [
        "unit_col2(g)", "g * std(gh)", "unit_elem2(g) * sgn(bn(dh))", "(0.5*g) / (std(dh) + 0.1)", "g * mean(dh)",
    ],
    kinds.PER_ENTRY: [
        "sgn(g)", "cube(g)", "ssqrt(g)", "g * h", "relu(g)", "clip(g, 0.001)", "unit_row2(unit_col2(g))",
        "min(unit_fro(g), clip(h, 1.0))",
    ],
    kinds.OTHER: [
        "fa", "dfa", "gh", "abs(g)", "h", "b_next @ S.T", "g - 0.01", "g * mean(dfa)", "g * bn(hp)",
        "unit_row2(g) + unit_elem0(mean(dh))", "unit_row2(gh)", "((abs(R) * sgn_W) @ b_next.T).T * dh",
    ],
    "reversed " + kinds.BACKPROP: ["-g", "g * (-dh)"],
    "reversed " + kinds.SCALED: ["-2*g", "g - (2.0*g) - g"],
    "reversed " + kinds.PER_UNIT: ["-unit_fro(g)"],
    kinds.BACKPROP + " + noise": ["drop(g, 0.1)", "mul_noise(g, 0.01)", "add_noise(g, 1.0)", "drop(gh, 0.01) * dh"],
    kinds.SCALED + " + noise": ["2.0*drop(g, 0.3)"],
    kinds.PER_UNIT + " + noise": ["unit_fro(drop(g, 0.1))", "drop(unit_fro(g), 0.1)"],
    kinds.OTHER + " + noise": ["drop(g, 0.01) - unit_elem0(bn(dfah))"],
    kinds.NO_SIGNAL + " + noise": ["drop(g, 0.1) - drop(g, 0.1)"],
}  # fmt: skip


@pytest.mark.parametrize("expected, text", [(k, t) for k, texts in BY_HAND.items() for t in texts])
def test_kinds_by_hand(expected, text):
    assert kind(parse(text)) == expected


def test_a_kind_is_judged_in_every_step_of_all_regimes_but_the_wide_one():
    signals = probe.signals(probe.rule(parse("g")), 3)
    early_and_late = [signals[probe.STEPS * i : probe.STEPS * (i + 1)] for i in (0, 1)]
    assert probe.REGIMES == ("early", "late", "wide")
    np.testing.assert_array_equal(kinds._signals(parse("g")), np.concatenate(early_and_late))


def test_noise_that_never_matters_is_not_mentioned():
    assert kind(parse("left(g, drop(h, 0.5))")) == kinds.BACKPROP


@pytest.mark.parametrize("text", sorted(set(NAMED.values())))
def test_a_positive_factor_changes_the_kind_of_backprop_alone(text):
    before, after = kind(parse(text)), kind(parse(f"0.25*({text})"))
    assert after == before.replace(kinds.BACKPROP, kinds.SCALED, 1) if before == kinds.BACKPROP else after == before
    assert before.removesuffix(" + noise").removeprefix("reversed ") in KINDS


def test_trees_that_are_no_chains_have_a_kind_and_equations_that_of_their_expression():
    assert kind(parse("(b_next @ (2.0*W).T) * dh")) == kinds.SCALED
    assert kind(parse("g * (dh + (abs(h) * 0.5))")) == kinds.PER_ENTRY
    assert kind(parse("unit_row2(g)").to_equation(3)) == kinds.PER_SAMPLE
    with pytest.raises(InfeasibleEquation):
        kind(read("W"))


def test_a_factor_that_differs_between_units_is_not_a_constant():
    """By hand on two cells of two samples and features."""
    g = np.array([[[1.0, -2.0], [3.0, 4.0]], [[1.0, 1.0], [0.0, -1.0]]])
    by_hand = {
        kinds.SCALED: 3 * g,
        kinds.PER_UNIT: g * [[[2.0]], [[3.0]]],
        kinds.PER_SAMPLE: g * [[[2.0], [1.0]], [[3.0], [0.5]]],
        kinds.PER_FEATURE: g * [[[2.0, 1.0]], [[3.0, 0.5]]],
        kinds.PER_ENTRY: g * [[[2.0, 1.0], [1.0, 2.0]], [[3.0, 0.0], [0.0, 0.5]]],
        kinds.OTHER: g + 1,
    }
    assert {k: kinds._kind(x, g) for k, x in by_hand.items()} == {k: k for k in by_hand}
    assert kinds._kind(0 * g, g) == kinds.NO_SIGNAL and kinds._kind(g, g) == kinds.BACKPROP
    assert kinds._kind(g * [[[2.0]], [[-3.0]]], g) == kinds.OTHER
