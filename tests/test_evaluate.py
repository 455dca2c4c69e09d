"""The evaluation: treatments, what is trained for them and when, continuing, and the command itself."""

import contextlib
import dataclasses
import os
import pathlib
import random
import subprocess
import sys
import types

import numpy as np
import pytest
from test_launch import program
from test_runs import EPOCHS, StandIn, plan, search

import bpevo.evaluate
from bpevo import data
from bpevo.command import plans
from bpevo.evaluation import (
    Evaluation,
    EvaluationPlan,
    LocalWorkplace,
    Program,
    Recipes,
    Treatment,
    standings,
    verdict,
)
from bpevo.evaluation.ablation import ablations
from bpevo.evaluation.evaluation import FIRST_REPLICATE
from bpevo.evaluation.plan import FREE
from bpevo.evaluation.treatments import BACKPROP, CONTROLS, controls, read_treatments, under, winners
from bpevo.evolution.rates import next_rates
from bpevo.rules import NAMED, TABLE_1
from bpevo.runs import RunDatabase, RunError
from bpevo.workers import LocalWorkers

REPOSITORY = pathlib.Path(__file__).parents[1]
TREE = "(b_next @ W.T) * (dh + (h * h))"  # no chain


def treatments(*texts: str) -> tuple[Treatment, ...]:
    return tuple(map(Treatment.parse, texts))


# Treatments.


@pytest.mark.parametrize(
    "text",
    [*NAMED, "unit_fro(g)", "g | block_normalised", "unit_fro(g) | clip_global_norm", "fa | grafted", "g | adam", "fa|lars|adam",
     TREE],
)  # fmt: skip
def test_a_treatment_is_what_its_text_says(text):
    t = Treatment.parse(text)
    assert Treatment.parse(str(t)) == t and t.plain == ("|" not in text)
    assert text not in NAMED or text in t.names
    assert (t.transform, t.optimizer) == {"fa|lars|adam": ("lars", "adam"), "g | adam": ("", "adam")}.get(
        text, (t.transform, "")
    )


def test_the_controls_are_rescalings_normalisations_and_another_optimizer():
    assert [str(t) for t in controls("sgd")] == [
        "g", "g - g", "0.25*g", "0.5*g", "2.0*g", "4.0*g", "g | block_normalised", "g | clip_global_norm", "g | lars", "g | adam"
    ]  # fmt: skip
    assert [str(t) for t in controls("adam")] == [str(t) for t in controls("sgd")][:-1]  # there it is backprop itself
    assert str(under(Treatment.parse("fa | lars | adam"), "adam")) == "fa | lars"


def test_idle_genes_are_no_part_of_a_treatment():
    assert Treatment.parse("left(left(unit_fro(g), fa), h)") == Treatment.parse("unit_fro(g)")


@pytest.mark.parametrize(
    "text, message",
    [("g | block_normalized", "nearest is 'block_normalised'"), ("g |", "no gradient transform nor optimizer ''"),
     ("| g", "nearest is"), ("g | lars | grafted", "has two transforms: lars and grafted"),
     ("g | adam | momentum", "has two optimizers: adam and momentum"),
     ("h @ h", "cannot join"), ("backprob", "no rule and no operand .*; the nearest is 'backprop'"),
     ("table1", "'table1' names 39 rules, where one is wanted: a1_sgd_baseline, "), ("tabel1", "nearest is 'table1'"),
     ("a1_sdg", "nearest is 'a1_sgd'"), ("zero_singal", "nearest is 'zero_signal'"), ("", "empty|expression")],
)  # fmt: skip
def test_a_bad_treatment_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Treatment.parse(text)


