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


# A whole picture by hand: all coordinates follow from the columns 25, 88, 194 and 322, boxes and rows 50 px apart, 20 px for
# what passes the middle column.

RED, BLUE, GREY, GREEN, PURPLE = "#b3261e", "#1f5fa8", "#4a4a4a", "#1b6e3c", "#6a3d9a"
COLUMNS = (34, 107, 180, 253, 326)


@pytest.fixture(scope="module")
def picture():
    """Of b_L @ R_L remembered, h as it is, and noise: 200 px of four values from 214 on, its middle at 314."""
    return ET.fromstring(rules.parse("min(mean(dfah), drop(h, 0.5))").draw().svg)


def test_the_boxes_of_a_picture_by_hand(picture):
    background, *rects = [r.attrib | {"title": r.findtext(f"{SVG}title")} for r in picture.iter(f"{SVG}rect")]
    assert (picture.attrib["height"], background["width"], background["height"], background["fill"]) == (
        "490", "360", "490", "#fff",
    )  # fmt: skip
    found = [(*(int(r[n]) for n in ("x", "y", "width", "height")), r["stroke"], r["fill"], r["title"]) for r in rects]
    white, network = "#fff", []
    hints = ["one layer below"] * 2 + [
        "hp, the activation's input",
        "h, the activation's output",
        "hp_next, the linear map's output",
    ]
    for x, hint in zip(COLUMNS, hints, strict=True):
        fill = "#e9f1fb" if hint.startswith("h,") else white  # the value that the rule reads
        network += [(x - 21, 42, 42, 32, BLUE, fill, hint), (x - 21, 108, 42, 32, RED, white, "the signal of backprop")]
    assert found == [
        *network,
        (127, 258, 134, 42, PURPLE, "#f2ecf9", "mean(dfah)"),
        (127, 328, 134, 42, GREEN, "#e8f5ec", "drop 0.5"),
        (289, 218, 66, 42, "#aaa", white, "b_next, the evolved signal from above; this rule does not read it"),
        (
            289,
            268,
            66,
            42,
            GREEN,
            "#e8f5ec",
            "R_L, Gaussian random map from b_L to the signal, variance 1/C, fixed per run",
        ),
        (289, 318, 66, 42, RED, "#fdeceb", "b_L, the loss gradient at the logits"),
        (289, 368, 66, 42, BLUE, "#e9f1fb", "h, the activation's output"),
        (67, 297, 42, 34, RED, "#fdeceb", "the rule's signal"),
        (4, 297, 42, 34, "#aaa", white, "one layer below"),
    ]
    assert [r["title"].partition(",")[0] for r in rects if "stroke-dasharray" in r] == ["drop 0.5", "R_L"]


def test_the_arrows_of_a_picture_by_hand(picture):
    paths = [p.attrib for p in picture.iter(f"{SVG}path")]
    expected = []
    for left, right, color in zip(COLUMNS, COLUMNS[1:], (BLUE, GREY, BLUE, GREY), strict=False):
        expected += [(f"M{left + 21} 58H{right - 21}", color, 1.5), (f"M{right - 21} 58l-7 -3.5v7z", color, None)]
        expected += [(f"M{right - 21} 124H{left + 21}", RED, 1.5), (f"M{left + 21} 124l7 -3.5v7z", RED, None)]
    expected += [
        ("M289 289C275 289 275 279 261 279", GREEN, 1.5),  # R_L, b_L to the mean
        ("M261 279l7 -3.5v7z", GREEN, None),
        ("M289 339C275 339 275 279 261 279", RED, 1.5),
        ("M261 279l7 -3.5v7z", RED, None),
        ("M127 279H127C121 279 121 314 115 314", PURPLE, 1.5),
        ("M289 389C275 389 275 314 261 314", BLUE, 1.5),  # h passes
        ("M261 314H127C121 314 121 314 115 314", BLUE, 1.5),
        ("M127 349H127C121 349 121 314 115 314", GREEN, 1.5),
        ("M109 314l7 -3.5v7z", PURPLE, None),
        ("M67.0 314H46.0", "#777", 1.5),
        ("M46 314l7 -3.5v7z", "#777", None),
        ("M8 454h22", RED, 2.5),  # the legend
        ("M180 454h22", BLUE, 2.5),
        ("M8 474h22", GREEN, 2.5),
        ("M180 474h22", PURPLE, 2.5),
    ]
    assert [(p["d"], p["stroke"], float(p["stroke-width"]) if "stroke-width" in p else None) for p in paths] == expected
    assert [p["d"][:8] for p in paths if "stroke-dasharray" in p] == ["M289 289", "M127 349", "M67.0 31", "M8 474h2"]
    assert [(p["data-from"], p["data-to"]) for p in paths if "data-from" in p] == [
        ("R_L", "mean(dfah)"), ("b_L", "mean(dfah)"), ("mean(dfah)", "signal"), ("h", "signal"), ("drop 0.5", "signal"),
    ]  # fmt: skip


