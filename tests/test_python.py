"""Searches and evaluations from Python: they go on when they are called again, and say what came out."""

import concurrent.futures
import contextlib
import csv
import re
import signal
import sqlite3
import types

import jax
import pytest

import bpevo
from bpevo import rules
from bpevo.command import funnelling, plans, python
from bpevo.command.plans import UsageError
from bpevo.data import DataError
from bpevo.runs import RunError

SMALL = dict(
    dataset="digits", model="mlp-8", train_examples=64, batch_size=32, epochs=2, slots=4, learning_rates=[0.4, 0.1],
    top=2, repeats=2, elite_size=3, lag=4, selfcheck=False, metrics="csv",
)  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("python")
    return workdir, bpevo.Search(workdir, **SMALL, max_evaluations=20).run()


def test_a_search_ends_with_its_leaderboard_and_its_best_rule(searched, capsys):
    pandas = pytest.importorskip("pandas")
    workdir, found = searched
    board = found.leaderboard
    assert isinstance(board, pandas.DataFrame) and set(board.label) == {"", "backprop", "zero_signal"}
    rules = board[board.label == ""]
    assert str(found.best) == rules.equation.iloc[0] and 1 <= len(rules) <= 20
    assert set(found.trainings.stage) == {"control", "trial", "search", "selection"}
    curves = found.curves
    assert curves.epoch.max() == 2 and {"train_loss", "eval_accuracy", "gradient_norm"} <= set(curves.columns)
    assert len(curves) == sum(row.epochs for row in found.rows)
    assert "search in" in repr(found) and "<table" in found._repr_html_() and "No verdict" in "".join(found.remarks)
    with contextlib.closing(sqlite3.connect(workdir / "run.sqlite")) as c:
        stored = c.execute("SELECT rule, control, kind, fresh, n FROM leaderboard ORDER BY place").fetchall()
    assert [row[:2] for row in stored] == list(zip(board.equation, board.label, strict=True))[: len(stored)]
    assert {row[4] for row in stored} <= {0, 1, 2} and any(row[2] for row in stored)
    again = bpevo.open(workdir)
    assert again.leaderboard.equals(board)
    assert found.report()[0].name == "report.html"


def test_it_goes_on_when_it_is_called_again(searched):
    workdir, found = searched
    more = bpevo.Search(workdir, **SMALL, max_evaluations=26).run()
    assert len(more.proposals) > len(found.proposals) and more.proposals[: len(found.proposals)] == found.proposals
    with pytest.raises(RunError, match="epochs: 2 in the run, 3 now"):
        bpevo.Search(workdir, **SMALL | {"epochs": 3}, max_evaluations=26).run()


