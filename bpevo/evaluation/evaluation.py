"""An evaluation: every treatment tuned alike, the search's best selected on fresh seeds, then the test set.

Stages, each a row per training: tuning (every learning rate, validation), selection (the search's rules, fresh seeds,
validation), ablation (components of the best removed, validation), test (full training set, test accuracy). Nothing is
ever chosen by a test accuracy. All state is in the database: only missing repetitions run.
"""

import math
import statistics
from collections.abc import Callable, Sequence

from bpevo.evaluation.ablation import ablations
from bpevo.evaluation.plan import EvaluationPlan
from bpevo.evaluation.treatments import BACKPROP, BASELINES, Treatment
from bpevo.evaluation.workplace import Workplace
from bpevo.rules import Expression
from bpevo.runs import Driver, Row, Rows, RunDatabase
from bpevo.training import Training
from bpevo.workers import Job, Stage

# First replicate of each stage: no stage sees a seed of another's, nor of a search's (0, and 1, 2, … at its end).
FIRST_REPLICATE = {Stage.TUNING: 1000, Stage.SELECTION: 2000, Stage.ABLATION: 2000, Stage.TEST: 3000}

Wanted = tuple[Treatment, float, int]  # a training: treatment, learning rate, replicate


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

    @property
    def rows(self) -> Rows:
        """All rows of the run."""
        return self._driver.rows

    def run(self) -> None:
        """All stages. Idempotent."""
        plan = self._plan
        self._tune(plan.treatments)
        self._stage(Stage.SELECTION, self._tuned(plan.found, plan.selection_repeats))
        ablated = self._ablated()
        self._tune(ablated)
        self._stage(Stage.ABLATION, self._tuned(ablated, plan.selection_repeats))
        self._measure_costs()
        self._stage(Stage.TEST, self._tuned(self.finalists(), plan.repeats))

    def stop(self) -> None:
        """As Driver.stop."""
        self._driver.stop()

    def rate(self, treatment: Treatment) -> float | None:
        """The learning rate of the best mean validation accuracy; None if every training diverged."""
        return tuned_rate(self.rows, str(treatment))

    def validation(self, treatment: Treatment) -> float:
        """Mean validation accuracy at the tuned rate: on fresh seeds where selected, else as tuned."""
        rate, text = self.rate(treatment), str(treatment)
        for stage in (Stage.SELECTION, Stage.TUNING):
            rows = self.rows.of(stage=stage, equation=text, learning_rate=rate)
            if rows:
                return statistics.mean(row.accuracy or 0.0 for row in rows)
        return 0.0

    def finalists(self) -> list[Treatment]:
        """What goes on to the test set: baselines, named rules, and the best of the search's by fresh seeds."""
        plan = self._plan
        best = sorted(plan.found, key=self.validation, reverse=True)[: plan.finalists]
        return list(dict.fromkeys([*BASELINES, *plan.named, *best]))

    def _tuned(self, treatments: Sequence[Treatment], repeats: int) -> list[tuple[Treatment, float, int]]:
        rates = [(t, self.rate(t)) for t in treatments]
        return [(t, rate, repeats) for t, rate in rates if rate is not None]

    def _tune(self, treatments: Sequence[Treatment]) -> None:
        plan = self._plan
        self._stage(Stage.TUNING, [(t, rate, plan.tuning_repeats) for t in treatments for rate in plan.learning_rates])

    def _ablated(self) -> list[Treatment]:
        """The best rules by validation and, of each, all that is left without one component."""
        rules = [t for t in (*self._plan.named, *self._plan.found) if self.rate(t) is not None]
        best = sorted(dict.fromkeys(rules), key=self.validation, reverse=True)[: self._plan.ablate]
        return list(dict.fromkeys(t for whole in best for t in (whole, *ablations(whole))))

    def _stage(self, stage: Stage, wanted: Sequence[tuple[Treatment, float, int]]) -> None:
        """Runs what is missing of (treatment, learning rate, repeats)."""
        first = FIRST_REPLICATE[stage]
        trainings = [(t, rate, first + i) for t, rate, repeats in wanted for i in range(repeats)]
        groups = {
            rule: self._driver.missing(self._job(stage, *training) for training in group)
            for rule, group in self._by_program(trainings).items()
        }
        done = len(trainings) - sum(map(len, groups.values()))

        def stored(rows: list[Row]) -> None:
            nonlocal done
            done += len(rows)
            self._watch(stage, done, len(trainings), rows)

        for rule, jobs in groups.items():
            if jobs:
                self._driver.drain(iter(jobs), self._workplace(stage == Stage.TEST, rule), stored)

    def _by_program(self, trainings: Sequence[Wanted]) -> dict[Expression | None, list[Wanted]]:
        """Chains share the interpreted program (None); any other rule has one of its own."""
        groups: dict[Expression | None, list[Wanted]] = {}
        for training in trainings:
            treatment = training[0]
            rule = treatment.expression if treatment.chain(self._max_parts) is None else None
            groups.setdefault(rule, []).append(training)
        return groups

    def _job(self, stage: Stage, treatment: Treatment, rate: float, replicate: int) -> Job:
        return Job(stage=stage, subject=str(treatment), training=self._training(treatment, rate, replicate))

    def _training(self, treatment: Treatment, rate: float, replicate: int) -> Training:
        equation = treatment.chain(self._max_parts) or treatment.expression
        return Training(equation, rate, replicate=replicate, transform=treatment.transform)

    def _measure_costs(self) -> None:
        """Wall time of an epoch over backprop's in the interpreted slots; the program that trained the rule is timed."""
        known = self._database.costs()
        rate = self._plan.learning_rates[0]
        missing = [(t, rate, 0) for t, _, _ in self._tuned(self.finalists(), 1) if str(t) not in known]
        if not missing:
            return
        groups = self._by_program([(BACKPROP, rate, 0), *(w for w in missing if w[0] != BACKPROP)])
        reference = math.nan
        for rule, trainings in groups.items():  # backprop comes first
            seconds = self._workplace(False, rule).epoch_seconds([self._training(*t) for t in trainings])
            reference = seconds[0] if math.isnan(reference) else reference
            for (treatment, *_), s in zip(trainings, seconds, strict=True):
                self._database.add_cost(str(treatment), s / reference)


def tuned_rate(rows: Rows, text: str) -> float | None:
    """The learning rate of a treatment with the best mean validation accuracy in the tuning; a training that diverged
    counts as 0, ties go to the higher rate, as in the search. None if all diverged."""
    of_rate: dict[float, list[float]] = {}
    for row in rows.of(stage=Stage.TUNING, equation=text):
        of_rate.setdefault(row.learning_rate, []).append(row.accuracy or 0.0)
    means = {rate: statistics.mean(values) for rate, values in of_rate.items()}
    best = max(means, key=lambda rate: (means[rate], rate), default=None)
    return best if best is not None and means[best] > 0 else None
