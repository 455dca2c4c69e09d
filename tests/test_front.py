"""The front by complexity: what simplification takes out and keeps, and which rules of a search are on the front, by hand."""

import contextlib
import io
import sqlite3
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from rich.console import Console
from test_ranking import row
from test_runs import outcome

from bpevo.evolution import SearchSpace, probe
from bpevo.evolution.equivalence import same
from bpevo.evolution.simplify import components, simplified
from bpevo.evolution.space import feasible
from bpevo.report import front, front_table, page
from bpevo.report.opened import Opened
from bpevo.rules import InfeasibleEquation, parse, without_one
from bpevo.runs import Rows, RunDatabase


@pytest.mark.parametrize(
    "text, left",
    [
        ("g", "g"),
        ("left(unit_fro(g), h)", "unit_fro(g)"),  # an idle gene
        ("unit_fro(0.5*g)", "unit_fro(g)"),  # a norm forgets a factor
        ("unit_row2(2.0*g)", "unit_row2(2.0*g)"),  # but in a row that is smaller than ε
        ("(unit_fro(g) + h) - h", "(unit_fro(g) + h) - h"),  # no single component can go
        ("g + (mean(h) - mean(h))", "g"),  # zero is added
        ("max(abs(g), -abs(fa))", "abs(g)"),
        ("relu(h)", "h"),  # what is not negative
        ("clip(g, 1.0)", "clip(g, 1.0)"),  # there may be such signals
        ("g + g", "g + g"),  # twice g is not g
        ("mul_noise(g, 0.01)", "mul_noise(g, 0.01)"),  # noise that is there is an effect
    ],
)
def test_what_has_no_effect_is_taken_out_and_what_has_one_stays(text, left):
    assert str(simplified(parse(text))) == left


def test_components_are_operands_with_their_statistics_and_functions_with_their_constants():
    by_hand = {"g": 1, "bn(h)": 1, "unit_fro(g)": 2, "g + h": 3, "clip(bn(g), 0.5) * (2.0*h)": 5}
    assert {text: components(parse(text)) for text in by_hand} == by_hand


@hypothesis.given(st.integers(0, 2**16))
@hypothesis.settings(max_examples=15)
def test_what_is_left_computes_the_same_and_changes_with_every_component(seed):
    rng, space = np.random.default_rng(seed), SearchSpace(3)
    while not feasible(equation := space.random(rng)):
        pass
    rule = equation.to_expression()
    left = simplified(rule)

    def signals(expression):
        return probe.signals(probe.rule(expression), 5)

    assert same(signals(left), signals(rule)) and components(left) <= components(rule)
    for smaller in without_one(left):
        try:
            smaller.check()
        except InfeasibleEquation:
            continue
        assert not same(signals(smaller), signals(rule))


# text, accuracy; the components that have an effect
SEARCHED = [
    ("(0.5*unit_fro(g)) + h", 0.90),  # 5
    ("unit_fro(g)", 0.70),  # 2
    ("unit_fro(2.0*fa)", 0.80),  # 2: a factor without effect
    ("g * fa", 0.75),  # 3, and worse than a simpler one
    ("(g + fa) + h", 0.90),  # 5, as good as the first: the older one counts
    ("fa", 0.30),
    ("dfa", None),
    ("g", 0.99),  # backprop itself is no find
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("front")
    with RunDatabase.writing(folder) as database:
        for i, (text, accuracy) in enumerate(SEARCHED):
            status = "diverged" if accuracy is None else "done"
            database.add_rows([outcome(text, status, (accuracy or 0.0,), proposal=None, rate=0.1 * (i + 1))])
        found = front(database.rows())
        database.store_tables([], [r.plain for r in found])
    return folder, found


def test_the_front_holds_the_best_rule_for_each_number_of_components_without_those_that_a_simpler_one_beats(run):
    _, found = run
    assert [(r.components, r.equation, round(r.search, 6)) for r in found] == [
        (1, "fa", 30.0), (2, "unit_fro(fa)", 80.0), (5, "(0.5*unit_fro(g)) + h", 90.0),
    ]  # fmt: skip
    assert [r.learning_rate for r in found] == pytest.approx([0.6, 0.3, 0.1])
    assert found[1].kind == "other information"
    assert found[0].plain == (1, "fa", "other information", None, pytest.approx(0.6), 30.0)


def test_the_front_is_in_the_terminal_the_database_the_page_and_a_data_frame(run):
    folder, found = run
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(front_table(found))
    said = console.export_text()
    with contextlib.closing(sqlite3.connect(folder / "run.sqlite")) as connection:
        stored = connection.execute("SELECT components, rule, search FROM front ORDER BY components").fetchall()
    frame = Opened(folder).front
    for own, in_table, in_frame in zip(found, stored, frame.to_dict("records"), strict=True):
        assert in_table == (own.components, own.equation, own.search)
        assert (in_frame["components"], in_frame["equation"]) == (own.components, own.equation)
        assert own.equation in said and f"{own.search:.2f}" in said and f"{own.search:.2f}" in page.front_html(found)
    assert page.front_html([]) == ""


def test_a_search_without_results_has_no_front():
    assert front(Rows()) == []


def test_only_the_thirty_best_rules_are_looked_at(monkeypatch):
    """29 rules of 4 components, the 30th of 2, the 31st of 1."""
    module = sys.modules["bpevo.report.front"]
    monkeypatch.setattr(module, "kind", lambda _: "")
    monkeypatch.setattr(module, "simplified", lambda rule: rule)
    texts = [*(f"clip({o}, {c}.0) + h" for o in ("fa", "dfa") for c in range(1, 16))][:29] + ["sgn(fa)", "dfa"]
    rows = Rows(row(text, 0.9 - i / 100, proposal=i) for i, text in enumerate(texts))
    assert [(r.components, r.equation) for r in front(rows)] == [(2, "sgn(fa)"), (4, "clip(fa, 1.0) + h")]


def test_over_several_networks_a_row_of_the_front_has_what_the_rule_did_on_each(monkeypatch):
    monkeypatch.setattr(sys.modules["bpevo.report.front"], "kind", lambda _: "a kind")
    on_each = (row("fa", 0.75, rate=0.1, network="a"), row("fa", 0.5, rate=0.25, network="b"))
    (found,) = front(Rows([row("fa", 0.625, rate=0.1, members=on_each)]))
    assert [(r.learning_rate, r.search, r.kind, r.on) for r in found.on] == [
        (0.1, 75.0, "a kind", ()),
        (0.25, 50.0, "a kind", ()),
    ]
    (line,) = front_table([found]).lines
    assert (line.text, line.numbers) == ("fa  [a kind]", ["1", "0.1 / 0.25", "62.50 (75.00 / 50.00)"])
