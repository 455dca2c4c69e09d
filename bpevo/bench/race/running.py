"""One search of an arm, what it has found after each share of the budget, and how good that is."""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from bpevo.bench.race.memory import Memory, RememberingWorkers, digest
from bpevo.bench.race.protocol import FRACTIONS, FRESH, MAX_PARTS, TUNING, TUNING_RATES, Arm, Setting
from bpevo.evolution import (
    CONTROLLERS,
    Controller,
    Proposal,
    Result,
    SameFunction,
    SpaceExhausted,
    at_edge,
    best_rate,
    next_rates,
)
from bpevo.evolution.kinds import BACKPROP as BACKPROPS_FUNCTION
from bpevo.evolution.kinds import kind
from bpevo.rules import NAMED, Equation, parse
from bpevo.runs import Row, Rows, RunDatabase, judged, ranked
from bpevo.runs.provenance import versions
from bpevo.search import CONTROL_KEYS, SEMANTICS, Search
from bpevo.training import Trainer, Training
from bpevo.workers import Job, LocalWorkers, Stage, Workers

_NUMERICS = ("jax", "jaxlib", "flax", "optax", "matmul precision", "XLA_FLAGS")  # of versions: what decides numbers
DIGITS = 6  # of the stored accuracies: the share of one test example is above 1e-4
FIRST_TUNING, FIRST_FRESH = 1000, 3000  # replicates, as in an evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A rule that was tuned, and the accuracies of its new seeds on examples that nothing was chosen by."""

    rate: float | None  # None: it diverged at every rate
    at_edge: bool
    fresh: tuple[float | None, ...]  # None: diverged


NOTHING = Score(rate=None, at_edge=False, fresh=(None,) * FRESH)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """What a search had found when a share of the budget was spent."""

    equations: int
    rule: str  # empty: everything had diverged
    search: float  # accuracy that selected it
    score: Score


class Track:
    """A setting with its program, compiled once, when first needed."""

    def __init__(self, setting: Setting, memory: Memory, slots: int | None):
        self.setting, self._memory, self._slots = setting, memory, slots
        self._training = setting.training()
        settled: dict[str, Any] = {name: versions()[name] for name in _NUMERICS}
        # Semantics count changes of rounding.
        settled |= {"device": jax.local_devices()[0].device_kind, "semantics": SEMANTICS}
        self.task = digest(self._training.fingerprint() | settled)

    @functools.cached_property
    def _trainer(self) -> Trainer:
        return self._training.trainer(MAX_PARTS, self._slots)

    def workers(self, seed: int) -> RememberingWorkers:
        local = LocalWorkers(self._trainer)
        return RememberingWorkers(local, self._memory, self.task, self.setting.epochs, seed)

    def search(self, arm: Arm, equations: int, seed: int) -> tuple[list[tuple[int, Row | None]], RememberingWorkers]:
        """A search until its budget is spent: of each share how many equations it afforded, and the best training then."""
        plan, workers = arm.plan(self.setting, equations, seed), self.workers(seed)
        spending = Spending(arm, self.setting)
        controller = CONTROLLERS[arm.controller](plan.space, plan.evolution, (), SameFunction())
        budgeted = Budgeted(controller, spending, self.setting.budget(equations))
        with tempfile.TemporaryDirectory() as folder, RunDatabase.writing(pathlib.Path(folder)) as database:
            database.check_settings(self._training.fingerprint() | plan.fingerprint(), {}, ())
            search = Search(database, budgeted, workers, plan, lambda _, rows: spending.add(rows))
            search.run()
            return leaders(search.proposals, search.rows, spending, self.setting.budget(equations)), workers


class Spending:
    """What an arm is charged for its proposals, in slot-epochs. Controls and fresh seeds are free."""

    def __init__(self, arm: Arm, setting: Setting):
        self._arm, self._setting = arm, setting
        self._trained: dict[int, int] = {}  # epochs by proposal

    def add(self, rows: Sequence[Row]) -> None:
        """Takes rows that came in."""
        for row in rows:
            if row.proposal is not None:
                epochs = row.epochs
                if row.stage == Stage.SEARCH and len(self._arm.rates) > 1:
                    epochs -= self._setting.trial_epochs  # it went on where its trial ended
                self._trained[row.proposal] = self._trained.get(row.proposal, 0) + epochs

    def of(self, proposal: Proposal) -> float:
        """Trainings and probe of a proposal that has ended."""
        probes = 0 if proposal.confirms is not None else 1 + proposal.duplicates + self._arm.probes
        return self._trained.get(proposal.id, 0) + self._setting.probe * probes


