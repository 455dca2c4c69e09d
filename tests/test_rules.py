"""The language: text, types, printing, the chain genome, canonical keys, named rules."""

import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ALL_OPERANDS, ALL_UNARIES, chains
from hypothesis import example, given, settings

from bpevo import rules
from bpevo.rules import BINARIES, OPERANDS, STATISTICS, UNARIES, InfeasibleEquation, RuleSyntaxError, formulas, parse
from bpevo.rules.equation import Argument, Part
from bpevo.rules.expression import BinaryNode, OperandNode, UnaryNode
from bpevo.rules.types import BASES, SIGNAL, Type, elementwise, product

G = OperandNode("g")


# Random trees.


def numbers(name: str):
    """Legal constants of a unary function, as float32 values."""
    if not UNARIES[name].takes_constant:
        return st.just(0.0)
    low, high = UNARIES[name].legal
    high = float(np.nextafter(np.float32(high), np.float32(0)))
    legal = st.floats(float(np.float32(low)), high, width=32, allow_subnormal=False)
    return st.one_of(st.sampled_from(UNARIES[name].constants), legal).map(lambda c: float(np.float32(c)) + 0.0)


@st.composite
def unaries(draw, children):
    name = draw(st.sampled_from(sorted(UNARIES)))
    return UnaryNode(name, draw(children), draw(numbers(name)))


def untyped_trees():
    """Trees of all components, most of them infeasible."""
    return st.recursive(
        st.sampled_from(ALL_OPERANDS),
        lambda inner: st.one_of(unaries(inner), st.builds(BinaryNode, st.sampled_from(sorted(BINARIES)), inner, inner)),
        max_leaves=6,
    )


@st.composite
def trees(draw, kind: Type = SIGNAL, depth: int = 4):
    """Trees that are feasible by construction: how each function may come to the wanted type is written down here."""
    leaves = [o for o in ALL_OPERANDS if o.type == kind]
    ways = ["operand"] * bool(leaves) + ["unary", "transpose", "elementwise", "left", "product"] * (depth > 0)
    way = draw(st.sampled_from(ways)) if ways else "give up"
    if way == "operand":
        return draw(st.sampled_from(leaves))
    if way == "unary":
        name = draw(st.sampled_from(sorted(set(UNARIES) - {"transpose"})))
        return UnaryNode(name, draw(trees(kind, depth - 1)), draw(numbers(name)))
    if way == "transpose":
        return UnaryNode("transpose", draw(trees(kind.transpose(), depth - 1)))
    if way == "left":
        return BinaryNode("left", draw(trees(kind, depth - 1)), draw(trees(draw(kinds()), depth - 1)))
    if way == "elementwise":
        name = draw(st.sampled_from(["add", "sub", "mul", "div", "min", "max"]))
        pair = [kind, kind]
        if not kind.average and kind.base in "XYZ" and draw(st.booleans()):
            pair[draw(st.integers(0, 1))] = Type(kind.base, True, kind.transposed)
        return BinaryNode(name, *(draw(trees(k, depth - 1)) for k in pair))
    weight = {"Y": [("X", "K", False)], "X": [("Y", "K", True), ("Z", "F", False)], "Z": [("X", "F", True)]}
    if way == "product" and kind.base in weight:
        base, w, flip = draw(st.sampled_from(weight[kind.base]))
        pair = [Type(base, kind.average), Type(w, False, flip)]
        if kind.transposed:
            pair = [t.transpose() for t in reversed(pair)]
        return BinaryNode("matmul", *(draw(trees(k, depth - 1)) for k in pair))
    while kind.transposed or not leaves:  # no such product, or too deep: the shortest way to the type
        if kind.transposed:
            return UnaryNode("transpose", draw(trees(kind.transpose(), 0)))
        leaves = [o for o in ALL_OPERANDS if o.type == kind]
    return draw(st.sampled_from(leaves))


def kinds():
    return st.builds(Type, st.sampled_from("XYZ"), st.booleans(), st.booleans()) | st.builds(
        Type, st.sampled_from("KF"), st.just(False), st.booleans()
    )


# Components.


def latex_is_sound(latex: str) -> None:
    assert latex.count("{") == latex.count("}") and latex.count(r"\left") == latex.count(r"\right")
    assert "{x}" not in latex and "{c}" not in latex and "{y}" not in latex and "{{" not in latex.replace("{{}", "")


