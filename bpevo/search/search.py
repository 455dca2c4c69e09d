"""A search: proposals go to the workers, outcomes into the database, until the budget is spent.

All state is in the database: a Search built on it again continues where it ended.

With several learning rates an equation is tried at each for a few epochs; then it is trained at the best of them to the end.
A proposal may also confirm an earlier one: the same training on another seed. The controls are trained at a grid of rates
that grows until the best one lies inside (bpevo.evolution.rates), free of the budget. Over several networks all of this
happens on one after the other, each with its own best rate (bpevo.evolution.networks); the controls come first, as fitness is
measured by them.
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
    first_bars,
    next_rates,
)
from bpevo.rules import NAMED, Equation, parse
from bpevo.runs import Driver, Row, Rows, RunDatabase, backprop_on, joined, judged, ranked
from bpevo.search.plan import SearchPlan
from bpevo.training import Training
from bpevo.workers import Job, Stage, Workers, on

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
        self._of: dict[object, Rows] = collections.defaultdict(Rows)  # rows of a proposal's id or a control's text
        self._trying: set[tuple[int, int]] = set()  # proposals and places of networks whose trials were queued
        self._backprop: list[float] = []  # on each network, once its controls have ended
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

    def control(self, name: str, network: str = "") -> tuple[float, float] | None:
        """The best learning rate so far of a control on a network, and its mean accuracy there."""
        tried = self._tried(name, network)
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
        return judged(self.rows, {p.id: p.bars for p in self.proposals}, self.plan.rung_epochs, self.plan.networks)

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
            elif self.plan.networks.several and any(stage == Stage.CONTROL for stage, *_ in self._open):
                yield None
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
        return self.issued + self.plan.charge <= self.plan.max_evaluations

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
        self.issued += self.plan.charge if proposal.confirms is None else len(self.plan.networks.names)
        self._advance(proposal)

    def _advance(self, proposal: Proposal) -> None:
        """Queues or takes what became possible by the rows of a proposal; called again it changes nothing."""
        if proposal.id in self.results:
            return
        ended: list[Row] = []
        for place, network in enumerate(self.plan.networks.names):
            rows = self._of[proposal.id].of(network=network)
            trials, whole = rows.of(stage=Stage.TRIAL), [row for row in rows if row.stage != Stage.TRIAL]
            if not whole:
                return self._begin(proposal, place, trials)
            ended.append(whole[0])
            if whole[0].status != "done":
                break
        self._finish(proposal, ended)

    def _begin(self, proposal: Proposal, place: int, trials: Rows) -> None:
        """Queues what comes first, or next, on the network at that place."""
        rates, here = self.plan.learning_rates, (proposal.id, place)
        if proposal.confirms is not None:
            return self._want(self._confirmation(proposal, place))
        if len(rates) == 1:
            return self._want(self._whole(proposal, place, rates[0]))
        if here not in self._trying:
            self._trying.add(here)
            for rate in rates:
                self._want(self._trial(proposal, place, rate))
        if len(trials) == len(rates):
            best = best_rate({row.learning_rate: [row.accuracy] for row in trials})
            if best is None:
                self._finish(proposal, [])
            else:
                self._want(self._whole(proposal, place, best), first=True)  # into the slot that its trial leaves

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
        """Queues a control's next rates on each network once all earlier ones there have ended."""
        equation = self._control(name)
        for place, network in enumerate(self.plan.networks.names):
            subject = on(str(equation), network)
            if any(stage == Stage.CONTROL and text == subject for stage, text, *_ in self._open):
                continue
            for rate in next_rates(self.plan.learning_rates, self._tried(name, network)):
                training = Training(equation, rate, replicate=SEARCH_REPLICATE)
                self._want(self._job(Stage.CONTROL, training, place))

    def _finish(self, proposal: Proposal, ended: Sequence[Row]) -> None:
        """Takes the rows of a proposal's trainings, one a network; none if it diverged in every trial on one."""
        if self.plan.networks.several and not self._backprop:
            self._backprop = backprop_on(self.rows, self.plan.networks)
        row = joined(ended, self.plan.networks, self._backprop) if ended else None
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

    def _job(self, stage: Stage, training: Training, place: int, proposal: Proposal | None = None, **limits) -> Job:
        """A training on the network at that place."""
        network, number = self.plan.networks.names[place], None if proposal is None else proposal.id
        subject = on(str(training.equation), network)
        return Job(stage=stage, subject=subject, training=training, network=network, proposal=number, **limits)

    def _trial(self, proposal: Proposal, place: int, rate: float) -> Job:
        training = Training(proposal.equation, rate, replicate=SEARCH_REPLICATE)
        return self._job(Stage.TRIAL, training, place, proposal, epochs=self.plan.trial_epochs)

    def _whole(self, proposal: Proposal, place: int, rate: float) -> Job:
        training, networks = Training(proposal.equation, rate, replicate=SEARCH_REPLICATE), self.plan.networks
        rungs = networks.within(place, ((epoch, 0.0) for epoch in self.plan.rung_epochs))
        limits = {"bars": networks.within(place, proposal.bars), "rung_epochs": tuple(epoch for epoch, _ in rungs)}
        return self._job(Stage.SEARCH, training, place, proposal, **limits)

    def _confirmation(self, proposal: Proposal, place: int) -> Job:
        """At the learning rate that what it confirms was trained with."""
        rows = self._of[proposal.confirms].of(stage=Stage.SEARCH, network=self.plan.networks.names[place])
        training = Training(proposal.equation, rows[0].learning_rate, replicate=CONFIRMATION_REPLICATE)
        return self._job(Stage.CONFIRMATION, training, place, proposal)

    def _control(self, name: str) -> Equation:
        return parse(NAMED[name]).to_equation(self.plan.space.max_parts)

    def _tried(self, name: str, network: str) -> dict[float, list[float | None]]:
        rows = self._of[str(self._control(name))].of(network=network)
        return {row.learning_rate: [row.accuracy] for row in rows}

    def _selected(self) -> list[tuple[Equation, int, float]]:
        """Controls and leaders, each once on each network that it trained on, with their best learning rate there."""
        names, selected = self.plan.networks.names, {}
        for place, network in enumerate(names):
            for name in CONTROLS:
                if best := self.control(name, network):
                    equation = self._control(name)
                    selected[str(equation), place] = equation, place, best[0]
        for row in self.leaders():
            assert row.proposal is not None
            equation = self.proposals[row.proposal].equation
            for place, trained in enumerate(row.members or (row,)):
                selected[row.equation, place] = equation, place, trained.learning_rate
        return list(selected.values())

    def _selection_jobs(self) -> Iterator[Job]:
        """On examples that nothing was chosen by."""
        for equation, place, rate in self._selected():
            for replicate in range(1, self.plan.repeats + 1):
                training = Training(equation, rate, replicate=replicate, held_out=True)
                yield self._job(Stage.SELECTION, training, place)


def to_trained(row: Row | None) -> Trained:
    """How a proposal's training ended; None: it diverged in every trial."""
    if row is None:
        return Trained(accuracy=None, rungs=0, curve=())
    curve = tuple(v for v in row.curve["eval_accuracy"] if v is not None)
    return Trained(accuracy=row.accuracy, rungs=row.rungs, curve=curve)