class Budgeted:
    """A controller that asks for nothing more once it has been told of as much as the budget allows."""

    def __init__(self, controller: Controller, spending: Spending, budget: float):
        self._controller, self._spending, self._left = controller, spending, budget

    @property
    def next_id(self) -> int:
        return self._controller.next_id

    def adopt(self, proposal: Proposal) -> None:
        self._controller.adopt(proposal)

    def tell(self, result: Result) -> None:
        self._left -= self._spending.of(result.proposal)
        self._controller.tell(result)

    def ask(self) -> Proposal:
        if self._left <= 0:
            raise SpaceExhausted("the budget is spent")
        return self._controller.ask()


def leaders(
    proposals: Sequence[Proposal], rows: Rows, spending: Spending, budget: float
) -> list[tuple[int, Row | None]]:
    """For each of FRACTIONS the equations whose charges fit into that share, in order of ids, and the best training of them
    whose rule does not compute what backprop does, in whatever words."""
    spent, found = np.cumsum([spending.of(proposal) for proposal in proposals]), []
    for fraction in FRACTIONS:
        within = proposals[: int(np.searchsorted(spent, fraction * budget, side="right"))]
        bars = {proposal.id: proposal.bars for proposal in within}
        known = judged([row for row in rows if row.proposal in bars], bars, ())
        equations = sum(proposal.confirms is None for proposal in within)
        others = ranked(known.of(stage=Stage.SEARCH), CONTROL_KEYS)
        best = next((row for row in others if kind(parse(row.equation)) != BACKPROPS_FUNCTION), None)
        found.append((equations, best))
    return found


def score(rule: str, workers: Workers) -> Score:
    """Tunes a rule and trains it on new seeds."""
    equation = parse(rule).to_equation(MAX_PARTS)
    tried: dict[float, list[float | None]] = {}
    while rates := next_rates(TUNING_RATES, tried):
        replicates = range(FIRST_TUNING, FIRST_TUNING + TUNING)
        jobs = [_job(Stage.TUNING, equation, rate, replicate) for rate in rates for replicate in replicates]
        accuracies = accuracies_of(jobs, workers)
        for i, rate in enumerate(rates):
            tried[rate] = accuracies[i * TUNING : (i + 1) * TUNING]
    best = best_rate(tried)
    if best is None:
        return NOTHING
    replicates = range(FIRST_FRESH, FIRST_FRESH + FRESH)
    jobs = [_job(Stage.TEST, equation, best, replicate, held_out=True) for replicate in replicates]
    edge = at_edge(TUNING_RATES, tried)
    fresh = tuple(a and round(a, DIGITS) for a in accuracies_of(jobs, workers))
    return Score(rate=best, at_edge=edge, fresh=fresh)


def accuracies_of(jobs: Sequence[Job], workers: Workers) -> list[float | None]:
    """Accuracies of the jobs in turn; None: it diverged."""
    for job in jobs:
        workers.submit(job)
    ended: dict[Any, float | None] = {}
    while not workers.idle:
        ended |= {outcome.job.identity: outcome.accuracy for outcome in workers.poll()}
    return [ended[job.identity] for job in jobs]


def _job(stage: Stage, equation: Equation, rate: float, replicate: int, held_out: bool = False) -> Job:
    training = Training(equation, rate, replicate=replicate, held_out=held_out)
    return Job(stage=stage, subject=str(equation), training=training)


BACKPROP = "backprop"  # in place of an arm: tuned and scored as every rule


def run(
    track: Track, unseen: Sequence[Track], arm: Arm | None, equations: int, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """What is stored of one search, as JSON holds it; without an arm that of backprop."""
    if arm is None:
        workers = track.workers(seed)
        rule = NAMED[BACKPROP]
        points = [Point(equations=0, rule=rule, search=0.0, score=score(rule, workers))] * len(FRACTIONS)
    else:
        leading, workers = track.search(arm, equations, seed)
        points = [
            Point(equations=count, rule=row.equation, search=row.accuracy or 0.0, score=score(row.equation, workers))
            if row
            else Point(equations=count, rule="", search=0.0, score=NOTHING)
            for count, row in leading
        ]
    elsewhere = {}
    for other in unseen if points[-1].rule else ():
        elsewhere[other.setting.name] = dataclasses.asdict(score(points[-1].rule, other.workers(seed)))
    last = points[-1]
    say(f"{last.equations:,} equations, {workers.trained:,} of {workers.asked:,} trainings not remembered: {last.rule}")
    return {"points": [dataclasses.asdict(p) for p in points], "unseen": elsewhere}