def test_the_texts_of_a_picture_by_hand(picture):
    """Letters are 0.65 em wide, spaces and dots 0.35; indices of 11.5 px begin half a pixel behind."""
    texts = [
        (t.text, *(float(t.attrib[n]) for n in ("x", "y", "font-size")), t.attrib["fill"], t.attrib["text-anchor"])
        for t in picture.iter(f"{SVG}text")
    ]
    styles = [(t.text, t.attrib) for t in picture.iter(f"{SVG}text")]
    assert [text for text, style in styles if "font-weight" in style] == ["forward", "backprop", "this rule"]
    upright = [
        text for text, style in styles if "serif" in style["font-family"].split(", ") and "font-style" not in style
    ]
    assert upright == [" · "]  # of the formulas' letters
    small = 11.5
    assert [t for t in texts if t[3] == 12][:2] == [
        ("forward", 8, 16, 12, "#777", "start"), ("backprop", 8, 96, 12, "#777", "start"),
    ]  # fmt: skip
    assert texts[2:6] == [  # h_{i-1}^p in a box around 34: 10.4 px and 22.425 of its index
        ("h", 28, 63, 16, BLUE, "end"), ("i−1", 28.5, 67.3, small, BLUE, "start"), ("p", 28.5, 56.3, small, BLUE, "start"),
        ("b", 28, 129, 16, RED, "end"),
    ]  # fmt: skip
    sigma = texts.index(("σ", 70.5, 37, 14, BLUE, "middle"))
    assert texts[sigma + 1 : sigma + 6] == [
        ("σ′", 70.5, 156, 14, BLUE, "middle"),
        ("W", 138.7, 37, 14, GREY, "end"), ("i−1", 139.2, 40.8, small, GREY, "start"),
        ("W", 138.7, 156, 14, GREY, "end"), ("i−1", 139.2, 159.8, small, GREY, "start"),
    ]  # fmt: skip
    assert texts[texts.index(("this rule", 8, 184, 12, "#777", "start")) :] == [
        ("this rule", 8, 184, 12, "#777", "start"),
        ("min(mean(dfah), drop(h, 0.5))", 8, 202, 12, "#222", "start"),
        ("mean(dfah)", 194, 275, 13, PURPLE, "middle"),
        ("b", 175.4, 293, 14, PURPLE, "end"),
        ("L", 175.9, 296.8, small, PURPLE, "start"),
        ("p", 175.9, 287.1, small, PURPLE, "start"),
        (" · ", 190.3, 293, 14, PURPLE, "middle"),
        ("R", 206.7, 293, 14, PURPLE, "end"),
        ("Li", 207.2, 296.8, small, PURPLE, "start"),
        ("drop 0.5", 194, 345, 13, GREEN, "middle"),
        ("fresh each step", 194, 362, 12, GREEN, "middle"),
        ("b", 316, 237, 16, "#aaa", "end"),
        ("i+1", 316.5, 241.3, small, "#aaa", "start"),
        ("p", 316.5, 230.3, small, "#aaa", "start"),
        ("b_next", 322, 255, small, "#aaa", "middle"),
        ("R", 319.7, 287, 16, GREEN, "end"),
        ("Li", 320.2, 291.3, small, GREEN, "start"),
        ("R_L", 322, 305, small, GREEN, "middle"),
        ("b", 323.5, 337, 16, RED, "end"),
        ("L", 324, 341.3, small, RED, "start"),
        ("p", 324, 330.3, small, RED, "start"),
        ("b_L", 322, 355, small, RED, "middle"),
        ("h", 323.5, 387, 16, BLUE, "end"),
        ("i", 324, 391.3, small, BLUE, "start"),
        ("h", 322, 405, small, BLUE, "middle"),
        ("b", 89.5, 319, 16, RED, "end"),
        ("i", 90, 323.3, small, RED, "start"),
        ("p", 90, 312.3, small, RED, "start"),
        ("b", 19, 319, 16, "#aaa", "end"),
        ("i−1", 19.5, 323.3, small, "#aaa", "start"),
        ("p", 19.5, 312.3, small, "#aaa", "start"),
        ("and so on below", 8, 348, 12, "#777", "start"),
        ("not recursive: it reads nothing of the signal above", 8, 438, 12, "#222", "start"),
        ("signal from above", 36, 458, 12, "#222", "start"),
        ("forward value", 208, 458, 12, "#222", "start"),
        ("random", 36, 478, 12, "#222", "start"),
        ("running average", 208, 478, 12, "#222", "start"),
    ]


