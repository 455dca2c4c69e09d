"""Forms of equations, each by hand: canonical, shortened, in LaTeX, as a genome; and what errors and lists of rules say."""

import numpy as np
import pytest

from bpevo import rules
from bpevo.rules import BINARIES, STATISTICS, UNARIES, Affine, Equation, RuleSyntaxError, named, parse
from bpevo.rules.text import nearest, read

DH = r"\frac{\partial h_i}{\partial h_i^p}"


# Canonical, and with less in them.


@pytest.mark.parametrize(
    "text, key",
    [
        ("g", "(b_next @ W.T) * dh"),
        ("dfa", "(b_L @ R_L) * dh"),
        ("h + g", "((b_next @ W.T) * dh) + h"),
        ("h * mean(g)", "h * mean(g)"),  # a statistic of an operand stays one
        ("max(h, dh)", "max(dh, h)"),
        ("h - dh", "h - dh"),
        ("h / dh", "h / dh"),
        ("min(h, h)", "h"),
        ("max(min(h, h), h)", "h"),
        ("h * h", "h * h"),
        ("max(drop(h, 0.1), drop(h, 0.1))", "max(drop(h, 0.1), drop(h, 0.1))"),
        ("left(h, W) + left(abs(left(h, dh)), std(W))", "abs(h) + h"),
        ("1*h", "h"),
        ("0*h", "0.0*h"),
        ("h + 0", "h"),
        ("h + 1", "h + 1.0"),
        ("-(-h)", "h"),
        ("-(-(-h))", "-h"),
        ("(-h.T).T", "(-h.T).T"),
        ("abs(-h)", "abs(h)"),
        ("abs(abs(h))", "abs(h)"),
        ("sqrt(-h)", "sqrt(h)"),
        ("sq(-abs(h))", "sq(h)"),
        ("-abs(h)", "-abs(h)"),
        ("cube(-h)", "cube(-h)"),
        ("abs(relu(h))", "abs(relu(h))"),
        ("unit_fro(h)", "unit_elem2(h)"),
        ("b_next @ sgn(W).T", "b_next @ sgn_W.T"),
        ("b_next @ (sgn(W) * sgn(R)).T", "b_next @ (sgn(R) * sgn_W).T"),
    ],
)
def test_canonical_forms_by_hand(text, key):
    """Stored with every proposal: a later session finds duplicates by them."""
    assert parse(text).key == key


@pytest.mark.parametrize(
    "text, less",
    [
        ("h", []),
        ("bn(h)", ["h"]),
        ("unit_fro(bn(g)) + h", ["unit_fro(bn(g))", "h", "bn(g) + h", "unit_fro(g) + h"]),
        ("g - clip(mean(h), 0.5)", ["g", "clip(mean(h), 0.5)", "g - mean(h)", "g - clip(h, 0.5)"]),
    ],
)
def test_trees_with_one_component_less_come_root_first(text, less):
    assert [str(tree) for tree in rules.without_one(read(text))] == less


def test_without_idle_genes_every_left_is_gone_and_constants_stay():
    for text, short in {
        "left(left(unit_fro(g), W) + (0.5*h), std(W))": "unit_fro(g) + (0.5*h)",
        "left(abs(left(g, h)), W)": "abs(g)",
        "h - left(g, h)": "h - g",
    }.items():
        assert str(rules.without_idle(parse(text))) == short


# LaTeX.


@pytest.mark.parametrize(
    "text, latex",
    [
        ("-(-h)", r"-\left(-h_i\right)"),
        ("-abs(h)", r"-\left|h_i\right|"),
        ("-min(h, hp)", r"-\left(\min\left(h_i, h_i^p\right)\right)"),
        ("h - 0.5", "h_i - 0.5"),
        ("h + 0.5", "h_i + 0.5"),
        ("0.5*(h - dh)", rf"0.5 \cdot \left(h_i - {DH}\right)"),
        ("h.T.T", r"\left(h_i^\top\right)^\top"),
        ("abs(h.T.T)", r"\left|\left(h_i^\top\right)^\top\right|"),
        ("hp.T.T", r"\left(\left(h_i^p\right)^\top\right)^\top"),
        ("(h + hp).T.T", r"\left(\left(h_i + h_i^p\right)^\top\right)^\top"),
        ("min(h, h).T.T", r"\left(\left(\min\left(h_i, h_i\right)\right)^\top\right)^\top"),
        ("h * (hp + h)", r"h_i \odot \left(h_i^p + h_i\right)"),
        ("(h + hp) / h", r"\frac{h_i + h_i^p}{h_i}"),
        ("max(h + hp, h)", r"\max\left(h_i + h_i^p, h_i\right)"),
        ("bn(h) + mean(hp)", r"\operatorname{bn}\left(h_i\right) + \hat m\left(h_i^p\right)"),
        ("clip(h, 0.5)", r"\operatorname{clip}_{0.5}\left(h_i\right)"),
        ("unit_fro(h)", r"\frac{h_i}{\left\|h_i\right\|_{\mathrm{fro}}}"),
        ("unit_col_ninf(h)", r"\frac{h_i}{\left\|h_i\right\|_{\mathrm{col},-\infty}}"),
        ("unit_mat1(h)", r"\frac{h_i}{\left\|h_i\right\|_{\mathrm{mat},1}}"),
    ],
)
def test_latex_by_hand(text, latex):
    expression = parse(text)
    assert expression.latex == latex
    shown = rf"$\displaystyle b_i^p \leftarrow {latex}$"
    assert expression._repr_latex_() == shown == rules.compile(expression)._repr_latex_()


