"""Extension points: each is extended here without touching the package, and what was added trains and is searched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import STEPS, unit_steps

from bpevo import layers, models, rules
from bpevo.evolution import Proposal, SameFunction, SearchSpace
from bpevo.evolution.space import feasible
from bpevo.rules import Affine, Binary, Operand, Statistic, Unary, parse, register

SOFTSIGN = Unary(
    "softsign", "softsign({x})", r"\operatorname{{softsign}}\left({x}\right)", "x / (1 + |x|)",
    fn=lambda x, c: x / (1 + jnp.abs(x)),
)  # fmt: skip
LEAKY = Unary(
    "leaky", "leaky({x}, {c})", r"\operatorname{{leaky}}_{{{c}}}\left({x}\right)", "x where x > 0, else c x",
    fn=lambda x, c: jnp.where(x > 0, x, c * x), constants=(0.1, 0.25), legal=(0.0, 1.0),
)  # fmt: skip
HALF = Unary("half", "half({x})", r"\frac{{1}}{{2}}\left|{x}\right|", "|x| / 2", affine=lambda c: Affine(True, 0.5))
HYPOT = Binary(
    "hypot", "hypot({x}, {y})", r"\sqrt{{{x}^2 + {y}^2}}", "root of the sum of squares", jnp.hypot, commutative=True
)
ERROR = Operand("e", r"\left(b_{i+1}^p \cdot S_i\right)", "feedback through S", formula="b_next @ S.T")
CONSTANT = Operand(
    "Q",
    "Q_i",
    "uniform random matrix",
    "K",
    draw=lambda gaussian, deviation: deviation * jax.scipy.stats.norm.cdf(gaussian),
)
RMS = Statistic(
    "rms",
    r"\operatorname{{rms}}\left({x}\right)",
    "running root mean square",
    average=lambda m, var: jnp.sqrt(var + m * m),
)
EVERYTHING = (SOFTSIGN, LEAKY, HALF, HYPOT, ERROR, CONSTANT, RMS)


def by_hand(values: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Signals of three steps of a dense unit, in float64."""
    v = {name: x.astype(np.float64) for name, x in values.items()}
    g = [v["b_next"][t] @ v["W"][t].T * v["dh"][t] for t in range(STEPS)]
    e = [v["b_next"][t] @ v["S"][t].T for t in range(STEPS)]
    weights = [0.1 * 0.9 ** np.arange(t + 1)[::-1] / (1 - 0.9 ** (t + 1)) for t in range(STEPS)]
    squares = (v["hp"] ** 2).mean(1)
    rms = [np.sqrt(weights[t] @ squares[: t + 1]) for t in range(STEPS)]
    return {
        "softsign(g)": [x / (1 + np.abs(x)) for x in g],
        "leaky(g, 0.25) + half(hp)": [
            np.where(x > 0, x, 0.25 * x) + np.abs(h) / 2 for x, h in zip(g, v["hp"], strict=True)
        ],
        "hypot(g, dh)": [np.sqrt(x**2 + d**2) for x, d in zip(g, v["dh"], strict=True)],
        "e * dh": [x * d for x, d in zip(e, v["dh"], strict=True)],
        "(g - g) + mean(e)": [
            np.tensordot(weights[t], np.stack(e[: t + 1]).mean(1), 1) + 0 * e[t] for t in range(STEPS)
        ],
        "b_next @ Q.T": [v["b_next"][t] @ v["Q"][t].T for t in range(STEPS)],
        "b_next @ rms(Q).T": [v["b_next"][t] @ np.abs(v["Q"][t]).T for t in range(STEPS)],
        "(h - h) + rms(hp)": [0 * h + r for h, r in zip(v["hp"], rms, strict=True)],
        "b_next @ bn(Q).T": [0 * x for x in g],
    }


@pytest.fixture(scope="module")
def known():
    with register(*EVERYTHING):
        yield


@pytest.fixture(scope="module")
def unit(known):
    steps = unit_steps((5, 4), (4, 3))
    q = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)
    steps.values["Q"] = np.repeat(q[None], STEPS, 0)
    return steps


@pytest.fixture(scope="module")
def interpreted(unit):
    """equation -> signals, one program for all."""

    @jax.jit
    def run(program, values):
        rule = rules.InterpretedRule(program)

        def step(state, values):
            signal, state = rule.signal(unit.unit_of(values, jax.random.key(0)), state)
            return state, signal

        return jax.lax.scan(step, rule.init(unit.shapes), values)[1]

    return lambda equation: run(rules.assemble(equation), unit.values)


def test_both_engines_compute_registered_components_as_numpy_does(unit, interpreted):
    for text, expected in by_hand(unit.values).items():
        expression = parse(text)
        assert str(expression) == text
        for actual in (unit.run(rules.compile(text)), interpreted(expression.to_equation())):
            np.testing.assert_allclose(actual, np.stack(expected), rtol=1e-4, atol=1e-5, err_msg=text)


def test_registered_components_print_in_text_latex_and_programs(known):
    expression = parse("leaky(softsign(e), 0.1)*rms(dh)")
    assert str(expression) == "leaky(softsign(e), 0.1) * rms(dh)"
    assert expression.latex == (
        r"\operatorname{leaky}_{0.1}\left(\operatorname{softsign}\left(\left(b_{i+1}^p \cdot S_i\right)\right)\right)"
        r" \odot \operatorname{rms}\left(\frac{\partial h_i}{\partial h_i^p}\right)"
    )
    lines = str(rules.assemble(parse("hypot(softsign(rms(e)) - rms(dh), g)").to_equation())).splitlines()
    assert lines == ["0 load e, rms row=0, softsign", "1 load dh, rms row=1, sub", "2 load g, hypot"]


