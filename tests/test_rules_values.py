"""What compiled rules compute, against an independent float64 oracle, on dense and convolutional units."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from conftest import ALL_OPERANDS, GEOMETRIES, STEPS, unit_steps

from bpevo import rules
from bpevo.rules import BINARIES, NAMED, UNARIES, InfeasibleEquation, statistics
from bpevo.rules.expression import BinaryNode, OperandNode, UnaryNode

NOISES = {name for name, u in UNARIES.items() if u.noisy}


def assert_agrees(actual, expected):
    assert np.shape(actual) == expected.shape and np.asarray(actual).dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max() + 1e-6)


def assert_first_step_agrees(unit, expression):
    rule = rules.compile(expression)
    signal, _ = rule.signal(unit.unit(0), rule.init(unit.shapes))
    assert_agrees(signal, oracle.Rule(str(expression))(unit.oracle(0)))


# One component at a time.


def t(x):
    return UnaryNode("transpose", x)


def contexts(u):
    """The unary function `u` on a value of every type, in an equation that should be feasible."""
    o = {name: OperandNode(name) for name in rules.OPERANDS}
    mean = {name: OperandNode(name, "mean") for name in rules.OPERANDS}

    def product(x, y):
        return BinaryNode("matmul", x, y)

    def spread(x):
        return BinaryNode("mul", o["dh"], x)

    yield u(o["g"])
    yield u(t(o["g"]))
    yield t(u(t(o["g"])))
    yield product(u(o["hp_next"]), t(o["W"]))
    yield t(product(o["W"], u(t(o["hp_next"]))))
    yield product(u(o["b_L"]), o["R_L"])
    yield t(product(t(o["R_L"]), u(t(o["b_L"]))))
    yield product(o["b_next"], t(u(o["W"])))
    yield product(o["b_next"], u(t(o["W"])))
    yield product(o["b_next"], u(o["W"]))
    yield product(o["b_L"], u(o["R_L"]))
    yield product(o["b_L"], t(u(t(o["R_L"]))))
    yield spread(u(mean["g"]))
    yield spread(t(u(t(mean["g"]))))
    yield spread(product(u(mean["b_next"]), t(o["W"])))
    yield spread(product(u(mean["b_L"]), o["R_L"]))
    yield BinaryNode("matmul", product(u(o["gh"]), u(o["W"])), t(o["S"]))


@pytest.mark.parametrize("geometry", ["dense", "conv_stride_2"])
@pytest.mark.parametrize("name", [name for name in UNARIES if name not in NOISES])
def test_every_unary_computes_the_papers_function_on_every_type(units, geometry, name):
    feasible, constant = 0, (*UNARIES[name].constants, 0.0)[0]
    for expression in contexts(lambda x: UnaryNode(name, x, constant)):
        try:
            expression.check()
        except InfeasibleEquation:
            continue
        feasible += 1
        assert_first_step_agrees(units[geometry], expression)
    assert feasible >= (2 if name == "transpose" else 14)


@pytest.mark.parametrize("geometry", ["dense", "conv_stride_2"])
@pytest.mark.parametrize("operand", ALL_OPERANDS, ids=str)
def test_every_operand_has_the_papers_value(units, geometry, operand):
    base = operand.type.base
    whole = {
        "X": operand,
        "Y": BinaryNode("matmul", operand, t(OperandNode("S"))),
        "Z": BinaryNode("matmul", operand, OperandNode("R_L")),
        "K": BinaryNode("matmul", OperandNode("b_next"), t(operand)),
        "F": BinaryNode("matmul", OperandNode("b_L"), operand),
    }[base]
    expression = BinaryNode("add", OperandNode("dh"), whole)
    rule, state = rules.compile(expression), rules.compile(expression).init(units[geometry].shapes)
    reference = oracle.Rule(str(expression))
    for step in range(STEPS):
        signal, state = rule.signal(units[geometry].unit(step), state)
        assert_agrees(signal, reference(units[geometry].oracle(step)))


BINARY_TEXTS = [
    *(pair.replace(",", sign) for sign in "+-*/" for pair in ("gh , hp", "g , mean(h)", "mean(h) , g", "g , dh")),
    *(f"{name}(gh, hp)" for name in ("min", "max", "left")),
    *(f"((b_L {sign} {second}) @ R_L) * dh" for sign in "+-*/" for second in ("mean(b_L)", "b_L")),
    *(f"b_next @ (W {sign} R).T" for sign in "+-*/"),
    *(f"(g.T {sign} mean(h).T).T" for sign in "+-*/"),
    "b_next @ max(W, S).T",
    "b_next @ W.T",
    "(W @ b_next.T).T",
    "(h @ W) @ R.T",
    "((W.T @ h.T).T @ R.T) + ((mean(h) @ W) @ R.T)",
    "b_L @ R_L",
    "(R_L.T @ b_L.T).T",
    "(g @ R_L.T) @ R_L",
    "(R_L.T @ (R_L @ g.T)).T",
    "dh * ((mean(g) @ R_L.T) @ R_L)",
    "left(g, b_next)",
]


@pytest.mark.parametrize("geometry", ["dense", "conv_stride_2"])
def test_every_binary_computes_the_papers_function_on_every_type(units, geometry):
    used = set()
    for text in BINARY_TEXTS:
        expression = rules.parse(text)
        used |= {node.name for node in expression.walk() if isinstance(node, BinaryNode)}
        assert_first_step_agrees(units[geometry], expression)
    assert used == set(BINARIES)


def test_division_by_zero_is_zero_and_norms_of_zero_give_zero(units):
    unit = units["dense"]
    for text in ("g / (h - h)", "inv(g - g)", "unit_fro(g - g)", "unit_col_ninf(g - g)", "unit_row0(g - g)"):
        np.testing.assert_array_equal(unit.run(rules.compile(text)), 0)
    zero = unit.run(rules.compile("inv(relu(hp))"))
    np.testing.assert_array_equal(zero[unit.values["h"] == 0], 0)
    np.testing.assert_allclose(zero[unit.values["h"] > 0], 1 / unit.values["h"][unit.values["h"] > 0], rtol=1e-5)


# Noise.


@pytest.fixture(scope="module")
def wide():
    """A dense unit with 100 x 64 values of hp."""
    return unit_steps((100, 64), (64, 2), classes=2, seed=3)


def noisy(unit, text, seed=0):
    return unit.run(rules.compile(text), jax.random.key(seed))


@pytest.mark.parametrize("c", UNARIES["add_noise"].constants)
def test_additive_noise_is_normal_with_its_deviation(wide, c):
    noise = (noisy(wide, f"add_noise(gh, {c})") - noisy(wide, "gh")) / c
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert abs((noise**3).mean()) < 0.1 and abs((noise**4).mean() - 3) < 0.3


def test_noise_is_finite_at_both_ends_of_what_is_drawn():
    ends = jnp.array([0.0, 1 - 2**-24])
    for name in ("add_noise", "mul_noise"):
        changed = UNARIES[name].fn(jnp.ones(2), 1.0, ends)
        assert np.isfinite(changed).all() and 4 < changed[1] - changed[0] < 12


@pytest.mark.parametrize("c", UNARIES["mul_noise"].constants)
def test_multiplicative_noise_scales_by_a_normal_around_one(wide, c):
    noise = (noisy(wide, f"mul_noise(hp, {c})") / noisy(wide, "hp") - 1) / c
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    np.testing.assert_array_equal(noisy(wide, f"mul_noise(h, {c})")[wide.values["h"] == 0], 0)


@pytest.mark.parametrize("d", [*UNARIES["drop"].constants, 0.0, 0.9])
def test_dropout_drops_its_share_and_rescales_the_rest(wide, d):
    dropped, whole = noisy(wide, f"drop(hp, {d})"), noisy(wide, "hp")
    kept = dropped != 0
    assert abs((~kept).mean() - d) < 0.012
    np.testing.assert_allclose(dropped[kept], whole[kept] / (1 - d), rtol=1e-5)


@pytest.mark.parametrize("text", ["add_noise(g, 0.5)", "mul_noise(g, 0.5)", "drop(g, 0.3)"])
def test_noise_is_a_function_of_the_key_and_the_position(wide, text):
    first = noisy(wide, text)
    np.testing.assert_array_equal(first, noisy(wide, text))
    assert (first != noisy(wide, text, seed=1)).mean() > 0.2
    assert (noisy(wide, f"{text} - {text}") != 0).mean() > 0.2
    noise = noisy(wide, f"{text} - g")  # fresh each step: steps have keys of their own
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05


def test_noise_on_an_average_is_one_row(wide):
    for text in ("(g - g) + add_noise(mean(h), 1.0)", "(g - g) + (drop(mean(h), 0.3))"):
        rows = noisy(wide, text)
        np.testing.assert_allclose(rows, np.broadcast_to(rows[:, :1], rows.shape), atol=1e-6)
        assert (rows[0, 0] != noisy(wide, "(g - g) + mean(h)")[0, 0]).any()


# Whole rules over successive steps.

WITH_STATISTICS = [
    "whiten(g) + dh",
    "bn(g) * dh",
    "((mean(gh) + std(hp)) * g) - mean(h)",
    "(b_next @ bn(W).T) * dh",
    "(b_next @ std(W).T) + whiten(bn(hp))",
    "whiten(W @ b_next.T).T",
    "bn(b_next) @ W.T",
    "(bn(b_L) @ R_L) * dh",
    "whiten(mean(g)) + g",
    "(mean(b_next) @ mean(W).T) + g",
    "(std(hp_next) @ W.T) * g",
    "unit_row_inf(bn(hp)) + g",
    "whiten(whiten(hp))",
    "b_next @ (mean(S) - std(R)).T",
    "b_L @ (mean(R_L) + bn(R_L))",
    "(whiten(g @ R_L.T) @ R_L) * std(dh)",
    "left(bn(h), std(W)) - (0.5*bn(h))",
    "(unit_col2(sgn_W) @ whiten(b_next).T).T * dh",
]
SUCCESSIVE = sorted({text for text in NAMED.values() if not any(n in text for n in NOISES)}) + WITH_STATISTICS


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_rules_agree_with_the_oracle_over_three_steps(units, geometry):
    unit = units[geometry]
    for text in SUCCESSIVE:
        reference = oracle.Rule(text)
        expected = np.stack([reference(unit.oracle(step)) for step in range(STEPS)])
        try:
            assert_agrees(unit.run(rules.compile(text)), expected)
        except AssertionError as error:
            raise AssertionError(f"{text}: {error}") from None


def test_trees_and_chains_of_the_same_rule_agree(units):
    for chain, tree in (
        (NAMED["frsf"], "(b_next @ (abs(R) * sgn_W).T) * dh"),
        ("g", "(b_next @ W.T) * dh"),
        ("fa", "(b_next @ R.T) * dh"),
        ("dfa", "(b_L @ R_L) * dh"),
    ):
        for unit in units.values():
            one, other = (unit.run(rules.compile(text)) for text in (chain, tree))
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_statistics_belong_to_a_position_not_to_an_operand(units):
    rule = rules.compile("bn(g) + (bn(g) * mean(g))")
    state = rule.init(units["dense"].shapes)
    assert [m.shape for m in state["m"]] == [(1, 4)] * 3
    assert [m.shape for m in rules.compile("b_next @ bn(W).T").init(units["conv_same"].shapes)["m"]] == [(3, 3, 2, 3)]
    assert rules.compile("left(g, bn(h))").init(units["dense"].shapes) == {}


def test_first_step_uses_exactly_its_own_batch():
    """Else a feature that is the same in all samples would come out of bn as rounding noise of order one."""
    for weigh in (statistics.weight_of_step, jax.jit(statistics.weight_of_step)):
        assert weigh(jnp.float32(1)) == 1
        for step in (2, 3, 50):
            np.testing.assert_allclose(weigh(jnp.float32(step)), 0.1 / (1 - 0.9**step), rtol=1e-6)
    unit = unit_steps((4, 3), (3, 2))
    unit.values["dh"][:] = 1
    for text in ("bn(dh)", "sgn(bn(dh))", "(g - g) + std(dh)"):
        np.testing.assert_array_equal(unit.run(rules.compile(text)), 0)
    np.testing.assert_array_equal(unit.run(rules.compile("(g - g) + mean(dh)")), 1)


def test_running_statistics_are_those_of_bias_corrected_averages(units):
    unit = units["dense"]
    x = unit.values["hp"].astype(np.float64)
    weights = 0.1 * 0.9 ** np.arange(STEPS)[::-1] / (1 - 0.9**STEPS)
    m = np.tensordot(weights, x.mean(1), 1)
    v = np.tensordot(weights, (x**2).mean(1), 1)
    for text, expected in (
        ("(g - g) + mean(hp)", m + 0 * x[-1]),
        ("(g - g) + std(hp)", np.sqrt(v - m**2) + 0 * x[-1]),
        ("bn(hp)", (x[-1] - m) / np.sqrt(v - m**2)),
        ("whiten(hp)", (x[-1] - m) / np.sqrt(v)),
    ):
        np.testing.assert_allclose(unit.run(rules.compile(text))[-1], expected, rtol=1e-4, atol=1e-6)


def test_the_matrix_of_every_type_by_hand():
    """Rows and columns of a convolution's values, and of a feedback whose loss gradient has positions."""
    conv = rules.UnitShapes((2, 4, 5, 3), (2, 2, 3, 7), (2, 10), (3, 3, 3, 7))
    assert conv.F == (10, 4, 5, 3) and {base: conv.matrix(base) for base in "XYZKF"} == {
        "X": (2, 60), "Y": (2, 42), "Z": (2, 10), "K": (27, 7), "F": (10, 60),
    }  # fmt: skip
    assert rules.UnitShapes((2, 6, 3), (2, 6, 4), (2, 6, 10), (3, 4)).F == (10, 3)