@pytest.mark.parametrize("operand", ALL_OPERANDS, ids=str)
def test_every_operand_prints_parses_and_has_the_type_of_the_paper(operand):
    of_kind = {"W": "K", "sgn_W": "K", "R": "K", "S": "K", "R_L": "F", "hp_next": "Y", "b_next": "Y", "b_L": "Z"}
    base = of_kind.get(operand.name, "X")
    dimensions = {"X": ("B", "I"), "Y": ("B", "O"), "Z": ("B", "C"), "K": ("I", "O"), "F": ("C", "I")}[base]
    if operand.statistic in ("mean", "std") and base in "XYZ":
        dimensions = ("1", dimensions[1])
    assert operand.type.dimensions == dimensions
    assert str(operand) == (f"{operand.statistic}({operand.name})" if operand.statistic else operand.name)
    expression = parse(f"left(g, {operand})")
    assert expression == BinaryNode("left", G, operand)
    latex_is_sound(operand.latex)
    assert OPERANDS[operand.name].latex in operand.latex and operand.latex in expression.latex
    assert OPERANDS[operand.name].doc and (not operand.statistic or STATISTICS[operand.statistic].doc)


@pytest.mark.parametrize("name, constant", ALL_UNARIES[1:])
def test_every_unary_prints_parses_and_keeps_the_shape(name, constant):
    once = UnaryNode(name, G, constant)
    expression = BinaryNode("left", G, UnaryNode(name, once, constant))
    assert parse(str(expression)) == expression
    assert parse(str(BinaryNode("mul", G, once))) == BinaryNode("mul", G, once) if name != "transpose" else True
    assert once.type == (G.type.transpose() if name == "transpose" else G.type)
    latex_is_sound(expression.latex)
    assert G.latex in once.latex and UNARIES[name].doc
    entry = UNARIES[name]
    assert sum(map(bool, (entry.fn, entry.affine, entry.norm, entry.statistic, entry.structure))) == 1
    assert entry.takes_constant == bool(entry.constants)
    assert all(entry.legal[0] <= c <= entry.legal[1] for c in entry.constants)


@pytest.mark.parametrize("name", BINARIES)
def test_every_binary_prints_and_parses(name):
    right = UnaryNode("transpose", OperandNode("W")) if name == "matmul" else OperandNode("h")
    left = OperandNode("b_next") if name == "matmul" else G
    expression = BinaryNode(name, left, right)
    assert parse(str(expression)) == expression
    latex_is_sound(expression.latex)
    assert left.latex in expression.latex and BINARIES[name].doc


OPERANDS_OF_THE_PAPER = "W sgn_W R S R_L hp h hp_next b_L b_next gh g fah fa dfah dfa dh"
UNARIES_OF_THE_PAPER = (
    "transpose inv abs neg step relu sgn sqrt ssqrt sq ssq cube scale shift add_noise mul_noise drop clip whiten "
    "unit_fro unit_mat1 unit_mat_ninf unit_mat_inf"
)


def test_tables_hold_all_components_of_the_paper():
    vector = {f"unit_{axis}{order}" for axis in ("elem", "col", "row") for order in ("0", "1", "2", "_ninf", "_inf")}
    assert set(OPERANDS) == set(OPERANDS_OF_THE_PAPER.split())
    assert set(UNARIES) == vector | set(UNARIES_OF_THE_PAPER.split())
    assert set(BINARIES) == {"add", "sub", "mul", "div", "matmul", "left", "min", "max"}
    assert set(STATISTICS) == {"mean", "std", "bn"}
    constants = {name: set(UNARIES[name].constants) for name in UNARIES if UNARIES[name].constants}
    assert constants == {
        "scale": {0.5, 2.0},
        "shift": {0.01, 0.1, 2.0, -0.01, -0.5, -10.0},
        "add_noise": {0.01, 0.1, 0.5, 1.0},
        "mul_noise": {0.01, 0.1, 0.5, 1.0},
        "drop": {0.01, 0.1, 0.3},
        "clip": {0.01, 0.1, 0.5, 1.0},
    }


@pytest.mark.parametrize("operand", [o for o in OPERANDS.values() if o.formula], ids=lambda o: o.name)
def test_formulas_of_operands_have_the_type_that_the_table_says(operand):
    assert formulas.definition(operand.name).type == Type(operand.base)
    assert formulas.reads(operand.name) <= formulas.unit_values()


def test_formulas_say_what_an_operand_is_made_of():
    assert formulas.reads("fa") == {"b_next", "R", "dh"} and formulas.reads("h") == {"h"}
    assert [o for o in OPERANDS if formulas.has_product(o)] == ["gh", "fah", "dfah"]
    assert formulas.products_of("dfa") == {"dfah"} and formulas.products_of("sgn_W") == set()
    assert [o for o in OPERANDS if formulas.is_constant(o)] == ["R", "S", "R_L"]


# Round trips.


@given(trees())
@settings(max_examples=200)
def test_parse_inverts_str(expression):
    if sum(1 for _ in expression.walk()) > 64 or len(str(expression)) > 1000:
        return
    assert expression.type == SIGNAL
    again = parse(str(expression))
    assert again == expression and hash(again) == hash(expression) and str(again) == str(expression)
    latex_is_sound(expression.latex)


