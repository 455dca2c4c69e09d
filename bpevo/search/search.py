"""A run: proposals go to the workers, outcomes into the database, until the budget is spent.

All state is in the database: a Search built on it again continues where it ended.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

from bpevo.evolution import Controller, Proposal, Result, SpaceExhausted
from bpevo.rules import NAMED, Equation, parse
from bpevo.runs.database import Row, RunDatabase
from bpevo.training import Training
from bpevo.workers import Job, LocalWorkers, Outcome

CONTROLS = ("backprop", "zero_signal")  # trained in every run, under the search's budget and seeds
SEARCH_REPLICATE = 0  # selection uses 1, 2, …


@dataclasses.dataclass(frozen=True)
class Budget:
    max_evaluations: int  # trainings of the search; controls and selection come on top
    learning_rates: tuple[float, ...]
    lag: int  # proposal n is drawn from the results with ids ≤ n - lag
    rung_epochs: tuple[int, ...] = ()
    top: int = 5  # rules trained again on fresh seeds
    repeats: int = 3  # fresh seeds


class Search:
    """Drives one run. `watch` is called after each epoch with the outcomes that came in."""

    def __init__(
        self,
        database: RunDatabase,
        controller: Controller,
        workers: LocalWorkers,
        budget: Budget,
        watch: Callable[["Search", Sequence[Outcome]], None] = lambda search, outcomes: None,
    ):
        self._database, self._controller, self._workers, self._budget = database, controller, workers, budget
        self._watch = watch
        self._max_parts = workers.trainer.max_parts
        self._training = self._stopping = False
        self.exhausted = ""  # why the search ended before its budget
        self.proposals: list[Proposal] = []
        self.results: dict[int, Result] = {}
        self._told = 0  # results with smaller ids, the controller knows
        self.rows: list[Row] = database.rows()
        self._keys = {_key(e) for e in self.rows}
        for proposal in database.proposals():
            controller.adopt(proposal)
            self.proposals.append(proposal)
            result = database.result(proposal, budget.learning_rates)
            if result:
                self.results[proposal.id] = result

    @property
    def done(self) -> int:
        """Trainings of the search that ended."""
        return sum(e.stage == "search" for e in self.rows)

    @property
    def max_evaluations(self) -> int:
        return self._budget.max_evaluations

    @property
    def occupancy(self) -> float:
        return self._workers.trainer.occupancy

    def run(self) -> None:
        """Controls, search, selection on fresh seeds, cost of each rule. Idempotent: only what is missing runs."""
        self._drain(itertools.chain(self._control_jobs(), self._search_jobs()))
        self._drain(self._selection_jobs())
        self._measure_costs()

    def stop(self) -> None:
        """For a signal handler: `run` ends with KeyboardInterrupt as soon as the epoch in progress is over and stored.

        At once if it trains nothing whose result counts, and when called again.
        """
        if self._stopping or not self._training:
            raise KeyboardInterrupt
        self._stopping = True

    def leaders(self) -> list[Result]:
        """The best results but the controls' own functions, distinct, best first."""
        controls = {self._control(name).key for name in CONTROLS}
        alive = [r for r in self.results.values() if r.accuracy is not None]
        ranked = sorted(alive, key=lambda r: (r.fitness, -r.id), reverse=True)
        return list(itertools.islice((r for r in ranked if r.equation.key not in controls), self._budget.top))

    def _ended(self, stage: str, equation: Equation, rate: float, replicate: int) -> bool:
        return (stage, str(equation), rate, replicate) in self._keys

    def _control_jobs(self) -> Iterator[Job]:
        for name in CONTROLS:
            equation = self._control(name)
            for rate in self._budget.learning_rates:
                if not self._ended("control", equation, rate, SEARCH_REPLICATE):
                    yield Job(("control", None), Training(equation, rate, replicate=SEARCH_REPLICATE))

    def _control(self, name: str) -> Equation:
        return parse(NAMED[name]).to_equation(self._max_parts)

    def _search_jobs(self) -> Iterator[Job | None]:
        """Unfinished proposals first, then new ones; None while the next may not be drawn yet."""
        issued = 0
        for proposal in list(self.proposals):
            for rate in self._budget.learning_rates:
                issued += 1
                if not self._ended("search", proposal.equation, rate, SEARCH_REPLICATE):
                    yield self._search_job(proposal, rate)
        while issued + len(self._budget.learning_rates) <= self._budget.max_evaluations:
            if not self._tell(self._controller.next_id - self._budget.lag):
                yield None
                continue
            try:
                proposal = self._controller.ask()
            except SpaceExhausted as end:
                self.exhausted = str(end)
                return
            self._database.add_proposal(proposal)
            self.proposals.append(proposal)
            for rate in self._budget.learning_rates:
                issued += 1
                yield self._search_job(proposal, rate)

    def _tell(self, last: int) -> bool:
        """Tells the controller the results up to `last`, in id order; False while one of them is missing."""
        while self._told <= last and self._told in self.results:
            self._controller.tell(self.results[self._told])
            self._told += 1
        return self._told > last

    def _search_job(self, proposal: Proposal, rate: float) -> Job:
        training = Training(proposal.equation, rate, replicate=SEARCH_REPLICATE)
        return Job(("search", proposal.id), training, proposal.bars, self._budget.rung_epochs)

    def _selected(self) -> list[tuple[Equation, float]]:
        """Controls and leaders, each once, with their best learning rate."""
        controls = {str(e): e for e in map(self._control, CONTROLS)}
        rates: dict[str, tuple[int, float, float]] = {}
        for e in self.rows:
            if e.stage == ("control" if e.equation in controls else "search") and e.accuracy is not None:
                rates[e.equation] = max(rates.get(e.equation, (-1, -1.0, 0.0)), (e.rungs, e.accuracy, e.learning_rate))
        equations = controls | {str(r.equation): r.equation for r in self.leaders()}
        return [(e, rates[text][2]) for text, e in equations.items() if text in rates]

    def _selection_jobs(self) -> Iterator[Job]:
        for equation, rate in self._selected():
            for replicate in range(1, self._budget.repeats + 1):
                if not self._ended("selection", equation, rate, replicate):
                    yield Job(("selection", None), Training(equation, rate, replicate=replicate))

    def _measure_costs(self) -> None:
        known = self._database.costs()
        baseline = self._control("backprop")
        equations = [baseline, *(e for e, _ in self._selected() if e != baseline)]
        if all(str(e) in known for e in equations):
            return
        seconds = self._workers.epoch_seconds([Training(e, self._budget.learning_rates[0]) for e in equations])
        for equation, s in zip(equations, seconds, strict=True):
            self._database.add_cost(str(equation), s / seconds[0])

    def _drain(self, jobs: Iterator[Job | None]) -> None:
        """Feeds jobs to free slots and stores what ends, until both are empty."""
        exhausted, self._training = False, True

        def feed(ahead: bool) -> None:
            nonlocal exhausted
            while not exhausted and (self._workers.ahead if ahead else self._workers.wanted) > 0:
                try:
                    job = next(jobs)
                except StopIteration:
                    exhausted = True
                    return
                if job is None:
                    return
                self._workers.submit(job)

        while True:
            feed(ahead=False)
            if exhausted and self._workers.idle:
                self._training = False
                return
            # While the devices work, the next proposals are drawn, as far as the lag allows.
            self._store(self._workers.poll(lambda: feed(ahead=True)))
            if self._stopping:
                raise KeyboardInterrupt

    def _store(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            stage, proposal = outcome.job.tag
            text = str(outcome.job.training.equation)
            evaluation = self._database.add_row(stage, text, proposal, outcome)
            self.rows.append(evaluation)
            self._keys.add(_key(evaluation))
            if stage == "search":
                result = self._database.result(self.proposals[proposal], self._budget.learning_rates)
                if result:
                    self.results[proposal] = result
        self._watch(self, outcomes)


def _key(e: Row) -> tuple[str, str, float, int]:
    return e.stage, e.equation, e.learning_rate, e.replicate