def test_the_latex_of_a_genome_is_that_of_its_tree():
    equation = parse("h - 0.5").to_equation()
    assert equation.latex == "h_i - 0.5" and equation._repr_latex_() == r"$\displaystyle b_i^p \leftarrow h_i - 0.5$"


def test_norms_say_what_they_divide_by():
    assert UNARIES["unit_col2"].doc == "x / vector norm of order 2 of each column (feature)"
    assert UNARIES["unit_fro"].doc == "x / vector norm of order fro of the flattened matrix"
    assert UNARIES["unit_mat1"].doc == "x / matrix norm 1"


# The genome.


def test_a_genome_by_hand():
    """Indices into the lists of the language; -1 is the previous result."""
    for text, expected in {
        "clip(bn(g), 0.5) - h": ([[11, 6]], [[3, 0]], [[18, 0]], [[0.5, 0]], [1], 1),
        "abs(g + h)": ([[11, 6], [-1, 11]], [[0, 0], [0, 0]], [[0, 0], [3, 0]], [[0, 0], [0, 0]], [0, 5], 2),
    }.items():
        found = parse(text).to_equation()
        *leaves, parts = found.operand, found.statistic, found.unary, found.constant, found.binary, found.parts
        assert parts == expected[-1] and parts.dtype == np.int32
        for leaf, own in zip(leaves, expected[:-1], strict=True):
            padding = np.zeros((3 - len(own), *np.shape(own)[1:]))
            np.testing.assert_array_equal(leaf, np.concatenate([own, padding]))
    assert found.constant.dtype == np.float32 and found != "abs(g + h)" and found == parse("abs(g + h)")


def test_an_equation_has_a_part_and_three_at_most_unless_asked_for_more():
    with pytest.raises(RuleSyntaxError, match="^the equation has 0 parts; this search allows 1 to 3$"):
        Equation.from_parts([])
    four = parse("(((g + h) + h) + h) + h")
    with pytest.raises(RuleSyntaxError, match="^the equation has 4 parts; this search allows 1 to 3$"):
        four.to_equation()
    assert four.to_equation(4).parts == 4


def test_an_assembled_equation_is_remembered_and_cannot_be_written_to():
    equation = parse("unit_fro(g) + h").to_equation()
    program = rules.assemble(equation)
    assert rules.assemble(equation) is program
    for array in (program.load, program.affine, program.uses):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1
    assert rules.blank_program().load.shape == (6,)


# Functions at their bounds.


def test_constants_are_legal_up_to_their_bounds():
    for text in ("1e6*g", "g - 1000000", "add_noise(g, 0)", "mul_noise(g, 1e6)", "drop(g, 0.9999999)", "clip(g, 1e6)"):
        parse(text)
    for text, bounds in {
        "1000001*g": r"scale must lie in \[-1000000, 1000000\]",
        "-1000001*g": r"scale must lie in \[-1000000, 1000000\]",
        "add_noise(g, 1000001)": r"add_noise must lie in \[0, 1000000\]",
        "mul_noise(g, -1)": r"mul_noise must lie in \[0, 1000000\]",
        "mul_noise(g, 1000001)": r"mul_noise must lie in \[0, 1000000\]",
        "drop(g, 1)": r"drop must lie in \[0, 0.99999994\]",
        "clip(g, 1000001)": r"clip must lie in \[1.1754944e-38, 1000000\]",
    }.items():
        with pytest.raises(RuleSyntaxError, match=f"the constant of {bounds}"):
            parse(text)


