"""Every figure that people read in tables, pages and progress lines, against values worked out by hand."""

import collections
import dataclasses
import io
import math
import re
import types

import pytest
from rich.console import Console
from test_ranking import row

from bpevo.evaluation import Evaluation, EvaluationPlan, Treatment, standings, verdict
from bpevo.evaluation.early_decisions import EarlyDecisions, early_decisions
from bpevo.evaluation.standings import Standing, paper_numbers
from bpevo.evaluation.treatments import CONTROLS, winners
from bpevo.evolution import ONE, Change, Networks, Proposal
from bpevo.report import Progress, Stages, ancestry, leaderboard, page, progress, remarks, table, tables
from bpevo.report.build import Report, Run
from bpevo.rules import parse
from bpevo.runs import Rows


def printed(renderable, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def lines(renderable) -> dict[str, list[str]]:
    """The rows of a table in a wide terminal: first cell to the others."""
    found = [
        [c.strip() for c in line.strip("│").split("│")] for line in printed(renderable).splitlines() if "│" in line
    ]
    return {cells[0]: cells[1:] for cells in found}


# A search.

SEARCH = Rows([
    row("g", 0.5, stage="control", rate=0.1, proposal=None),
    row("g", 0.6, stage="control", rate=0.3, proposal=None),
    row("g - g", 0.2, stage="control", rate=0.1, proposal=None),
    row("g - g", 0.2, stage="control", rate=0.3, proposal=None),
    row("fa", 0.55, rate=0.1, proposal=0, rungs=2),
    row("fa", 0.35, rate=0.3, proposal=0, rungs=2),  # the last rate is not the best
    row("unit_fro(g)", 0.65, rate=0.1, proposal=1, rungs=2),
    row("unit_fro(g)", 0.7, rate=0.3, proposal=1, rungs=2),
    row("dfa", 0.8, rate=0.1, proposal=2, rungs=1, status="stopped"),  # rungs count before accuracy
    row("dfa", None, rate=0.3, proposal=2, reason="loss not finite"),
    row("sgn(g)", None, rate=0.1, proposal=3, reason="loss not finite"),
    row("sgn(g)", None, rate=0.3, proposal=3, reason="loss not finite"),
    *(row("g", a, stage="selection", rate=0.3, replicate=i, proposal=None) for i, a in enumerate((0.58, 0.62, 0.66), 1)),
    *(row("unit_fro(g)", a, stage="selection", rate=0.3, replicate=i) for i, a in enumerate((0.71, 0.73, 0.75, 0.77), 1)),
    row("fa", 0.5, stage="selection", rate=0.1, replicate=1), row("fa", None, stage="selection", rate=0.1, replicate=2),
    row("fa", 0.99, stage="selection", rate=0.3, replicate=1),  # of a rate that is not its best
])  # fmt: skip


def test_a_leaderboard_shows_what_was_measured():
    board = leaderboard(SEARCH, 3)
    assert [(r.equation, r.search) for r in board] == [
        ("unit_fro(g)", 70.0), ("g", 60.0), ("fa", 55.00000000000001), ("dfa", 80.0), ("g - g", 20.0)
    ]  # fmt: skip
    # Sample deviation of 71, 73, 75, 77 is √(20/3), of 58, 62, 66 it is 4.
    assert [(r.mean, r.deviation) for r in board[:2]] == [
        (pytest.approx(74), pytest.approx(math.sqrt(20 / 3))), (pytest.approx(62), pytest.approx(4))
    ]  # fmt: skip
    assert lines(table(board, "a title")) == {
        # To backprop's 58, 62, 66 on three shared seeds: +13, +11, +9; 4.303 · 2/√3.
        "unit_fro(g)  [backprop, rescaled per unit]": ["0.3*", "70.00", "74.00 ± 2.58", "4", "+11.0 ± 5.0"],
        "backprop: g": ["0.3*", "60.00", "62.00 ± 4.00", "3", ""],
        "fa  [other information]  (1 of 2 diverged)": ["0.1*", "55.00", "50.00", "1", ""],
        "dfa  [other information]": ["0.1*", "80.00", "", "", ""],
        "zero_signal: g - g": ["0.3*", "20.00", "", "", ""],  # a tie: the higher rate
    }
    assert [(r.rates, r.diverged) for r in board] == [(2, 0), (2, 0), (2, 1), (2, 0), (2, 0)]
    assert [r.equation for r in leaderboard(SEARCH, 1)] == ["unit_fro(g)", "g", "g - g"]
    assert printed(table(board, "a title")).splitlines()[0].strip() == "a title"


def test_a_rule_that_diverges_on_a_fresh_seed_stands_below_all_that_do_not():
    rows = [
        row("fa", 0.9, stage="selection", rate=0.1, replicate=1),
        row("fa", None, stage="selection", rate=0.1, replicate=2),
    ]
    rows += [row(text, a, rate=0.1, proposal=i) for i, (text, a) in enumerate([("fa", 0.9), ("dfa", 0.3), ("h", 0.2)])]
    rows += [row("dfa", 0.3, stage="selection", rate=0.1, replicate=i) for i in (1, 2)]
    board = leaderboard(Rows(rows), 3)
    assert [r.equation for r in board if not r.label] == ["dfa", "fa", "h"]


def test_an_accuracy_of_zero_is_one():
    """Backprop has 0, 0, 100, 100 and the rule 100, 100, 100, 0 on fresh seeds; dfa has 0 there and 90 in the search."""
    rows = [row("g", 0.5, stage="control", rate=0.1, proposal=None)]
    rows += [row(text, a, rate=0.1, proposal=i) for i, (text, a) in enumerate([("fa", 0.4), ("dfa", 0.9)])]
    for text, accuracies in (("g", (0, 0, 1, 1)), ("fa", (1, 1, 1, 0)), ("dfa", (0, 0, 0, 0))):
        proposal = None if text == "g" else 0
        rows += [
            row(text, float(a), stage="selection", rate=0.1, replicate=i, proposal=proposal)
            for i, a in enumerate(accuracies)
        ]
    board = leaderboard(Rows(rows), 3)
    assert [r.equation for r in board if r.mean is not None] == ["fa", "g", "dfa"]
    assert [(r.difference.n, r.difference.mean) for r in board if r.difference] == [(4, 25.0), (4, -50.0)]


def test_a_leaderboard_says_what_it_cannot_tell():
    """Backprop has five rates, the rules one; two rules above it are backprop times a number."""
    rates = (0.1, 0.2, 0.4, 0.8, 1.6)
    rows = [
        row("g", a, stage="control", rate=r, proposal=None)
        for r, a in zip(rates, (0.5, 0.6, 0.7, 0.8, 0.7), strict=True)
    ]
    rows += [row(text, 0.9, rate=0.1, proposal=i) for i, text in enumerate(("g + g", "0.5*g", "unit_fro(g)"))]
    rows += [row("fa", 0.1, rate=0.1, proposal=3)]
    said = remarks(leaderboard(Rows(rows), 4, (0.1,)), 80, 160)
    assert said == [
        "search %: on the 160 validation examples that chose the rule, so it flatters. fresh %: on 80 others, mean ± sample "
        "deviation over n fresh seeds. vs backprop: paired by seed, ± half the 95 % interval. [ ]: what a rule keeps of "
        "backprop's signal.",
        "2 of the 3 rules above backprop only rescale its signal: that is a learning rate, no find.",
        "No verdict: rules had 1 learning rate, backprop 5. Only bpevo.evaluate tunes all alike.",
    ]
    at_end = remarks(leaderboard(Rows(rows), 4), 0, 0)
    assert at_end[0].startswith("search %: on the validation examples that chose") and "fresh %" not in at_end[0]
    edge = leaderboard(Rows([*rows, row("g", 0.9, stage="control", rate=3.2, proposal=None)]), 4)
    assert "* the best learning rate of 1 rows lies at the edge of those tried." in remarks(edge, 0, 0)
    assert len(remarks(leaderboard(Rows(), 4), 0, 0)) == 1


def test_what_was_not_trained_or_diverged_has_no_figures():
    board = leaderboard(Rows([row("g", None, stage="control", reason="loss not finite")]), 3)
    assert lines(table(board, "")) == {
        "zero_signal: g - g  (not trained yet)": ["", "", "", "", ""],
        "backprop: g  (loss not finite)": ["0.1", "", "", "", ""],
    }


def test_the_winners_of_a_search_are_its_fittest_finished_rules():
    """A stopped training is no winner, though its accuracy is the highest and there is room for it."""
    database = types.SimpleNamespace(judged=lambda: SEARCH)
    assert [str(t) for t in winners(database)] == ["unit_fro(g)", "fa"]


def proposal(number: int, text: str, parent=None, changes=()) -> Proposal:
    return Proposal(id=number, equation=parse(text).to_equation(3), key=text, parent=parent, changes=changes)


PROPOSALS = [
    proposal(0, "fa"),
    proposal(1, "unit_fro(g)", 0, (Change(0, "unary1", "identity", "unit_fro"), Change(0, "operand1", "fa", "g"))),
    proposal(2, "dfa"),
    proposal(3, "sgn(g)", 1, (Change(0, "unary1", "unit_fro", "sgn"),)),
]


def test_a_lineage_shows_the_best_accuracy_of_each_ancestor():
    line = ancestry.lineage(PROPOSALS, SEARCH, PROPOSALS[3])
    assert [(a.id, a.equation, a.accuracy) for a in line] == [
        (0, "fa", 0.55),
        (1, "unit_fro(g)", 0.7),
        (3, "sgn(g)", None),
    ]
    text = page.lineage_html(line)
    assert ">55.00<" in text and ">70.00<" in text and text.count("%</td>") == 0
    assert "part 1, unary1: identity → unit_fro; part 1, operand1: fa → g" in text and ">initial<" in text


def test_shares_of_components_are_counted_and_ordered_from_most_to_least_favoured():
    """Of all four: fa ¼, unit_fro ¼, g ½, dfa ¼, sgn ¼; of the two winners, unit_fro(g) and fa: unit_fro ½, g ½, fa ½."""
    found = ancestry.shares(PROPOSALS, [PROPOSALS[1], PROPOSALS[0]])
    assert {s.component: (s.winners, s.population) for s in found} == {
        "fa": (0.5, 0.25), "unit_fro": (0.5, 0.25), "g": (0.5, 0.5), "dfa": (0.0, 0.25), "sgn": (0.0, 0.25)
    }  # fmt: skip
    assert [s.component for s in found] == ["fa", "unit_fro", "g", "dfa", "sgn"]  # by 25, 25, 0, -25 and -25 points
    few = ancestry.shares(PROPOSALS, [PROPOSALS[1], PROPOSALS[0]], count=4)
    assert sorted(s.component for s in few) == ["dfa", "fa", "sgn", "unit_fro"]  # what differs most


# An evaluation.


def trained(text: str, tuning: dict[float, tuple], test=(), selection=()) -> list:
    """Accuracies by learning rate in the tuning; the others are of the rate that `tuned` should find."""
    rows = [
        row(text, a, stage="tuning", rate=r, replicate=1000 + i) for r, v in tuning.items() for i, a in enumerate(v)
    ]
    for stage, (rate, values) in (("test", test or (0, ())), ("selection", selection or (0, ()))):
        rows += [row(text, a, stage=stage, rate=rate, replicate=3000 + i) for i, a in enumerate(values)]
    return rows


EVALUATION = Rows([
    # A training that diverged counts as 0: 0.3 has a mean of 45 %, not of 95 %.
    *trained("g", {0.03: (0.4, 0.4), 0.1: (0.5, 0.7), 0.3: (0.9, None)}, (0.1, (0.80, 0.82, 0.84, 0.86))),
    *trained("unit_fro(g)", {0.03: (0.6, 0.6), 0.1: (0.7, 0.7), 0.3: (0.5, 0.5)}, (0.1, (0.84, 0.85, 0.87, 0.92))),
    *trained("fa", {0.015: (0.6, 0.6), 0.03: (0.7, 0.8), 0.1: (0.7, 0.7), 0.3: (0.6, 0.6)}, (0.03, (0.82, 0.85, 0.85, 0.88))),
    *trained("dfa", {0.03: (0.1, 0.1), 0.1: (0.2, 0.2), 0.3: (0.2, 0.2)}, (0.3, (0.79, 0.83, 0.83, 0.87))),  # a tie
    *trained("sgn(g)", {0.03: (0.5, 0.5), 0.1: (0.6, 0.6), 0.3: (0.1, 0.1)}, (0.1, (0.9, None, 0.92, 0.94)), (0.1, (0.5, 0.6))),
    *trained("h", {0.03: (None, None), 0.1: (None, None), 0.3: (None, None)}),
    *trained("g - g", {0.03: (0.1, 0.1), 0.1: (0.2, 0.2), 0.3: (0.1, 0.1)}, (0.1, (0.2, 0.2, 0.2, 0.2))),
    *trained("2.0*g", {0.03: (0.3, 0.3), 0.1: (0.5, 0.5), 0.3: (0.4, 0.4)}, (0.1, (0.81, 0.81, 0.84, 0.88))),
    *trained("g | lars", {0.03: (None, None), 0.1: (None, None), 0.3: (None, None)}),  # no hurdle
])  # fmt: skip
SETTINGS = {
    "controls": ["g", "g - g", "2.0*g", "g | lars"], "rules": ["unit_fro(g)", "fa", "dfa", "sgn(g)"], "found": ["h"],
    "same": {"unit_elem2(g)": "unit_fro(g)", "gh * dh": "g"}, "scenario": "a1", "optimizer": "sgd", "dataset": "cifar10",
    "learning_rates": [0.03, 0.1, 0.3],
}  # fmt: skip
T3 = 3.182446305284263  # of 3 degrees of freedom at 97.5 %


def upper(x: float) -> float:
    """The p of t = √3 x with 3 degrees of freedom, one-sided."""
    return 0.5 - (x / (1 + x * x) + math.atan(x)) / math.pi


# unit_fro(g) over g: 4, 3, 3, 6, t = 4√2; over 2.0*g: 3, 4, 3, 4, t = 7√3. fa over g: 2, 3, 1, 2; over 2.0*g: 1, 4, 1, 0, t = √3.
FRO, FA = upper(math.sqrt(32 / 3)), upper(1.0)
# A one-sided t-test with 3 degrees of freedom at 5 % has power 0.8 where the mean is so many standard errors (by quadrature).
SHIFT = 3.299449


def by_text(rows=EVALUATION, **settings) -> dict[str, Standing]:
    return {s.text: s for s in standings(rows, SETTINGS | settings)}


def test_standings_hold_the_statistics_of_their_trainings():
    s = by_text()
    assert {t: x.learning_rate for t, x in s.items()} == {
        "g": 0.1, "unit_fro(g)": 0.1, "fa": 0.03, "dfa": 0.3, "sgn(g)": 0.1, "h": None, "g - g": 0.1, "2.0*g": 0.1,
        "g | lars": None,
    }  # fmt: skip
    assert s["g"].tuning == pytest.approx({0.03: 40, 0.1: 60, 0.3: 45}) and s["g"].validation == pytest.approx(60)
    assert {t for t, x in s.items() if x.at_edge} == {"dfa"}  # fa's grid has grown beyond its best
    assert s["g"].test.mean == pytest.approx(83) and s["g"].test.deviation == pytest.approx(math.sqrt(20 / 3))
    assert s["g"].test.margin == pytest.approx(T3 * math.sqrt(20 / 3) / 2)
    d = s["fa"].difference
    assert (d.pairs.n, d.pairs.mean) == (4, pytest.approx(2)) and d.pairs.deviation == pytest.approx(math.sqrt(2 / 3))
    # The largest p over the controls, then Holm over the two rules that have one.
    assert (s["unit_fro(g)"].hurdle, s["fa"].hurdle) == ("g", "2.0*g")
    assert s["unit_fro(g)"].p == pytest.approx(2 * FRO, rel=1e-6) and s["unit_fro(g)"].find and 0.010 < 2 * FRO < 0.012
    assert s["fa"].p == pytest.approx(FA) == pytest.approx(0.25 - 0.5 / math.pi) and not s["fa"].find
    assert s["fa"].over_hurdle.pairs.deviation == pytest.approx(math.sqrt(3))
    assert (
        s["fa"].detectable == pytest.approx(SHIFT * math.sqrt(3) / 2, rel=1e-4) and s["unit_fro(g)"].detectable is None
    )
    assert {t for t, x in s.items() if x.worse} == {"g - g"} and s["g - g"].p_worse < 0.001
    assert s["sgn(g)"].diverged == 1 and s["sgn(g)"].p is None and s["sgn(g)"].test.mean == pytest.approx(92)
    assert s["sgn(g)"].selection.mean == pytest.approx(55) and s["sgn(g)"].selection.n == 2
    assert [s["h"].test, s["h"].validation, s["g"].p] == [None, None, None]
    assert s["dfa"].p is None and s["dfa"].unfair == "the best learning rate lies at the edge of those tried"
    assert [(x.role, x.kind) for x in s.values()] == [
        ("named", "backprop, rescaled per unit"), ("named", "other information"), ("control", "scaled backprop"),
        ("control", "backprop"), ("named", "other information"), ("control", "no signal"),
        ("named", "backprop, rescaled per entry"), ("found", "other information"), ("control", "backprop"),
    ]  # fmt: skip


def retested(text: str, accuracies, rows=EVALUATION) -> Rows:
    """An evaluation with other test accuracies of one treatment."""
    others = [r for r in rows if (r.stage, r.equation) != ("test", text)]
    rate = 0.03 if text == "fa" else 0.1
    new = [row(text, a, stage="test", rate=rate, replicate=3000 + i) for i, a in enumerate(accuracies)]
    return Rows(others + new)


def test_a_find_beats_every_control_not_backprop_alone():
    """2.0*g with the accuracies of unit_fro(g) and a little more in one seed."""
    s = by_text(retested("2.0*g", (0.84, 0.85, 0.88, 0.92)))["unit_fro(g)"]
    assert s.hurdle == "2.0*g" and s.p > 0.5 and not s.find and s.difference.greater < 0.01


def test_of_controls_that_are_beaten_as_surely_the_hurdle_is_that_with_the_smallest_lead():
    """Leads that are the same at every seed."""
    own, rows = (0.75, 0.875, 0.625, 0.5), EVALUATION
    for text, lead in (("fa", 0.0), ("2.0*g", 0.25), ("g", 0.125), ("g - g", 0.375)):
        rows = retested(text, [a - lead for a in own], rows)
    s = by_text(rows)["fa"]
    assert (s.hurdle, s.over_hurdle.pairs.mean) == ("g", 12.5)


def test_what_was_detectable_depends_on_the_rank_that_holm_gives_a_rule():
    """Leads over 2.0*g: unit_fro(g) 0, 0, -1, 0, the smaller p, held to 2.5 %; fa -2, 0, -3, -4, held to 5 %."""
    s = by_text(retested("2.0*g", (0.84, 0.85, 0.88, 0.92)))
    assert s["unit_fro(g)"].detectable == pytest.approx(4.255899 * 0.5 / 2, rel=1e-4)  # in place of SHIFT
    assert s["fa"].detectable == pytest.approx(SHIFT * math.sqrt(8.75 / 3) / 2, rel=1e-4)


def test_a_control_keeps_what_did_not_diverge_of_it_and_with_one_repetition_left_it_is_no_hurdle():
    """2.0*g over the seeds 1 to 3: fa leads by 4, 1, 0, so t of 2 degrees of freedom is 1.387 = p/2 of 0.2999."""
    s = by_text(retested("2.0*g", (None, 0.81, 0.84, 0.88)))["fa"]
    assert s.over_hurdle.pairs.n == 3 and s.over_hurdle.pairs.mean == pytest.approx(5 / 3)
    assert s.p == pytest.approx(0.5 - 1.38675 / 2 / math.sqrt(2 + 1.38675**2), rel=1e-4)
    assert by_text(retested("2.0*g", (None, None, None, 0.99)))["fa"].hurdle == "g"


def test_a_repetition_that_diverges_makes_a_rule_last_and_never_a_find():
    table = standings(retested("unit_fro(g)", (0.99, 0.99, 0.995, None)), SETTINGS)
    tested = [r.text for r in table if r.test]
    assert tested[-2:] == ["unit_fro(g)", "sgn(g)"] or tested[-2:] == ["sgn(g)", "unit_fro(g)"]
    assert tested[-2] == "unit_fro(g)"  # 99.2 % before 92 %
    assert not [r for r in table if r.find]


def test_without_every_control_there_is_no_verdict():
    for untested in (
        Rows(r for r in EVALUATION if (r.stage, r.equation) != ("test", "2.0*g")),
        Rows(r for r in EVALUATION if r.equation != "2.0*g"),
    ):
        s = by_text(untested)
        assert s["unit_fro(g)"].p is None and s["unit_fro(g)"].unfair == "the controls 2.0*g have not been tested"
        assert s["g - g"].worse  # against backprop the comparison is fair
    limited = [r for r in EVALUATION if not (r.equation == "2.0*g" and r.learning_rate == 0.03)]
    limited += trained("2.0*g", {0.03: (0.9, 0.9)}, (0.03, (0.5, 0.6, 0.5, 0.6)))
    s = by_text(Rows(limited))
    assert (
        s["2.0*g"].at_edge
        and s["unit_fro(g)"].unfair == "of the controls 2.0*g more learning rates would have to be tried"
    )


def test_rows_that_were_tuned_by_unequal_grids_are_not_compared():
    few = Rows(r for r in EVALUATION if not (r.equation == "fa" and r.stage == "tuning" and r.learning_rate != 0.03))
    s = by_text(few, learning_rates=[])  # not told: what any row has tried
    assert s["fa"].unfair == "1 of 3 learning rates was tried" and s["fa"].p is None


OLD_SETTINGS = {"rules": ["fa"], "found": [], "scenario": "a1", "optimizer": "sgd", "learning_rates": [0.03, 0.1, 0.3]}


def test_an_evaluation_of_the_first_version_is_reported_without_finds():
    """It knew fewer controls."""
    table = standings(Rows(r for r in EVALUATION if r.equation in ("g", "g - g", "fa")), OLD_SETTINGS)
    assert [r.text for r in table] == ["fa", "g", "g - g"] and table[-1].worse
    missing = "0.25*g, 0.5*g, 2.0*g, 4.0*g, g | block_normalised, g | clip_global_norm, g | lars, g | adam"
    assert table[0].unfair == f"the controls {missing} have not been tested"
    assert f"No verdict on fa: the comparison is not fair, for {table[0].unfair}." in verdict(table)


CELLS = {
    # kind, lr, validation %, test %, n, 95 %, vs backprop, vs closest control, p, detectable, paper
    "unit_fro(g)": ["backprop, rescaled per unit", "0.1", "70.00", "87.00 ± 3.56", "4", "± 5.66", "+4.00 ± 2.25",
                    "+4.00 ± 2.25 (g)", "0.011", "", "84.15 ± 0.66; 83.16 ± 0.90"],
    "fa": ["other information", "0.03", "75.00", "85.00 ± 2.45", "4", "± 3.90", "+2.00 ± 1.30", "+1.50 ± 2.76 (2.0*g)", "0.091",
           "2.86", ""],
    "2.0*g": ["scaled backprop", "0.1", "50.00", "83.50 ± 3.32", "4", "± 5.28", "+0.50 ± 2.05", "", "", "", ""],
    "g": ["backprop", "0.1", "60.00", "83.00 ± 2.58", "4", "± 4.11", "", "", "", "", "77.11 ± 3.53"],
    "dfa": ["other information", "0.3*", "20.00", "83.00 ± 3.27", "4", "± 5.20", "+0.00 ± 1.84", "", "unfair", "", ""],
    "g - g": ["no signal", "0.1", "20.00", "20.00 ± 0.00", "4", "± 0.00", "-63.00 ± 4.11", "", "", "", ""],
    "sgn(g)": ["backprop, rescaled per entry", "0.1", "55.00 ± 7.07", "92.00 ± 2.00 (1 diverged)", "3", "± 4.97", "", "", "", "",
               ""],
    "h": ["other information", "diverged", "", "", "", "", "", "", "", "", ""],
    "g | lars": ["backprop", "diverged", "", "", "", "", "", "", "", "", ""],
}  # fmt: skip


def test_tables_show_the_standings():
    table = standings(EVALUATION, SETTINGS)
    found = {s.text: tables.cells(s) for s in table}
    assert found == CELLS and list(found) == list(CELLS)  # best first
    shown = lines(tables.standings_table(table, "a1"))
    assert shown["fa"] == ["other information", "0.03", "85.00 ± 2.45", "4", "+2.00 ± 1.30", "0.091", "2.86"]
    assert shown["zero_signal: g - g"] == ["no signal", "0.1", "20.00 ± 0.00", "4", "-63.00 ± 4.11", "", ""]
    markdown = tables.markdown(table).splitlines()
    assert markdown[2] == (
        "| **`unit_fro(g)`** | **backprop, rescaled per unit** | **0.1** | **70.00** | **87.00 ± 3.56** | **4** | **± 5.66** | "
        "**+4.00 ± 2.25** | **+4.00 ± 2.25 (g)** | **0.011** |  | **84.15 ± 0.66; 83.16 ± 0.90** |"
    )
    assert markdown[3].startswith("| `fa` | other information | 0.03 |") and markdown[6].split(" | ")[2] == r"0.3\*"
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in markdown}) == 1  # a control's bar is no border
    latex = tables.latex(table)
    assert r"83.00 $\pm$ 3.27 & 4 & $\pm$ 5.20 & +0.00 $\pm$ 1.84 &  & unfair &  &  \\" in latex
    html = page.standings_html(table)
    assert html.count('<tr class="find">') == 1 and ">+2.00 ± 1.30<" in html and html.count('class="worse"') == 1