def test_rules_are_read_from_names_texts_groups_and_files(tmp_path):
    table = read_treatments("table1")
    assert {str(t) for t in table} == set(TABLE_1.values()) and len(table) == 21
    assert [str(t) for t in read_treatments("b1_sgd")] == ["g", *(TABLE_1[f"b1_sgd_{i}"] for i in (1, 2, 3, 4))]
    mixed = read_treatments("backprop; feedback_alignment;unit_fro(g) ;a1_sgd_3; g | clip_global_norm")
    assert [str(t) for t in mixed] == ["g", "fa", "unit_fro(g)", "g | clip_global_norm"]  # each once
    (tmp_path / "rules").write_text("# mine\nunit_fro(g)  # norm\n\nb1_sgd\n")
    assert [str(t) for t in read_treatments(str(tmp_path / "rules"))][::2][:2] == ["unit_fro(g)", TABLE_1["b1_sgd_1"]]
    with pytest.raises(ValueError, match="rule 2 of g;gg: "):
        read_treatments("g;gg")
    many = [f"{n}.5*g" for n in range(1, 100)]  # longer than the name of any file
    assert [str(t) for t in read_treatments(";".join(many))] == many


def test_the_winners_of_a_search_are_its_fittest_distinct_rules(tmp_path):
    made = search(tmp_path, plan(60, lag=12), StandIn(4))
    with RunDatabase.reading(tmp_path) as database:
        best = list(winners(database))[:5]
    second = {p.confirms: made.results[p.id].trained.accuracy for p in made.proposals if p.confirms is not None}
    scores = {}
    for p in made.proposals:
        both = [made.results[p.id].trained.accuracy, *([second[p.id]] if p.id in second else [])]
        if p.confirms is None and None not in both:
            scores[p] = sum(both) / len(both), -p.id
    expected = [Treatment.parse(str(p.equation)) for p in sorted(scores, key=scores.get, reverse=True)]
    assert best == [t for t in dict.fromkeys(expected) if t not in CONTROLS[:2]][:5]


@pytest.mark.parametrize(
    "text, left",
    [
        ("unit_fro(g)", {"g"}),
        ("unit_fro(g) + (0.5*g)", {"unit_fro(g)", "0.5*g", "g + (0.5*g)", "unit_fro(g) + g"}),
        ("unit_elem2(g) * sgn(bn(dh))", {"unit_elem2(g)", "sgn(bn(dh))", "g * sgn(bn(dh))", "unit_elem2(g) * bn(dh)",
                                         "unit_elem2(g) * sgn(dh)"}),
        ("(b_next @ R.T) * dh", {"b_next @ R.T", "dh"}),  # R alone or untransposed has no fitting shape
        ("g", set()),
    ],
)  # fmt: skip
def test_ablations_lack_one_component_and_are_feasible(text, left):
    assert {str(t) for t in ablations(Treatment.parse(text))} == left


# The experiment, on a stand-in whose accuracies are hashes.

RULES = treatments("unit_fro(g)", "fa", "mul_noise(g, 0.1)")
FOUND = treatments("dfa", "unit_elem2(g)", "sgn(g)", "min(g, h)", "(0.5*g) + fa")
PLAN = EvaluationPlan(
    named=RULES,
    found=FOUND,
    learning_rates=(0.1, 0.3),
    tuning_repeats=2,
    selection_repeats=3,
    finalists=2,
    repeats=4,
    ablate=1,
)


class Places:
    """Workers on stand-ins; remembers which programs were asked for."""

    def __init__(self, slots: int = 4, interrupt_after: float = float("inf")):
        self.trainer = StandIn(slots, interrupt_after)
        self.asked: list[tuple[bool, str | None]] = []
        self.programs: set[Program] = set()

    def __call__(self, on_test, program):
        self.asked.append((on_test, None if program.rule is None else str(program.rule)))
        self.programs.add(program)
        return LocalWorkers(self.trainer)


def evaluate(workdir, plan: EvaluationPlan = PLAN, places: Places | None = None, watch=lambda *_: None) -> Evaluation:
    with RunDatabase.writing(workdir) as database:
        settings = {
            "controls": [str(t) for t in plan.controls],
            "rules": [str(t) for t in plan.named],
            "found": [str(t) for t in plan.found],
            "scenario": "stand_in",
        }
        database.check_settings(settings | {"learning_rates": plan.learning_rates}, {}, ("rules", "found"))
        made = Evaluation(database, places or Places(), plan, watch)
        made.run()
    return made


