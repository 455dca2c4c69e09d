"""The page and the files of a report, part by part, from rows made by hand; and the command that writes them again and again."""

import html
import io
import os
import re
import struct
import sys
import types

import jax
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from test_figures import EVALUATION, PROPOSALS, SETTINGS, by_text, proposal
from test_ranking import row
from test_runs import PARTS, outcome

from bpevo.command.plans import UsageError
from bpevo.evaluation import standings, verdict
from bpevo.evaluation.early_decisions import EarlyDecisions
from bpevo.evolution import Proposal
from bpevo.report import (
    Found,
    FrontRow,
    LeaderboardRow,
    ancestry,
    build,
    drawing,
    front_table,
    overview_table,
    page,
    plots,
    tables,
    writing,
)
from bpevo.report import __main__ as command
from bpevo.report.build import Report, Run, read_runs
from bpevo.rules import NAMED, parse
from bpevo.runs import Row, Rows, RunDatabase, RunError


def written(text: str) -> list[list[str]]:
    """The cells of a table's rows as text without tags, each row after its class."""
    found = []
    for kind, cells in re.findall(r'<tr class="(\w*)">(.*?)</tr>', text):
        texts = [re.sub(r"<br>", " ", cell) for cell in re.findall(r"<td [^>]*>(.*?)</td>", cells)]
        found.append([kind, *(html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in texts)])
    return found


@pytest.fixture
def quick(monkeypatch):
    """Equations and rules as text, and nothing drawn."""
    monkeypatch.setattr(page, "equation", lambda text: f"<code>{html.escape(text)}</code>")
    monkeypatch.setattr(page, "rule", lambda text: f"[{text}]")
    monkeypatch.setattr(drawing, "svg", lambda figure: b"svg")
    monkeypatch.setattr(drawing, "png", lambda figure: b"png")
    monkeypatch.setattr(sys.modules["bpevo.report.leaderboard"], "kind", lambda _: "a kind")
    for name in ("best_so_far", "distribution", "learning_curves", "learning_rates", "early_decisions"):
        monkeypatch.setattr(plots, name, lambda *_: None)


# Parts of the page.


def test_texts_are_escaped_in_every_element():
    assert page.heading(2, "a < b") == "<h2>a &lt; b</h2>" and page.paragraph("<p>") == "<p>&lt;p&gt;</p>"
    assert page.note("&") == '<p class="note">&amp;</p>'
    assert page.listing(["a", "<"]) == "<ul><li>a</li><li>&lt;</li></ul>"
    assert page.picture(b"svg", '"<') == (
        '<figure><img alt="&quot;&lt;" src="data:image/svg+xml;base64,c3Zn"><figcaption>&quot;&lt;</figcaption></figure>'
    )
    assert page.table(("rule", "%"), [("find", ("a", "1")), ("", ("b", "2"))]) == (
        '<table><thead><tr><th class="text" data-column="rule">rule</th><th data-column="%">%</th></tr></thead><tbody>'
        '<tr class="find"><td class="text" data-column="rule">a</td><td data-column="%">1</td></tr>'
        '<tr class=""><td class="text" data-column="rule">b</td><td data-column="%">2</td></tr></tbody></table>'
    )
    whole = page.page("a < b", ["one", "two"], 2.5)
    assert whole.startswith('<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" ')
    assert '<meta http-equiv="refresh" content="2.5"><link' in whole and "<title>a &lt; b</title><style>" in whole
    assert whole.endswith("</head><body>\none\ntwo\n</body></html>\n") and "refresh" not in page.page("t", [])


def shown(label: str, equation="fa", kind="a kind", search=50.0, fresh=(), status="") -> LeaderboardRow:
    return LeaderboardRow(label=label, equation=equation, kind=kind, proposal=None, learning_rate=0.1, rates=1, at_edge=False,
                          search=search, fresh=fresh, diverged=0, difference=None, status=status)  # fmt: skip


def test_a_leaderboard_on_a_page_has_names_kinds_and_what_went_wrong(quick):
    board = [shown("backprop", "g", ""), shown("", fresh=(40.0,), status="1 of 2 diverged")]
    assert written(page.leaderboard_html(board)) == [
        ["", "backprop g", "", "0.1", "50.00", "", "", ""],
        ["", "fa", "a kind (1 of 2 diverged)", "0.1", "50.00", "40.00", "1", ""],
    ]


