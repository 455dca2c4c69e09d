"""Equations as data agree with specialised ones: inside jit and scan, and mapped over stacked programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIELDS, STEPS, chains
from hypothesis import assume, example, given, settings

from bpevo import rules
from bpevo.layers.unit import Feedback, Weights, unit
from bpevo.rules import InterpretedRule, NAMED

KEY = jax.random.key(5)


def equation(text: str) -> rules.Equation:
    return rules.resolve(text).to_equation()


def values_of(steps):
    return [jnp.asarray(steps.values[name]) for name in FIELDS]


@functools.cache
def interpreter(geometry: str):
    """program -> signals of all steps; one compiled function for every equation."""

    def run(steps, program, key):
        rule = InterpretedRule(program)

        def step(state, inputs):
            index, values = inputs
            signal, state = rule.signal(steps.unit_of(values, jax.random.fold_in(key, index)), state)
            return state, signal

        return jax.lax.scan(step, rule.init(steps.shapes), (jnp.arange(STEPS), values_of(steps)))[1]

    compiled = {}

    def call(steps, equation):
        if geometry not in compiled:
            compiled[geometry] = jax.jit(functools.partial(run, steps))
        return np.asarray(compiled[geometry](rules.assemble(equation), KEY))

    return call


def assert_interpreted_agrees(units, geometry, equation):
    """To rounding; equations that blow rounding up (say, the sign of what should be zero) tell nothing and are passed over."""
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
@example(equation("add_noise(mean(b_next), 0.5) @ W.T * dh"))
@example(equation("left(unit_col1(W), bn(R)).T * whiten(sgn_W).T".replace("left(unit_col1(W), bn(R)).T * whiten(sgn_W).T", "g")))
@settings(max_examples=70)
def test_interpreted_chains_agree_with_compiled_ones_on_a_dense_unit(units, chain):
    assert_interpreted_agrees(units, "dense", chain)


@given(chains())
@settings(max_examples=30)
def test_interpreted_chains_agree_with_compiled_ones_on_a_convolution(units, chain):
    assert_interpreted_agrees(units, "conv_stride_2", chain)


@pytest.mark.parametrize("geometry", ["dense", "conv_stride_2"])
def test_interpreted_named_rules_agree_with_compiled_ones(units, geometry):
    for name in sorted(set(NAMED.values())):
        steps, expected = units[geometry], units[geometry].run(rules.compile(name), KEY)
        actual = interpreter(geometry)(steps, equation(name))
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max(), err_msg=name)