def rows(experiment: Evaluation) -> set[tuple]:
    return {(e.stage, e.equation, e.learning_rate, e.replicate, e.status, e.accuracy) for e in experiment.rows}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return evaluate(tmp_path_factory.mktemp("undisturbed"))


def test_every_grid_grows_until_it_is_done_and_the_rest_is_what_was_promised(undisturbed):
    stages = {s: [e for e in undisturbed.rows if e.stage == s] for s in FIRST_REPLICATE}
    tuned = {e.equation for e in stages["tuning"]}
    assert tuned >= {str(t) for t in PLAN.treatments}
    grids = set()
    for text in tuned:
        grid: dict[float, list] = {}
        for e in stages["tuning"]:
            if e.equation == text:
                grid.setdefault(e.learning_rate, []).append(e.replicate)
        assert all(replicates == [1000, 1001] for replicates in map(sorted, grid.values()))
        accuracies = {
            r: [e.accuracy for e in stages["tuning"] if (e.equation, e.learning_rate) == (text, r)] for r in grid
        }
        assert next_rates(PLAN.learning_rates, accuracies) == ()
        for rate in set(grid) - set(PLAN.learning_rates):  # each was asked for by what lies inwards of it
            inward = {r: a for r, a in accuracies.items() if (r < rate if rate > 0.3 else r > rate)}
            assert rate in next_rates(PLAN.learning_rates, inward)
        grids.add(tuple(sorted(grid)))
    assert len(grids) > 3 and min(min(g) for g in grids) < 0.1 and max(max(g) for g in grids) > 0.3
    assert len(stages["selection"]) == 3 * len(FOUND)
    tested = {e.equation for e in stages["test"]}
    finalists = sorted(FOUND, key=undisturbed.worth, reverse=True)[:2]
    assert tested == {str(t) for t in (*CONTROLS, *RULES, *finalists)}
    assert all(e.learning_rate == undisturbed.rate(Treatment.parse(e.equation)) for e in stages["test"])
    assert len(stages["test"]) == 4 * len(tested)
    best = max((*RULES, *FOUND), key=undisturbed.worth)
    assert {e.equation for e in stages["ablation"]} == {str(t) for t in (best, *ablations(best))}


def test_what_shares_a_program_trains_together_and_another_optimizer_does_not(tmp_path):
    """A round's jobs of one program go in at once: no slot waits for a row."""
    places = Places()
    named = treatments("fa | grafted", "unit_fro(g) | adam")
    evaluate(tmp_path, dataclasses.replace(PLAN, named=named, found=(), ablate=0), places)
    together = ("block_normalised", "clip_global_norm", "grafted", "lars")
    assert places.programs == {Program(transforms=together), Program(optimizer="adam")}
    assert places.trainer.most == 4


def test_no_stage_sees_the_seeds_of_another_nor_of_the_search(undisturbed):
    of_stage = {s: {e.replicate for e in undisturbed.rows if e.stage == s} for s in FIRST_REPLICATE}
    fresh = {2000, 2001, 2002}  # an ablation is compared with the selection
    assert of_stage == {
        "tuning": {1000, 1001}, "selection": fresh, "ablation": fresh, "test": {3000, 3001, 3002, 3003}
    }  # fmt: skip


def test_only_the_test_stage_sees_the_test_set(tmp_path):
    places, stages = Places(), []
    evaluate(tmp_path, places=places, watch=lambda stage, *_: stages.append((stage, places.asked[-1][0])))
    assert {stage for stage, on_test in stages if on_test} == {"test"}
    assert {stage for stage, on_test in stages if not on_test} == {"tuning", "selection", "ablation"}


def test_nothing_is_chosen_by_a_test_accuracy(undisturbed, tmp_path, monkeypatch):
    """With other test accuracies everything else stays as it was."""
    original = StandIn.advance

    def advance(self, meanwhile=lambda: None):
        return {
            slot: result if self._slots.get(slot, [types.SimpleNamespace(replicate=0)])[0].replicate < 3000 else
            dataclasses.replace(result, eval_accuracy=0.123)
            for slot, result in original(self, meanwhile).items()
        }  # fmt: skip

    monkeypatch.setattr(StandIn, "advance", advance)
    other = evaluate(tmp_path)
    keys = [{r[:4] for r in rows(e)} for e in (undisturbed, other)]
    assert keys[0] == keys[1]


