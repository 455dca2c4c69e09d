"""A rule draws itself: its arrows are what the equation says, and the picture is a readable SVG."""

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import conftest
import hypothesis
import numpy as np
import pytest

from bpevo import rules
from bpevo.rules import formulas
from bpevo.rules.expression import BinaryNode, OperandNode, UnaryNode
from bpevo.rules.svg import Picture, Run

SVG = "{http://www.w3.org/2000/svg}"


def arrows(expression) -> set[tuple[str, str]]:
    """(from, to) of the picture's arrows that say what they mean."""
    root = ET.fromstring(expression.draw().svg)
    paths = [p.attrib for p in root.iter(f"{SVG}path")]
    return {(p["data-from"], p["data-to"]) for p in paths if "data-from" in p}


def expected(expression) -> set[str]:
    """What feeds b_i^p, read off the tree by hand."""
    found = set()
    for node in formulas.live(expression):
        if isinstance(node, OperandNode):
            found.add(str(node))
        elif isinstance(node, UnaryNode) and node.name in ("add_noise", "mul_noise", "drop"):
            found.add(f"{node.name} {np.float32(node.constant)!s}")
        elif isinstance(node, UnaryNode) and node.name == "whiten":
            found.add("whiten")
    return found


def test_a_rules_formula_is_written_with_its_indices():
    """(b_{i+1}^p · R_i^T) ⊙ σ′, below the name that the reader knows."""
    root = ET.fromstring(rules.parse("fa").draw().svg)
    texts = [(t.text, float(t.attrib["font-size"])) for t in root.iter(f"{SVG}text")]
    start = texts.index(("(", 14))
    formula = texts[start : start + 10]
    assert [t.strip() for t, _ in formula] == ["(", "b", "i+1", "p", "·", "R", "i", "⊤", ")", "⊙"]
    assert {t for t, size in formula if size < 14} == {"i+1", "p", "i", "⊤"}


@hypothesis.settings(max_examples=60)
@hypothesis.given(conftest.chains())
def test_the_arrows_of_the_signal_are_the_operands_and_what_draws_noise_or_remembers(equation):
    expression = equation.to_expression()
    assert {a for a, b in arrows(expression) if b == "signal"} == expected(expression)


@pytest.mark.parametrize(
    "text, into",
    [
        ("g", {"g": {"b_next", "W", "dh"}}),
        ("gh", {"gh": {"b_next", "W"}}),
        ("fa", {"fa": {"b_next", "R", "dh"}}),
        ("dfa", {"dfa": {"b_L", "R_L", "dh"}}),
        ("min(unit_fro(g), clip(h, 1.0))", {"g": {"b_next", "W", "dh"}}),
        ("mean(dfah) * g", {"mean(dfah)": {"b_L", "R_L"}, "g": {"b_next", "W", "dh"}}),
        ("(b_next @ W.T) * dh", {}),
    ],
)
def test_operands_by_formula_come_from_the_values_they_are_made_of(text, into):
    drawn = {b: {a for a, c in arrows(rules.parse(text)) if c == b} for _, b in arrows(rules.parse(text))}
    drawn.pop("signal")
    assert drawn == into


def every_component():
    """An equation for every operand, statistic and function."""
    for name, operand in rules.OPERANDS.items():
        for x in (name, *(f"{s}({name})" for s in rules.STATISTICS)):
            signal = {"X": f"g * {x}", "Y": f"(({x} * b_next) @ W.T) * dh", "Z": f"({x} * b_L) @ R_L",
                      "K": f"b_next @ ({x} * W).T", "F": f"b_L @ ({x} * R_L)"}  # fmt: skip
            yield signal[operand.base]
    for name, unary in rules.UNARIES.items():
        g = OperandNode("g")
        c = unary.constants[0] if unary.constants else 0.0
        yield "(g.T).T" if name == "transpose" else str(BinaryNode("add", g, UnaryNode(name, g, c)))
    for name in rules.BINARIES:
        yield "b_next @ W.T" if name == "matmul" else str(BinaryNode(name, OperandNode("g"), OperandNode("h")))


