"""How often the interpreter and the kernels do what depends on the equation, by hand for small samples."""

import dataclasses

import jax
import numpy as np
import pytest

from bpevo import rules
from bpevo.bench import sample
from bpevo.bench.accounting import Account, Parts
from bpevo.rules import InterpretedRule
from bpevo.rules.tile_programs import PASSES, stored


def program(text: str) -> rules.Program:
    return rules.assemble(rules.parse(text).to_equation(3))


def test_habits_are_what_the_programs_of_a_group_do():
    # 0 load g, norm; 1 load g, affine, add            0 load W, cube; 1 load b_next, @; 2 load dh, mul
    found = sample.habits([program("unit_fro(g) + (0.5*g)"), program("(cube(W) @ b_next.T).T * dh")])
    known = rules.program.codes()
    assert found.turns == {"instructions": 2.5, "functions": 2 / 5, "feedback": 0}
    loads = dict(zip(known.loads, found.branches["load"], strict=True))
    assert {k: v for k, v in loads.items() if v} == {"g": 0.4, "W": 0.2, "b_next": 0.2, "dh": 0.2}
    combines = dict(zip(known.combines, found.branches["combine"], strict=True))
    assert {k: v for k, v in combines.items() if v} == {"": 0.4, "@": 0.2, "add": 0.2, "mul": 0.2}
    functions = dict(zip(known.functions, found.branches["function"], strict=True))
    assert {k: v for k, v in functions.items() if v} == {"norm": 0.5, "cube": 0.5}
    assert found.branches["compute_gh"] == (0.5, 0.5) and found.branches["compute_fah"] == (1, 0)
    assert found.branches["reduce"][0] == found.branches["divide"][0] == 1  # a sum over all entries
    assert found.branches["mirror"] == (0, 1) and sum(found.branches["moments"]) == 0
    assert sample.groups([rules.parse("g").to_equation(3)] * 7, 3)[1:] and len(sample.groups([], 3)) == 0


def shown(names, shares):
    """The names of the branches that are ever taken, with their shares."""
    return {name: share for name, share in zip(names, shares, strict=True) if share}


def test_habits_of_noises_norms_statistics_and_products_by_hand():
    """Twelve instructions of eleven functions: two norms, five noises, four statistics."""
    texts = [
        "unit_col_inf(g) + drop(dh, 0.3)",  # 0 load g, norm; 1 load dh, drop, add
        "(unit_row1(W) @ b_next.T).T * std(dh)",  # 0 load W, norm; 1 load b_next, @ mirrored; 2 load dh, std, mul
        "(add_noise(mean(b_next), 0.1) @ W.T) + g",  # 0 load b_next, mean, add_noise; 1 load W, @; 2 load g, add
        "mul_noise(mean(gh), 0.5) + bn(g)",  # 0 load gh, mean, mul_noise; 1 load g, bn, add
        "drop(g, 0.5) * mul_noise(dh, 0.1)",  # 0 load g, drop; 1 load dh, mul_noise, mul
    ]
    found, known = sample.habits([program(t) for t in texts]), rules.program.codes()
    assert found.turns == {"instructions": 12 / 5, "functions": 11 / 12, "feedback": 0}
    branches = found.branches
    loads = {"g": 4 / 12, "dh": 3 / 12, "W": 2 / 12, "b_next": 2 / 12, "gh": 1 / 12}
    assert shown(known.loads, branches["load"]) == pytest.approx(loads)
    functions = {"norm": 2 / 11, "noise": 5 / 11, "statistic": 4 / 11}
    assert shown(known.functions, branches["function"]) == pytest.approx(functions)
    combines = {"": 5 / 12, "@": 2 / 12, "add": 3 / 12, "mul": 2 / 12}
    assert shown(known.combines, branches["combine"]) == pytest.approx(combines)
    # As many entries as the value has; as averages of X, Y and Z have.
    assert branches["draw"] == pytest.approx((3 / 5, 1 / 5, 1 / 5, 0))
    assert shown([u.name for u in known.noisy], branches["noise"]) == {"add_noise": 0.2, "mul_noise": 0.4, "drop": 0.4}
    # All entries, columns of X, Y, Z, K and F, their rows; of each a sum and a maximum.
    lines = ["elem", *(f"{axis} {base}" for axis in ("col", "row") for base in rules.types.BASES)]
    reductions = [f"{kind} {line}" for line in lines for kind in ("sum", "max")]
    assert shown(reductions, branches["reduce"]) == {"max col X": 0.5, "sum row K": 0.5}
    assert shown(lines, branches["divide"]) == {"col X": 0.5, "row K": 0.5}
    assert branches["moments"] == branches["statistic"] == (0.75, 0.25, 0, 0)  # of X, Y, Z, K
    assert branches["mirror"] == (0.5, 0.5) and branches["multiply"] == (0, 1, 0, 0)
    assert branches["compute_gh"] == (pytest.approx(0.2), 0.8) and branches["compute_dfah"] == (1, 0)