def test_what_comes_from_the_signal_above_is_red_and_thick():
    root = ET.fromstring(rules.parse("(h + g) * whiten(fah)").draw().svg)
    paths = [p.attrib for p in root.iter(f"{SVG}path")]
    drawn = {(p["data-from"], p["data-to"]): (p["stroke"], p["stroke-width"]) for p in paths if "data-to" in p}
    thick = (RED, "2.5")
    assert drawn == {
        ("h", "signal"): (BLUE, "1.5"), ("g", "signal"): thick, ("fah", "signal"): thick, ("whiten", "signal"): (PURPLE, "1.5"),
        ("b_next", "g"): thick, ("W", "g"): (GREY, "1.5"), ("dh", "g"): (BLUE, "1.5"),
        ("b_next", "fah"): thick, ("R", "fah"): (GREEN, "1.5"),
    }  # fmt: skip
    assert [p["fill"] for p in paths if p["d"].startswith("M109 ")] == [RED]  # the head at b_i^p, h comes first or not
    texts = [(t.text, t.attrib["fill"]) for t in root.iter(f"{SVG}text")]
    assert ("recursive: it comes from the signal above", RED) in texts and ("running average", PURPLE) in texts
    assert [t for t, _ in texts[-5:]] == ["signal from above", "forward value", "weight", "random", "running average"]


def test_long_equations_take_lines_of_47_letters_and_long_names_are_cut_to_16():
    wide = rules.Operand("sixteen_letters_", "w", "", formula="(b_next @ S.T) * dh * dh * dh")
    long = rules.Operand("seventeen_letters", "v", "", formula="b_next @ (0.5*S).T")
    mirrored = rules.Operand("mirrored", "m", "", formula="(W @ b_next.T).T")
    with rules.register(wide, long, mirrored):
        root = ET.fromstring(rules.parse("(sixteen_letters_ + seventeen_letters) * abs(mirrored)").draw().svg)
    texts = [(t.text, t.attrib["x"], t.attrib["y"], t.attrib["text-anchor"]) for t in root.iter(f"{SVG}text")]
    start = texts.index(("this rule", "8", "184", "start"))
    lines = ["(sixteen_letters_ + seventeen_letters) *", "abs(mirrored)"]
    assert texts[start + 1 : start + 3] == [(lines[0], "8", "202", "start"), (lines[1], "8", "220", "start")]
    top = 220 + 12  # three operands and the values b_next, dh, S and W: 50 px each, so they begin 25 px below
    assert texts[start + 3] == ("sixteen_letters_", "194", f"{top + 25 + 25 + 5}", "middle")  # its formula is too wide
    assert texts[start + 4] == ("seventeen_lette…", "194", f"{top + 25 + 75 - 4}", "middle")
    formulas_ = "".join(t or "" for t, *_ in texts[start + 5 :])
    assert formulas_.startswith("bi+1p · (0.5*Si)⊤mirrored(Wi · bi+1p⊤)⊤")


def test_a_drawing_says_how_long_it_is():
    drawing = rules.parse("g").draw()
    assert (
        repr(drawing)
        == f"a drawing of {len(drawing.svg):,} characters: a notebook shows it, .save('rule.svg') writes it"
    )
