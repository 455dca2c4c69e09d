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
     "clip((b_L @ R_L) + inv(h), 0.5)", "unit_row1(g.T).T",
     "unit_mat_ninf(g.T).T", "g - (-0.5*h)"],
)  # fmt: skip
def test_rules_with_noise_and_memory_give_the_same_signal_when_exported(steps, text):
    check(steps, rules.compile(text))


@hypothesis.settings(max_examples=40)
@hypothesis.given(conftest.chains())
def test_random_chains_give_the_same_signal_when_exported(equation):
    check(DENSE, rules.compile(equation))


def test_what_was_registered_cannot_be_exported():
    own = rules.Unary("half", "half({x})", "{x}/2", "x/2", fn=lambda x, c: x / 2)
    with rules.register(own), pytest.raises(ValueError, match="half was registered"):
        rules.export("half(g)")