def test_the_verdict_says_what_the_table_says():
    assert verdict(standings(EVALUATION, SETTINGS)) == [
        "Backprop, tuned like every row (learning rate 0.1, 3 tried), reaches 83.00 ± 2.58 % on the test set (n = 4).",
        "Without any hidden signal the same network reaches 20.00 ± 0.00 %.",
        "The best of the other controls, 2.0*g, reaches 83.50 ± 3.32 %.",
        "Diverged at every learning rate, so no hurdle: g | lars.",
        "1 of 2 rules is a find: better than each of 3 controls (one-sided paired t-tests on shared seeds, the largest p counts; "
        "Holm over 2 rules, 5%).",
        "The best find, unit_fro(g) (backprop, rescaled per unit), leads g, the control that comes closest, by 4.00 ± 2.25 "
        "points (95 % interval).",
        "Where no lead was found, these seeds would have shown one of 2.86 points with a chance of 80% (column detectable).",
        "Significantly worse than backprop: 0 of 2 rules.",
        "No verdict on dfa: the comparison is not fair, for the best learning rate lies at the edge of those tried.",
        "No verdict on sgn(g): some repetitions diverged.",
        # At 0.1: unit_fro(g) 70, fa 70, dfa 20, sgn(g) 60, together 220; at 0.03 they have 195, at 0.3 140. Backprop has 60.
        "Without tuning, at the one learning rate that suits the rules best together (0.1), 2 of 4 rules would have been ahead "
        "of backprop's 60.00 % on validation; tuned, it has 60.00 %.",
        "One function, trained and counted once: unit_elem2(g) = unit_fro(g).",
        "Trains like a control and is not counted as a rule: gh * dh = g.",
    ]
    assert verdict([]) == ["Backprop has not been tested yet: no verdict."]
    nothing = verdict([s for s in standings(EVALUATION, SETTINGS) if s.text in ("g", "fa")])
    assert nothing[1].startswith("None of 1 rules is a find: better than each of 1 controls")