def test_keys_spell_out_the_formula_of_a_registered_operand(known):
    assert parse("e * dh").key == parse("(b_next @ S.T) * dh").key == "(b_next @ S.T) * dh"
    assert parse("hypot(g, h)").key == parse("hypot(h, g)").key
    with register(Operand("u", "u", "", formula="unit_fro(g)"), Operand("n", "n", "", formula="unit_fro(h)")):
        assert parse("unit_fro(gh * dh) + h").key == parse("u + h").key != parse("g + h").key
        assert parse("unit_elem2(h) * g").key == parse("n * g").key


@pytest.mark.parametrize(
    "text, near", [("softsin(g)", "softsign"), ("rsm(g)", "rms"), ("Qq", "Q"), ("hypo(g, h)", "hypot")]
)
def test_suggestions_know_registered_components(known, text, near):
    with pytest.raises(rules.RuleSyntaxError, match=f"'{near}'"):
        parse(text)


def test_equal_functions_of_registered_components_are_duplicates(known):
    made, found = SameFunction(), []
    for i, text in enumerate(("e * dh", "(b_next @ S.T) * dh", "softsign(e)", "hypot(e, g)")):
        e = parse(text).to_equation()
        key = made.key(e)
        found.append(made.find(e, key))
        made.add(Proposal(id=i, equation=e, key=key))
    assert found == [None, 0, None, None]


@pytest.fixture(scope="module")
def trained(known):
    """equation -> losses of steps of a small network, one program for all."""
    net = functools.partial(models.MLP, (6,), 3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(12, 4)), jnp.float32)
    labels = jnp.arange(12) % 3

    @jax.jit
    def run(program):
        model = net(rules.InterpretedRule(program))
        variables = model.init(jax.random.key(1), x)
        feedback = variables[layers.FEEDBACK]

        def loss(params, state, key):
            collections = {"params": params, layers.OVERWRITE: state, layers.FEEDBACK: feedback}
            logits = model.apply(collections, x, rngs={"noise": key})
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))

        def step(carry, key):
            value, (gradient, state) = jax.value_and_grad(loss, (0, 1))(*carry, key)
            params = jax.tree.map(lambda p, g: p - 0.3 * g, carry[0], gradient)
            return (params, state), value

        start = variables["params"], variables[layers.OVERWRITE]
        return jax.lax.scan(step, start, jax.random.split(jax.random.key(2), 8))[1], feedback

    return lambda text: run(rules.assemble(parse(text).to_equation()))


RULES = ["softsign(g)", "leaky(g, 0.25)", "hypot(g, fa)", "e * dh", "(b_next @ Q.T) * dh", "g / rms(gh)"]


@pytest.mark.parametrize("text", RULES)
def test_networks_train_with_registered_components(trained, text):
    losses, _ = trained(text)
    assert losses[-1] < losses[0] - 0.05


def test_a_registered_constant_is_drawn_by_its_law_and_leaves_the_others_as_they_are(known):
    def constants(text):
        layer = layers.Dense(300, rules.compile(text))
        return layer.init(jax.random.key(0), jnp.zeros((2, 200)))[layers.FEEDBACK]

    q, deviation = constants("(b_next @ Q.T) * dh")["Q"], (2 / 200) ** 0.5
    assert q.shape == (200, 300) and q.min() >= 0 and q.max() <= deviation
    np.testing.assert_allclose([q.mean(), q.std()], [deviation / 2, deviation / 12**0.5], rtol=0.02)
    both = constants("fa + (b_next @ Q.T)")
    np.testing.assert_array_equal(both["Q"], q)
    np.testing.assert_array_equal(both["R"], constants("fa")["R"])


def test_a_layer_sends_down_what_the_formula_says(known):
    layer, x = layers.Dense(3, rules.compile("b_next @ Q.T")), jnp.ones((2, 4))
    variables = layer.init(jax.random.key(0), x)
    dx = jax.grad(lambda x: jnp.sum(layer.apply(variables, x) * jnp.asarray([1.0, 2.0, 3.0])))(x)
    np.testing.assert_allclose(dx[0], variables[layers.FEEDBACK]["Q"] @ np.float32([1, 2, 3]), rtol=1e-6)


def test_a_space_holds_registered_components_only_if_asked(known):
    paper, everything = SearchSpace(), SearchSpace(operands=["all"], unaries=["all"], binaries=["all"])
    assert len(paper.operands) == 17 * 4 and len(everything.operands) == 19 * 5
    new = [u for u in everything.unaries if u not in paper.unaries]
    assert [(n, round(c, 3)) for n, c in new] == [("softsign", 0.0), ("leaky", 0.1), ("leaky", 0.25), ("half", 0.0)]
    assert everything.binaries == [*paper.binaries, "hypot"]
    assert SearchSpace(operands=["rms(Q)"], unaries=["leaky:0.5"]).unaries == [("leaky", 0.5)]
    rng, seen = np.random.default_rng(0), set()
    for _ in range(1500):
        equation = everything.random(rng)
        if feasible(equation):
            text = str(equation)
            assert parse(text).to_equation() == equation
            seen |= {
                name for name in ("softsign", "leaky", "half", "hypot", "e", "Q", "rms") if name in _names(equation)
            }
    assert len(seen) == 7


def _names(equation) -> set[str]:
    names = set()
    for node in equation.to_expression().walk():
        names |= {node.name, getattr(node, "statistic", "")}
    return names