@given(chains())
@settings(max_examples=120)
def test_chains_survive_text_with_their_idle_genes(equation):
    again = parse(str(equation)).to_equation()
    assert again == equation and hash(again) == hash(equation) and str(again) == str(equation)
    assert again.key == equation.key
    for ours, theirs in zip(jax.tree.leaves(equation), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype
    assert equation == equation.to_expression() and equation.latex == equation.to_expression().latex


@given(chains(max_parts=2))
@settings(max_examples=50)
def test_longer_genomes_hold_the_same_equation(equation):
    longer = equation.to_expression().to_equation(max_parts=5)
    assert longer.binary.shape == (5,) and longer.operand.shape == (5, 2)
    assert longer == equation and longer.key == equation.key and str(longer) == str(equation)


def test_genomes_padded_with_left_parts_survive_text():
    """As a search pads a known equation: idle genes that have no effect, but that mutations may wake."""
    part = Part("add", Argument(G, "unit_fro"), Argument(OperandNode("h"), "scale", 0.5))
    idle = [Argument(OperandNode("W", "std"), "whiten"), Argument(OperandNode("b_L"), "clip", float(np.float32(0.1)))]
    padded = rules.Equation.from_parts([part, *(Part("left", Argument(None), right) for right in idle)])
    assert str(padded) == "left(left(unit_fro(g) + (0.5*h), whiten(std(W))), clip(b_L, 0.1))"
    again = parse(str(padded)).to_equation()
    assert again == padded and int(again.parts) == 3
    assert again != rules.Equation.from_parts([part]) and again.key == rules.Equation.from_parts([part]).key


def test_last_left_part_prints_short_only_with_the_default_idle_gene():
    assert str(rules.Equation.from_parts([Part("left", Argument(G), Argument(G))])) == "g"
    assert str(rules.Equation.from_parts([Part("left", Argument(G, "abs"), Argument(G))])) == "abs(g)"
    assert str(rules.Equation.from_parts([Part("left", Argument(G), Argument(OperandNode("h")))])) == "left(g, h)"
    assert parse("left(g, g)").to_equation() == parse("g").to_equation()
    assert parse("unit_fro(g + h)").to_equation().to_parts() == [
        Part("add", Argument(G), Argument(OperandNode("h"))),
        Part("left", Argument(None, "unit_fro"), Argument(G)),
    ]


def test_equality_and_hash_are_structural():
    assert parse("g+h") == parse("(g) + h") != parse("h + g")
    assert len({parse("g + h"), parse("g+h"), parse("h + g")}) == 2
    assert parse("left(g, h)") != parse("g")
    assert parse("0.1*g") == parse("g*0.1") == UnaryNode("scale", G, float(np.float32(0.1)))
    a, b = parse("g + h").to_equation(), parse("h + g").to_equation()
    assert a != b and a == parse("g + h") and a != "g + h" and len({a, b, parse("g+h").to_equation()}) == 2
    assert repr(a) == "Equation('g + h')" and eval(repr(parse("-x.T".replace("x", "(g.T)")))) == parse("-g.T.T")


# The genome.


def test_equations_are_stacked_as_pytrees_without_losing_text():
    equations = [parse(t).to_equation() for t in ("g", "unit_fro(g) + (0.5*g)", "(b_next @ W.T) * dh")]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *equations)
    for i, equation in enumerate(equations):
        assert jax.tree.map(lambda leaf, i=i: leaf[i], stacked) == equation


@pytest.mark.parametrize(
    "text, node",
    [
        ("(b_next @ (abs(R) * sgn_W).T) * dh", "(abs(R) * sgn_W).T"),
        ("g + abs(sgn(g))", "abs(sgn(g))"),
        ("g * (h + dh)", "h + dh"),
    ],
)
def test_no_chain_is_refused_by_the_node_that_breaks_it(text, node):
    with pytest.raises(RuleSyntaxError, match=rf"second operand.* here it is {re.escape(node)};"):
        parse(text).to_equation(max_parts=9)


def test_too_many_parts_are_refused_by_their_number():
    assert int(parse("((g + h) + h) + h").to_equation().parts) == 3
    with pytest.raises(RuleSyntaxError, match="has 4 parts; this search allows 1 to 3"):
        parse("(((g + h) + h) + h) + h").to_equation()
    with pytest.raises(RuleSyntaxError, match="has 2 parts; this search allows 1 to 1"):
        parse("(g + h) + h").to_equation(max_parts=1)
    assert int(parse("abs(sgn(g))").to_equation().parts) == 2  # a unary over a part costs a part


# Numbers and printing.