def lines_of(folder) -> list[tuple[str, str]]:
    """(training, stage) of each line of the metrics; each knows how busy the slots were."""
    with open(folder / "metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert all(0.2 < float(line["occupancy"]) <= 1 for line in lines)
    return [(line["training"], line["stage"]) for line in lines]


def trained(found) -> list[tuple[str, str]]:
    """What they should be: a line per epoch, in order of finishing."""
    return [(str(n), row.stage) for n, row in enumerate(found.rows, 1) for _ in range(row.epochs)]


def test_metrics_hold_every_epoch_once_also_of_a_run_that_went_on(searched):
    workdir, _ = searched
    more = bpevo.Search(workdir, **SMALL, max_evaluations=26).run()
    assert lines_of(workdir) == trained(more)


@pytest.mark.slow
def test_an_evaluation_takes_the_searchs_rules_or_ones_own(searched):
    pytest.importorskip("pandas")
    workdir, _ = searched
    settings = dict(
        rules=["unit_fro(g)", "min(g, fa)"], scenario="mine", top=1, repeats=2, selection_repeats=1, slots=4
    )
    found = bpevo.Evaluation(workdir, **settings, selfcheck=False, metrics="csv").run()
    assert lines_of(workdir / "mine") == trained(found)
    assert found.is_evaluation and found.folder == workdir / "mine"
    board = found.leaderboard
    assert {"unit_fro(g)", "min(g, fa)", "g", "g | adam"} <= set(board.text)
    assert str(found.best) in set(board[board.role != "control"].text)
    assert any("backprop" in line.lower() for line in found.remarks)


def test_what_was_set_in_jax_and_for_signals_stays(searched):
    workdir, _ = searched
    before, handler = jax.config.jax_default_prng_impl, signal.getsignal(signal.SIGINT)
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        bpevo.Search(workdir, **SMALL, max_evaluations=20).run()
        assert jax.config.jax_default_prng_impl == "rbg" and signal.getsignal(signal.SIGINT) is handler
    finally:
        jax.config.update("jax_default_prng_impl", before)


BAD = [
    (dict(epochs="x"), UsageError, "^epochs=x: invalid literal"),
    (dict(compute_dtype="bfloat"), UsageError, "^compute_dtype=bfloat: value should be one of"),
    (dict(learning_rates=[-1, 0.5]), UsageError, "^learning_rates=-1,0.5 must be different positive numbers"),
    (dict(slots=0), UsageError, "^slots=0 must be at least 1"),
    (dict(model="mpl-8"), UsageError, "^no model 'mpl-8'; the nearest is 'mlp-8': write"),
    (dict(initial="softsign(g)"), UsageError, "^initial: equation 1 of softsign.*there is no function 'softsign'; there are abs"),
    (dict(initial=["g", "unit_fr(g)"]), UsageError, "^initial: equation 2 of g;unit_fr.*the nearest is 'unit_fro'"),
    (dict(max_evaluations=3), UsageError, "^max_evaluations=3 breeds nothing: .*elite_size, or ask for .* by controller=random"),
    (dict(dataset="no/such.npz"), DataError, "^dataset=no/such.npz: No such file"),
]  # fmt: skip


@pytest.mark.parametrize("settings, kind, message", BAD, ids=[str(s) for s, *_ in BAD])
def test_bad_settings_are_named_by_their_keywords(tmp_path, settings, kind, message):
    with pytest.raises(kind, match=message) as raised:
        bpevo.Search(tmp_path, **SMALL | settings).run()
    assert not re.search(r"(?<!\w)--\w", str(raised.value))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(TypeError, match="Search takes no 'max_evaluation'; the nearest is 'max_evaluations'"):
        bpevo.Search(tmp_path, max_evaluation=3).run()
    with pytest.raises(RunError, match="there is no run in"):
        bpevo.open(tmp_path)
    with pytest.raises(
        UsageError, match="there is no search in .* to take rules from: give rules, such as rules=table1"
    ):
        bpevo.Evaluation(tmp_path).run()
    with pytest.raises(UsageError, match="^rules: rule 1 of tabel1, .*; the nearest is 'table1'"):
        bpevo.Evaluation(tmp_path, rules="tabel1", dataset="digits").run()


def test_a_time_limit_is_for_the_main_thread(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        run = pool.submit(bpevo.Search(tmp_path, **SMALL, max_hours=1).run)
    with pytest.raises(UsageError, match="^max_hours= ends a run by a signal"):
        run.result()


def test_a_home_directory_may_be_written_as_a_tilde(searched, monkeypatch):
    workdir, _ = searched
    monkeypatch.setenv("HOME", str(workdir.parent))
    assert bpevo.open(f"~/{workdir.name}").folder == workdir
    assert bpevo.Search(f"~/{workdir.name}", **SMALL, max_evaluations=20).run().folder == workdir


def test_the_first_unknown_setting_is_named_and_none_is_not_given(tmp_path):
    with pytest.raises(TypeError, match="^Search takes no 'epoch'; the nearest is 'epochs'$"):
        bpevo.Search(tmp_path, epoch=3, slot=2)._values()
    made = bpevo.Search(tmp_path, epochs=None, top=3)._values()
    assert (made.epochs, made.top, made["epochs"].present) == (20, 3, 0)


def test_within_a_run_jax_is_what_commands_fix_and_afterwards_what_it_was():
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        with python._settled_jax():
            assert jax.config.jax_default_prng_impl == "threefry2x32"
        assert jax.config.jax_default_prng_impl == "rbg"
    finally:
        jax.config.update("jax_default_prng_impl", "threefry2x32")


def test_a_funnel_gives_the_last_evaluation_that_has_begun(tmp_path, monkeypatch):
    folders = [tmp_path / str(number) for number in (1, 2, 3)]
    for folder in folders[:2]:
        folder.mkdir()
    commands = {folder.name: types.SimpleNamespace(folder=folder) for folder in folders}
    climbed = []
    monkeypatch.setattr(funnelling, "funnel_commands", lambda values: commands)
    monkeypatch.setattr(funnelling, "climb", lambda made, hours, *_: climbed.append((made, hours)))
    monkeypatch.setattr(python, "open", lambda folder: folder)
    assert bpevo.Funnel(tmp_path, max_hours=2.0).run() == folders[1] and climbed == [(commands, 2.0)]


def test_what_is_said_speaks_of_keywords_and_leaves_whole_commands(capsys):
    console = python._Console()
    console.print("unlike the search in runs/--x: --epochs=3 instead of 2")
    console.print("next: python -m bpevo.report --workdir=runs/x  (a page with plots)", soft_wrap=True)
    assert capsys.readouterr().out == (
        "unlike the search in runs/--x: epochs=3 instead of 2\n"
        "next: python -m bpevo.report --workdir=runs/x  (a page with plots)\n"
    )


def test_lists_are_what_their_flags_take(tmp_path):
    lists = dict(operands=["g", "mean(g)"], unaries=("identity",), learning_rates=(r for r in (0.5, 0.25)))
    plan = plans.search_plan(bpevo.Search(tmp_path, **lists, initial=["backprop", "min(g, fa)"])._values())
    assert [str(o) for o in plan.space.operands] == ["g", "mean(g)"] and plan.learning_rates == (0.5, 0.25)
    assert [str(e) for e in plan.initial] == ["g", "min(g, fa)"]
    assert bpevo.Evaluation(tmp_path, rules=["fa", "dfa"])._values().rules == "fa;dfa"


def test_a_run_with_registered_components_needs_them_and_tells_others_of_the_same_name(tmp_path, capsys):
    def softsign(scale):
        fn = {1: lambda x, c: x / (1 + abs(x)), 3: lambda x, c: x / (3 + abs(x))}[scale]
        return rules.Unary("softsign", "softsign({x})", r"\operatorname{{softsign}}({x})", "x/(1+|x|)", fn=fn)

    settings = SMALL | dict(unaries=["softsign", "identity"], learning_rates=[0.1], repeats=1, top=1)
    with rules.register(softsign(1)):
        bpevo.Search(tmp_path, **settings, max_evaluations=12).run()
        assert bpevo.open(tmp_path).proposals
    with pytest.raises(
        RunError, match="uses 'softsign', registered in the process that wrote it and not in this one: register it"
    ):
        bpevo.open(tmp_path)
    with rules.register(softsign(3)):
        capsys.readouterr()
        bpevo.Search(tmp_path, **settings, max_evaluations=12).run()
        assert re.search(
            r"not bit-identical to its beginning: registered softsign:\w+ then, softsign:\w+ now",
            capsys.readouterr().out,
        )
