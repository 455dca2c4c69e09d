"""A run to look at from Python: what its data frames, remarks and texts say of rows made by hand."""

import sys

import pytest
from test_figures import EVALUATION, SETTINGS
from test_ranking import row

from bpevo.evaluation import standings, verdict
from bpevo.evolution import Networks
from bpevo.report import build, remarks
from bpevo.report.opened import Opened
from bpevo.rules import parse
from bpevo.runs import Rows, RunDatabase, judged

pytest.importorskip("pandas")


def opened(folder, rows: list, **settings) -> Opened:
    """A run of these settings that holds these rows."""
    with RunDatabase.writing(folder) as database:
        database.check_settings(settings, {"jax": "1"}, ())
    found = Opened(folder)
    assert found.settings == settings and found.versions == {"jax": "1"} and found.proposals == []
    found.rows = Rows(rows)
    return found


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
    """A kind of a rule and what can be left out of it cost a program; here all have one, and nothing can."""
    for name in ("report.leaderboard", "report.front", "evaluation.standings"):
        monkeypatch.setattr(sys.modules[f"bpevo.{name}"], "kind", lambda _: "a kind")
    monkeypatch.setattr(sys.modules["bpevo.report.front"], "simplified", lambda rule: rule)


def curve(*accuracies: float) -> dict:
    return {"eval_accuracy": list(accuracies), "train_loss": [1 - a for a in accuracies]}


SEARCH = [
    row("g", 0.5, stage="control", rate=0.1, proposal=None, curve=curve(0.25, 0.5)),
    row("g", 0.625, stage="control", rate=0.2, proposal=None, curve=curve(0.25, 0.625)),
    row("fa", 0.75, rate=0.1, proposal=0, curve=curve(0.5, 0.75)),
    row("dfa + h", 0.875, rate=0.2, proposal=1, curve=curve(0.75, 0.875)),
    *(row("g", 0.5, stage="selection", rate=0.2, replicate=i, proposal=None, curve=curve(0.5)) for i in (1, 2)),
    *(row("fa", a, stage="selection", rate=0.1, replicate=i, curve=curve(a)) for i, a in ((1, 0.75), (2, 0.5))),
]


def test_a_search_is_a_leaderboard_a_front_trainings_and_curves(tmp_path, monkeypatch):
    found = opened(tmp_path, SEARCH, max_parts=3, learning_rates=[0.1, 0.2], held_out=80, validation_examples=240)
    assert not found.is_evaluation and str(found.best) == "fa"
    board = found.leaderboard.to_dict("records")
    assert [(r["label"], r["equation"]) for r in board] == [
        ("", "fa"), ("backprop", "g"), ("", "dfa + h"), ("zero_signal", "g - g"),
    ]  # fmt: skip
    fa = board[0]
    assert {name: fa[name] for name in fa if name != "deviation"} == {
        "label": "", "equation": "fa", "kind": "a kind", "proposal": 0, "learning_rate": 0.1, "rates": 1, "at_edge": False,
        "search": 75.0, "fresh": (75.0, 50.0), "diverged": 0, "difference": 12.5, "status": "", "mean": 62.5,
    }  # fmt: skip
    assert fa["deviation"] == pytest.approx(25 / 2**0.5) and "on" not in fa
    front = found.front.to_dict("records")
    assert [(r["components"], r["equation"], r["search"]) for r in front] == [(1, "fa", 75.0), (3, "dfa + h", 87.5)]
    trainings = found.trainings
    assert list(trainings.columns) == [
        "stage", "equation", "learning_rate", "replicate", "proposal", "status", "reason", "accuracy", "rungs", "seconds",
        "finished", "network",
    ]  # fmt: skip
    assert list(trainings.accuracy) == [0.5, 0.625, 0.75, 0.875, 0.5, 0.5, 0.75, 0.5]
    curves = found.curves
    assert list(curves.epoch) == [1, 2] * 4 + [1] * 4
    assert curves.iloc[5].to_dict() == {
        "stage": "search", "equation": "fa", "learning_rate": 0.1, "replicate": 0, "network": "", "epoch": 2,
        "eval_accuracy": 0.75, "train_loss": 0.25,
    }  # fmt: skip
    assert found.remarks == remarks(found._board, 80, 160)
    assert repr(found) == f"<search in {tmp_path}: 8 trainings, best fa>"
    assert remarks(found._board, 0, 0) == opened(tmp_path / "old", SEARCH, learning_rates=[0.1, 0.2]).remarks
    monkeypatch.setattr(Opened, "remarks", ["a < b", "c"])
    assert found._repr_html_().endswith("</table><ul><li>a &lt; b</li><li>c</li></ul>")
    monkeypatch.setattr(build, "build", lambda folder: [folder / "report.html"])
    assert found.report() == [tmp_path / "report.html"]