def test_a_single_rate_is_not_called_tuning():
    rows = Rows(
        [*trained("g", {0.1: (0.5, 0.7)}, (0.1, (0.8, 0.82))), *trained("fa", {0.1: (0.5, 0.5)}, (0.1, (0.9, 0.93)))]
    )
    sentences = verdict(standings(rows, SETTINGS | {"controls": ["g"], "learning_rates": [0.1], "same": {}}))
    assert sentences == [
        "Backprop, at the one learning rate 0.1, not tuned, reaches 81.00 ± 1.41 % on the test set (n = 2).",
        "No verdict on fa: the comparison is not fair, for the best learning rate lies at the edge of those tried.",
    ]


@pytest.mark.parametrize(
    "text, scenario, optimizer, shown",
    [
        ("unit_fro(g)", "a1", "sgd", "84.15 ± 0.66"),
        ("unit_fro(g)", "a1_more", "momentum", "84.23 ± 0.88"),  # what follows the setup is the user's
        ("min(unit_fro(g), clip(h, 1.0))", "a1", "momentum", ""),  # not in this column
        ("min(unit_fro(g), clip(h, 1.0))", "small", "sgd", "A1 sgd 84.48"),
        ("min(unit_fro(g), clip(h, 1.0))", "small", "momentum", "A1 sgd 84.48"),  # its only column
        ("unit_fro(g) + (0.5*g)", "small", "momentum", "A1 momentum 85.36"),
        ("fa", "small", "sgd", ""),
    ],
)
def test_the_papers_number_is_of_the_same_setup_or_says_of_which(text, scenario, optimizer, shown):
    settings = {"scenario": scenario, "optimizer": optimizer}
    assert paper_numbers([text], settings | {"dataset": "cifar10"}) == shown
    assert paper_numbers([text], settings | {"dataset": "digits"}) == ""