def test_a_state_that_nobody_handed_on_starts_afresh_and_of_three_uses_the_mean_counts():
    for summed, number in ((0.0, 1), (-1.0, 1), (0.5, 0.5), (3.0, 3)):
        assert statistics.uses({"uses": jnp.float32(summed)}) == number
    m, var = statistics.update(2.0, 3.0, 6.0, 8.0, 0.25)  # of mean 2 and variance 3 a quarter of the way to 6 and 8
    assert (m, var) == (3.0, 0.75 * (3 + 0.25 * 16) + 0.25 * 8)
    rule, unit = rules.compile("mean(hp) + dh"), unit_steps((4, 3), (3, 2))
    _, state = rule.signal(unit.unit(0), rule.init(unit.shapes))
    assert (state["step"], state["uses"]) == (1, 1)
    thrice = jax.tree.map(lambda x: 3 * x, state)
    for one, other in zip(*(jax.tree.leaves(rule.signal(unit.unit(1), s)) for s in (state, thrice)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_norm_has_an_epsilon_of_1e_8_added():
    unit = unit_steps((4, 3), (3, 2))
    unit.values["hp"] = np.sign(unit.values["hp"]) * np.float32(1e-8)
    halves = unit.values["hp"] * 5e7
    for norm in ("elem_inf", "elem_ninf", "row_inf", "col_ninf"):
        np.testing.assert_allclose(unit.run(rules.compile(f"unit_{norm}(hp)")), halves, rtol=1e-5)


def test_running_deviation_does_not_cancel_far_from_zero():
    unit = unit_steps((8, 3), (3, 2))
    spread = unit.values["hp"].copy()
    unit.values["hp"] = (spread + 3000).astype(np.float32)
    x = unit.values["hp"].astype(np.float64)
    np.testing.assert_allclose(unit.run(rules.compile("(g - g) + std(hp)"))[0, 0], x[0].std(0), rtol=1e-2)
