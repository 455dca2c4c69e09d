"""An evaluation: every treatment tuned alike, the search's best selected on fresh seeds, then the test set.

Stages, each a row per training: tuning (learning rates that grow until the best is inside, validation), selection (the
search's rules, fresh seeds, validation), ablation (components of the best removed, validation), test (full training set,
test accuracy). Nothing is ever chosen by a test accuracy. All state is in the database: only missing repetitions run.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence

from bpevo.evaluation.ablation import ablations
from bpevo.evaluation.plan import EvaluationPlan
from bpevo.evaluation.treatments import ZERO_SIGNAL, Treatment
from bpevo.evaluation.workplace import Program, Workplace
from bpevo.evolution.rates import best_rate, next_rates
from bpevo.runs import Driver, Row, Rows, RunDatabase
from bpevo.training import Training
from bpevo.workers import Job, Stage

# First replicate of each stage: no stage sees a seed of another's, nor of a search's (0, and 1, 2, … at its end).
FIRST_REPLICATE = {Stage.TUNING: 1000, Stage.SELECTION: 2000, Stage.ABLATION: 2000, Stage.TEST: 3000}


class Evaluation:
    """Drives one evaluation. `watch(stage, done, wanted, rows)` is called after each epoch of training."""

    def __init__(
        self,
        database: RunDatabase,
        workplace: Workplace,
        plan: EvaluationPlan,
        watch: Callable[[str, int, int, Sequence[Row]], None] = lambda *_: None,
    ):
        self._database, self._workplace, self._plan, self._watch = database, workplace, plan, watch
        self._max_parts = plan.max_parts
        self._driver = Driver(database)
        self.occupancy = 0.0  # share of the present workers' slots' epochs so far that trained something

    @property
    def rows(self) -> Rows:
        """All rows of the run."""
        return self._driver.rows

    def run(self) -> None:
        """All stages. Idempotent."""
        plan = self._plan
        self._tune(plan.treatments)
        self._tuned(Stage.SELECTION, plan.selected, plan.selection_repeats)
        ablated = self._ablated()
        self._tune(ablated)
        self._tuned(Stage.ABLATION, ablated, plan.selection_repeats)
        self._tuned(Stage.TEST, self.finalists(), plan.repeats)

    def stop(self) -> None:
        """As Driver.stop."""
        self._driver.stop()

    def rate(self, treatment: Treatment) -> float | None:
        """As the function."""
        return rate(self.rows, treatment)

    def worth(self, treatment: Treatment) -> tuple[bool, float]:
        """As the function."""
        return worth(self.rows, treatment)

    def finalists(self) -> list[Treatment]:
        """As the function."""
        return finalists(self.rows, self._plan)

    def _tune(self, treatments: Sequence[Treatment]) -> None:
        """Rounds of all treatments of a program together, until every grid is done."""
        initial, repeats = self._plan.learning_rates, self._plan.tuning_repeats

        def wanted(treatment: Treatment) -> list[float]:
            complete = {r: a for r, a in tried(self.rows, str(treatment)).items() if len(a) == repeats}
            nothing = None if treatment == ZERO_SIGNAL else self._without_signal(repeats)
            return [*complete, *next_rates(initial, complete, nothing)]

        self._stage(Stage.TUNING, treatments, wanted, repeats)

    def _without_signal(self, repeats: int) -> float | None:
        """Mean validation accuracy of the zero signal at its best rate; None as long as it is not tuned."""
        complete = {r: a for r, a in tried(self.rows, str(ZERO_SIGNAL)).items() if len(a) == repeats}
        best = best_rate(complete)
        if best is None or next_rates(self._plan.learning_rates, complete):
            return None
        return statistics.mean(a or 0.0 for a in complete[best])

    def _tuned(self, stage: Stage, treatments: Sequence[Treatment], repeats: int) -> None:
        """Every treatment at its tuned rate, if it has one."""

        def wanted(treatment: Treatment) -> list[float]:
            rate = self.rate(treatment)
            return [] if rate is None else [rate]

        self._stage(stage, treatments, wanted, repeats)

    def _ablated(self) -> list[Treatment]:
        """The best rules by validation and, of each, all that is left without one component."""
        rules = [t for t in (*self._plan.named, *self._plan.found) if self.rate(t) is not None]
        best = sorted(dict.fromkeys(rules), key=self.worth, reverse=True)[: self._plan.ablate]
        return list(dict.fromkeys(t for whole in best for t in (whole, *ablations(whole))))

    def _stage(
        self,
        stage: Stage,
        treatments: Sequence[Treatment],
        wanted: Callable[[Treatment], Iterable[float]],
        repeats: int,
    ) -> None:
        """Trains what is missing of the learning rates that each treatment wants, until none wants more."""
        first = FIRST_REPLICATE[stage]

        def jobs(of: Iterable[Treatment]) -> list[Job]:
            return [self._job(stage, t, rate, first + i) for t in of for rate in wanted(t) for i in range(repeats)]

        for program, members in self._by_program(treatments).items():
            while missing := self._driver.missing(iter(jobs(members))):
                everything = jobs(treatments)
                done = len(everything) - len(self._driver.missing(iter(everything)))
                self._train(stage, program, missing, done, len(everything))

    def _train(self, stage: Stage, program: Program, missing: list[Job], done: int, wanted: int) -> None:
        workers = self._workplace(stage == Stage.TEST, program)

        def stored(rows: list[Row]) -> None:
            nonlocal done
            done += len(rows)
            self.occupancy = workers.occupancy
            self._watch(stage, done, wanted, rows)

        self._driver.drain(iter(missing), workers, stored)

    def _by_program(self, treatments: Iterable[Treatment]) -> dict[Program, list[Treatment]]:
        groups: dict[Program, list[Treatment]] = {}
        for treatment in treatments:
            groups.setdefault(self._program(treatment), []).append(treatment)
        return groups

    def _program(self, treatment: Treatment) -> Program:
        """Chains under one optimizer share the interpreted program; any other rule has one of its own."""
        optimizer = treatment.optimizer
        if treatment.chain(self._max_parts) is not None:
            return Program(optimizer=optimizer, transforms=self._plan.transforms(optimizer))
        transforms = (treatment.transform,) if treatment.transform else ()
        return Program(rule=treatment.expression, optimizer=optimizer, transforms=transforms)

    def _job(self, stage: Stage, treatment: Treatment, rate: float, replicate: int) -> Job:
        return Job(stage=stage, subject=str(treatment), training=self._training(treatment, rate, replicate))

    def _training(self, treatment: Treatment, rate: float, replicate: int) -> Training:
        equation = treatment.chain(self._max_parts) or treatment.expression
        return Training(equation, rate, replicate=replicate, transform=treatment.transform)


def rate(rows: Rows, treatment: Treatment) -> float | None:
    """The learning rate of the best mean validation accuracy; None if every training diverged."""
    return best_rate(tried(rows, str(treatment)))


def worth(rows: Rows, treatment: Treatment) -> tuple[bool, float]:
    """Greater is better: whether nothing diverged at the tuned rate, and the mean validation accuracy there, 0 for what
    did; on fresh seeds where selected, else as tuned."""
    tuned, text = rate(rows, treatment), str(treatment)
    for stage in (Stage.SELECTION, Stage.TUNING):
        accuracies = [row.accuracy for row in rows.of(stage=stage, equation=text, learning_rate=tuned)]
        if accuracies:
            return None not in accuracies, statistics.mean(a or 0.0 for a in accuracies)
    return False, 0.0


def finalists(rows: Rows, plan: EvaluationPlan) -> list[Treatment]:
    """What goes on to the test set: controls, named rules, and the best of the search's by fresh seeds."""
    best = sorted(plan.found, key=lambda t: worth(rows, t), reverse=True)[: plan.finalists]
    return list(dict.fromkeys([*plan.controls, *plan.named, *best]))


def tried(rows: Rows, text: str) -> dict[float, list[float | None]]:
    """Validation accuracies of a treatment's tuning by learning rate, lowest first; None where a training diverged."""
    of_rate: dict[float, list[float | None]] = {}
    for row in rows.of(stage=Stage.TUNING, equation=text):
        of_rate.setdefault(row.learning_rate, []).append(row.accuracy)
    return dict(sorted(of_rate.items()))