@pytest.mark.parametrize(
    "text, printed",
    [
        ("0.1*g", "0.1*g"),
        ("g*0.1", "0.1*g"),
        ("-0.5*g", "-0.5*g"),
        ("g * -.5", "-0.5*g"),
        ("--2*g", "2.0*g"),
        ("-(0.5*g)", "-(0.5*g)"),
        ("g + 0.1", "g + 0.1"),
        ("0.1 + g", "g + 0.1"),
        ("g - 0.1", "g - 0.1"),
        ("g + -0.1", "g - 0.1"),
        ("g - -0.1", "g + 0.1"),
        ("-0.1 + g", "g - 0.1"),
        ("g - 0", "g + 0.0"),
        ("-0.0*g", "0.0*g"),
        ("1e-3*g", "0.001*g"),
        ("1e-5*g", "1e-05*g"),
        ("0.30000001192092896*g", "0.3*g"),
        ("16777216e-2*g", "167772.16*g"),
        ("1e5*g", "100000.0*g"),
        ("clip(g, 1)", "clip(g, 1.0)"),
        ("drop(g, 0)", "drop(g, 0.0)"),
        ("0*g", "0.0*g"),
        ("0e-400*g", "0.0*g"),
        ("1.1754944e-38*g", "1.1754944e-38*g"),
    ],
)
def test_numbers_fold_into_constants_and_print_shortest(text, printed):
    assert str(parse(text)) == printed and parse(printed) == parse(text)


@given(st.floats(-1e6, 1e6, width=32, allow_subnormal=False))
def test_printed_constants_are_the_shortest_digits_that_read_back(c):
    text = str(UnaryNode("scale", G, c))
    assert parse(text) == UnaryNode("scale", G, c)
    digits = re.sub(r"e.*|[-.]", "", text.removesuffix("*g")).strip("0")
    assert np.float32(f"{c:.{max(0, len(digits) - 2)}e}") != np.float32(c) or len(digits) <= 1


@pytest.mark.parametrize(
    "text, printed",
    [
        ("-g.T.T", "-g.T.T"),
        ("-(g.T.T)", "-g.T.T"),
        ("(-g).T.T", "(-g).T.T"),
        ("(-g)*h", "(-g) * h"),
        ("-g*h", "(-g) * h"),
        ("-(g*h)", "-(g * h)"),
        ("g+h*dh", "g + (h * dh)"),
        ("g-h-dh", "(g - h) - dh"),
        ("g-(h-dh)", "g - (h - dh)"),
        ("g*h/dh*h", "((g * h) / dh) * h"),
        ("b_next@W.T*dh", "(b_next @ W.T) * dh"),
        ("dh * (b_next@W.T)", "dh * (b_next @ W.T)"),
        ("0.5*g+h", "(0.5*g) + h"),
        ("0.5*(g+h)", "0.5*(g + h)"),
        ("2*0.5*g", "error"),
        ("0.5*g*2", "2.0*(0.5*g)"),
        ("(dh - 0.5) * 2.0*g", "(2.0*(dh - 0.5)) * g"),
        ("(dh - 0.5) * (2.0*g)", "(dh - 0.5) * (2.0*g)"),
        ("g + 0.5 - 0.1", "(g + 0.5) - 0.1"),
        ("min(g+h, 2*g)", "min(g + h, 2.0*g)"),
        ("abs(g + h) * dh", "abs(g + h) * dh"),
        ("(g + h).T.T", "(g + h).T.T"),
    ],
)
def test_printer_parenthesises_every_infix_child_of_an_infix(text, printed):
    if printed == "error":
        with pytest.raises(RuleSyntaxError, match="at least one operand that is no number"):
            parse(text)
    else:
        assert str(parse(text)) == printed and parse(printed) == parse(text)


def test_minus_binds_weaker_than_transpose():
    assert parse("-x.T".replace("x", "g.T")) == UnaryNode("neg", UnaryNode("transpose", UnaryNode("transpose", G)))
    assert parse("(b_next @ -W.T) * dh").left.right == UnaryNode("neg", UnaryNode("transpose", OperandNode("W")))


# Errors.