def test_an_evaluation_chooses_by_means_in_which_what_diverged_counts_as_nothing_and_comes_last():
    found = [Treatment.parse(t) for t in ("fa", "dfa", "sgn(g)")]
    rows = Rows([
        *trained("fa", {0.1: (0.9, None), 0.3: (0.5, 0.5)}, (), (0.3, (0.6, 0.6))),
        *trained("dfa", {0.1: (0.7, 0.7)}, (), (0.1, (0.9, 0.9, None))),
        *trained("sgn(g)", {0.1: (0.55, 0.55)}),
    ])  # fmt: skip
    plan = EvaluationPlan(found=tuple(found), learning_rates=(0.1, 0.3), finalists=2)
    evaluation = Evaluation(types.SimpleNamespace(rows=lambda: rows), None, plan)
    assert [evaluation.rate(t) for t in found] == [0.3, 0.1, 0.1]
    assert [evaluation.worth(t) for t in found] == [
        (True, pytest.approx(0.6)), (False, pytest.approx(0.6)), (True, pytest.approx(0.55))
    ]  # fmt: skip
    assert [str(t) for t in evaluation.finalists()] == [*map(str, CONTROLS), "fa", "sgn(g)"]


# Early decisions.


def curves(*accuracies: list, text: str = "fa") -> Rows:
    return Rows(
        row(text, c[-1], stage="tuning", rate=0.1 * (1 + i), replicate=i, curve={"eval_accuracy": c})
        for i, c in enumerate(accuracies)
    )