def test_every_operand_and_function_draws_the_same_bytes_twice_in_letters_that_can_be_read():
    for text in every_component():
        expression = rules.parse(text)
        svg = expression.draw().svg
        assert svg == rules.parse(text).draw().svg
        root = ET.fromstring(svg)
        assert root.attrib["width"] == "360"
        assert min(float(t.attrib["font-size"]) for t in root.iter(f"{SVG}text")) >= 11
        assert "url(" not in svg and "@font-face" not in svg and "href" not in svg
        assert {a for a, b in arrows(expression) if b == "signal"} == expected(expression)


def test_a_registered_operand_draws_and_its_name_is_escaped_in_hints():
    mixed = rules.Operand("mixed_operand_of_mine", r"\mu", "a < b & c", formula="(b_next @ S.T) * dh")
    drawn = rules.Operand("Q", "Q_i", "a random matrix", "K", draw=lambda gaussian, deviation: deviation * gaussian)
    with rules.register(mixed, drawn):
        expression = rules.parse("mixed_operand_of_mine + (b_next @ Q.T)")
        found = arrows(expression)
    assert found == {
        ("b_next", "mixed_operand_of_mine"), ("S", "mixed_operand_of_mine"), ("dh", "mixed_operand_of_mine"),
        ("mixed_operand_of_mine", "signal"), ("b_next", "signal"), ("Q", "signal"),
    }  # fmt: skip


def test_a_picture_says_whether_the_rule_is_recursive():
    assert "not recursive" in rules.parse("dfa").draw().svg
    assert "not recursive" not in rules.parse("left(g, dfa)").draw().svg
    assert ">R_L<" not in rules.parse("left(g, dfa)").draw().svg  # what `left` ignores is not drawn


def test_a_rule_saves_its_picture_and_a_notebook_shows_it(tmp_path):
    drawing = rules.compile("unit_fro(g)").draw()
    drawing.save(tmp_path / "rule.svg")
    assert (tmp_path / "rule.svg").read_text(encoding="utf-8") == drawing.svg == drawing._repr_svg_()


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_on_a_phone_no_letter_leaves_its_picture(tmp_path):
    long = "max(" * 8 + "g" + ", unit_elem_ninf(unit_col_inf(fa)))" * 8
    texts = [
        "g",
        "dfa / (mean(dfa) + 2.0)",
        "drop(g, 0.01) - whiten(bn(dfah))",
        "(b_next @ (abs(R)*sgn_W).T) * dh",
        long,
    ]
    pictures = "".join(rules.parse(t).draw().svg for t in texts)
    script = """<script>for (const s of document.querySelectorAll("svg")) { const p = s.getBoundingClientRect();
      for (const t of s.querySelectorAll("text, rect")) { const b = t.getBoundingClientRect();
        if (b.left < p.left - 1 || b.right > p.right + 1 || b.bottom > p.bottom + 1) document.title += t.textContent + ";" } }
      document.title += "wide " + document.documentElement.scrollWidth</script>"""
    page = tmp_path / "page.html"
    page.write_text(
        f"<!doctype html><meta charset=utf-8><title></title><body style='margin:0;width:390px'>{pictures}{script}"
    )
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,800", "--dump-dom"]
    dom = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=60).stdout
    title = re.search("<title>(.*?)</title>", dom)
    assert title and title[1].startswith("wide "), title and title[1]


def test_a_formula_without_indices_is_centred_and_one_with_them_ends_where_they_begin():
    picture = Picture(200, "a title")
    picture.formula(100, 20, [Run("Wh")], size=10)  # 0.92 and 0.65 em wide: from 92.15 to 107.85
    picture.formula(100, 20, [Run("h", sub="i")], size=10)  # 0.65 em, and 0.65 of the small letters: 6.5 + 7.475
    places = re.findall(r'<text x="([^"]+)"[^>]*text-anchor="(\w+)"', "".join(picture._elements))
    assert places == [("100", "middle"), ("99.5", "end"), ("100", "start")]