@pytest.mark.parametrize(
    "text, message, place",
    [
        ("2 - g", r"write \(-x\) \+ 2", 1),
        ("g + (2 - h)", r"write \(-x\) \+ 2", 6),
        ("g / 2", r"write .*0.5\*x for x/2", 1),
        ("1 / g", r"write inv\(x\) for 1/x", 1),
        ("g ** 2", r"write sq\(x\) or cube\(x\)", 1),
        ("+g", "write x instead of", 1),
        ("g * (+h)", "write x instead of", 6),
        ("g @ 2", r"write 2.0\*x", 1),
        ("g + True", "True is not a plain decimal number", 5),
        ("True", "True is not a plain decimal number", 1),
        ("0x10*g", "0x10 is not a plain decimal number", 1),
        ("2j*g", "2j is not a plain decimal number", 1),
        ("g + 1_000", "1_000 is not a plain decimal number", 5),
        ("1e7*g", r"must lie in \[-1000000, 1000000\]", 1),
        ("1e400*g", "must lie in", 1),
        ("1e39*g", "must lie in", 1),
        (f"{'9' * 900}*g", "must lie in", 1),
        ("clip(g, 0)", "constant of clip", 9),
        ("clip(g, -1)", "constant of clip", 9),
        ("drop(g, 1)", "constant of drop", 9),
        ("drop(g, 0.99999999)", "constant of drop", 9),
        ("drop(g, -0.1)", "constant of drop", 9),
        ("add_noise(g, -0.1)", "constant of add_noise", 14),
        ("clip(g, h)", "second argument of clip must be a number", 9),
        ("2", "a number stands only in", 1),
        ("2 + 3", "at least one operand that is no number", 1),
        ("g + gg", "no operand 'gg'; the nearest is 'g'", 5),
        ("g + b_nxt", "no operand 'b_nxt'; the nearest is 'b_next'", 5),
        ("B_NEXT", "the nearest is 'b_next'", 1),
        ("unit_fr(g)", "no function 'unit_fr'; the nearest is 'unit_fro'", 1),
        ("h + Unit_Elem_Ninf(g)", "no function 'Unit_Elem_Ninf'; the nearest is 'unit_elem_ninf'", 5),
        ("maen(g)", "no function 'maen'; the nearest is 'mean'", 1),
        ("transpose(g)", r"no function 'transpose': write x\.T", 1),
        ("g(h)", "g is an operand and takes no arguments", 1),
        ("g + abs", r"abs is a function: write abs\(", 5),
        ("mean", r"mean is a function: write mean\(", 1),
        ("mean(g*dh)", "takes an operand alone", 6),
        ("bn(mean(g))", "takes an operand alone", 4),
        ("std(g, h)", r"std is written std\(operand\), but 2 arguments", 1),
        ("min(g)", r"min is written min\(x, y\), but 1 arguments", 1),
        ("abs(g, h)", r"abs is written abs\(x\), but 2 arguments", 1),
        ("clip(g)", r"clip is written clip\(x, number\), but 1 arguments", 1),
        ("g + h.t", r"only .T can follow", 5),
        ("g if g else h", "IfExp is not part of the language", 1),
        ("g < h", "Compare is not part of the language", 1),
        ("g, h", "Tuple is not part of the language", 1),
        ("g % h", "operator is not in the language", 1),
        ("abs(x=g)", "Call is not part of the language", 1),
        ("g.T(h)", "Call is not part of the language", 1),
        ("abs(*g)", "Starred is not part of the language", 5),
        ("g; h", "';' has no meaning", 2),
        ("g # h", "'#' has no meaning", 3),
        ("g[0]", r"'\[' has no meaning", 2),
        ("'g'", "has no meaning", 1),
        ("g\n+ h", "has no meaning", 2),
        ("g + é", "'é' has no meaning", 5),
        ("g\x00", "has no meaning", 2),
        ("g + \U0001d400", "has no meaning", 5),
        ("g + (h * dh", "this bracket is never closed", 5),
        ("min(g, abs(h)", "this bracket is never closed", 4),
        ("g * (h", "this bracket is never closed", 5),
        ("g + h) * (dh", "this bracket closes none", 6),
        ("tanh(g)", r"no function 'tanh'; there are abs, add_noise, .*, unit_row_ninf, whiten", 1),
        ("sin(g)", r"no function 'sin'; there are abs, ", 1),
        ("g * softmax(h)", r"no function 'softmax'; there are abs, ", 5),
        ("g + x", r"no operand 'x'; there are W, sgn_W, R, .*, dh", 5),
        ("mul(g, h)", r"no function 'mul': write x \* y", 1),
        ("matmul(b_next, W)", r"no function 'matmul': write x @ y", 1),
        ("neg(g)", r"no function 'neg': write -x", 1),
        ("scale(g, 2)", r"no function 'scale': write 2\*x", 1),
        ("whitn(g)", "the nearest is 'whiten'", 1),
        ("rl", "the nearest is 'R_L'", 1),
        ("1e-46*g", "constant of scale is too small, 1e-46: devices take what is below 1.1754944e-38 for 0", 1),
        ("1e-40*g", "constant of scale is too small, 1e-40", 1),
        ("g - 1e-39", "constant of shift is too small, -1e-39", 5),
        ("clip(g, 1e-40)", r"constant of clip must lie in \[1.1754944e-38, 1000000\]", 9),
        ("drop(g, 1e-45)", "constant of drop is too small", 9),
        ("g + * h", "no expression", 5),
        ("g *", "no expression", 4),
        ("", "is empty", 1),
        ("   ", "is empty", 1),
        ("(" * 65 + "g" + ")" * 65, "nest deeper than 64", 65),
    ],
)
def test_errors_name_the_reason_and_the_place(text, message, place):
    with pytest.raises(RuleSyntaxError, match=message) as caught:
        parse(text)
    assert f"at character {place}:\n" in str(caught.value)
    line, marker = str(caught.value).splitlines()[-2:]
    assert marker.strip() == "^" and len(marker) <= len(line) + 1


