"""The leaderboard and the standings as text, at their bounds: every cell, mark and remark of tables made by hand."""

import dataclasses
import sys

import pytest
from test_figures import by_text, lines
from test_ranking import row

from bpevo.evaluation.significance import summary
from bpevo.evolution import Networks
from bpevo.report import LeaderboardRow, leaderboard, plain, remarks, table, tables
from bpevo.runs import Rows, judged


@pytest.fixture
def kinds(monkeypatch):
    """A kind of a rule costs a program; here all have one."""
    monkeypatch.setattr(sys.modules["bpevo.report.leaderboard"], "kind", lambda rule: f"kind of {rule}")


# The leaderboard.

TRIED = Rows([
    row("g", 0.5, stage="control", rate=0.1, proposal=None), row("g", 0.6, stage="control", rate=0.2, proposal=None),
    *(row(text, 0.2, stage="trial", rate=rate) for text in ("fa", "dfa", "hp") for rate in (0.1, 0.2, 0.4)),
    row("fa", 0.7, rate=0.2, proposal=0), row("dfa", 0.8, rate=0.4, proposal=1), row("hp", 0.3, rate=0.1, proposal=2),
    row("h", 0.9, rate=0.1, proposal=3),
    *(row("g", a, stage="selection", rate=0.2, replicate=i, proposal=None) for i, a in enumerate((0.5, 0.75), 1)),
    *(row("fa", a, stage="selection", rate=0.2, replicate=i) for i, a in enumerate((0.75, 0.75, 0.375), 1)),
    row("dfa", 0.25, stage="selection", rate=0.4, replicate=1),
])  # fmt: skip


def test_a_star_marks_a_rate_at_an_end_of_several_and_an_interval_needs_two_pairs(kinds):
    board = leaderboard(TRIED, 4, (0.1, 0.2))
    assert lines(table(board, "")) == {
        # Of 50 and 75: mean 62.5, deviation 25/√2; of 75, 75, 37.5: mean 62.5, deviation √(937.5/2).
        "backprop: g": ["0.2*", "60.00", "62.50 ± 17.68", "2", ""],
        # Pairs of +25 and 0: 12.7062 · 25/√2/√2.
        "fa  [kind of fa]": ["0.2", "70.00", "62.50 ± 21.65", "3", "+12.5 ± 158.8"],
        "dfa  [kind of dfa]": ["0.4*", "80.00", "25.00", "1", ""],
        "h  [kind of h]": ["0.1", "90.00", "", "", ""],
        "hp  [kind of hp]": ["0.1*", "30.00", "", "", ""],
        "zero_signal: g - g  (not trained yet)": ["", "", "", "", ""],
    }
    by_rule = {r.equation: r for r in board}
    assert [r.equation for r in board][2:] == ["dfa", "h", "hp", "g - g"] and by_rule["fa"].rates == 3
    assert [(r.rates, r.at_edge) for r in (by_rule["h"], by_rule["hp"], by_rule["g"])] == [
        (1, False),
        (3, True),
        (2, True),
    ]
    assert plain(by_rule["fa"]) == ("fa", "", "kind of fa", 0.2, pytest.approx(70), 62.5, 3, 12.5)
    assert plain(by_rule["g"]) == ("g", "backprop", "", 0.2, 60.0, 62.5, 2, None)
    assert by_rule["g - g"] == LeaderboardRow(
        label="zero_signal", equation="g - g", kind="", proposal=None, learning_rate=None, rates=0, at_edge=False, search=None,
        fresh=(), diverged=0, difference=None, status="not trained yet",
    )  # fmt: skip
    assert {line.text[:8]: line.style for line in table(board, "").lines} == {
        "backprop": "bold", "zero_sig": "bold", "fa  [kin": "", "dfa  [ki": "", "h  [kind": "", "hp  [kin": "",
    }  # fmt: skip


