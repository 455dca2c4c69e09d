"""Equations as data agree with specialised ones: inside jit and scan, and mapped over stacked programs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import STEPS, chains
from hypothesis import assume, example, given, settings

from bpevo import rules
from bpevo.layers.unit import Weights, unit
from bpevo.rules import NAMED, InterpretedRule

KEY = jax.random.key(5)


def equation(text: str) -> rules.Equation:
    return rules.resolve(text).to_equation()


@functools.cache
def interpreter(geometry: str):
    """program -> signals of all steps; one compiled function for every equation."""

    def run(steps, program, key):
        rule = InterpretedRule(program)

        def step(state, inputs):
            index, values = inputs
            signal, state = rule.signal(steps.unit_of(values, jax.random.fold_in(key, index)), state)
            return state, signal

        return jax.lax.scan(step, rule.init(steps.shapes), (jnp.arange(STEPS), steps.values))[1]

    compiled = {}

    def call(steps, equation):
        if geometry not in compiled:
            compiled[geometry] = jax.jit(functools.partial(run, steps))
        return np.asarray(compiled[geometry](rules.assemble(equation), KEY))

    return call


def assert_interpreted_agrees(units, geometry, equation):
    """To rounding; equations that blow rounding up, as the sign of what should be zero does, are passed over."""
    steps, rule = units[geometry], rules.compile(equation)
    expected = steps.run(rule, KEY)
    assume(np.isfinite(expected).all())
    scale = np.abs(expected).max()
    sensitivity = np.abs(steps.run(rule, KEY, perturbed=1e-5) - expected).max()
    assume(sensitivity <= 3e-3 * scale)
    actual = interpreter(geometry)(steps, equation)
    assert actual.shape == expected.shape and actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3 * sensitivity + 2e-5 * scale, err_msg=str(equation))


@given(chains())
@example(equation("bn(g) + mean(dh)"))
@example(equation("(whiten(g @ R_L.T) @ R_L) * std(dh)"))
@example(equation("(whiten(drop(R_L, 0.3) + R_L) @ g.T).T @ R_L"))  # memory of a value of R_L's type
@example(equation("(add_noise(mean(b_next), 0.5) @ W.T) * dh"))
@settings(max_examples=70)
def test_interpreted_chains_agree_with_compiled_ones_on_a_dense_unit(units, chain):
    assert_interpreted_agrees(units, "dense", chain)


@given(chains())
@settings(max_examples=30)
def test_interpreted_chains_agree_with_compiled_ones_on_a_convolution(units, chain):
    assert_interpreted_agrees(units, "conv_stride_2", chain)


@pytest.mark.parametrize("geometry", ["dense", "pooled", "conv_stride_2"])
def test_interpreted_named_rules_agree_with_compiled_ones(units, geometry):
    for name in sorted(set(NAMED.values())):
        steps, expected = units[geometry], units[geometry].run(rules.compile(name), KEY)
        actual = interpreter(geometry)(steps, equation(name))
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max(), err_msg=name)


# Inside a layer, mapped over stacked programs.


def layer_signals(steps, program):
    """Signals of the unit's custom_vjp over the steps, its state carried as "gradients" of the state."""
    rule = InterpretedRule(program)

    def step(state, inputs):
        index, values = inputs
        hp, b_next, b_l, w = (values[name] for name in ("hp", "b_next", "b_L", "W"))
        constants = {name: values[name] for name in ("R", "S", "R_L")}

        def loss(hp, state):
            key = jax.random.fold_in(KEY, index)
            carrier = jnp.zeros(b_l.shape)
            y, carrier = unit(
                steps.linear, jax.nn.relu, "unit", rule, hp, carrier, Weights(w, None), constants, state, key
            )
            return jnp.sum(y * b_next) + jnp.sum(carrier * b_l)

        signal, state = jax.grad(loss, (0, 1))(hp, state)
        return state, signal

    return jax.lax.scan(step, rule.init(steps.shapes), (jnp.arange(STEPS), steps.values))[1]


def test_stacked_programs_of_different_equations_run_side_by_side_in_a_layer(units):
    steps = units["dense"]
    texts = ["g", "bn(gh) + mean(dh)", "whiten(add_noise(g, 0.1) + mean(h))"]
    texts += ["(unit_col2(W) @ b_next.T).T / drop(dh, 0.1)"]
    texts += ["(g @ R_L.T) @ R_L", "left(left(dfa, W), whiten(R_L)) * unit_mat1(std(gh))"]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(rules.assemble(equation(t)) for t in texts))
    mapped = jax.jit(jax.vmap(functools.partial(layer_signals, steps)))
    signals = np.asarray(mapped(stacked))
    assert signals.shape == (len(texts), STEPS, *steps.shapes.X)
    for text, signal in zip(texts, signals, strict=True):
        np.testing.assert_allclose(signal, steps.run(rules.compile(text), KEY), rtol=1e-4, atol=1e-5, err_msg=text)
    reverse = mapped(jax.tree.map(lambda x: x[::-1], stacked))
    np.testing.assert_array_equal(signals, reverse[::-1])  # bit by bit: neighbours and places do not matter