def test_an_overview_has_each_searchs_best_rule_beside_the_best_figure_of_its_backprop(quick):
    """Backprop's on fresh seeds where it has one."""
    found = [
        Found(search="a", best=shown("", fresh=(40.0,)), backprop=shown("backprop", "g", "", 60.0, (61.25,))),
        Found(search="b", best=shown("", "dfa", search=55.0), backprop=shown("backprop", "g", "", 60.0)),
        Found(search="c", best=None, backprop=None),
    ]
    cells = [
        ["0.1", "50.00", "40.00", "1", "", "61.25"], ["0.1", "55.00", "", "", "", "60.00"], ["", "", "", "", "", ""],
    ]  # fmt: skip
    names = [["", "a", "fa", "a kind"], ["", "b", "dfa", "a kind"], ["", "c", "nothing yet", ""]]
    assert written(page.overview_html(found)) == [a + b for a, b in zip(names, cells, strict=True)]
    lines = overview_table(found, "a title").lines
    assert [line.text for line in lines] == ["a: fa  [a kind]", "b: dfa  [a kind]", "c: nothing yet"]
    assert [list(line.numbers) for line in lines] == cells


def test_a_front_over_several_networks_has_the_rates_and_accuracies_on_each(quick):
    def row(rate: float, search: float, *on: FrontRow) -> FrontRow:
        return FrontRow(
            components=2, equation="0.5*fa", kind="a kind", proposal=7, learning_rate=rate, search=search, on=on
        )

    found = [row(0.1, 62.5, row(0.1, 75.0), row(0.25, 50.0)), row(0.5, 30.0)]
    cells = [["2", "0.1 / 0.25", "62.50 (75.00 / 50.00)"], ["2", "0.5", "30.00"]]
    assert written(page.front_html(found)) == [["", "0.5*fa", "a kind", *c] for c in cells]
    assert page.front_html(found).startswith(
        '<p class="note">Best rule for each number of components that have an effect, among the 30 best:</p><table>'
    )
    assert [(line.text, list(line.numbers)) for line in front_table(found).lines] == [
        ("0.5*fa  [a kind]", c) for c in cells
    ]
    assert found[0].plain == (2, "0.5*fa", "a kind", 7, 0.1, 62.5)


def test_a_lineage_on_a_page_has_ids_mutations_and_accuracies(quick):
    line = ancestry.lineage(PROPOSALS, Rows([row("fa", 0.5), row("sgn(g)", 0.25, proposal=3)]), PROPOSALS[3])
    assert written(page.lineage_html(line)) == [
        ["", "fa", "0", "initial", "50.00"],
        ["", "unit_fro(g)", "1", "part 1, unary1: identity → unit_fro; part 1, operand1: fa → g", ""],
        ["", "sgn(g)", "3", "part 1, unary1: unit_fro → sgn", "25.00"],
    ]


def test_standings_on_a_page_have_the_name_of_backprop_and_classes_of_finds_and_of_what_is_worse(quick):
    by_name = by_text()
    rows = written(page.standings_html([by_name[text] for text in ("unit_fro(g)", "g", "g - g")]))
    assert [line[:4] for line in rows] == [
        ["find", "unit_fro(g)", "backprop, rescaled per unit", "0.1"], ["", "backprop g", "backprop", "0.1"],
        ["worse", "zero_signal g - g", "no signal", "0.1"],
    ]  # fmt: skip


def test_the_correlation_at_a_third_is_of_the_first_epoch_where_there_are_few(quick):
    def third(*correlations: float) -> str:
        d = EarlyDecisions(text="fa", n=9, correlations=correlations, best=80.0, picked=79.0, spent=0.5)
        return written(page.early_decisions_html([d]))[0][3]

    assert [third(0.1, 1.0), third(0.1, 0.2, 0.3, 0.4, 0.5, 1.0)] == ["0.10", "0.20"]


# Sections of a report.


def run(rows: list[Row], proposals: list[Proposal] = (), first="1", **settings) -> Run:
    return Run(
        name="a", settings=settings, versions={"jax": "1", "flax": ""}, first_versions={"jax": first, "flax": ""},
        rows=Rows(rows), proposals=list(proposals),
    )  # fmt: skip


def test_a_section_says_where_a_run_began_with_other_versions():
    assert build._describe(run([], model="mlp-8")) == "mlp-8. jax 1"
    assert build._describe(run([], first="0", model="mlp-8")) == "mlp-8. jax 1; it began with others: jax 0 then, 1 now"