def test_over_several_networks_a_cell_holds_what_a_rule_did_on_each(kinds):
    """Of fresh seeds backprop has 50 and 75, fa leads by 25 and 0: the worst lead on the mean of 62.5."""
    on = Networks(names=("a", "b"), epochs=1)

    def trained(equation: str, stage: str, network: str, *accuracies, proposal=None) -> list:
        rate = {"a": 0.1, "b": 0.2}[network]
        return [row(equation, a, stage=stage, rate=rate, network=network, replicate=i, proposal=proposal,
                    curve={"eval_accuracy": [a]}) for i, a in enumerate(accuracies)]  # fmt: skip

    rows = [
        *trained("g", "control", "a", 0.5), *trained("g", "control", "b", 0.75),
        dataclasses.replace(*trained("g - g", "control", "a", None), reason="loss not finite"),  # and never came to b
        *trained("fa", "search", "a", 0.75, proposal=0), *trained("fa", "search", "b", 0.5, proposal=0),
        *trained("dfa", "search", "a", 0.5, proposal=1), *trained("dfa", "search", "b", 0.75, proposal=1),
        *trained("g", "selection", "a", 0.5, 0.5), *trained("g", "selection", "b", 0.75, 0.75),
        *trained("fa", "selection", "a", 0.75, 0.75), *trained("fa", "selection", "b", 0.75, 0.75, None),
        *trained("dfa", "selection", "a", 0.5, 0.5),
    ]  # fmt: skip
    board = leaderboard(judged(rows, {0: (), 1: ()}, (), on), 2, (0.1, 0.2), on)
    expected = {
        "backprop: g": ["0.1 / 0.2", "62.50 (50.00 / 75.00)", "50.00 ± 0.00 / 75.00 ± 0.00", "2 / 2", ""],
        "fa  [kind of fa]  (1 of 3 diverged on b)": [
            "0.1 / 0.2", "37.50 (75.00 / 50.00)", "75.00 ± 0.00 / 75.00 ± 0.00", "2 / 2", "+25.0 ± 0.0 / +0.0 ± 0.0",
        ],
        "dfa  [kind of dfa]": ["0.1 / 0.2", "62.50 (50.00 / 75.00)", "50.00 ± 0.00 /", "2 /", "+0.0 ± 0.0 /"],
        "zero_signal: g - g  (loss not finite on a)": ["0.1", "", "", "", ""],
    }  # fmt: skip
    found = lines(table(board, ""))
    assert found == expected and list(found) == list(expected)
    figures = [(r.mean, r.diverged, r.difference) for r in board]
    assert figures == [(62.5, 0, None), (62.5, 1, None), (None, 0, None), (None, 0, None)]
    assert [plain(r)[3:7] for r in board] == [
        (0.1, 62.5, 62.5, 2), (0.1, 37.5, 62.5, 2), (0.1, 62.5, None, 0), (0.1, None, None, 0),
    ]  # fmt: skip
    said = remarks(board, 0, 0)
    assert len(said) == 2 and said[1].startswith("a / b: on the networks of the title, in their order.")


def shown(label: str, kind="", rates=2, **changes) -> LeaderboardRow:
    values = dict(label=label, equation=label or "fa", kind=kind, proposal=None, learning_rate=0.1, rates=rates, at_edge=False,
                  search=50.0, fresh=(), diverged=0, difference=None, status="")  # fmt: skip
    return LeaderboardRow(**values | changes)


def test_remarks_count_what_stands_above_backprop_and_what_was_not_tuned_alike():
    backprop = shown("backprop", rates=3)
    board = [
        shown("", "scaled backprop + noise"), shown("", "backprop", rates=1), shown("", "other information", at_edge=True),
        shown("zero_signal"), backprop, shown("", "scaled backprop"),
    ]  # fmt: skip
    assert remarks(board, 0, 1234)[0].startswith("search %: on the 1,234 validation examples that chose the rule, so")
    assert "fresh %: on 1,234 others, mean" in remarks(board, 1234, 0)[0]
    assert remarks(board, 0, 0)[1:] == [
        "2 of the 3 rules above backprop only rescale its signal: that is a learning rate, no find.",
        "* the best learning rate of 1 rows lies at the edge of those tried.",
        "No verdict: rules had 1 to 2 learning rates, backprop 3. Only bpevo.evaluate tunes all alike.",
    ]
    alike = [shown("", "other information"), shown("backprop"), shown("", "backprop")]
    assert len(remarks(alike, 0, 0)) == 1
    assert "rules had 2 learning rates, backprop 1." in remarks([shown(""), shown("backprop", rates=1)], 0, 0)[-1]
    for without in ([backprop], board[:4], [*board[:4], shown("backprop", learning_rate=None)]):
        assert len(remarks(without, 0, 0)) == 1  # nothing to compare