def test_early_decisions_are_the_correlations_and_the_choice_of_successive_halving():
    """Nine configurations, nine epochs, ranks as at the end from the start: 21 of 81 epochs are trained, the best is picked."""
    found = early_decisions(curves(*([i / 10] * 9 for i in range(9))), "fa")
    assert (found.n, found.spent) == (9, pytest.approx(21 / 81))
    assert (found.best, found.picked, found.regret) == (pytest.approx(80), pytest.approx(80), pytest.approx(0))
    # The best at the end is the worst until then: the second of all is picked, 10 points lost.
    late = early_decisions(curves(*([i / 10 if i < 9 else 0.0] * 8 + [i / 10] for i in range(1, 10))), "fa")
    assert (late.best, late.picked, late.regret) == (pytest.approx(90), pytest.approx(80), pytest.approx(10))
    two = early_decisions(curves(*([i / 10, i / 10] for i in range(9))), "fa")
    assert len(two.correlations) == 2 and two.picked == pytest.approx(80)
    assert early_decisions(curves(*([i / 10] for i in range(9))), "fa") is None
    # Spearman's of (1, …, 8, 0) and (0, …, 8): 1 - 6·(8·1² + 8²)/(9·80).
    assert late.correlations[0] == pytest.approx(1 - 6 * (8 + 64) / 720) and late.correlations[-1] == pytest.approx(1)