def test_a_finished_evaluation_trains_nothing_again_and_more_repeats_only_the_missing(undisturbed, tmp_path):
    evaluate(tmp_path)
    places = Places()
    assert rows(evaluate(tmp_path, places=places)) == rows(undisturbed) and places.trainer.trained == 0
    more = dataclasses.replace(PLAN, repeats=6)
    evaluate(tmp_path, more, places)
    assert places.trainer.trained == 2 * (len(CONTROLS) + len(RULES) + 2)


def test_a_watch_is_told_how_many_trainings_a_stage_wants_and_has(tmp_path):
    told = {}

    def watch(stage, done, wanted, fresh):
        told.setdefault(stage, []).append((done, wanted, len(fresh)))

    two = dataclasses.replace(PLAN, repeats=2)
    made = evaluate(tmp_path, two, watch=watch)
    tested = len({e.equation for e in made.rows if e.stage == "test"})
    for stage, wanted in (("selection", 3 * len(FOUND)), ("test", 2 * tested)):
        counts = [count for _, _, count in told[stage]]
        assert told[stage] == [(sum(counts[: i + 1]), wanted, count) for i, count in enumerate(counts)]
        assert told[stage][-1][0] == wanted
    assert told["tuning"][-1][:2] == (told["tuning"][-1][1],) * 2 and told["tuning"][0][0] == told["tuning"][0][2]
    told.clear()
    made = evaluate(tmp_path, watch=watch)  # two more of each
    assert list(told) == ["test"] and told["test"][-1][:2] == (4 * tested, 4 * tested)
    assert told["test"][0][0] == 2 * tested + told["test"][0][2]
    untrained = Evaluation(types.SimpleNamespace(rows=lambda: made.rows), None, PLAN)
    assert (untrained.occupancy, made.occupancy) == (0.0, 0.5)  # as the stand-in says


def test_what_was_never_trained_is_worth_nothing(undisturbed):
    assert undisturbed.worth(Treatment.parse("h")) == (False, 0.0) and undisturbed.rate(Treatment.parse("h")) is None


def test_interruptions_change_no_row(undisturbed, tmp_path):
    chosen, interruptions = random.Random(0), 0
    while interruptions < 20:
        with contextlib.suppress(KeyboardInterrupt):
            evaluate(tmp_path, places=Places(chosen.choice([1, 4, 8]), chosen.randrange(1, 6)))
            break
        interruptions += 1
    assert rows(evaluate(tmp_path)) == rows(undisturbed) and interruptions >= 10


def test_a_stop_is_deferred_until_the_epoch_in_progress_is_stored(undisturbed, tmp_path):
    stopped = []

    def watch(stage, done, wanted, outcomes):
        if not stopped and stage == "selection" and outcomes:
            stopped.append(len(outcomes))
            with RunDatabase.reading(tmp_path) as database:
                stopped.append(len(database.rows()))
            experiment.stop()

    with RunDatabase.writing(tmp_path) as database:
        experiment = Evaluation(database, Places(), PLAN, watch)
        with pytest.raises(KeyboardInterrupt):  # nothing trains yet
            experiment.stop()
        with pytest.raises(KeyboardInterrupt):
            experiment.run()
        assert len(database.rows()) == stopped[1] > stopped[0]
    assert rows(evaluate(tmp_path)) == rows(undisturbed)


def test_rules_that_are_no_chain_get_a_program_of_their_own(tmp_path):
    places = Places()
    named = treatments(TREE, f"{TREE} | grafted")
    evaluate(tmp_path, EvaluationPlan(named=named, learning_rates=(0.1, 0.3), repeats=2), places)
    tree = Treatment.parse(TREE).expression
    assert set(places.asked) == {(False, None), (False, str(tree)), (True, None), (True, str(tree))}
    assert {p for p in places.programs if p.rule} == {Program(rule=tree), Program(rule=tree, transforms=("grafted",))}