def test_a_searchs_section_counts_its_trainings_and_shows_ten_rules_three_lineages_and_a_tenth_as_winners(
    quick, monkeypatch
):
    compared = []
    monkeypatch.setattr(plots, "enrichment", lambda shares, *of: compared.append((len(shares), *of)) or Figure())
    monkeypatch.setattr(build, "front", lambda rows: [])
    texts = [f"clip(fa, {i}.0)" for i in range(1, 61)]
    found = [
        row(t, (90 - i) / 100, proposal=i, curve={"eval_accuracy": [0.5, (90 - i) / 100]}) for i, t in enumerate(texts)
    ]
    others = [
        *(row(texts[0], 0.5, stage="trial", rate=rate, curve={"eval_accuracy": [0.5]}) for rate in (0.1, 0.2)),
        row(texts[0], 0.9, stage="confirmation", replicate=1, proposal=60, curve={"eval_accuracy": [0.5, 0.9]}),
        row("g", 0.5, stage="control", proposal=None, curve={"eval_accuracy": [0.1, 0.2, 0.5]}),
    ]
    drawn = [proposal(i, text) for i, text in enumerate(texts)] + [proposal(60, texts[0], 0)]
    report = Report("a title")
    report.add_search(run([*found, *others], drawn, trial_epochs=1, held_out=80, validation_examples=240), "x_")
    text = "\n".join(report._sections)
    assert (
        "<p>60 equations: 2 trials of 1 epochs, 60 trainings and 1 confirmations on another seed; 1 trainings of controls; "
        "126 slot-epochs in all.</p>"  # 60 · 2 and, of trials, 2 - 1; 2 and 3
    ) in text
    assert "on the 160 validation examples that chose the rule, so it flatters. fresh %: on 80 others" in text
    assert [line[1] for line in written(text.partition("</table>")[0])] == [
        *texts[:10], "backprop g", "zero_signal g - g",
    ]  # fmt: skip
    assert [t for t in texts if f"<h3>Lineage of {t}</h3>" in text and f"[{t}]" in text] == texts[:3]
    assert compared == [(2, 6, 60)] and list(report._images) == ["x_search_components.svg", "x_search_components.png"]
    plain = Report("a title")
    plain.add_search(run([*found[:40], others[-1]], drawn[:40]))
    assert compared[1] == (2, 5, 40)  # at least five
    said = "\n".join(plain._sections)
    assert "<p>40 equations: 40 trainings and 0 confirmations on another seed; 1 trainings of controls; 83 slot" in said
    assert "search %: on the validation examples that chose the rule, so it flatters. vs backprop" in said


def test_an_evaluations_section_has_its_verdict_its_table_in_all_forms_and_its_best_three_rules(quick, monkeypatch):
    found = EarlyDecisions(text="fa", n=24, correlations=(0.125, 1.0), best=81.234, picked=79.0, spent=21 / 81)
    monkeypatch.setattr(build, "early_decisions", lambda rows, text: found if text == "fa" else None)
    report = Report("a title")
    report.add_evaluation(run(EVALUATION, **SETTINGS))
    table = standings(EVALUATION, SETTINGS)
    described = "on cifar10; with sgd; learning rates 0.03, 0.1, 0.3. jax 1"
    said = (
        "Successive halving on 2,000 random pools of 9 configurations: mean final validation accuracy of the pool's best and of "
        "the one it picks, and the share of the pool's epochs it trains."
    )
    sentences = "".join(f"- {line}\n" for line in verdict(table))
    assert report._markdown == [
        f"## a\n\n{described}\n\n{sentences}\n{tables.markdown(table)}\n{tables.LEGEND}\n",
        f"### Early decisions in a\n\n{said}\n\n| rule | configurations | rank correlation by epoch | best % | picked % | "
        "regret | epochs |\n|---|---:|---|---:|---:|---:|---:|\n| `fa` | 24 | 0.12 1.00 | 81.23 | 79.00 | 2.23 | 26% |\n",
    ]
    assert report._latex == [f"% a: {described}\n{tables.latex(table)}"]
    text = "\n".join(report._sections)
    assert re.findall(r"^\[(.*)\]$", text, re.M) == ["unit_fro(g)", "fa", "dfa"] and page.note(said) in text
    assert f"<h2>Evaluation a</h2>\n{page.note(described)}\n{page.listing(verdict(table))}\n<table>" in text
    monkeypatch.setattr(build, "early_decisions", lambda rows, text: None)
    report = Report("a title")
    report.add_evaluation(run(EVALUATION, **SETTINGS))
    assert len(report._markdown) == 1 and "Early decisions" not in "".join(report._sections)