def test_a_statistic_of_what_has_r_l_s_type_is_counted_as_feedback():
    made = program("drop(g, 0.5) * mul_noise(dh, 0.1)")
    made = dataclasses.replace(made, feedback=np.array([1, 0, 0, 0, 0, 0]))
    assert sample.habits([made]).turns["feedback"] == 0.5


def test_a_sample_of_zero_signals_takes_no_branch():
    found = sample.habits([rules.blank_program()] * 2)
    assert found.turns == {"instructions": 0, "functions": 0, "feedback": 0}
    assert not any(share for name, shares in found.branches.items() if "compute" not in name for share in shares)


def test_a_group_has_equations_in_their_order_and_what_is_left_over_is_dropped():
    equations = [rules.parse(text).to_equation(3) for text in ("g", "dh", "gh", "h", "hp")]
    groups = sample.groups(equations, 2)
    loads = [[rules.program.codes().loads[q.load[0]] for q in group] for group in groups]
    assert loads == [["g", "dh"], ["gh", "h"]]


def test_what_kernels_move_by_hand():
    """The first has two norms, so three passes, each of which takes its mean; the second has one pass and a mean; the third
    needs a product, which kernels do not take."""
    texts = ["unit_fro(mean(g)) * unit_fro(dh)", "g + mean(dh)", "(W @ b_next.T).T * dh"]
    found = sample.kernels([program(t) for t in texts])
    assert stored() == ["R_L", "hp", "h", "b_L", "gh", "fah", "dh"] and PASSES == 4  # g is made of gh and dh
    row = 1 / 10  # of the state
    expected = {
        "rule": Parts([1, 1, 1, (3 + 1) / 2, 0, 0, 0, 0, (3 + 1) / 2, 0, (3 + 1) / 2], [1, 1]),
        # Loads: g; g and dh.
        "rule_pass_0": Parts([1] * 5 + [row, 0, 0, 0, 0, 1, 0, (1 + 2) / 2], [0.5, 1, row / 2]),
        # g and dh; nothing.
        "rule_pass_1": Parts([1] * 5 + [row / 2, 0, 0, 0, 0, 0.5, 0, 1, 0, 0], [0, 0.5, 0]),
        "rule_pass_2": Parts([1] * 5 + [row / 2, 0, 0, 0, 0, 0.5, 0, 1, 0, 0], [0.5, 0.5, row / 2]),
        "rule_pass_3": Parts([1] * 5 + [0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0]),
        "rule_norm_0": Parts([1, 1, 0.5, 0], [0.5 / 4]),
        "rule_norm_1": Parts([1, 1, 0.5, 0], [0.5 / 4]),
        "rule_norm_2": Parts([1, 1, 0, 0], [0]),
    }
    assert list(found) == list(expected)
    for name, parts in expected.items():
        assert found[name].operands == pytest.approx(parts.operands), name
        assert found[name].results == pytest.approx(parts.results), name
    assert sample.kernels([program(texts[2])]) == {}


def test_every_decision_of_the_interpreter_is_known_by_its_scope(units):
    """What one run decides, counted by hand from the listing of the program."""
    steps = units["conv_same"]
    rule = InterpretedRule(program("unit_fro(g) + (0.5*g)"))  # 0 load g, norm; 1 load g, affine, add
    unit, state = steps.unit(0), rule.init(steps.shapes)

    def signal(program, values, state, key):
        return InterpretedRule(program).signal(rules.Unit(values, unit.forward, unit.backward, key), state)

    lowered = jax.jit(signal).lower(rule.program, unit.values, state, jax.random.key(0))
    counts = Account(lowered.compile().as_text()).counts(sample.habits([rule.program]))
    products, loads, functions, reductions, divisions, combines = 3, 2, 1, 1, 1, 2
    assert counts.branches == pytest.approx(products + loads + functions + reductions + divisions + combines)
    instructions, turns, feedback = 2 + 1, (1 + 1) + (0 + 1), 2 * (0 + 1)
    assert counts.turns == pytest.approx(instructions + turns + feedback)
    assert counts.guessed == 0 and counts.decisions == counts.branches + counts.turns