def test_a_row_that_always_diverges_is_reported_and_never_tested(tmp_path, monkeypatch):
    monkeypatch.setattr("test_runs.chance", lambda *what: 0.0 if what[0] == "diverges" and what[1] == "fa" else 0.5)
    made = evaluate(tmp_path)
    assert made.rate(Treatment.parse("fa")) is None
    assert not [e for e in made.rows if e.stage == "test" and e.equation == "fa"]
    settings = {"rules": [str(t) for t in RULES], "found": [str(t) for t in FOUND]}
    row = next(r for r in standings(made.rows, settings) if r.text == "fa")
    assert row.learning_rate is None and row.test is None and row.p is None and not row.find and not row.at_edge


def test_standings_hold_tuned_rates_statistics_and_the_papers_numbers(undisturbed):
    settings = {
        "rules": [str(t) for t in RULES],
        "found": [str(t) for t in FOUND],
        "scenario": "a1",
        "optimizer": "sgd",
        "dataset": "cifar10",
        "learning_rates": [0.1, 0.3],
    }
    table = standings(undisturbed.rows, settings)
    by_text = {r.text: r for r in table}
    assert set(by_text) == {str(t) for t in PLAN.treatments}
    tested = [(not r.diverged, r.test.mean) for r in table if r.test]
    assert tested == sorted(tested, reverse=True)
    fro = by_text["unit_fro(g)"]
    accuracies = {e.replicate: 100 * e.accuracy for e in undisturbed.rows
                  if (e.stage, e.equation) == ("test", "unit_fro(g)") and e.accuracy is not None}  # fmt: skip
    assert fro.test.mean == pytest.approx(np.mean(list(accuracies.values()))) and fro.test.n == len(accuracies)
    assert fro.diverged == 4 - len(accuracies) and (fro.p is None) == bool(fro.diverged or fro.unfair)
    assert fro.paper == "84.15 ± 0.66" and by_text["fa"].paper == ""
    assert by_text["g - g"].name == "zero_signal" and by_text[str(BACKPROP)].p is None
    assert verdict(table)[0].startswith("Backprop, tuned like every row")


# Scenarios: flags without a parser.


class Values(types.SimpleNamespace):
    """Flags as if each had been given, but for those that `left` names."""

    left = ()

    def __getitem__(self, name):
        return types.SimpleNamespace(value=getattr(self, name), present=name not in self.left)


def values(folder, **changes) -> Values:
    common = dict(
        workdir=str(folder), dataset="digits", data_dir=None, train_examples=256, model="mlp-8-8", optimizer="sgd",
        learning_rates=["0.3", "0.1"], weight_decay=1e-3, batch_size=32, epochs=2, schedule="paper",
        compute_dtype="float32", slots=4, seed=0, scenario="mine", rules="fa", top=3, finalists=2, tuning_repeats=1,
        selection_repeats=2, repeats=3, ablate=0, eval_examples=None, alignment=False,
        selfcheck=False, max_hours=None, metrics=None, pool="local", ray_address=None, workers=None, worker_cpus=None,
    )  # fmt: skip
    return Values(**(common | changes))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scenario": "../x"}, "--scenario=../x must be a name"),
        ({"scenario": ""}, "must be a name"),
        ({"scenario": "report"}, "--scenario=report is the name of a folder that runs use"),
        ({"rules": None}, "there is no search in .* give --rules"),
        ({"rules": "fa;ga"}, "--rules: rule 2 of fa;ga"),
        ({"rules": ";"}, "--rules: ; holds no rule"),
        ({"rules": "none.txt"}, "--rules: rule 1 of none.txt, which is no file: "),
        ({"repeats": -1}, "--repeats=-1 must be at least 0"),
        ({"top": 0}, "--top=0 must be at least 1"),
        ({"ablate": -1}, "--ablate=-1 must be at least 0"),
        ({"workdir": ""}, "--workdir=FOLDER is needed"),
    ],
)
def test_flags_that_cannot_be_honoured_are_refused(tmp_path, change, message):
    with pytest.raises(plans.UsageError, match=message):
        plans.evaluation_command(values(tmp_path, **change))
    assert not list(tmp_path.iterdir())