def test_what_was_trained_without_a_component_and_signals_of_the_best_three_are_plotted(monkeypatch):
    plotted, asked = [], []
    monkeypatch.setattr(Report, "_plot", lambda self, name, figure, caption: plotted.append((name, caption.split()[0])))
    monkeypatch.setattr(plots, "ablation", lambda rows, text, left: asked.append((text, set(left))))
    monkeypatch.setattr(plots, "alignment", lambda rows, standing: None)
    tried = [row(t, 0.5, stage="ablation") for t in ("sgn(g)", "no rule", "unit_fro(g) + h", "h", "min(g, fa)", "fa")]
    report = Report("a title")
    settings = {"rules": ["sgn(g)", "no rule", "dfa + h", "unit_fro(g) + h"], "found": ["min(g, fa)"]}
    report._ablations(run(tried, **settings))
    assert asked == [("unit_fro(g) + h", {"unit_fro(g)", "h", "g + h"}), ("min(g, fa)", {"g", "fa"})]
    assert plotted == [("a_ablation_0", "unit_fro(g)"), ("a_ablation_1", "min(g,")]
    del plotted[:]
    report._alignments(run(EVALUATION), list(by_text().values()))
    assert plotted == [("a_alignment_0", "unit_fro(g):"), ("a_alignment_1", "fa:"), ("a_alignment_2", "dfa:")]


# Files.


def make(folder, **settings) -> None:
    """A run; with `max_parts`, a search that drew a rule."""
    with RunDatabase.writing(folder) as database:
        database.check_settings(settings, {}, ())
        if "max_parts" in settings:
            database.add_proposal(Proposal(id=0, equation=parse("fa").to_equation(PARTS), key="key"))
        database.add_rows([outcome("fa", proposal=None)])


@pytest.fixture
def sections(monkeypatch):
    """What is added to a report."""
    added = []
    monkeypatch.setattr(Report, "add_overview", lambda self, runs: added.append(("overview", *(r.name for r in runs))))
    monkeypatch.setattr(Report, "add_search", lambda self, run, prefix="": added.append(("search", run.name, prefix)))
    monkeypatch.setattr(Report, "add_evaluation", lambda self, run: added.append(("evaluation", run.name)))
    return added


def test_a_sweeps_report_has_all_searches_that_drew_something_side_by_side(sections, tmp_path):
    make(tmp_path / "a", max_parts=PARTS), make(tmp_path / "b", max_parts=PARTS), make(tmp_path / "c", epochs=4)
    make(tmp_path / "d", scenario="d")
    assert build.build(tmp_path) == [tmp_path / "report" / "report.html"]
    assert sections == [("overview", "a", "b"), ("search", "a", "a_"), ("search", "b", "b_"), ("evaluation", "d")]
    text = (tmp_path / "report" / "report.html").read_text()
    assert f"<h1>bpevo: {tmp_path.name}</h1>" in text and "refresh" not in text


def test_a_searchs_report_has_its_evaluations_and_no_other_search_in_its_folder(sections, tmp_path):
    folder = tmp_path / "own"
    make(folder, max_parts=PARTS), make(folder / "e", scenario="e"), make(folder / "other", max_parts=PARTS)
    assert [r.name for r in read_runs(folder)] == ["own", "e"]
    build.build(folder, 60)
    assert sections == [("search", "own", ""), ("evaluation", "e")]
    assert 'content="60"' in (folder / "report" / "report.html").read_text()
    (tmp_path / "full").mkdir()
    make(tmp_path / "full" / "e", scenario="e")
    (tmp_path / "full" / "report").touch()
    with pytest.raises(RunError, match=f"^cannot write {tmp_path / 'full' / 'report'}: File exists$"):
        build.build(tmp_path / "full")


def test_every_text_and_image_is_a_file_and_nothing_unfinished_stays(quick, tmp_path):
    report = Report("a title")
    report._plot("none", None, "")
    report._plot("a", Figure(), "a caption")
    folder = tmp_path / "some" / "folder"
    assert report.write(folder) == [folder / "report.html"]
    report._markdown, report._latex = ["one \udcff", "two"], ["three", "four"]
    assert report.write(folder) == [folder / name for name in ("report.html", "table.md", "table.tex")]
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert set(files) == {"a.svg", "a.png", "report.html", "table.md", "table.tex"}
    assert files["table.md"] == b"one ?\ntwo" and files["table.tex"] == b"three\nfour" and files["a.png"] == b"png"


def test_images_have_their_size_and_an_equation_is_as_large_as_its_letters(monkeypatch):
    figure, axes = plots._figure(2)
    assert (
        struct.unpack(">II", drawing.png(figure)[16:24]) == (960, 480) and len(axes) == 2
    )  # 6.4 x 3.2 inches of 150 dots
    made = []
    monkeypatch.setattr(drawing, "svg", made.append)
    drawing.equation(parse(NAMED["backprop"]).latex)
    figure.draw_without_rendering(), made[0].draw_without_rendering()
    (text,), page_box = made[0].texts, made[0].bbox
    box = text.get_window_extent()
    assert abs(box.x0 - page_box.x0) < 2 and abs(box.x1 - page_box.x1) < 3 and box.height > 10
    assert abs(box.y0 - page_box.y0) < 2 and abs(box.y1 - page_box.y1) < 2
    assert text.get_fontsize() == 13