def test_a_page_shows_the_correlation_after_a_third_of_the_epochs_and_shares_in_percent():
    d = EarlyDecisions(
        text="fa", n=24, correlations=tuple(i / 10 for i in range(1, 10)), best=81.234, picked=79.0, spent=21 / 81
    )
    cells = [c.split("<")[0] for c in page.early_decisions_html([d]).split('">')[1:]]
    assert [c for c in cells if c][-6:] == ["24", "0.30", "81.23", "79.00", "2.23", "26%"]


def test_a_page_says_how_many_there_were_and_with_what():
    settings = {"model": "mlp-8", "dataset": "digits", "optimizer": "sgd", "epochs": 4, "batch_size": 32, "train_examples": None,
                "learning_rates": [0.3, 0.1], "weight_decay": 0.0005, "seed": 0}  # fmt: skip
    rows = Rows(dataclasses.replace(row, finished=f"2026-01-01T00:00:{i:02}+00:00") for i, row in enumerate(SEARCH))
    versions = {"jax": "1.2", "cores": "2"}
    report = Report("a title")
    report.add_search(
        Run(name="a", settings=settings, versions=versions, first_versions=versions, rows=rows, proposals=PROPOSALS)
    )
    text = "".join(report._sections)
    described = (
        "mlp-8; on digits; with sgd; epochs 4; batch 32; weight decay 0.0005; learning rates 0.3, 0.1; seed 0. jax 1.2"
    )
    described += ", cores 2"
    assert f'<p class="note">{described}</p>' in text
    assert (
        "<p>4 equations: 8 trainings and 0 confirmations on another seed; 4 trainings of controls; 0 "
        "slot-epochs in all.</p>"
    ) in text
    lineage = text.partition("Lineage of unit_fro(g)")[2].partition("</table>")[0]  # fa, then unit_fro(g)
    assert ">55.00<" in lineage and ">70.00<" in lineage and lineage.count("<tr") == 3
    board = text.partition("<table>")[2].partition("</table>")[0]
    assert board.count("<tr") == 1 + 5 and "+11.0 ± 5.0" in board and "rescaled per unit" in board


