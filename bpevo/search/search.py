"""A search: proposals go to the workers, outcomes into the database, until the budget is spent.

All state is in the database: a Search built on it again continues where it ended.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

from bpevo.evolution import Controller, Proposal, Result, SpaceExhausted, Trained, first_bars, fitness
from bpevo.rules import NAMED, Equation, parse
from bpevo.runs import Driver, Row, Rows, RunDatabase, fittest, judged, ranked
from bpevo.search.plan import SearchPlan
from bpevo.training import Training
from bpevo.workers import Job, Stage, Workers

CONTROLS = ("backprop", "zero_signal")  # trained in every run, under the search's budget and seeds
CONTROL_KEYS = frozenset(parse(NAMED[name]).key for name in CONTROLS)  # what computes the same is no find
SEARCH_REPLICATE = 0  # selection uses 1, 2, …


class Search:
    """Drives one run. `watch` is called after each epoch with the rows that came in."""

    def __init__(
        self,
        database: RunDatabase,
        controller: Controller,
        workers: Workers,
        plan: SearchPlan,
        watch: Callable[["Search", Sequence[Row]], None] = lambda search, rows: None,
    ):
        self._database, self._controller, self._workers, self._watch = database, controller, workers, watch
        self.plan = plan
        self._driver = Driver(database)
        self.exhausted = ""  # why the search ended before its budget
        self.proposals: list[Proposal] = []
        self.results: dict[int, Result] = {}
        self._told = 0  # results with smaller ids are known to the controller
        self._of_proposal: dict[int, list[Row]] = collections.defaultdict(list)
        # Running figures, so that a look at the search costs the same however long it has run.
        self.done = 0  # trainings of the search that ended
        self.failures: collections.Counter[str] = collections.Counter()  # trainings that were stopped or diverged
        self.infeasible = self.duplicates = 0  # draws
        self.best: Result | None = None  # the fittest that is no control's function
        self._first: dict[int, float] = {}  # each rung's first bar, to which earlier candidates are held
        self.backprop: float | None = None  # the control's best accuracy so far
        for proposal in database.proposals():
            controller.adopt(proposal)
            self._add(proposal)
        self._count(self.rows)

    @property
    def rows(self) -> Rows:
        """All rows of the run."""
        return self._driver.rows

    @property
    def occupancy(self) -> float:
        return self._workers.occupancy

    def run(self) -> None:
        """Controls, search, selection on fresh seeds, cost of each rule. Idempotent: only what is missing runs."""
        self._drain(itertools.chain(self._control_jobs(), self._search_jobs()))
        self._drain(self._selection_jobs())
        self._measure_costs()

    def stop(self) -> None:
        """As Driver.stop."""
        self._driver.stop()

    def leaders(self) -> list[Row]:
        """The best trainings of the best rules, distinct, best first; what is a control's function is none."""
        return list(itertools.islice(ranked(self.judged.of(stage=Stage.SEARCH), CONTROL_KEYS), self.plan.top))

    @property
    def judged(self) -> Rows:
        """All rows as they rank."""
        return judged(self.rows, {p.id: p.bars for p in self.proposals}, self.plan.rung_epochs)

    def _drain(self, jobs: Iterator[Job | None]) -> None:
        def stored(rows: list[Row]) -> None:
            self._count(rows)
            self._watch(self, rows)

        self._driver.drain(jobs, self._workers, stored)

    def _control_jobs(self) -> Iterator[Job]:
        for name in CONTROLS:
            for rate in self.plan.learning_rates:
                yield self._job(Stage.CONTROL, self._control(name), rate, SEARCH_REPLICATE)

    def _control(self, name: str) -> Equation:
        return parse(NAMED[name]).to_equation(self.plan.space.max_parts)

    def _search_jobs(self) -> Iterator[Job | None]:
        """First those of earlier proposals, then those of new ones; None while the next may not be drawn yet."""
        plan, issued = self.plan, 0
        for proposal in list(self.proposals):
            issued += len(plan.learning_rates)
            yield from self._jobs_of(proposal)
        while issued + len(plan.learning_rates) <= plan.max_evaluations:
            if not self._tell(self._controller.next_id - plan.lag):
                yield None
                continue
            try:
                proposal = self._controller.ask()
            except SpaceExhausted as end:
                self.exhausted = str(end)
                return
            self._database.add_proposal(proposal)
            self._add(proposal)
            issued += len(plan.learning_rates)
            yield from self._jobs_of(proposal)

    def _tell(self, last: int) -> bool:
        """Tells the controller the results up to that id; False if one of them is still to come."""
        while self._told <= last:
            if self._told not in self.results:
                return False
            self._controller.tell(self.results[self._told])
            self._told += 1
        return True

    def _jobs_of(self, proposal: Proposal) -> Iterator[Job]:
        for rate in self.plan.learning_rates:
            yield self._job(Stage.SEARCH, proposal.equation, rate, SEARCH_REPLICATE, proposal)

    def _job(
        self, stage: Stage, equation: Equation, rate: float, replicate: int, proposal: Proposal | None = None
    ) -> Job:
        job = Job(stage=stage, subject=str(equation), training=Training(equation, rate, replicate=replicate))
        if proposal is None:
            return job
        return dataclasses.replace(job, proposal=proposal.id, bars=proposal.bars, rung_epochs=self.plan.rung_epochs)

    def _selected(self) -> list[tuple[Equation, float]]:
        """Controls and leaders, each once, with their best learning rate."""
        controls = fittest(self.rows.of(stage=Stage.CONTROL))
        selected = {}
        for name in CONTROLS:
            equation = self._control(name)
            if row := controls.get(str(equation)):
                selected[str(equation)] = equation, row.learning_rate
        for row in self.leaders():
            assert row.proposal is not None
            selected[row.equation] = self.proposals[row.proposal].equation, row.learning_rate
        return list(selected.values())

    def _selection_jobs(self) -> Iterator[Job]:
        for equation, rate in self._selected():
            for replicate in range(1, self.plan.repeats + 1):
                yield self._job(Stage.SELECTION, equation, rate, replicate)

    def _measure_costs(self) -> None:
        known = self._database.costs()
        baseline = self._control("backprop")
        equations = [baseline, *(e for e, _ in self._selected() if e != baseline)]
        if all(str(e) in known for e in equations):
            return
        seconds = self._workers.epoch_seconds([Training(e, self.plan.learning_rates[0]) for e in equations])
        for equation, s in zip(equations, seconds, strict=True):
            self._database.add_cost(str(equation), s / seconds[0])

    def _add(self, proposal: Proposal) -> None:
        self.proposals.append(proposal)
        self.infeasible += proposal.infeasible
        self.duplicates += proposal.duplicates
        first = first_bars([tuple(self._first.items()), proposal.bars])
        if first != self._first:  # once a rung: what was best may not have reached it
            self._first, self.best = first, None
            for result in self.results.values():
                self._compare(result)

    def _count(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if row.stage == Stage.CONTROL and row.equation == NAMED["backprop"] and row.accuracy is not None:
                self.backprop = max(self.backprop or 0.0, row.accuracy)
            if row.stage != Stage.SEARCH or row.proposal is None:
                continue
            self.done += 1
            if row.status != "done":
                self.failures[row.reason or row.status] += 1
            trainings = self._of_proposal[row.proposal]
            trainings.append(row)
            if len(trainings) == len(self.plan.learning_rates):
                self._finish(to_result(self.proposals[row.proposal], trainings))

    def _finish(self, result: Result) -> None:
        self.results[result.id] = result
        self._compare(result)

    def _compare(self, result: Result) -> None:
        """Makes `result` the best so far if it is."""

        def order(result: Result):
            return fitness(*result.standing(self.plan.rung_epochs, self._first)), -result.id

        if result.accuracy is None or (self.best and order(result) < order(self.best)):
            return
        if result.equation.key not in CONTROL_KEYS:
            self.best = result


def to_result(proposal: Proposal, rows: Sequence[Row]) -> Result:
    """A proposal's result from its trainings, one a learning rate."""
    trainings = (
        Trained(
            accuracy=row.accuracy,
            rungs=row.rungs,
            curve=tuple(v for v in row.curve["eval_accuracy"] if v is not None),
        )
        for row in sorted(rows, key=lambda row: row.learning_rate)
    )
    return Result(proposal=proposal, trainings=tuple(trainings))