def test_blank_program_is_a_zero_signal(units):
    steps = units["dense"]
    rule = InterpretedRule(rules.blank_program())
    signal, _ = rule.signal(steps.unit(0, KEY), rule.init(steps.shapes))
    np.testing.assert_array_equal(signal, np.zeros(steps.shapes.X))


def test_assembling_an_infeasible_genome_is_refused():
    genome = equation("(b_next @ W.T) * dh")
    with pytest.raises(rules.InfeasibleEquation, match=r"\[B, O\]"):
        InterpretedRule.of(dataclasses.replace(genome, unary=np.zeros_like(genome.unary)))
    rule = InterpretedRule.of(genome)
    assert rule.reads == {"hp", "h", "dh", "hp_next", "b_next", "b_L", "W", "R", "S", "R_L"}
    assert rule.needs_noise and rule.equation_is_data and not rules.compile(genome).equation_is_data


def test_genes_that_left_ignores_become_no_instruction():
    assert rules.assemble(equation("left(g, whiten(W))")).length == rules.assemble(equation("g")).length == 1
    assert list(rules.assemble(equation("left(g, whiten(dfa))")).uses) == [1, 0, 0]


PRINTED = {
    "(unit_col2(sgn_W) @ b_next.T).T * dh": """
0 load sgn_W, norm order=2 axis=col
1 load b_next, @ YK mirrored
2 load dh, mul""",
    "(b_next @ W.T) * dh": """
0 load b_next
1 load W, @ YK
2 load dh, mul""",
    "left(g, whiten(W))": """
0 load g""",
    "drop(bn(dfa) + whiten(g), 0.3) * relu(std(dh))": """
0 load dfa, bn row=0
1 load g, whiten row=1, add
2 load accumulator, drop constant=0.3 number=0
3 load dh, std row=2, affine low=0.0, mul""",
    "min(unit_mat_inf(g), 0.5*std(dh))": """
0 load g, norm order=1 axis=row largest
1 load dh, std row=0, affine scale=0.5, min""",
    "b_next @ bn(S).T": """
0 load b_next
1 load zeros, @ YK""",
    "b_next @ mean(R).T": """
0 load b_next
1 load R, @ YK""",
    "unit_mat_ninf(g) - unit_mat1(h)": """
0 load g, norm order=1 axis=row smallest
1 load h, norm order=1 axis=col largest, sub""",
    "unit_col1(g.T).T": """
0 load g
1 load accumulator, norm order=1 axis=row""",
    "unit_mat1(g.T).T": """
0 load g
1 load accumulator, norm order=1 axis=row largest""",
    "unit_elem_ninf(g.T).T": """
0 load g
1 load accumulator, norm order=ninf axis=elem""",
    "clip(g, 0.5) + (h - 10.0)": """
0 load g, affine low=-0.5 high=0.5
1 load h, affine shift=-10.0, add""",
    "abs(g) * (-h)": """
0 load g, affine absolute=1.0
1 load h, affine scale=-1.0, mul""",
    "drop(g, 0.1) + mul_noise(h, 0.5)": """
0 load g, drop constant=0.1 number=0
1 load h, mul_noise constant=0.5 number=1, add""",
    "sgn(bn(hp)) + mean(g)": """
0 load hp, bn row=0, sgn
1 load g, mean row=1, add""",
    "(whiten(drop(R_L, 0.3) + R_L) @ g.T).T @ R_L": """
0 load R_L, drop constant=0.3 number=0
1 load R_L, add
2 load accumulator, whiten row=0
3 load g, @ XF mirrored
4 load R_L, @ ZF""",
}


@pytest.mark.parametrize("text", PRINTED)
def test_programs_print_an_instruction_a_line(text):
    assert "\n" + str(rules.assemble(equation(text))) == PRINTED[text]


def test_a_function_knows_the_type_of_its_argument_and_whether_it_is_an_average():
    """Types are X, Y, Z, K, F; an average stays one only among averages."""
    for text, bases, averages in (
        ("whiten(mean(h) + g) + g", [0, 0, 0, 0], [0, 0, 0, 0]),
        ("whiten(mean(h) + std(g)) + g", [0, 0, 0, 0], [0, 0, 1, 0]),
        ("(whiten(mean(b_next) @ W.T) + sgn(mean(gh))) + g", [1, 0, 0, 0, 0], [0, 0, 1, 0, 0]),
        ("(unit_row2(b_L) @ R_L) * sgn(bn(h))", [2, 0, 0], [0, 0, 0]),
        ("(unit_col2(W) @ b_next.T).T + g", [3, 0, 0], [0, 0, 0]),
        ("(drop(R_L, 0.1) @ g.T).T @ R_L", [4, 0, 0], [0, 0, 0]),
    ):
        program = rules.assemble(equation(text))
        count = int(program.length)
        assert program.base[:count, 0].tolist() == bases and program.average[:count, 0].tolist() == averages, text
    mean = rules.assemble(equation("unit_row1(mean(h)) + g"))  # the mean is of h, the norm of the mean
    assert mean.average[0].tolist() == [0, 1] and mean.detail[0].tolist() == [[0, 0, 0], [1, 2, 0]]


def test_blank_programs_say_what_they_are():
    assert str(rules.blank_program()) == "no instruction: a zero signal"
