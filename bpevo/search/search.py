"""A search: proposals go to the workers, outcomes into the database, until the budget is spent.

All state is in the database: a Search built on it again continues where it ended.

With several learning rates an equation is tried at each for a few epochs; then it is trained at the best of them to the end.
A proposal may also confirm an earlier one: the same training on another seed. The controls are trained at a grid of rates
that grows until the best one lies inside (bpevo.evolution.rates), free of the budget.
"""

import collections
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence

from bpevo.evolution import (
    Controller,
    Population,
    Proposal,
    Result,
    SpaceExhausted,
    Trained,
    best_rate,
    budget,
    first_bars,
    next_rates,
)
from bpevo.rules import NAMED, Equation, parse
from bpevo.runs import Driver, Row, Rows, RunDatabase, judged, ranked
from bpevo.search.plan import SearchPlan
from bpevo.training import Training
from bpevo.workers import Job, Stage, Workers

CONTROLS = ("backprop", "zero_signal")  # trained in every run, under the search's settings and seeds
CONTROL_KEYS = frozenset(parse(NAMED[name]).key for name in CONTROLS)  # what computes the same is no find
SEARCH_REPLICATE = 0  # selection uses 1, 2, …, at most MOST_REPEATS
MOST_REPEATS = 999
CONFIRMATION_REPLICATE = 10_000  # which neither selection nor an evaluation uses


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
        self._queue: collections.deque[Job] = collections.deque()  # that may start
        self._open: set[tuple] = set()  # identities of jobs that have not ended
        self._of: dict[object, list[Row]] = collections.defaultdict(list)  # rows of a proposal's id or a control's name
        # Running figures, so that a look at the search costs the same however long it has run.
        self.issued = 0  # trainings that the proposals so far may cost
        self.done = 0  # trainings of the search that ended
        self.failures: collections.Counter[str] = collections.Counter()  # trainings that were stopped or diverged
        self.infeasible = self.duplicates = 0  # draws
        self._population = Population(plan.evolution.elite_size, plan.evolution.rungs)
        self._first: dict[int, float] = {}  # each rung's first bar, to which earlier candidates are held
        for row in self.rows:
            self._count(row)
        for proposal in database.proposals():
            controller.adopt(proposal)
            self._add(proposal)

    @property
    def rows(self) -> Rows:
        """All rows of the run."""
        return self._driver.rows

    @property
    def occupancy(self) -> float:
        return self._workers.occupancy

    @property
    def best(self) -> tuple[Equation, float] | None:
        """The fittest so far that is no control's function, and its accuracy."""
        for result in self._population:
            if result.equation.key not in CONTROL_KEYS:
                return result.equation, self._population.standing(result)[0] or 0.0
        return None

    def control(self, name: str) -> tuple[float, float] | None:
        """The best learning rate so far of a control, and its mean accuracy there."""
        tried = self._tried(name)
        best = best_rate(tried)
        return None if best is None else (best, statistics.fmean(a or 0.0 for a in tried[best]))

    def run(self) -> None:
        """Controls, search, selection on fresh seeds. Idempotent: only what is missing runs."""
        for name in CONTROLS:
            self._tune(name)
        self._drain(self._jobs())
        self._drain(self._selection_jobs())

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
            for row in rows:
                self._count(row)
                self._go_on(row)
            self._watch(self, rows)

        self._driver.drain(jobs, self._workers, stored)

    # What comes after what.

    def _jobs(self) -> Iterator[Job | None]:
        """What may start, then that of new proposals; None while all else depends on what is to come."""
        while True:
            if self._queue:
                yield self._queue.popleft()
            elif self._affords_another() and not self.exhausted:
                if not self._tell(self._controller.next_id - self.plan.lag):
                    yield None
                    continue
                try:
                    proposal = self._controller.ask()
                except SpaceExhausted as end:
                    self.exhausted = str(end)
                    continue
                self._database.add_proposal(proposal)
                self._add(proposal)
            elif self._open:
                yield None
            else:
                return

    def _affords_another(self) -> bool:
        return self.issued + budget.charge(len(self.plan.learning_rates)) <= self.plan.max_evaluations

    def _tell(self, last: int) -> bool:
        """Tells the controller the results up to that id; False if one of them is still to come."""
        while self._told <= last:
            if self._told not in self.results:
                return False
            self._controller.tell(self.results[self._told])
            self._told += 1
        return True

    def _want(self, job: Job, first: bool = False) -> None:
        """Queues a job that has no row yet."""
        if self._driver.missing(iter([job])):
            self._open.add(job.identity)
            (self._queue.appendleft if first else self._queue.append)(job)

    def _add(self, proposal: Proposal) -> None:
        """Takes a new or an earlier proposal and queues what it begins with."""
        self.proposals.append(proposal)
        self.infeasible += proposal.infeasible
        self.duplicates += proposal.duplicates
        first = first_bars([tuple(self._first.items()), proposal.bars])
        if first != self._first:  # once a rung: what was best may not have reached it
            self._first = first
            self._population.judge(first)
        rates = self.plan.learning_rates
        self.issued += 1 if proposal.confirms is not None else budget.charge(len(rates))
        if proposal.confirms is None and len(rates) > 1:
            for rate in rates:
                self._want(self._trial(proposal, rate))
        self._advance(proposal)

    def _advance(self, proposal: Proposal) -> None:
        """Queues or takes what became possible by the rows of a proposal; called again it changes nothing."""
        if proposal.id in self.results:
            return
        rows = Rows(self._of[proposal.id])
        trials, whole = rows.of(stage=Stage.TRIAL), [row for row in rows if row.stage != Stage.TRIAL]
        if whole:
            self._finish(proposal, whole[0])
        elif proposal.confirms is not None:
            self._want(self._confirmation(proposal, self._of[proposal.confirms]))
        elif len(self.plan.learning_rates) == 1:
            self._want(self._whole(proposal, self.plan.learning_rates[0]))
        elif len(trials) == len(self.plan.learning_rates):
            best = best_rate({row.learning_rate: [row.accuracy] for row in trials})
            if best is None:
                self._finish(proposal, None)
            else:
                self._want(self._whole(proposal, best), first=True)  # into the slot that its trial leaves

    def _go_on(self, row: Row) -> None:
        """Queues what became possible by this row, and is done with it."""
        self._open.discard(row.identity)
        if row.proposal is not None:
            self._advance(self.proposals[row.proposal])
        elif row.stage == Stage.CONTROL:
            for name in CONTROLS:
                if row.equation == str(self._control(name)):
                    self._tune(name)

    def _tune(self, name: str) -> None:
        """Queues a control's next rates once all earlier ones have ended."""
        equation = self._control(name)
        if any(stage == Stage.CONTROL and text == str(equation) for stage, text, *_ in self._open):
            return
        for rate in next_rates(self.plan.learning_rates, self._tried(name)):
            training = Training(equation, rate, replicate=SEARCH_REPLICATE)
            self._want(self._job(Stage.CONTROL, training))

    def _finish(self, proposal: Proposal, row: Row | None) -> None:
        """Takes the row of a proposal's training, None if it diverged in every trial."""
        result = Result(proposal=proposal, trained=to_trained(row))
        self.results[proposal.id] = result
        self._population.add(result)

    def _count(self, row: Row) -> None:
        if row.proposal is None and row.stage != Stage.CONTROL:
            return
        self._of[row.equation if row.proposal is None else row.proposal].append(row)
        if row.proposal is not None:
            self.done += 1
            if row.status != "done":
                self.failures[row.reason or row.status] += 1

    # Jobs.

    def _job(self, stage: Stage, training: Training, proposal: Proposal | None = None, **limits) -> Job:
        number = None if proposal is None else proposal.id
        return Job(stage=stage, subject=str(training.equation), training=training, proposal=number, **limits)

    def _trial(self, proposal: Proposal, rate: float) -> Job:
        training = Training(proposal.equation, rate, replicate=SEARCH_REPLICATE)
        return self._job(Stage.TRIAL, training, proposal, epochs=self.plan.trial_epochs)

    def _whole(self, proposal: Proposal, rate: float) -> Job:
        training = Training(proposal.equation, rate, replicate=SEARCH_REPLICATE)
        limits = {"bars": proposal.bars, "rung_epochs": self.plan.rung_epochs}
        return self._job(Stage.SEARCH, training, proposal, **limits)

    def _confirmation(self, proposal: Proposal, rows: Sequence[Row]) -> Job:
        """The confirmation of what has these rows: at the learning rate that it was trained with."""
        rate = Rows(rows).of(stage=Stage.SEARCH)[0].learning_rate
        return self._job(
            Stage.CONFIRMATION, Training(proposal.equation, rate, replicate=CONFIRMATION_REPLICATE), proposal
        )

    def _control(self, name: str) -> Equation:
        return parse(NAMED[name]).to_equation(self.plan.space.max_parts)

    def _tried(self, name: str) -> dict[float, list[float | None]]:
        return {row.learning_rate: [row.accuracy] for row in self._of[str(self._control(name))]}

    def _selected(self) -> list[tuple[Equation, float]]:
        """Controls and leaders, each once, with their best learning rate."""
        selected = {}
        for name in CONTROLS:
            if best := self.control(name):
                selected[str(self._control(name))] = self._control(name), best[0]
        for row in self.leaders():
            assert row.proposal is not None
            selected[row.equation] = self.proposals[row.proposal].equation, row.learning_rate
        return list(selected.values())

    def _selection_jobs(self) -> Iterator[Job]:
        """On examples that nothing was chosen by."""
        for equation, rate in self._selected():
            for replicate in range(1, self.plan.repeats + 1):
                training = Training(equation, rate, replicate=replicate, held_out=True)
                yield self._job(Stage.SELECTION, training)


def to_trained(row: Row | None) -> Trained:
    """How a proposal's training ended; None: it diverged in every trial."""
    if row is None:
        return Trained(accuracy=None, rungs=0, curve=())
    curve = tuple(v for v in row.curve["eval_accuracy"] if v is not None)
    return Trained(accuracy=row.accuracy, rungs=row.rungs, curve=curve)
