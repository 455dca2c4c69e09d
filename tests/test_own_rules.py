"""A Python function of a unit's values is a rule, in layers and in `evolve`; what is wrong with one is said clearly."""

import functools

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpevo
from bpevo import layers, rules

DENSE = conftest.unit_steps((4, 5), (5, 3))
CONV = conftest.unit_steps((3, 4, 4, 2), (3, 3, 2, 3), strides=(2, 2), padding="SAME")


def backprop(u):
    return u.backward(u.b_next, u.W) * u.dh


@pytest.mark.parametrize("steps", [DENSE, CONV], ids=["dense", "convolution"])
@pytest.mark.parametrize(
    "function, text",
    [
        (backprop, "g"),
        (lambda u: u.g / (jnp.sqrt(jnp.sum(u.g**2)) + 1e-8), "unit_elem2(g)"),
        (lambda u: u.backward(u.b_next, u.R) * u.dh + u.dfa, "fa + dfa"),
        (lambda u: u.backward(u.forward(u.h, u.W), u.sgn_W), "(h @ W) @ sgn_W.T"),
    ],
)
def test_a_function_gives_the_signal_of_the_equation_that_it_spells(steps, function, text):
    rule, equation = rules.FunctionRule(function), rules.compile(text)
    np.testing.assert_allclose(steps.run(rule), steps.run(equation), rtol=1e-5, atol=1e-6)
    assert rule.reads == equation.reads and not rule.needs_noise


def test_it_is_the_unit_map_of_a_dense_layer_that_at_writes():
    rule = rules.FunctionRule(lambda u: (u.b_next @ u.W.T) * u.dh)
    np.testing.assert_allclose(DENSE.run(rule), DENSE.run(rules.compile("g")), rtol=1e-6)


def network(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["out"]


def evolved_gradient(rule):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"hidden": jax.random.normal(keys[0], (3, 4)), "out": jax.random.normal(keys[1], (4, 2))}
    x = jax.random.normal(keys[2], (5, 3))
    net = bpevo.evolve(network, rule)
    state = net.init(jax.random.key(1), params, x)
    return jax.grad(lambda p, s: jnp.mean(net(p, s, x) ** 2), (0, 1))(params, state)


def test_evolve_and_layers_take_a_function():
    got, wanted = evolved_gradient(lambda u: backprop(u))[0], evolved_gradient("g")[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, wanted)
    assert np.any(evolved_gradient(lambda u: 0 * u.g)[0]["hidden"] != wanted["hidden"])
    layer, x = layers.Dense(3, rule=lambda u: 2 * u.g), jnp.ones((2, 4))
    variables = layer.init(jax.random.key(0), x)
    double = jax.grad(lambda x: jnp.sum(layer.apply(variables, x)))(x)
    plain = jax.grad(lambda x: jnp.sum(layers.Dense(3).apply(variables, x)))(x)
    np.testing.assert_allclose(double, 2 * plain, rtol=1e-6)


def test_a_function_that_reads_the_key_gets_fresh_noise_each_step():
    def noisy(u):
        return u.g + jax.random.normal(u.key, u.g.shape)

    assert rules.FunctionRule(noisy).needs_noise
    first, state = evolved_gradient(noisy)
    again, _ = evolved_gradient(noisy)
    np.testing.assert_array_equal(first["hidden"], again["hidden"])
    assert state  # the source of noise


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda u: u.W, r"returned an array of the shape \[3, 4\], but the signal has that of hp, \[2, 3\]"),
        (lambda u: 0.0, "must return an array in the shape of hp"),
        (lambda u: u.gradient, "a unit has no 'gradient'; it has W"),
        (lambda u: u.b_next @ u.W, "cannot be computed for a dense unit"),
    ],
)
def test_a_function_that_is_no_rule_is_refused_with_the_reason(function, message):
    with pytest.raises(ValueError, match=message):
        evolved_gradient(function)


def test_what_a_function_reads_is_found_once_on_a_small_dense_unit_and_its_result_is_float32():
    seen = []

    def counted(u):
        seen.append((u.hp.shape, u.hp_next.shape, u.b_L.shape, u.W.shape, u.R_L.shape))
        return (u.hp > 0) | (u.dh > 0)

    rule = rules.FunctionRule(counted)
    assert rule.reads == rule.reads == {"hp", "hp_next", "b_L", "W", "R_L", "dh"}
    assert seen == [((2, 3), (2, 4), (2, 5), (3, 4), (5, 3))]
    assert str(rule).endswith("counted") and not rule.equation_is_data and rule.init(DENSE.shapes) == {}
    signal, state = rule.signal(DENSE.unit(0), {})
    assert signal.dtype == jnp.float32 and state == {}
    assert str(rules.FunctionRule(functools.partial(counted))) == "partial"
    keyed = rules.FunctionRule(lambda u: u.h + jax.random.uniform(u.key))
    assert keyed.reads == {"h"} and keyed.needs_noise


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda u: 0.0, r"ValueError: the rule .* must return an array in the shape of hp, \[2, 3\], not float$"),
        (
            lambda u: u.b_L,
            r"returned an array of the shape \[2, 5\], but the signal has that of hp, \[2, 3\]; products are ",
        ),
        (
            lambda u: u._unit_,
            "AttributeError: a unit has no '_unit_'; it has W, sgn_W, R, .*, dh, forward, backward and key",
        ),
    ],
)
def test_what_is_wrong_with_a_function_is_said_of_a_dense_unit_of_two_samples(function, message):
    begin = "^the rule .* cannot be computed for a dense unit with 2 samples, 3 inputs, 4 outputs: "
    with pytest.raises(ValueError, match=begin + f".*{message}"):
        rules.compile(function)


def test_a_product_by_at_in_a_convolution_is_refused_with_both_shapes():
    with pytest.raises((ValueError, TypeError), match="shape"):
        CONV.run(rules.FunctionRule(lambda u: (u.b_next @ u.W.T) * u.dh))