# Ancestors.


def test_of_many_components_the_sixteen_that_differ_most_are_shown():
    operands = ("fa", "dfa", "h", "hp", "dh", "gh", "bn(g)", "bn(h)", "bn(hp)", "bn(fa)", "mean(g)", "mean(h)", "mean(hp)",
                "mean(fa)", "std(g)", "std(h)", "std(hp)")  # fmt: skip
    drawn = [types.SimpleNamespace(equation=parse(f"{o} + g").to_equation(PARTS)) for o in operands]
    found = ancestry.shares(drawn, drawn[:1])
    assert len(found) == 16 and found[0].component == "fa"  # of 19: of all, g and add are used as by the winner
    assert {"g", "add"}.isdisjoint(s.component for s in found)


def test_a_damaged_database_makes_no_lineage_endless():
    def of(number: int, parent: int, reads: int = 1):
        equations = iter([parse("g")] * reads)  # read again, it ends the test
        equation = types.SimpleNamespace(to_expression=lambda: next(equations))
        return types.SimpleNamespace(id=number, parent=parent, changes=(), equation=equation)

    own = of(1, 1)
    assert [a.id for a in ancestry.lineage([own], Rows(), own)] == [1]
    one, two = of(1, 2), of(2, 1)
    assert [a.id for a in ancestry.lineage([one, two], Rows(), one)] == [1]
    one, two = of(1, 2), of(2, 1)
    assert [a.id for a in ancestry.lineage([one, two], Rows(), two)] == [1, 2]
    assert [a.id for a in ancestry.lineage([], Rows(), of(2, 1))] == [2]  # it is lost


# The command.


class Stopped:
    code = 130


def wanted(workdir="runs/a", every=None) -> types.SimpleNamespace:
    return types.SimpleNamespace(workdir=workdir, every=every)


def test_the_command_writes_once_or_again_until_it_is_interrupted(monkeypatch):
    calls, output = [], io.StringIO()

    def write(workdir, every=None):
        calls.append((workdir, every))
        if len(calls) == 3:
            raise RunError("[no] room")
        return ["a/[b].html", "c"]

    def sleep(seconds):
        calls.append(seconds)
        if len(calls) > 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "write", write)
    monkeypatch.setattr(command.time, "sleep", sleep)
    console = Console(file=output, width=10)
    assert command.run(wanted(), console, Stopped()) == 0 and calls == [("runs/a", None)]
    assert output.getvalue() == "a/[b].html\nc\n"
    del calls[:]
    assert command.run(wanted(every=1), console, Stopped()) == 130
    assert calls == [("runs/a", 1), 1, ("runs/a", 1), 1, ("runs/a", 1), 1, ("runs/a", None)]
    assert output.getvalue().endswith("\nc\nnot written: [no] room\n")


@pytest.mark.parametrize(
    ("every", "bad"), [(0.999, True), (1, False), (999_999, False), (1e6, True), (2e6, True), (-1, True)]
)
def test_a_report_is_written_again_after_a_second_at_least(monkeypatch, every, bad):
    monkeypatch.setattr(command, "write", lambda *_: [])
    monkeypatch.setattr(command.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    if bad:
        with pytest.raises(UsageError, match=rf"^--every={re.escape(f'{every:g}')} must be at least 1 second$"):
            command.run(wanted(every=every), Console(), Stopped())
    else:
        assert command.run(wanted(every=every), Console(), Stopped()) == 130
    with pytest.raises(RunError, match="^--workdir=FOLDER is needed"):
        command.run(wanted(None), Console(), Stopped())


def test_a_command_reads_no_compiled_programs_and_loads_whatever_backend_was_set(monkeypatch):
    monkeypatch.setattr(build, "build", lambda workdir, every: [workdir, every])
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    before = jax.config.jax_enable_compilation_cache
    try:
        assert writing.write("runs/a", 3) == ["runs/a", 3] and writing.write("b") == ["b", None]
        assert not jax.config.jax_enable_compilation_cache and "MPLBACKEND" not in os.environ
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(RunError, match="^matplotlib cannot be imported: .*; check the matplotlibrc that it reads$"):
            writing.write("runs/a")
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
