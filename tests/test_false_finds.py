"""bpevo.bench.false_finds: what it counts, and that luck is all that its rules differ by."""

import io
import types
import zlib

import numpy as np
import pytest
from absl import flags
from rich.console import Console
from test_runs import StandIn

from bpevo.bench import false_finds
from bpevo.bench.false_finds import SPACES, Count, OwnSeeds, Pipeline
from bpevo.evaluation import Program, Treatment, controls
from bpevo.evolution import kinds
from bpevo.evolution.kinds import kind
from bpevo.rules import parse
from bpevo.runs import RunDatabase
from bpevo.training import Training, TrainingPlan
from bpevo.workers import Job, Stage


def row(p, find=False):
    return types.SimpleNamespace(p=p, find=find)


def test_a_search_counts_once_and_only_with_a_verdict():
    count = Count()
    for table in ([row(0.2), row(0.01, True), row(0.02, True)], [row(None)], *[[row(0.5)]] * 9):
        count.add(table)
    assert (count.searches, count.judged, count.rules, count.announced) == (11, 10, 12, 1)
    # One of ten: 1 - (1 - p)^10 = 2.5 % at p = 0.25 %; and (1 - p)^10 + 10 p (1 - p)^9 = 2.5 % at p = 44.5 %.
    assert "1 of 10 searches" in str(count) and "10.0% " in str(count) and "0.3% to 44.5%" in str(count)
    assert "1 had no verdict; 12 rules were judged" in str(count)


def test_without_a_verdict_the_interval_is_everything():
    count = Count()
    assert str(count) == (
        "0 of 0 searches with a verdict announce a find, 0.0% (Clopper-Pearson 95 %: 0.0% to 100.0%); 0 had no verdict; 0 rules "
        "were judged"
    )
    count.add([row(None)])
    assert "0 of 0 searches" in str(count) and "0.0% to 100.0%); 1 had no verdict" in str(count)