def test_the_rules_of_a_workdirs_search_join_those_given(tmp_path):
    search(tmp_path, plan(30, lag=12), StandIn(4))
    made = plans.evaluation_command(values(tmp_path))
    assert [str(t) for t in made.evaluation.named] == ["fa"] and 1 <= len(made.evaluation.found) <= 3
    assert made.folder == tmp_path / "mine" and made.evaluation.max_parts == 3


def test_a_continued_scenario_may_grow_but_not_change(tmp_path):
    first = plans.evaluation_command(values(tmp_path))
    grown = plans.evaluation_command(values(tmp_path, rules="fa;dfa", repeats=9, ablate=1))
    changed = plans.evaluation_command(values(tmp_path, learning_rates=["0.3"]))
    with RunDatabase.writing(first.folder) as database:
        database.check_settings(first.fingerprint(), {}, FREE)
        database.check_settings(grown.fingerprint(), {}, FREE)
        with pytest.raises(RunError, match="learning_rates"):
            database.check_settings(changed.fingerprint(), {}, FREE)


def test_other_test_examples_are_another_evaluation(tmp_path):
    def tested(**changes) -> dict[str, object]:
        return plans.evaluation_command(values(tmp_path, **changes)).fingerprint()

    given = tested()
    assert tested(repeats=9)["test_crc32"] == given["test_crc32"]
    fewer = tested(eval_examples=given["test_examples"] - 1)
    assert (fewer["test_examples"], fewer["train_examples"]) == (given["test_examples"] - 1, given["train_examples"])
    command = plans.evaluation_command(values(tmp_path))
    other = dataclasses.replace(command.training.dataset, test_images=command.training.dataset.test_images[::-1])
    changed = dataclasses.replace(command, training=dataclasses.replace(command.training, dataset=other)).fingerprint()
    assert {k for k in given if given[k] != changed[k]} == {"test_crc32"}
    whole = dataclasses.replace(command, train_examples=None).fingerprint()
    assert {k for k in given if given[k] != whole[k]} == {"final_train_examples"}


DISGUISES = ("gh * dh", "(b_next @ W.T) * dh", "-(-g)", "(2.0*g) - g", "max(g, g)", "0.5*(2.0*g)", "1.001*g",
             "mul_noise(g, 0.01)", "add_noise(g, 0.0001)", "drop(g, 0.001)", "g + (g - g)")  # fmt: skip


def recipes_of(command: plans.EvaluationCommand) -> Recipes:
    parts = command.evaluation.max_parts
    return Recipes(command.training, command.test_split, parts, command.slots, command.alignment)


def workplace_of(command: plans.EvaluationCommand) -> LocalWorkplace:
    return LocalWorkplace(recipes_of(command))


@pytest.fixture(scope="module")
def disguised(tmp_path_factory):
    """A real evaluation of rules that all are backprop, one of them a tree, with a search's share of the seeds."""
    workdir = tmp_path_factory.mktemp("disguised")
    made = plans.evaluation_command(values(workdir, model="mlp-8", repeats=10, alignment=True))
    every = dataclasses.replace(made.evaluation, named=treatments(*DISGUISES), same={})  # though they are one function
    made = dataclasses.replace(made, evaluation=every)
    with RunDatabase.writing(made.folder) as database:
        database.check_settings(made.fingerprint(), {}, FREE)
        experiment = Evaluation(database, workplace_of(made), made.evaluation)
        experiment.run()
        return standings(experiment.rows, database.settings()), experiment.rows, workdir


@pytest.mark.slow
def test_backprop_in_disguise_is_never_a_significant_winner(disguised):
    table, evaluations, _ = disguised
    rules = [r for r in table if r.role == "named"]
    assert len(rules) == len(DISGUISES) and all(r.test.n == 10 for r in rules)
    assert not [r.text for r in rules if r.find or r.worse]
    judged = [r for r in rules if r.p is not None]
    assert any(f"None of {len(judged)} rules is a find" in s for s in verdict(table))
    zero = next(r for r in table if r.name == "zero_signal")
    assert zero.worse  # the test can tell a difference