def test_epsilon_is_1e_8_beside_deviations_and_its_square_beside_squares():
    tiny = np.float32(1e-4)
    assert UNARIES["inv"].fn(tiny, 0) == pytest.approx(1e4, rel=1e-5)
    assert BINARIES["div"].fn(np.float32(1), np.float32(1e-8)) == pytest.approx(0.5e8, rel=1e-5)
    bn, whiten = STATISTICS["bn"].divisor, UNARIES["whiten"].statistic.divisor
    assert bn(0.0, 0.0) == pytest.approx(1e-8) and bn(5.0, 1e-16) == pytest.approx(2e-8)
    assert whiten(0.0, 0.0) == pytest.approx(1e-4) and whiten(3.0, 16.0) == pytest.approx(5)


def test_constants_are_drawn_by_their_laws():
    gaussian, law = np.float32([[-1.0], [0.0], [2.0], [4.0]]), {"R": [-0.5, 0, 1, 2], "S": [-0.5, 0.5, 0.5, 0.5]}
    law["R_L"] = [-0.5, 0, 1, 2]  # four classes
    for name, expected in law.items():
        np.testing.assert_array_equal(rules.OPERANDS[name].draw(gaussian, 0.5)[:, 0], expected)


def test_an_affine_function_changes_nothing_unless_it_is_told_to():
    x = np.float32([-2.0, 0.0, 3e38])
    np.testing.assert_array_equal(Affine()(x), x)
    np.testing.assert_array_equal(Affine(True, 2.0, -1.0, 0.5, 2.5)(np.float32([-2.0, 0.0, 1.5])), [2.5, 0.5, 2.0])


# Errors and lists.


def test_an_error_shows_thirty_characters_on_either_side_of_its_place():
    text = "g + " * 20 + "gg" + " + h" * 20
    with pytest.raises(RuleSyntaxError) as caught:
        parse(text)
    first, excerpt, marker = str(caught.value).splitlines()
    assert first.endswith("the nearest is 'g', at character 81:")
    assert excerpt == "  " + text[50:110] and marker == "  " + " " * 30 + "^"


def test_a_name_is_near_if_seven_letters_of_ten_agree_or_it_is_one_slip():
    assert (
        nearest("abcdefgxyz", ["hijklmnopq", "abcdefg123"]) == "abcdefg123"
        and nearest("abcdefxxyz", ["abcdef1234"]) == ""
    )
    assert nearest("hg", ["gh"]) == "gh" and nearest("hx", ["gh"]) == ""  # in another order
    assert nearest("g", ["gh"]) == "gh" and nearest("ghh", ["g"]) == ""  # one too few; two too many
    assert nearest("REULX", ["relu"]) == "" and nearest("RELUX", ["relu"]) == "relu"


def test_a_name_of_many_rules_is_none_of_one():
    with pytest.raises(RuleSyntaxError) as caught:
        rules.resolve("a3_momentum")
    names = "a3_momentum_baseline, a3_momentum_1, a3_momentum_3, a3_momentum_4"
    assert str(caught.value) == f"'a3_momentum' names 4 rules, where one is wanted: {names}"
    assert len(rules.GROUPS["table1"]) == 39 and list(rules.GROUPS) == ["table1", *named._TABLE_1]


@pytest.mark.parametrize("choice, hint", [("g", ", which is no file"), ("g; h", "")])
def test_a_single_text_that_is_no_file_says_so(choice, hint):
    assert [place for place, _ in rules.listed(choice, "rule")][0] == f"rule 1 of {choice}{hint}"


def test_files_of_rules_that_cannot_be_read_say_why(tmp_path, monkeypatch):
    file = tmp_path / "rules"
    file.write_bytes(b"g\n\xff")
    with pytest.raises(ValueError, match=f"^cannot read rules from {file}: it is not a UTF-8 text$"):
        rules.listed(str(file), "rule")
    with pytest.raises(ValueError, match="^cannot read rules from /proc/self/mem: Input/output error$"):
        rules.listed("/proc/self/mem", "rule")
    file.write_text("g\n# none\n")
    monkeypatch.setattr(named, "MAX_FILE", 9)  # as it has
    assert rules.listed(str(file), "rule") == [(f"line 1 of {file}", "g")]
    monkeypatch.setattr(named, "MAX_FILE", 8)
    with pytest.raises(ValueError, match=f"^{file} is longer than 8 bytes$"):
        rules.listed(str(file), "rule")
    file.write_text("# g\n")
    with pytest.raises(ValueError, match=f"^{file} holds no rule$"):
        rules.listed(str(file), "rule")


def test_a_function_is_a_rule_and_a_type_is_none():
    rule = rules.compile(lambda u: u.g)
    assert isinstance(rule, rules.FunctionRule) and rule.reads == {"b_next", "W", "dh"} and not rule.equation_is_data
    with pytest.raises(ValueError, match="cannot be computed for a dense unit"):
        rules.compile(lambda u: u.gg)
    with pytest.raises(RuleSyntaxError, match="an equation is a text, not type"):
        rules.compile(dict)
