"""What `bpevo.evaluate` makes of its flags: the search's settings, rules of one function, evaluations of older versions."""

import contextlib
import csv
import dataclasses
import io
import sys

import numpy as np
import pytest
from rich.console import Console
from test_evaluate import Values, treatments, values, workplace_of
from test_runs import StandIn, plan, search

from bpevo import data, evaluate
from bpevo.command import evaluating, plans, pools, selfcheck
from bpevo.evaluation import Evaluation, EvaluationPlan, controls
from bpevo.evaluation.duplicates import Firsts
from bpevo.evaluation.plan import FREE, SEMANTICS
from bpevo.rules import TABLE_1
from bpevo.runs import RunDatabase, RunError
from bpevo.training import TrainingPlan, TrainingSettings
from bpevo.workers import LocalWorkers

# The settings of a search.

SETTINGS = TrainingSettings(
    model="mlp-6-6", optimizer="momentum", weight_decay=0.01, batch_size=25, epochs=3, schedule="cosine"
)


def searched(folder, train_examples=None) -> None:
    """A search in `folder` on a stand-in, with the settings that a real one on the digits stores."""
    dataset = data.load("digits")
    split = data.train_validation_split(dataset, train_examples)
    training = TrainingPlan(settings=SETTINGS, learning_rates=(0.3, 0.015), dataset=dataset, split=split, seed=7)
    search(folder, plan(20, lag=6), StandIn(4))
    with RunDatabase.writing(folder) as database:
        database.check_settings(training.fingerprint() | {"max_parts": 3}, {}, tuple(training.fingerprint()))


def ungiven(folder, *given: str, **changes) -> Values:
    """Flags of which all but the folder and those named are at their defaults."""
    made = values(folder, rules=None, **changes)
    made.left = {name for name in vars(made) if name not in ("workdir", *given, *changes)}
    return made


def test_an_evaluation_in_a_searchs_workdir_takes_its_settings(tmp_path):
    searched(tmp_path, 200)
    made = plans.evaluation_command(ungiven(tmp_path))
    assert made.training.settings == SETTINGS and made.training.dataset.name == "digits"
    assert made.training.learning_rates == (0.3, 0.015) == made.evaluation.learning_rates and made.training.seed == 7
    assert len(made.training.split.train_labels) == 200 == made.train_examples
    assert made.likeness == f"settings as in the search in {tmp_path}"
    assert len(made.evaluation.found) == 3 and made.evaluation.controls == controls("momentum")


def test_what_is_told_otherwise_stands_and_is_said(tmp_path):
    searched(tmp_path, 200)
    made = plans.evaluation_command(
        ungiven(tmp_path, model="mlp-8", learning_rates=["0.1", "0.05"], train_examples=100)
    )
    assert made.training.settings == dataclasses.replace(SETTINGS, model="mlp-8")
    assert made.training.learning_rates == (0.1, 0.05) and made.train_examples == 100
    assert made.likeness == (
        f"unlike the search in {tmp_path}: --train_examples=100 instead of 200, --model=mlp-8 instead of mlp-6-6, "
        "--learning_rates=0.1,0.05 instead of 0.3,0.015; all else as there"
    )


def test_after_a_search_on_all_examples_the_final_training_has_those_of_validation_too(tmp_path):
    searched(tmp_path)
    made = plans.evaluation_command(ungiven(tmp_path))
    assert len(made.training.split.train_labels) == 1197 and made.train_examples is None
    assert len(made.test_split().train_labels) == 1437


def test_fewer_test_examples_are_of_all_classes_also_where_a_file_has_them_sorted(tmp_path):
    searched(tmp_path)
    arrays = {"x_train": np.zeros((90, 4, 4), np.uint8), "x_test": np.zeros((30, 4, 4), np.uint8)}
    np.savez(tmp_path / "mine.npz", y_train=np.arange(90) % 3, y_test=np.sort(np.arange(30) % 3), **arrays)
    given = ungiven(tmp_path, dataset=str(tmp_path / "mine.npz"), eval_examples=12)
    given.train_examples = None
    made = plans.evaluation_command(given)
    assert set(made.test_split().eval_labels.tolist()) == {0, 1, 2} and len(made.test_split().eval_labels) == 12
    whole = dataclasses.replace(made, eval_examples=None).test_split()
    assert whole.eval_labels.tolist() == sorted(whole.eval_labels)


def test_another_data_set_has_its_own_number_of_examples(tmp_path, monkeypatch):
    searched(tmp_path, 200)
    arrays = {"x_train": np.zeros((90, 4, 4), np.uint8), "x_test": np.zeros((12, 4, 4), np.uint8)}
    np.savez(tmp_path / "mine.npz", y_train=np.arange(90) % 3, y_test=np.arange(12) % 3, **arrays)
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "mine.npz"), "mine.npz"):
        flags = ungiven(tmp_path, dataset=name)
        flags.train_examples = None  # the default
        made = plans.evaluation_command(flags)
        assert made.train_examples is None and len(made.training.split.train_labels) == 75  # a sixth is for validation
        assert len(made.test_split().train_labels) == 90
    same = plans.evaluation_command(ungiven(tmp_path, dataset="digits"))
    assert same.train_examples == 200 == len(same.training.split.train_labels)