@pytest.mark.slow
def test_the_alignment_of_backprop_in_disguise_is_perfect(disguised):
    _, evaluations, _ = disguised
    for e in evaluations:
        if e.stage == "test" and e.equation in ("g", "(2.0*g) - g"):
            assert e.curve["cosine Dense_1"] == pytest.approx([1.0, 1.0], abs=1e-5)
            assert e.curve["norm_ratio Dense_1"] == pytest.approx([1.0, 1.0], abs=1e-5)


def test_the_final_training_uses_the_full_training_set_and_only_it(tmp_path):
    def sizes(made):
        both = [recipes_of(made)(on_test, Program()) for on_test in (False, True)]
        return [(r.tasks[""].examples, int((r.examples.eval_labels >= 0).sum())) for r in both]

    dataset = data.load("digits")
    whole = plans.evaluation_command(values(tmp_path, train_examples=None))
    assert sizes(whole) == [(1197, 240), (len(dataset.train_labels), len(dataset.test_labels))]
    less = plans.evaluation_command(values(tmp_path, train_examples=64, eval_examples=50))
    assert sizes(less) == [(64, 50), (64, 50)]
    subset = data.full_training_split(dataset, 100)
    same = data.train_validation_split(dataset, 100)
    np.testing.assert_array_equal(subset.train_images, same.train_images)
    np.testing.assert_array_equal(subset.eval_images, dataset.test_images)


# The command.


def test_the_command_is_a_program_with_the_flags_of_an_evaluation(monkeypatch):
    (name, defined, run), named = program(monkeypatch, bpevo.evaluate)
    assert (name, run.__name__, named) == ("bpevo.evaluate", "_run", {})
    assert [d.__name__ for d in defined] == ["define_common", "define_evaluation"]


FLAG_FILES = """
import sys
from absl import flags
from bpevo.command import definitions
from bpevo.evaluation.treatments import read_treatments
definitions.define_common(); definitions.define_evaluation()
for path in sys.argv[1:]:
    flags.FLAGS.unparse_flags(); flags.FLAGS(["evaluate", f"--flagfile={path}"])
    v = flags.FLAGS
    print(path, v.scenario, v.optimizer, len(read_treatments(v.rules)), v.repeats, sep=";")
"""


def python(*arguments: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "COLUMNS": "160"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_flag_files_describe_evaluations(tmp_path):
    paths = sorted((REPOSITORY / "launch").glob("evaluate_*.flags"))
    done = python("-c", FLAG_FILES, *paths)
    assert done.returncode == 0, done.stderr
    found = [line.split(";") for line in done.stdout.splitlines()]
    scenarios_of = {f[1]: (f[2], int(f[3])) for f in found}
    for name in ("a1", "a2", "a3", "b1"):
        assert scenarios_of[name] == ("sgd", 5)  # with backprop
        assert scenarios_of[f"{name}_momentum"] == ("momentum", 4 if name == "a3" else 5)  # one row of A3 is misprinted
    assert all(path.read_text().startswith("# ") for path in paths)


def test_the_command_evaluates_refuses_and_explains(tmp_path):
    small = ("--dataset=digits", "--model=mlp-8", "--train_examples=128", "--batch_size=32", "--epochs=1", "--slots=4",
             "--learning_rates=0.1", "--repeats=2", f"--workdir={tmp_path}")  # fmt: skip
    done = python("-m", "bpevo.evaluate", *small, "--rules=unit_fro(g);feedback_alignment")
    assert done.returncode == 0, done.stderr
    assert "test: 24 of 24 trainings" in done.stdout and "backprop: g " in done.stdout
    assert "Backprop, tuned like every row" in done.stdout and "unit_fro(g)" in done.stdout
    wrong = python("-m", "bpevo.evaluate", *small, "--rules=ga")
    assert wrong.returncode == 2 and wrong.stderr.startswith("bpevo.evaluate: --rules: rule 1 of ga")
    assert "--finalists" in python("-m", "bpevo.evaluate", "--help").stdout


def test_a_stand_in_trains_as_many_epochs_as_it_says(undisturbed):
    assert all(len(e.curve["eval_accuracy"]) == EPOCHS for e in undisturbed.rows if e.status == "done")
