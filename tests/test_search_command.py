"""What the command of a search says and leaves, from its flags to its leaderboard, on a stand-in for training."""

import contextlib
import io
import sqlite3
import sys

import pytest
from absl import flags
from rich.console import Console
from test_runs import StandIn, rows

from bpevo.command import definitions, plans, pools, searching, selfcheck
from bpevo.runs import RunError, provenance
from bpevo.search import SEMANTICS
from bpevo.workers import Recipe

SMALL = (
    "--dataset=digits", "--model=mlp-8", "--train_examples=128", "--batch_size=32", "--epochs=4", "--slots=4", "--top=2",
    "--repeats=2", "--lag=2", "--elite_size=2", "--noequivalence", "--max_evaluations=11",
)  # fmt: skip
INTERRUPTED = "interrupted: every finished training is kept; the same command continues"


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Runs a search; its exit code and lines."""
    monkeypatch.setattr(sys.modules["bpevo.report.leaderboard"], "kind", lambda _: "")  # costs seconds
    monkeypatch.setattr(sys.modules["bpevo.report.front"], "LOOKED_AT", 0)  # likewise

    def run(*arguments: str, workdir="run", trainer=None, check=("--noselfcheck",)) -> tuple[int, list[str]]:
        values = flags.FlagValues()
        definitions.define_common(values)
        definitions.define_search(values)
        values(["launch", *SMALL, *check, f"--workdir={tmp_path / workdir}", *arguments])
        monkeypatch.setattr(Recipe, "trainers", lambda recipe: {"": trainer or StandIn(4)})
        console = Console(file=io.StringIO(), width=200)
        return searching.run(plans.search_command(values), console), console.file.getvalue().splitlines()

    return run


def test_a_search_tells_its_data_what_it_spent_and_what_comes_next(ran, tmp_path):
    code, lines = ran()
    stored = rows(tmp_path / "run")["evaluations"]
    epochs = sum(len(row[9].partition("eval_accuracy")[2].partition("]")[0].split(",")) for row in stored)
    assert code == 0 and lines[0].endswith("; 128 training examples") and INTERRUPTED not in lines
    assert lines[1].startswith("1 x cpu, 4 slots; 10 equations: 2 random, 8 bred (N 2, lag 2)")
    assert any(line.strip() == "mlp-8 on digits, sgd, 4 epochs, validation accuracy" for line in lines)
    # Of 240 validation examples a third is for the fresh seeds.
    said = next(
        i for i, line in enumerate(lines) if line.startswith("search %: on the 160 validation examples that chose")
    )
    assert "fresh %: on 80 others" in lines[said]
    assert lines[said - 1] == f"11 trainings of 11 proposals, {epochs} slot-epochs in all."
    assert lines[-2:] == [
        f"next: python -m bpevo.evaluate --workdir={tmp_path}/run  (tunes and tests these rules beside every control)",
        f"      python -m bpevo.report --workdir={tmp_path}/run  (a page with plots)",
    ]
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    with contextlib.closing(sqlite3.connect(tmp_path / "run" / "run.sqlite")) as c:
        assert c.execute("SELECT count(*) FROM leaderboard").fetchone() == (4,)  # two rules and two controls


def test_commands_that_come_next_are_quoted_and_have_the_data_where_it_is(ran, tmp_path):
    _, lines = ran(f"--data_dir={tmp_path}/a b", "--checkpoint_minutes=0", workdir="the run")
    assert lines[-2].startswith(
        f"next: python -m bpevo.evaluate '--workdir={tmp_path}/the run' '--data_dir={tmp_path}/a b'  ("
    )
    assert lines[-1] == f"      python -m bpevo.report '--workdir={tmp_path}/the run'  (a page with plots)"
    assert not (tmp_path / "the run" / "checkpoints").exists()


def test_an_interrupted_search_says_so_and_the_same_command_ends_as_if_nothing_had_been(ran, tmp_path):
    code, lines = ran(trainer=StandIn(4, interrupt_after=10))
    assert code == 130 and lines.count(INTERRUPTED) == 1 and lines[-2].startswith("next: ")
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []  # nothing lasted ten minutes
    assert ran()[0] == 0 and ran(workdir="whole")[0] == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    trainer = StandIn(4)
    code, lines = ran(trainer=trainer)
    assert code == 0 and trainer.trained == 0 and not any("bit-identical" in line for line in lines)


def test_a_run_of_other_rules_of_selection_or_other_versions_is_told_apart(ran, tmp_path, monkeypatch):
    ran()
    own = provenance.versions()
    with monkeypatch.context() as patch:
        patch.setattr(pools, "versions", lambda pool: own | {"jax": "0.0"})
        _, lines = ran()
    assert f"not bit-identical to its beginning: jax {own['jax']} then, 0.0 now" in lines
    with pytest.raises(RunError, match="holds a run already: --fork_from=.*whole needs another --workdir"):
        ran(f"--fork_from={tmp_path}/whole")
    monkeypatch.setattr(searching, "SEMANTICS", SEMANTICS + 1)
    versions = f"by version {SEMANTICS} of the rules of selection, this release has version {SEMANTICS + 1}: "
    with pytest.raises(RunError, match=versions):
        ran()


def test_a_fork_begins_with_what_the_other_run_found_and_goes_on_by_the_same_command(ran, tmp_path):
    ran()
    source = f"--fork_from={tmp_path}/run"
    code, lines = ran(source, "--max_evaluations=14", workdir="fork")
    assert code == 0 and any("14 trainings of 14 proposals, " in line for line in lines)
    trainer = StandIn(4)
    assert ran(source, "--max_evaluations=14", workdir="fork", trainer=trainer)[0] == 0 and trainer.trained == 0
    with pytest.raises(RunError, match="holds a run already"):
        ran(f"--fork_from={tmp_path}/another", "--max_evaluations=14", workdir="fork")


def test_a_place_that_keeps_no_checkpoints_is_told_with_what_does_without(ran, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("")
    with pytest.raises(RunError) as caught:
        ran()
    assert str(caught.value) == (
        f"cannot keep checkpoints in {tmp_path}/run/checkpoints: File exists; --checkpoint_minutes=0 does without"
    )
    assert ran("--checkpoint_minutes=0")[0] == 0


def test_the_machine_is_checked_before_anything_unless_told_otherwise(ran, tmp_path, monkeypatch):
    def wrong():
        raise selfcheck.SelfCheckError("wrong numbers")

    monkeypatch.setattr(selfcheck, "check", wrong)
    with pytest.raises(RunError, match="wrong numbers"):
        ran(check=())
    assert not (tmp_path / "run").exists() and ran()[0] == 0