def test_limits_on_size():
    chain = "g" + " + g" * 31
    assert sum(1 for _ in parse(chain).walk()) == 63
    parse("abs(" * 63 + "g" + ")" * 63)
    parse("(" * 64 + "g" + ")" * 64)
    longest = ("-" * 999 + "g", "g" + ".T" * 499)
    for text in (chain + " + g", "abs(" * 64 + "g" + ")" * 64, "-" * 64 + "g", "g" + ".T" * 64, *longest):
        with pytest.raises(RuleSyntaxError, match="at most 64 components"):
            parse(text)
    parse("g" + " " * 999)
    with pytest.raises(RuleSyntaxError, match="at most 1000 characters, this one has 1001"):
        parse("g" + " " * 1000)
    with pytest.raises(RuleSyntaxError, match="at most 1000 characters, printed this one has 1"):
        parse("add_noise(" * 50 + "g" + ",1e5)" * 50)
    with pytest.raises(RuleSyntaxError, match="a text, not int"):
        parse(3)


ALPHABET = "gWRh()()..,,*/@+-- 0159eE_T" + "\\\n\t\"'#;:=<>!&|^%~[]{}`$?é\x00"
PIECES = [*OPERANDS, *UNARIES, *BINARIES, *STATISTICS, *"()+-*/@,.", "**", ".T", "1e400", "0.5", "True", "lambda", "//"]


@given(
    st.text(max_size=40)
    | st.text(ALPHABET, max_size=60)
    | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
    | st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join)
    | untyped_trees().map(str)
)
@example("(" * 1000)
@example("-" * 1000)
@example("9" * 1000)
@example("g" + "**g" * 300)
@example("\ud800")
@example("5e-324/g")
@example("1e-320*g")
@settings(max_examples=400)
@pytest.mark.filterwarnings("error")
def test_hostile_text_raises_nothing_else(text):
    try:
        expression = parse(text)
    except (RuleSyntaxError, InfeasibleEquation) as error:
        assert str(error)
    else:
        assert parse(str(expression)) == expression and expression.type == SIGNAL


@pytest.mark.parametrize("junk", [None, 3, b"g", ["g"], object()])
def test_compile_refuses_what_is_no_equation(junk):
    with pytest.raises(RuleSyntaxError, match="an equation is a text"):
        rules.compile(junk)


def test_an_unknown_word_gets_the_nearest_of_operands_and_named_rules_or_all_of_them():
    for word, near in (
        ("bakprop", "'backprop'"),
        ("b_nxt", "'b_next'"),
        ("feedback_alignement", "'feedback_alignment'"),
    ):
        with pytest.raises(RuleSyntaxError, match=f"no rule and no operand {word!r}; the nearest is {near}$"):
            rules.resolve(word)
    with pytest.raises(
        RuleSyntaxError, match="there are W, sgn_W, .*, dh, backprop, feedback_alignment, .*, table1, a1_sgd"
    ):
        rules.resolve("no_such_thing")
    with pytest.raises(RuleSyntaxError, match=r"relu is a function: write relu\(…\)"):
        rules.resolve("relu")


