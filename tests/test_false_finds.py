"""bpevo.bench.false_finds: what it counts, and that luck is all that its rules differ by."""

import types

import numpy as np
import pytest
from test_runs import StandIn

from bpevo.bench.false_finds import SPACES, Count, OwnSeeds, Pipeline
from bpevo.evolution import kinds
from bpevo.evolution.kinds import kind
from bpevo.rules import parse
from bpevo.runs import RunDatabase
from bpevo.training import Training
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
    assert sorted(o.job.identity for o in outcomes) == sorted(2 * [job.identity for job in jobs])


@pytest.mark.parametrize(
    "space, allowed",
    [("disguises", {kinds.BACKPROP}), ("rescalings", {kinds.BACKPROP, kinds.SCALED})],
)
def test_no_rule_of_a_space_is_more_than_backprop_or_a_rescaling_of_it(space, allowed):
    rng = np.random.default_rng(0)
    drawn = {kind(SPACES[space].random(rng)).removesuffix(" + noise") for _ in range(40)}
    assert drawn == allowed


@pytest.mark.slow
def test_a_search_and_its_evaluation_end_with_verdicts_on_rules_that_differ_by_luck(tmp_path):
    table = Pipeline("disguises").run(0, tmp_path)
    assert sum(standing.p is not None for standing in table) == 5
    with RunDatabase.reading(tmp_path / "evaluation") as database:
        first = [r.accuracy for r in database.rows() if r.replicate == 3000]
    assert len(set(first)) > 1  # disguises of one function, the same replicate