# Progress.


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self, now: float):
        self.now = now

    def monotonic(self) -> float:
        return self.now


def watched(**changes) -> types.SimpleNamespace:
    values = dict(
        plan=types.SimpleNamespace(max_evaluations=60, networks=ONE), done=30, proposals=[None] * 15, infeasible=3, duplicates=2,
        best=(parse("unit_fro(g)").to_equation(3), 0.75), control={"backprop": (0.4, 0.5)}.get,
        failures=collections.Counter({"stopped": 4, "loss not finite": 1}), occupancy=0.875,
    )  # fmt: skip
    return types.SimpleNamespace(**values | changes)


def test_a_searchs_progress_line_holds_its_rates_and_shares(monkeypatch):
    """10 trainings in 5 minutes are 120 an hour, so 30 more take 15 minutes; 3 and 2 of 20 draws are 15 % and 10 %."""
    monkeypatch.setattr(progress, "time", clock := Clock(1000.0))
    console = Console(file=io.StringIO(), width=80)
    watch = Progress(console)
    clock.now += 300
    watch(watched(), [row("fa", 0.5) for _ in range(10)] + [row("g", 0.5, stage="control")])
    expected = (
        "stage control, evaluations 30 of 60 (120/h), time left 15.0 min, best 75.00 % unit_fro(g), backprop 50.00 % "
        "(learning rate 0.4), failures 4 stopped; 1 loss not finite, draws 15 drawn, 15% infeasible, 10% duplicate, "
        "occupancy 88% of slots\n"
    )
    assert console.file.getvalue() == expected
    clock.now += 9
    watch(watched(), [])
    assert console.file.getvalue() == expected  # nothing new, and not yet time
    clock.now += 2
    watch(watched(done=60, best=None, control={}.get, failures=collections.Counter()), [])
    assert console.file.getvalue().splitlines()[1] == (
        "stage control, evaluations 60 of 60 (116/h), draws 15 drawn, 15% infeasible, 10% duplicate, occupancy 88% of slots"
    )