def test_lists_of_rules_are_bounded_files_or_texts(tmp_path):
    assert rules.listed("g;; b1_sgd ;", "rule") == [
        (f"rule {n} of g;; b1_sgd ;", name) for n, name in [(1, "g"), *((3, name) for name in rules.GROUPS["b1_sgd"])]
    ]
    (tmp_path / "file").write_text("\ufeff# a comment\nfa # another\n", encoding="utf-8")
    assert rules.listed(str(tmp_path / "file"), "rule") == [(f"line 2 of {tmp_path / 'file'}", "fa")]
    for choice, message in (
        ("/dev/zero", "/dev/zero is longer than 10,000,000 bytes"), (" ; ", "holds no rule"), (str(tmp_path), "which is no file")
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            raise ValueError(rules.listed(choice, "rule")[0][0])


# Types.


def type_table():
    """Every type once; the dimensions tell them apart."""
    table = [Type(b, a, t) for b in "XYZ" for a in (False, True) for t in (False, True)]
    return table + [Type(b, False, t) for b in "KF" for t in (False, True)]


def test_matrix_products_are_exactly_those_of_the_table():
    allowed = {}
    for rows in "B1":
        for a, b, result in (
            (f"[{rows}, I]", "[I, O]", f"[{rows}, O]"),
            (f"[{rows}, O]", "[O, I]", f"[{rows}, I]"),
            (f"[{rows}, C]", "[C, I]", f"[{rows}, I]"),
            (f"[{rows}, I]", "[I, C]", f"[{rows}, C]"),
        ):
            allowed[a, b] = result
            flip = {s: f"[{s[4]}, {s[1]}]" for s in (a, b, result)}
            allowed[flip[b], flip[a]] = flip[result]
    found = {}
    for a in type_table():
        for b in type_table():
            try:
                found[str(a), str(b)] = str(product(a, b).result)
            except InfeasibleEquation as error:
                assert str(a) in str(error) and str(b) in str(error)
    assert found == allowed and len(allowed) == 16


def test_elementwise_functions_join_equal_shapes_and_averages_with_their_own():
    for a in type_table():
        for b in type_table():
            fits = (a.base, a.transposed) == (b.base, b.transposed)
            try:
                result = elementwise(a, b, "add")
            except InfeasibleEquation as error:
                assert not fits and str(a) in str(error) and str(b) in str(error)
            else:
                assert fits and result == Type(a.base, a.average and b.average, a.transposed)


@pytest.mark.parametrize(
    "text, message",
    [
        ("g + hp_next", r"in g \+ hp_next: \+ needs two operands of one shape but got \[B, I\] and \[B, O\]"),
        ("g * W", r"in g \* W: \* needs .*\[B, I\] and \[I, O\]"),
        ("g - W", r"in g - W: - needs "),
        ("g / W", r"in g / W: / needs "),
        ("min(g, W)", r"in min\(g, W\): min needs "),
        ("g + g.T", r"\[B, I\] and \[I, B\]"),
        ("b_next @ W", r"cannot join \[B, O\] and \[I, O\]"),
        ("g @ g.T", r"\[B, I\] and \[I, B\] \(only products of an activation with a weight exist\)"),
        ("W @ W.T", r"only products of an activation with a weight"),
        ("R_L @ W", r"only products of an activation with a weight"),
        ("b_next", r"the result of b_next is \[B, O\] but the signal b_i\^p must be \[B, I\]"),
        ("g.T", r"is \[I, B\] but"),
        ("mean(g)", r"is \[1, I\] but"),
        ("left(W, g)", r"is \[I, O\] but"),
        ("(b_next @ mean(W)) * dh", r"in b_next @ mean\(W\): .*\[B, O\] and \[I, O\]"),
    ],
)
def test_infeasible_equations_name_the_part_and_both_shapes(text, message):
    with pytest.raises(InfeasibleEquation, match=message):
        parse(text)


SIZES = {"B": 2, "I": 3, "O": 5, "C": 7, "1": 1}


def naive(node, operands):
    """The matrix a tree would give in plain array arithmetic."""
    if isinstance(node, OperandNode):
        x = operands[node.name]
        return jnp.mean(x, 0, keepdims=True) if node.type.average else x
    if isinstance(node, UnaryNode):
        x = naive(node.x, operands)
        return x.T if node.name == "transpose" else x
    x, y = naive(node.left, operands), naive(node.right, operands)
    return {"left": lambda: x, "matmul": lambda: x @ y}.get(node.name, lambda: x + y)()


@given(untyped_trees() | trees())
@settings(max_examples=250)
def test_symbolic_types_agree_with_array_shapes(expression):
    operands = {
        name: jax.ShapeDtypeStruct([SIZES[d] for d in Type(o.base).dimensions], jnp.float32)
        for name, o in OPERANDS.items()
    }
    try:
        kind = expression.type
    except InfeasibleEquation:
        kind = None
    try:
        shape = jax.eval_shape(lambda values: naive(expression, values), operands).shape
    except (TypeError, ValueError):
        shape = None
    if kind is not None:
        assert shape == tuple(SIZES[d] for d in kind.dimensions)
    else:  # either arrays do not fit, or the paper's language has no such function of them
        assert shape is None or any(lacks_meaning(node) for node in expression.walk())


def lacks_meaning(node) -> bool:
    """Arrays that fit although the equation is infeasible: products without a weight, averages against weights."""
    if not isinstance(node, BinaryNode) or node.name == "left":
        return False
    try:
        a, b = (c.type for c in node.children)
    except InfeasibleEquation:
        return False
    if node.name == "matmul":
        return (a.base in "KF") == (b.base in "KF") or a.average or b.average
    return a.average != b.average and (a.base, a.transposed) != (b.base, b.transposed) or "1" in a.dimensions


@pytest.mark.parametrize("text", ["g + hp_next", "g @ R", "W @ W", "(g @ g) * dh", "b_next", "g + W"])
def test_symbols_decide_where_all_numbers_agree(text):
    with pytest.raises(InfeasibleEquation):
        rules.compile(text)  # although all of these would run with B = I = O = 16


@given(trees(depth=3))
@settings(max_examples=60)
def test_compiled_rules_have_the_shapes_of_their_unit(units, expression):
    unit, rule = units["conv_stride_2"], rules.compile(expression)
    state = rule.init(unit.shapes)
    signal, new = jax.eval_shape(lambda s: rule.signal(unit.unit(0, jax.random.key(0)), s), state)
    assert signal.shape == unit.shapes.X and signal.dtype == jnp.float32
    assert jax.tree.map(lambda x: x.shape, new) == jax.tree.map(lambda x: x.shape, state)


# Canonical keys.


@pytest.mark.parametrize(
    "one, other",
    [
        ("g + h", "h + g"),
        ("min(g, h)", "min(h, g)"),
        ("g * (h + dh)", "(dh + h) * g"),
        ("left(g, W)", "g"),
        ("left(g * h, std(W)) + dh", "dh + (h * g)"),
        ("g", "gh * dh"),
        ("g", "(b_next @ W.T) * dh"),
        ("fa", "dh * (b_next @ R.T)"),
        ("dfa", "(b_L @ R_L) * dh"),
        ("-(-g)", "g"),
        ("g.T.T", "g"),
        ("1*g", "g"),
        ("g + 0", "g"),
        ("unit_fro(g)", "unit_elem2(g)"),
        ("b_next @ sgn(W).T", "b_next @ sgn_W.T"),
        ("abs(-g)", "abs(g)"),
        ("sq(abs(g))", "sq(g)"),
        ("max(g, gh * dh)", "g"),
    ],
)
def test_keys_merge_what_is_structurally_the_same(one, other):
    assert parse(one).key == parse(other).key and parse(one) != parse(other)


@pytest.mark.parametrize(
    "one, other",
    [
        ("g - h", "h - g"),
        ("g / h", "h / g"),
        ("clip(g, 0.1)", "clip(g, 0.5)"),
        ("0.5*g", "2*g"),
        ("g + 0.1", "g - 0.1"),
        ("add_noise(g, 0.1)", "add_noise(g, 0.5)"),
        ("drop(g, 0.1)", "drop(g, 0.3)"),
        ("unit_col2(g)", "unit_row2(g)"),
        ("b_next @ R.T", "b_next @ W.T"),
        ("max(g, h)", "min(g, h)"),
        ("-g", "g"),
        ("sgn(-g)", "sgn(g)"),
        ("whiten(g)", "bn(g)"),
        ("bn(g)", "bn(gh)"),
        ("max(add_noise(g, 0.1), add_noise(g, 0.1))", "add_noise(g, 0.1)"),
    ],
)
def test_keys_separate_what_differs(one, other):
    assert parse(one).key != parse(other).key


@given(trees(depth=3))
def test_keys_are_stable(expression):
    if sum(1 for _ in expression.walk()) <= 20:
        assert rules.compile(parse(str(expression))).expression.key == expression.key


# Named rules.


@pytest.mark.parametrize("name", rules.NAMED)
def test_named_rules_parse_print_and_run(name):
    expression = rules.resolve(f" {name} ")
    assert expression == parse(rules.NAMED[name]) == parse(str(expression))
    assert str(expression) == rules.NAMED[name]  # already as printed
    equation = expression.to_equation()
    assert equation.key == expression.key
    program = rules.assemble(equation)
    blank = rules.blank_program()
    assert 0 < program.length <= len(program.load)
    described = [jax.tree.map(lambda x: (np.shape(x), np.asarray(x).dtype), p) for p in (program, blank)]
    assert described[0] == described[1]
    assert rules.compile(name) == rules.compile(expression) == rules.compile(equation)
    assert rules.compile(name)._repr_latex_().startswith(r"$\displaystyle b_i^p \leftarrow ")


def test_table_1_has_all_rows_but_the_misprinted_one():
    assert len(rules.TABLE_1) == 39 and set(rules.PAPER) == set(rules.TABLE_1)
    assert "a3_momentum_2" not in rules.TABLE_1
    assert rules.TABLE_1["a1_sgd_1"] == "min(unit_fro(g), clip(h, 1.0))" and rules.PAPER["a1_sgd_1"] == (84.48, 0.45)
    assert rules.TABLE_1["b1_momentum_4"] == "relu(dh) * clip(gh, 1.0)"
    baselines = [text for name, text in rules.TABLE_1.items() if name.endswith("_baseline")]
    assert baselines == ["g"] * 8


def test_the_papers_figures_are_all_those_of_its_table():
    """Sums of the means and of the ± of each column, added up from the paper's Table 1."""
    sums = {
        "a1_sgd": (413.31, 6.91), "a1_momentum": (421.85, 5.78), "a2_sgd": (421.07, 4.16), "a2_momentum": (436.90, 5.75),
        "a3_sgd": (463.88, 0.68), "a3_momentum": (467.89 - 93.66, 0.80 - 0.12),  # one is misprinted
        "b1_sgd": (438.49, 1.30), "b1_momentum": (444.80, 0.86),
    }  # fmt: skip
    for column, expected in sums.items():
        own = [figures for name, figures in rules.PAPER.items() if name.startswith(column)]
        assert tuple(map(sum, zip(*own, strict=True))) == pytest.approx(expected, abs=1e-6)


def test_what_a_rule_reads_is_known():
    text = "left(add_noise(g, 0.1), dfa) + bn(h)"
    rule = rules.compile(text)
    assert rule.needs_noise and rule.reads == {"b_next", "W", "dh", "b_L", "R_L", "h"} and str(rule) == text
    assert not rules.compile("g").needs_noise
    assert jax.tree.leaves(rule) == [] and BASES == ("X", "Y", "Z", "K", "F")