def test_a_search_shows_its_twenty_best_rules_and_without_one_no_best(tmp_path):
    rules = [row(f"clip(fa, {i}.0)", 0.9 - i / 100, proposal=i) for i in range(1, 22)]
    assert len(opened(tmp_path / "many", rules).leaderboard) == 20 + 2
    none = opened(tmp_path / "none", SEARCH[:2])
    assert none.best is None and len(none.front) == 0 and repr(none).endswith(": 2 trainings, best None>")


def test_over_several_networks_a_row_has_what_it_did_on_each(tmp_path):
    on = Networks(names=("a", "b"), epochs=1)
    rows = [
        row(text, accuracy, stage=stage, rate=rate, network=network, proposal=None if text == "g" else 0, curve=curve(accuracy))
        for text, stage, network, rate, accuracy in (
            ("g", "control", "a", 0.1, 0.5), ("g", "control", "b", 0.2, 0.75), ("fa", "search", "a", 0.1, 0.75),
            ("fa", "search", "b", 0.4, 0.5), ("fa", "selection", "a", 0.1, 0.25),
        )
    ]  # fmt: skip
    found = opened(tmp_path, judged(rows, {0: ()}, (), on), model="a;b", epochs=1, fitness_over="worst")
    fa = found.leaderboard.set_index("equation").loc["fa"]
    assert (fa["search"], fa["search on a"], fa["search on b"]) == (37.5, 75.0, 50.0)  # of a mean of 62.5, less 25
    assert (fa["learning_rate on a"], fa["learning_rate on b"], fa["mean on a"]) == (0.1, 0.4, 25.0)
    (front,) = found.front.to_dict("records")
    assert (front["search"], front["search on b"], front["learning_rate on b"]) == (
        37.5,
        50.0,
        0.4,
    ) and "on" not in front
    assert len(found.trainings) == len(found.curves) == 5 and list(found.curves.network) == list("ababa")


def test_an_evaluation_is_its_standings_and_its_verdict(tmp_path):
    found = opened(tmp_path, EVALUATION, **SETTINGS)
    table = standings(EVALUATION, SETTINGS)
    assert found.is_evaluation and found.best == parse("unit_fro(g)") and found.remarks == verdict(table)
    board = found.leaderboard
    assert list(board.text) == [s.text for s in table] and len(found.front) == 0
    by_text = board.set_index("text")
    assert by_text.test["fa"] == pytest.approx(85) and by_text.difference["fa"] == pytest.approx(2)
    assert by_text.selection["sgn(g)"] == pytest.approx(55) and by_text.selection.notna().sum() == 1
    assert repr(found) == f"<evaluation in {tmp_path}: {len(EVALUATION)} trainings, best unit_fro(g)>"
    controls = [r for r in EVALUATION if r.equation in SETTINGS["controls"]]
    assert opened(tmp_path / "controls", controls, **SETTINGS).best is None
    foreign = [row("no rule", 0.99, stage=stage) for stage in ("tuning", "test")]
    assert opened(tmp_path / "foreign", [*controls, *foreign], **SETTINGS | {"rules": ["no rule"]}).best is None


def test_what_pandas_would_show_says_how_to_get_it(tmp_path, monkeypatch):
    found = opened(tmp_path, SEARCH)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="^this table is a pandas data frame: pip install pandas$"):
        _ = found.trainings