def test_every_rule_trains_from_seeds_of_its_own_and_is_stored_under_those_that_were_asked_for():
    started = []

    class Noted(StandIn):
        def start(self, slot, training, epoch=0, state=()):
            started.append(training.replicate)
            super().start(slot, training, epoch, state)

    jobs = [
        Job(stage=Stage.CONTROL, subject=text, training=Training(parse(text).to_equation(3), 0.1, replicate=replicate))
        for text in ("g", "min(g, g)")
        for replicate in (0, 1)
    ]
    outcomes = []
    for search in (1, 2):
        workers = OwnSeeds(Noted(4), search)
        for job in jobs:
            workers.submit(job)
        while not workers.idle:
            outcomes += workers.poll()
    assert len(set(started)) == len(started) == 8
    assert started[:2] == [zlib.crc32(b"1 g 0") // 2, zlib.crc32(b"1 g 1") // 2]  # seeds are below 2**31
    assert sorted(o.job.identity for o in outcomes) == sorted(2 * [job.identity for job in jobs])


@pytest.mark.parametrize(
    "space, allowed",
    [("disguises", {kinds.BACKPROP}), ("rescalings", {kinds.BACKPROP, kinds.SCALED})],
)
def test_no_rule_of_a_space_is_more_than_backprop_or_a_rescaling_of_it(space, allowed):
    rng = np.random.default_rng(0)
    drawn = {kind(SPACES[space].random(rng)).removesuffix(" + noise") for _ in range(40)}
    assert drawn == allowed


@pytest.fixture
def pipeline(monkeypatch):
    """A pipeline whose programs, searches and evaluations are made and noted but not run."""
    made = types.SimpleNamespace(trainers=[], searches=[], evaluations=[], asked=[])

    def trainer(plan, parts, slots):
        made.trainers.append((plan.held_out, len(plan.split.eval_labels), parts, slots))
        return StandIn(slots)

    def direct(task, examples, *, capacity, max_parts):
        made.trainers.append((task.settings.optimizer, task.transforms, len(examples.eval_labels), capacity, max_parts))
        return StandIn(capacity)

    def search(database, controller, workers, plan):
        made.searches.append((workers, plan))
        return types.SimpleNamespace(run=lambda: None)

    def evaluation(database, workplace, plan):
        made.evaluations.append((plan, [workplace(*program) for program in made.asked]))
        return types.SimpleNamespace(run=lambda: None, rows=["rows"])

    monkeypatch.setattr(TrainingPlan, "trainer", trainer)
    monkeypatch.setattr(false_finds, "Trainer", direct)
    monkeypatch.setattr(false_finds, "Search", search)
    monkeypatch.setattr(false_finds, "Evaluation", evaluation)
    monkeypatch.setattr(false_finds, "standings", lambda rows, settings: [rows, settings["finalists"]])
    return Pipeline("disguises"), made


def test_the_searches_of_a_pipeline_differ_by_their_seed_and_share_one_program(tmp_path, pipeline):
    one, made = pipeline
    one._search(5, tmp_path / "a")
    one._search(6, tmp_path / "b")
    assert made.trainers == [(80, 240, 3, 8)]  # a third of the validation examples is held out
    (first, plan), (second, another) = made.searches
    assert (plan.evolution.seed, another.evolution.seed) == (5, 6) and first.trainer is second.trainer
    assert (first._search, second._search) == (5, 6) and plan.space is SPACES["disguises"]
    assert (plan.max_evaluations, plan.trial_epochs, plan.lag, plan.top, plan.repeats) == (90, 1, 8, 1, 1)
    assert (plan.evolution.elite_size, plan.learning_rates, plan.equivalence) == (8, (0.8, 0.2), False)
    with RunDatabase.reading(tmp_path / "a") as database:
        settings = database.settings()
    assert (settings["train_examples"], settings["model"], settings["batch_size"], settings["epochs"]) == (
        256,
        "mlp-16",
        32,
        2,
    )
    assert settings["weight_decay"] == 0 and settings["seed"] == 0


def test_an_evaluation_has_all_controls_once_and_programs_for_validation_and_test(tmp_path, pipeline):
    one, made = pipeline
    plain, adam = Program(), Program(optimizer="adam")
    made.asked[:] = [(False, plain), (True, plain), (False, plain), (False, adam)]
    known = controls("sgd")
    found = Treatment.parse("clip(g, 100.0)")
    assert one._evaluated(3, (known[0], found, known[1]), tmp_path / "evaluation") == [["rows"], 5]
    ((plan, workers),) = made.evaluations
    assert (
        plan.controls == known and plan.found == (found,) and plan.finalists == 5 and plan.learning_rates == (0.8, 0.2)
    )
    assert {w._search for w in workers} == {3} and workers[0].trainer is workers[2].trainer
    # In batches of 32: 240 examples of validation in 8, 360 of the test set in 12.
    assert made.trainers == [("sgd", (), 8, 8, 3), ("sgd", (), 12, 8, 3), ("adam", (), 8, 8, 3)]


def test_ten_winners_of_a_search_are_evaluated(tmp_path, pipeline, monkeypatch):
    one, _ = pipeline
    monkeypatch.setattr(false_finds, "winners", lambda database: iter(range(15)))
    monkeypatch.setattr(one, "_evaluated", lambda number, found, folder: (number, found, folder.relative_to(tmp_path)))
    number, found, folder = one.run(4, tmp_path)
    assert (number, found, str(folder)) == (4, tuple(range(10)), "evaluation")


def test_the_command_prints_finds_and_its_count_after_every_ten_searches(given, monkeypatch):
    asked, consoles = [], []
    find = types.SimpleNamespace(p=0.0123, find=True, text="clip(g, 100.0)", hurdle="[g]")

    class Searches:
        def __init__(self, space):
            assert space == "rescalings"

        def run(self, number, folder):
            assert folder.is_dir()
            asked.append(number)
            return [row(0.5), find, row(None)] if number == 8 else [row(0.5)]

    def console(width):
        consoles.append((width, Console(width=width, record=True, file=io.StringIO())))
        return consoles[-1][1]

    clock = iter([10.0, 25.4])
    monkeypatch.setattr(false_finds, "configure_jax", lambda: asked.append("jax"))
    monkeypatch.setattr(false_finds, "versions", lambda: {"jax": "1", "cores": "2"})
    monkeypatch.setattr(false_finds, "Pipeline", Searches)
    monkeypatch.setattr(false_finds, "Console", console)
    monkeypatch.setattr(false_finds, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    given(false_finds, "--searches=5", "--first=7", "--space=rescalings")
    false_finds.main([])
    assert asked == ["jax", *range(7, 12)] and consoles[0][0] == 150
    third, fifth = Count(3, 3, 4, 1), Count(5, 5, 6, 1)
    assert consoles[0][1].export_text().splitlines() == [
        "jax 1, cores 2", "search 8: clip(g, 100.0), p 0.012 over [g]", f"15 s: {third}", f"rescalings: {fifth}"
    ]  # fmt: skip


def test_the_flags_and_their_bounds(given):
    values = given(false_finds)
    assert (values.searches, values.first, values.space) == (200, 0, "disguises")
    values(["", "--searches=1"])
    for wrong in ("--searches=0", "--first=-1", "--space=all"):
        with pytest.raises(flags.IllegalFlagValueError):
            values(["", wrong])


@pytest.mark.slow
def test_a_search_and_its_evaluation_end_with_verdicts_on_rules_that_differ_by_luck(tmp_path):
    table = Pipeline("disguises").run(0, tmp_path)
    assert sum(standing.p is not None for standing in table) == 5
    with RunDatabase.reading(tmp_path / "evaluation") as database:
        first = [r.accuracy for r in database.rows() if r.replicate == 3000]
    assert len(set(first)) > 1  # disguises of one function, the same replicate
