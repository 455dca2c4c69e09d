"""What `bpevo.launch` says, keeps and leaves, on a stand-in for training, and the main program that all commands share."""

import contextlib
import csv
import io
import sys
import types

import pytest
from absl import flags
from rich.console import Console
from test_launch import program
from test_runs import EPOCHS, StandIn

from bpevo import data, launch
from bpevo.command import definitions, main, plans, pools, process, searching, selfcheck
from bpevo.evolution import SameText
from bpevo.runs import RunDatabase, RunError, provenance
from bpevo.search import SEMANTICS
from bpevo.training import DeviceLost, OutOfMemory
from bpevo.workers import Checkpoints, LocalWorkers, PoolError, Recipe

SMALL = (
    "--dataset=digits", "--model=mlp-8-8", "--train_examples=128", "--batch_size=32", f"--epochs={EPOCHS}", "--noselfcheck",
    "--max_evaluations=12", "--top=2", "--repeats=2", "--elite_size=4", "--lag=4", "--slots=4", "--noequivalence",
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Kinds and fronts cost seconds, and are not of interest here."""
    monkeypatch.setattr(sys.modules["bpevo.report.leaderboard"], "kind", lambda _: "")
    monkeypatch.setattr(sys.modules["bpevo.report.front"], "LOOKED_AT", 0)


@pytest.fixture
def start(monkeypatch):
    """Runs the command in this process on a stand-in; returns the exit code and what it printed."""

    def start(workdir, *arguments, interrupt_after=float("inf")) -> tuple[int, str]:
        monkeypatch.setattr(
            Recipe, "trainers", lambda self: {name: StandIn(self.slots, interrupt_after) for name in self.tasks}
        )
        values = flags.FlagValues()
        for define in (definitions.define_common, definitions.define_search):
            define(values)
        values(["launch", f"--workdir={workdir}", *SMALL, *map(str, arguments)])
        output = io.StringIO()
        code = launch.run(plans.search_command(values), Console(file=output, width=300))
        return code, output.getvalue()

    return start


def rows(workdir):
    with RunDatabase.reading(workdir) as database:
        return database.rows(), database.proposals(), database.versions()


def test_a_search_says_what_it_trains_on_what_it_took_and_what_comes_next(start, tmp_path):
    workdir = tmp_path / "a b"
    code, output = start(workdir, f"--data_dir={tmp_path}")
    trainings, proposals, _ = rows(workdir)
    done = sum(row.stage in ("search", "confirmation") for row in trainings)
    epochs = sum(len(row.curve["eval_accuracy"]) for row in trainings)
    lines = output.splitlines()
    assert code == 0 and lines[0] == f"{data.load('digits').source}; 128 training examples"
    assert any(line.strip() == "mlp-8-8 on digits, sgd, 4 epochs, validation accuracy" for line in lines)
    assert f"{done} trainings of {len(proposals)} proposals, {epochs} slot-epochs in all." in lines and done == 12
    # Of 240 validation examples a third is for the fresh seeds.
    assert any(
        "on the 160 validation examples that chose the rule" in line and "on 80 others" in line for line in lines
    )
    assert lines[-2:] == [
        f"next: python -m bpevo.evaluate '--workdir={workdir}' --data_dir={tmp_path}  (tunes and tests these rules beside every "
        "control)",
        f"      python -m bpevo.report '--workdir={workdir}'  (a page with plots)",
    ]
    board = [line for line in lines if line.startswith("│")]
    assert len(board) == 2 + 2 and "no verdict" not in output and "interrupted" not in output  # of --top, and controls


def test_the_next_command_names_one_of_several_networks():
    training = types.SimpleNamespace(settings=types.SimpleNamespace(model="mlp-8"))
    for several, model in ((True, " --model=mlp-8"), (False, "")):
        search = types.SimpleNamespace(networks=types.SimpleNamespace(several=several))
        said = searching._next(types.SimpleNamespace(workdir="w", data_dir=None, search=search, training=training))
        assert said[0].startswith(f"next: python -m bpevo.evaluate --workdir=w{model}  (")


def test_an_interrupted_search_keeps_its_trainings_and_ends_with_its_leaderboard(start, tmp_path):
    code, output = start(tmp_path, interrupt_after=10)
    assert code == 130 and "interrupted: every finished training is kept; the same command continues" in output
    assert "backprop: g " in output and 0 < len(rows(tmp_path)[0]) < 12
    code, _ = start(tmp_path)
    assert code == 0 and len(rows(tmp_path)[1]) == len(rows(tmp_path)[1]) >= 11


def test_checkpoints_are_kept_unless_they_are_not_wanted_and_cleared_at_the_end(start, tmp_path, monkeypatch):
    made = []

    class Kept(Checkpoints):
        def __init__(self, folder, identity, minutes, say):
            made.append((folder, minutes, {k: identity[k] for k in ("max_parts", "jax", "epochs")}))
            super().__init__(folder, identity, minutes, say)

        def clear(self):
            made.append("cleared")

    monkeypatch.setattr(searching, "Checkpoints", Kept)
    start(tmp_path / "a", "--checkpoint_minutes=3", "--max_parts=2")
    jax = provenance.versions()["jax"]
    assert made == [
        (str(tmp_path / "a" / "checkpoints"), 3.0, {"max_parts": 2, "jax": jax, "epochs": EPOCHS}),
        "cleared",
    ]
    del made[:]
    start(tmp_path / "b", "--checkpoint_minutes=0")
    assert not made


def test_only_a_space_without_more_equations_is_said_to_be_exhausted(start, tmp_path, monkeypatch):
    monkeypatch.setattr("bpevo.evolution.controllers.MAX_RESTARTS", 50)
    few = ("--operands=g", "--unaries=identity", "--binaries=add,mul", "--max_parts=1", "--controller=random")
    said = [line for line in start(tmp_path, *few)[1].splitlines() if "exhausted" in line]
    assert len(said) == 1 and said[0].startswith("space exhausted: no new equation in ")
    whole = start(tmp_path / "whole")[1]
    assert "exhausted" not in whole and "" not in whole.splitlines()


def test_a_front_is_shown_where_there_is_one(start, tmp_path, monkeypatch):
    monkeypatch.setattr(RunDatabase, "store_tables", lambda self, board, front: stored.append(list(front)))
    monkeypatch.setattr(searching.report, "front_table", lambda front: f"a front of {len(front)}")
    stored: list = []
    for front, shown in (([types.SimpleNamespace(plain="a row")], True), ([], False)):
        monkeypatch.setattr(searching.report, "front", lambda judged, front=front: front)
        assert ("a front of 1" in start(tmp_path)[1].splitlines()) is shown
    assert stored == [["a row"], []]


def test_a_search_of_a_newer_version_is_not_continued(start, tmp_path):
    with RunDatabase.writing(tmp_path) as database:
        database.check_settings({"semantics": SEMANTICS + 1}, {}, ())
    versions = f"by version {SEMANTICS + 1} of the rules of selection, this release has version {SEMANTICS}:"
    with pytest.raises(RunError, match=versions):
        start(tmp_path)


def test_where_checkpoints_cannot_be_kept_the_way_out_is_named(start, tmp_path):
    (tmp_path / "checkpoints").write_text("no folder")
    with pytest.raises(
        RunError, match=r"^cannot keep checkpoints in .*/checkpoints: .*; --checkpoint_minutes=0 does without$"
    ):
        start(tmp_path)


def test_the_self_check_and_the_probe_for_duplicates_run_where_they_are_asked_for(start, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(selfcheck, "check", lambda: asked.append("check"))
    monkeypatch.setattr(searching, "SameFunction", lambda: asked.append("function") or SameText())
    start(tmp_path / "a")
    assert not asked
    start(tmp_path / "b", "--selfcheck", "--equivalence")
    assert asked == ["check", "function"]


def test_metrics_know_the_controls(start, tmp_path):
    start(tmp_path, "--metrics=csv")
    with open(tmp_path / "metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(row.epochs for row in rows(tmp_path)[0])
    assert searching._is_control("gh * dh") and searching._is_control("g - g") and not searching._is_control("fa")


def test_a_search_on_a_pool_writes_no_checkpoints_and_stores_what_the_pool_is(start, tmp_path, monkeypatch):
    class Workers(LocalWorkers):
        versions = {"device": "cpu", "rules": "interpreted"}

    asked = []

    @contextlib.contextmanager
    def opened(plan, recipe, check, interruption, say):
        asked.append((plan.workers, recipe.max_parts, recipe.slots, list(recipe.tasks), check))
        yield Workers(StandIn(4))

    monkeypatch.setattr(pools, "opened", opened)
    code, output = start(tmp_path, "--pool=ray", "--workers=2", "--max_parts=2")
    assert code == 0 and asked == [(2, 2, 4, [""], False)]
    said = "a pool writes no checkpoints: a training that is cut off begins again"
    assert said in output and not (tmp_path / "checkpoints").exists()
    assert rows(tmp_path)[2]["device"] == "pool x cpu" and rows(tmp_path)[2]["rules"] == "interpreted"
    assert said not in start(tmp_path / "b", "--pool=ray", "--workers=2", "--checkpoint_minutes=0")[1]
    assert pools.versions(None) == provenance.versions()


# The main program.


@pytest.fixture
def run_main(monkeypatch):
    """The main program with a command that does `work`; returns its exit code."""
    installed = []
    monkeypatch.setattr(process.Interruption, "install", lambda self: installed.append(self))

    def run_main(work, elsewhere=lambda values: False) -> tuple[int, list]:
        begun = []
        monkeypatch.setattr(main, "configure_jax", lambda leave_accelerators: begun.append(leave_accelerators))
        monkeypatch.setattr(main.app, "run", lambda program, flags_parser: program(["bpevo.mine"]))
        with pytest.raises(SystemExit) as ended:
            main.start("bpevo.mine", [lambda: begun.append("defined")], work, elsewhere)
        assert len(installed) == 1 and installed.pop()
        return ended.value.code, begun

    return run_main


def raising(error):
    def work(values, console, interruption):
        raise error

    return work


@pytest.mark.parametrize(
    "error, code",
    [(plans.UsageError("why"), 2), (data.DataError("why"), 2), (RunError("why"), 2), (OutOfMemory("why"), 2),
     (PoolError("why"), 2), (DeviceLost("why"), 75)],
)  # fmt: skip
def test_what_goes_wrong_is_one_message_and_an_exit_code(run_main, capsys, error, code):
    assert run_main(raising(error)) == (code, ["defined", False])
    assert capsys.readouterr().err == "bpevo.mine: why\n"


def test_the_exit_code_is_the_commands_or_the_signals(run_main, capsys):
    def work(values, console, interruption):
        console.print("done")
        return 3

    assert run_main(work, lambda values: True) == (3, ["defined", True])
    assert run_main(raising(KeyboardInterrupt()))[0] == 130 and capsys.readouterr() == ("done\n", "")


@pytest.mark.parametrize("given, elsewhere", [((), False), (("--pool=local",), False), (("--pool=ray",), True)])
def test_the_accelerators_are_left_to_a_pool(given, elsewhere):
    values = flags.FlagValues()
    definitions.define_common(values)
    values(["launch", *given])
    assert main.on_a_pool(values) is elsewhere and not main.on_a_pool(flags.FlagValues())


def test_the_launcher_is_a_program_with_the_flags_of_a_search(monkeypatch):
    (name, defined, run), named = program(monkeypatch, launch)
    assert (name, named, run.__name__) == ("bpevo.launch", {}, "_run")
    assert [d.__name__ for d in defined] == ["define_common", "define_search"]