def test_without_a_search_flags_have_their_own_defaults(tmp_path):
    made = values(tmp_path)
    made.left = {"model", "learning_rates"}
    command = plans.evaluation_command(made)
    assert command.training.settings.model == "mlp-8-8" and command.likeness == ""


# Rules of one function.


def test_rules_of_one_function_are_found_whatever_they_look_like():
    made = treatments("g", "unit_fro(g)", "gh * dh", "(b_next @ W.T) * (dh + (g - g))", "unit_elem2(g)", "2.0*g", "g + g",
                      "g | lars", "dh * gh | lars", "unit_elem2(g) | adam", "unit_fro(g) | adam", "clip(g, 1.0)",
                      "mul_noise(gh * dh, 0.1)", "mul_noise(dh * gh, 0.1)")  # fmt: skip
    found = {str(t): str(first) for t, first in Firsts(made).items() if t != first}
    assert found == {
        "gh * dh": "g", "(b_next @ W.T) * (dh + (g - g))": "g", "unit_elem2(g)": "unit_fro(g)", "g + g": "2.0*g",
        "dh * gh | lars": "g | lars", "unit_fro(g) | adam": "unit_elem2(g) | adam",
        "mul_noise(dh * gh, 0.1)": "mul_noise(gh * dh, 0.1)",
    }  # fmt: skip


def test_what_computes_as_a_control_or_as_another_rule_is_no_row_of_its_own(tmp_path):
    rules = "unit_fro(g);backprop;dh * gh;unit_elem2(g);(dh - 0.5) * (2.0*g);g + g;fa | adam;g | grafted"
    made = plans.evaluation_command(values(tmp_path, rules=rules)).evaluation
    assert [str(t) for t in made.named] == ["unit_fro(g)", "fa | adam", "g | grafted"]
    assert made.same == {
        "dh * gh": "g", "unit_elem2(g)": "unit_fro(g)", "(dh - 0.5) * (2.0*g)": "g", "g + g": "2.0*g"
    }  # fmt: skip
    assert made.transforms("") == ("block_normalised", "clip_global_norm", "grafted", "lars")
    under_adam = plans.evaluation_command(values(tmp_path, rules=rules, optimizer="adam")).evaluation
    assert "fa" in map(str, under_adam.named) and "g | adam" not in map(str, under_adam.controls)


def test_rules_that_are_a_control_or_alike_leave_their_places_to_the_next_ones(tmp_path, monkeypatch):
    searched(tmp_path)
    asked = iter(treatments("g + g", "unit_fro(g)", "(2.0*gh) * dh", "unit_elem2(g)", "fa", "h", "dfa"))
    monkeypatch.setattr(plans, "winners", lambda search: asked)
    made = plans.evaluation_command(ungiven(tmp_path, top=3)).evaluation
    assert list(map(str, made.found)) == ["unit_fro(g)", "fa", "h"]
    assert made.same == {"g + g": "2.0*g", "(2.0*gh) * dh": "2.0*g", "unit_elem2(g)": "unit_fro(g)"}
    assert [str(t) for t in asked] == ["dfa"]  # no more than it takes


def test_all_of_table_1_is_told_apart_but_for_what_is_one_function():
    """unit_fro and unit_elem2 are one norm, and g = 0 wherever dh = 0."""
    made = [*controls("sgd"), *treatments(*dict.fromkeys(TABLE_1.values()))]
    found = {str(t): str(first) for t, first in Firsts(made).items() if t != first}
    assert found == {"unit_elem2(g)": "unit_fro(g)", "(dh - 0.5) * (2.0*g)": "g"}


# Versions, and the whole command.


def test_an_evaluation_of_an_older_version_is_not_continued(tmp_path):
    command = plans.evaluation_command(values(tmp_path))
    old = {k: v for k, v in command.fingerprint().items() if k not in ("semantics", "controls", "same")}
    with RunDatabase.writing(command.folder) as database:
        database.check_settings(old, {}, FREE)
    with pytest.raises(RunError, match=f"by version 1 .* has version {SEMANTICS}.* --scenario=ANOTHER_NAME"):
        evaluate.run(command, Console(file=io.StringIO()))
    newer = plans.evaluation_command(values(tmp_path, scenario="newer"))
    with RunDatabase.writing(newer.folder) as database:
        database.check_settings(newer.fingerprint() | {"semantics": SEMANTICS + 1}, {}, FREE)
    with pytest.raises(
        RunError, match=f"/newer holds an evaluation by version {SEMANTICS + 1} .* has version {SEMANTICS}:"
    ):
        evaluate.run(newer, Console(file=io.StringIO()))


@pytest.fixture
def run(monkeypatch):
    """Runs the command on a stand-in; returns the exit code and what it printed."""
    monkeypatch.setattr(sys.modules["bpevo.evaluation.standings"], "_kind", lambda _: "")

    def run(command, interrupt_after=float("inf")) -> tuple[int, str]:
        trainer = StandIn(4, interrupt_after)
        monkeypatch.setattr(
            evaluating, "LocalWorkplace", lambda recipes: lambda on_test, program: LocalWorkers(trainer)
        )
        output = io.StringIO()
        code = evaluate.run(command, Console(file=output, width=200))
        return code, output.getvalue()

    return run


