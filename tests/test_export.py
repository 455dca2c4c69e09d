"""An exported rule, run as text that knows only JAX, gives the signals of the rule."""

import conftest
import hypothesis
import jax
import numpy as np
import pytest

from bpevo import rules

DENSE = conftest.unit_steps((4, 5), (5, 3))
CONV = conftest.unit_steps((3, 4, 4, 2), (3, 3, 2, 3), strides=(1, 1), padding="SAME")


def run(steps, rule: rules.CompiledRule, key) -> np.ndarray:
    """The signals of the exported text over the steps of training."""
    names: dict = {}
    text = rules.export(rule)
    assert "bpevo" not in text
    exec(compile(text, "exported", "exec"), names)
    arguments = names["signal"].__kwdefaults__ or {}
    signals, state = [], None
    for step in range(conftest.STEPS):
        unit = steps.unit(step)
        given = {n: unit.values.read(n) for n in rule.reads}
        given |= {n: getattr(steps, n) for n in ("forward", "backward") if n in arguments}
        if "state" in arguments:
            given["state"] = state
        if rule.needs_noise:
            given["key"] = jax.random.fold_in(key, step)
        result = names["signal"](**given)
        signal, state = result if "state" in arguments else (result, None)
        signals.append(signal)
    return np.stack(signals)


def check(steps, rule):
    key = jax.random.key(3)
    wanted, got = steps.run(rule, key if rule.needs_noise else None), run(steps, rule, key)
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-6 * np.max(np.abs(wanted), initial=1.0))


@pytest.mark.parametrize("steps", [DENSE, CONV], ids=["dense", "convolution"])
def test_named_rules_and_table_1_give_the_same_signal_when_exported(steps):
    for text in dict.fromkeys(rules.NAMED.values()):
        check(steps, rules.compile(text))


@pytest.mark.parametrize("steps", [DENSE, CONV], ids=["dense", "convolution"])
@pytest.mark.parametrize(
    "text",
    ["add_noise(g, 0.1) + mul_noise(h, 0.5)", "drop(g, 0.3) - 10.0", "whiten(g) * bn(h)", "((h @ W) @ W.T) * std(dh)",
     "clip((b_L @ R_L) + inv(h), 0.5)", "unit_row1(g.T).T", "unit_col_inf(g.T).T", "unit_elem2(g.T).T", "unit_mat1(g.T).T",
     "unit_mat_ninf(g.T).T", "g - (-0.5*h)", "(g @ R_L.T) @ R_L", "(R_L.T @ (R_L @ g.T)).T", "whiten(mean(g)) + g",
     "b_next @ unit_row2(bn(W)).T", "(b_L / (mean(b_L) + 1.0)) @ (std(R_L) + R_L)"],
)  # fmt: skip
def test_rules_with_noise_and_memory_give_the_same_signal_when_exported(steps, text):
    check(steps, rules.compile(text))


@hypothesis.settings(max_examples=40)
@hypothesis.given(conftest.chains())
def test_random_chains_give_the_same_signal_when_exported(equation):
    check(DENSE, rules.compile(equation))


def test_what_was_registered_cannot_be_exported():
    half = rules.Unary("half", "half({x})", "{x}/2", "x/2", fn=lambda x, c: x / 2)
    rms = rules.Statistic("rms", "{x}", "root mean square", average=lambda m, var: (var + m * m) ** 0.5)
    far = rules.Binary("far", "far({x}, {y})", "{x}{y}", "distance", lambda x, y: abs(x - y))
    with rules.register(half, rms, far):
        for name, text in (("half", "half(g)"), ("rms", "g * rms(g)"), ("far", "far(g, h)")):
            with pytest.raises(ValueError, match=f"^{name} was registered, so its code cannot be exported"):
                rules.export(text)


def test_a_rule_is_what_it_is_made_of_and_a_function_cannot_be_exported():
    rule, function = rules.compile("g"), lambda u: u.g
    assert rules.compile(rule) is rule and rules.export(rule) == rules.export("g")
    own = rules.compile(function)
    assert rules.compile(own) is own
    for given in (function, own):
        with pytest.raises(ValueError, match="lambda> is a function: its own code is all that there is to export$"):
            rules.export(given)


def test_an_exported_rule_by_hand():
    """Each operand and function is computed once, in order; what is idle is left out, signs are folded."""
    _, code = rules.export("left((g - (-0.5)) / -(2.0*g), W)").split("import jax.numpy as jnp\n\n\n")
    assert (
        code
        == """\
def signal(*, W, b_next, dh, backward=lambda b, w: b @ w.T):
    gh = backward(b_next, W)
    g = gh * dh
    x1 = g + 0.5
    x2 = 2.0 * g
    x3 = -x2
    x4 = x1 * x3 / (x3 * x3 + 1e-16)
    return x4
"""
    )
    text = rules.export("(mul_noise(h @ W, 0.5) @ W.T) - std(hp)")
    assert text.startswith(
        '"""The signal b_i^p of one unit by the rule (mul_noise(h @ W, 0.5) @ W.T) - std(hp)."""\n\nimport jax\n'
    )
    arguments = "W, h, hp, forward=lambda x, w: x @ w, backward=lambda b, w: b @ w.T, key, state=None"
    assert f"\n\n\ndef signal(*, {arguments}):\n    def uniform(x, position):\n" in text
    assert text.endswith("""
        return moments[-1]

    x1 = forward(h, W)
    x2 = uniform(x1, 0)
    x3 = x1 * (1 + 0.5 * normal(x2))
    x4 = backward(x3, W)
    mean4, var4 = running(hp, samples=True)
    x5 = jnp.sqrt(var4)
    x6 = x4 - x5
    return x6, {'step': step, 'moments': moments}
""")
    assert "def normal" not in rules.export("drop(g, 0.1)") and "def uniform" not in rules.export("g")
    assert rules.export("g + 1e-05 - (sgn_W @ b_next.T).T").count("\n    sgn_W = jnp.sign(W)\n") == 1