# The standings.


def test_one_repetition_has_no_interval_and_a_small_p_is_not_called_0():
    fa = dataclasses.replace(by_text()["fa"], test=summary([85.0]), p=0.00099)
    assert tables.cells(fa)[3:6] == ["85.00", "1", ""] and tables.cells(fa)[8] == "<0.001"
    assert [tables.probability(p) for p in (0.0009999, 0.001, 0.05, 1.0)] == ["<0.001", "0.001", "0.050", "1.000"]
    lost = dataclasses.replace(fa, test=None, diverged=2, unfair="some diverged")
    assert tables.cells(lost)[3:6] == ["(2 diverged)", "", ""] and tables.cells(lost)[8] == "<0.001"
    unfair = dataclasses.replace(fa, unfair="some diverged", p=None)
    assert tables.cells(unfair)[8] == "unfair"
    even = dataclasses.replace(fa.difference, pairs=summary([-0.001, -0.002]))
    assert tables.cells(dataclasses.replace(fa, difference=even))[6].startswith("+0.00 ± ")  # not -0.00


def test_a_find_is_bold_and_what_is_worse_is_dim_in_a_terminal():
    styles = {line.text: line.style for line in tables.standings_table(list(by_text().values()), "a1").lines}
    assert {text: style for text, style in styles.items() if style} == {
        "unit_fro(g)": "bold",
        "zero_signal: g - g": "dim",
    }


def test_latex_holds_the_equation_its_name_and_a_bold_find():
    by_name = by_text()
    text = tables.latex([by_name["unit_fro(g)"], by_name["g"], by_name["g | lars"]]).splitlines()
    assert text[0] == r"\begin{tabular}{lrrrrrrrrrrr}" and text[1] == text[3] == text[-2] == r"\hline"
    assert text[2] == (
        r"rule & kind & lr & validation \% & test \% & n & 95 \% & vs backprop & vs closest control & p (Holm) & detectable & "
        r"paper \% \\"
    )
    find, backprop, lars = text[4:7]
    rule = by_name["unit_fro(g)"].text
    assert find.startswith(r"\boldmath\textbf{$b_i^p \leftarrow ") and rule not in find
    assert find.endswith(
        r"$} & \textbf{backprop, rescaled per unit} & \textbf{0.1} & \textbf{70.00} & \textbf{87.00 $\pm$ 3.56} & \textbf{4} & "
        r"\textbf{$\pm$ 5.66} & \textbf{+4.00 $\pm$ 2.25} & \textbf{+4.00 $\pm$ 2.25 (g)} & \textbf{0.011} &  & "
        r"\textbf{84.15 $\pm$ 0.66; 83.16 $\pm$ 0.90} \\"
    )
    assert backprop.startswith(r"backprop: $b_i^p \leftarrow ") and lars.startswith(r"lars: $b_i^p \leftarrow ")
    assert lars.endswith(r"$ & backprop & diverged &  &  &  &  &  &  &  &  &  \\")
    adam = dataclasses.replace(by_name["g"], text="g | clip_global_norm | adam", role="named")
    assert r"clip\_global\_norm adam: $b" in tables.latex([adam])
    none = dataclasses.replace(adam, text="no_rule <at> 100 % ~^\\{}&#$±")
    assert (
        r"no\_rule $<$at$>$ 100 \% \~{}\^{}\textbackslash{}\{\}\&\#\$$\pm$ & " in tables.latex([none]).splitlines()[4]
    )


def test_markdown_has_a_head_a_name_for_backprop_and_bars_that_are_no_borders():
    by_name = by_text()
    head, line, backprop, lars = tables.markdown([by_name["g"], by_name["g | lars"]]).splitlines()
    assert head.startswith("| rule | kind | lr | validation % |") and line == "|---" + "|---:" * 11 + "|"
    assert backprop.startswith("| backprop: `g` | backprop | 0.1 | 60.00 | 83.00 ± 2.58 | 4 | ± 4.11 |  |")
    assert lars.startswith(r"| `g \| lars` | backprop | diverged |  |")