def quick(folder, **changes) -> plans.EvaluationCommand:
    """An evaluation of one rule beside backprop."""
    made = plans.evaluation_command(values(folder, learning_rates=["0.1"], **changes))
    return dataclasses.replace(made, evaluation=dataclasses.replace(made.evaluation, controls=treatments("g")))


def test_an_evaluation_says_what_it_trains_on_how_it_goes_and_what_came_out(run, tmp_path):
    command = quick(tmp_path, metrics="csv")
    code, output = run(dataclasses.replace(command, likeness="unlike a search"))
    lines = output.splitlines()
    assert code == 0 and lines[:2] == [f"{command.training.dataset.source}; 2 rows", "unlike a search"]
    assert "test: 6 of 6 trainings" in output and "interrupted" not in output
    assert sum(line.startswith("Backprop, ") for line in lines) == 1 and any("mine" in line for line in lines)
    with RunDatabase.reading(command.folder) as database:
        stored = database.rows()
    with open(command.folder / "metrics.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == sum(row.epochs for row in stored) and {float(line["occupancy"]) for line in written} == {0.5}
    code, output = run(command)  # nothing is missing, and there is nothing to be unlike
    assert code == 0 and output.splitlines()[1].strip() and "of 6 trainings" not in output


def test_an_interrupted_evaluation_says_that_the_same_command_continues(run, tmp_path):
    code, output = run(quick(tmp_path), interrupt_after=3)
    lines = output.splitlines()
    assert code == 130 and "interrupted: every finished training is kept; the same command continues" in lines
    assert (
        lines[-1] == "Backprop has not been tested yet: no verdict."
        and not (tmp_path / "mine" / "metrics.csv").exists()
    )


@pytest.mark.parametrize(
    "repeats, compared, judged", [(0, True, False), (0, False, True), (1, True, True), (1, False, True)]
)
def test_what_compares_without_a_test_is_a_stage_of_a_funnel_and_is_not_judged(
    run, tmp_path, repeats, compared, judged
):
    command = quick(tmp_path, selection_repeats=1)
    made = dataclasses.replace(command.evaluation, repeats=repeats, compared=compared)
    _, output = run(dataclasses.replace(command, evaluation=made))
    assert ("Backprop" in output) is judged


def test_the_self_check_runs_where_it_is_asked_for(run, tmp_path, monkeypatch):
    checks = []
    monkeypatch.setattr(selfcheck, "check", lambda: checks.append("checked"))
    run(quick(tmp_path, repeats=1))
    assert not checks
    run(quick(tmp_path, repeats=1, selfcheck=True))
    assert checks == ["checked"]


def test_on_a_pool_every_program_is_a_recipe_of_its_workers(run, tmp_path, monkeypatch):
    """The first one is of the chains, with the transforms that stand beside the evaluation's own optimizer."""
    used, asked = [], []

    class Workers(LocalWorkers):
        versions = {"device": "cpu", "rules": "interpreted"}

        def use(self, recipe):
            used.append((recipe.seed, recipe.slots, recipe.rule, recipe.max_parts))

    @contextlib.contextmanager
    def opened(plan, recipe, check, interruption, say):
        asked.append((plan.workers, check, recipe))
        yield Workers(StandIn(4))

    monkeypatch.setattr(pools, "opened", opened)
    command = quick(tmp_path, repeats=1, pool="ray", workers=2, rules="fa | lars", seed=3)
    code, output = run(command)
    assert code == 0 and "test: 2 of 2 trainings" in output and set(used) == {(3, 4, None, 3)}
    ((workers, check, recipe),) = asked
    assert (workers, check, recipe.seed, recipe.slots) == (2, False, 3, 4)
    with RunDatabase.reading(command.folder) as database:
        assert database.versions()["device"] == "pool x cpu"


def test_another_optimizer_and_grafting_train_what_they_say(tmp_path):
    """Tuned on real workers: each differs from backprop as it must."""
    made = plans.evaluation_command(
        values(tmp_path, model="mlp-8", train_examples=64, batch_size=16, epochs=1, learning_rates=["0.1"])
    )
    named = treatments("3.0*g | grafted", "3.0*g")
    small = EvaluationPlan(controls=treatments("g", "g | adam"), named=named, learning_rates=(0.1,), repeats=0)
    with RunDatabase.writing(made.folder) as database:
        experiment = Evaluation(database, workplace_of(made), small)
        experiment.run()
    losses = {
        str(t): experiment.rows.of(equation=str(t), learning_rate=0.1)[0].curve["train_loss"] for t in small.treatments
    }
    # In every tensor 3.0*g has backprop's direction here, and another length below the head.
    assert losses["3.0*g | grafted"] == pytest.approx(losses["g"], rel=1e-5)
    assert len({repr(curve) for text, curve in losses.items() if "grafted" not in text}) == 3