def test_over_several_networks_progress_tells_backprop_on_each():
    console = Console(file=io.StringIO(), width=400)
    both = types.SimpleNamespace(max_evaluations=60, networks=Networks(names=("a", "b"), epochs=3))
    Progress(console)(
        watched(plan=both, control=lambda name, network: {"a": (0.4, 0.5), "b": (0.2, 0.75)}[network]), []
    )
    assert "backprop 50.00 % (learning rate 0.4) / 75.00 % (learning rate 0.2)" in console.file.getvalue()


def test_a_better_rule_is_told_at_once(monkeypatch):
    monkeypatch.setattr(progress, "time", clock := Clock(1000.0))
    console = Console(file=io.StringIO(), width=80)
    watch = Progress(console)
    for accuracy in (0.5, 0.5, 0.6):
        clock.now += 1
        best = parse("fa").to_equation(3), accuracy
        watch(watched(best=best), [])
    assert [line.split("best ")[1][:10] for line in console.file.getvalue().splitlines()] == [
        "50.00 % fa",
        "60.00 % fa",
    ]


def test_an_evaluations_progress_lines_hold_counts_and_the_time_left(monkeypatch):
    """4 trainings in 60 s: 12 more take 180 s."""
    monkeypatch.setattr(progress, "time", clock := Clock(1000.0))
    console = Console(file=io.StringIO(), width=80)
    watch = Stages(console)
    watch("tuning", 0, 16, [])
    clock.now += 60
    watch("tuning", 4, 16, [row("fa", 0.5, stage="tuning") for _ in range(4)])
    clock.now += 1
    watch("tuning", 5, 16, [row("fa", 0.5, stage="tuning")])  # too soon for a line
    watch("tuning", 16, 16, [row("dfa", 0.5, stage="tuning") for _ in range(11)])
    clock.now += 1
    watch("test", 3, 4, [])
    clock.now += 10
    watch("test", 3, 4, [])
    assert console.file.getvalue().splitlines() == [
        "tuning: 0 of 16 trainings",
        "tuning: 4 of 16 trainings, 3.0 min left; fa",
        "tuning: 16 of 16 trainings; dfa",
        "test: 3 of 4 trainings",
    ]
