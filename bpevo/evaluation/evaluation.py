"""An evaluation: every treatment tuned alike, the search's best selected on fresh seeds, then the test set.

Stages, each a row of `evaluations` per training: "tuning" (every learning rate, validation), "selection" (the search's
rules, fresh seeds, validation), "ablation" (components of the best removed, validation), "test" (full training set, test
accuracy). Nothing is ever chosen by a test accuracy. All state is in the database: only missing repetitions run.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence

from bpevo.evaluation.ablation import ablations
from bpevo.evaluation.treatments import BACKPROP, BASELINES, Treatment
from bpevo.rules import Expression
from bpevo.runs.database import Row, RunDatabase
from bpevo.training import Training
from bpevo.workers import Job, LocalWorkers, Outcome

# First replicate of each stage: no stage sees a seed of another's, nor of a search's (0, and 1, 2, … at its end).
FIRST_REPLICATE = {"tuning": 1000, "selection": 2000, "ablation": 2000, "test": 3000}


@dataclasses.dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated, and how often."""

    named: tuple[Treatment, ...]  # given by hand: all are tested
    found: tuple[Treatment, ...]  # the best of a search: selected first
    learning_rates: tuple[float, ...]
    tuning_repeats: int = 1
    selection_repeats: int = 5
    finalists: int = 10  # of `found` that are tested
    repeats: int = 10
    ablate: int = 0  # rules whose components are removed in turn

    @property
    def treatments(self) -> list[Treatment]:
        return list(dict.fromkeys([*BASELINES, *self.named, *self.found]))


# (whether on the full training set and the test set, the rule of a specialised program or None) -> workers
Workplace = Callable[[bool, Expression | None], LocalWorkers]
Wanted = tuple[Treatment, float, int]  # a training: treatment, learning rate, replicate


class Evaluation:
    """Drives one evaluation. `watch(stage, done, wanted, outcomes)` is called after each epoch of training."""

    def __init__(
        self,
        database: RunDatabase,
        workplace: Workplace,
        plan: EvaluationPlan,
        max_parts: int,
        watch: Callable[[str, int, int, Sequence[Outcome]], None] = lambda *_: None,
    ):
        self._database, self._workplace, self._plan, self._max_parts, self._watch = (
            database, workplace, plan, max_parts, watch,
        )  # fmt: skip
        self.rows: list[Row] = database.rows()
        self._busy = self._stopping = False
        self._ended = {(e.stage, e.equation, e.learning_rate, e.replicate) for e in self.rows}

    def run(self) -> None:
        """All stages. Idempotent."""
        plan = self._plan
        self._tune(plan.treatments)
        self._stage("selection", self._tuned(plan.found, plan.selection_repeats))
        ablated = self._ablated()
        self._tune(ablated)
        self._stage("ablation", self._tuned(ablated, plan.selection_repeats))
        self._measure_costs()
        self._stage("test", self._tuned(self.finalists(), plan.repeats))

    def stop(self) -> None:
        """As Search.stop: `run` ends with KeyboardInterrupt once the epoch in progress is over and stored, or at once."""
        if self._stopping or not self._busy:
            raise KeyboardInterrupt
        self._stopping = True

    def rate(self, treatment: Treatment) -> float | None:
        """The learning rate of the best mean validation accuracy; None if every training diverged."""
        return tuned_rate(self.rows, str(treatment))

    def validation(self, treatment: Treatment) -> float:
        """Mean validation accuracy at the tuned rate: on fresh seeds where selected, else as tuned."""
        rate, text = self.rate(treatment), str(treatment)
        for stage in ("selection", "tuning"):
            values = [
                e.accuracy or 0.0 for e in self.rows if (e.stage, e.equation, e.learning_rate) == (stage, text, rate)
            ]
            if values:
                return statistics.mean(values)
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
        self._stage("tuning", [(t, rate, plan.tuning_repeats) for t in treatments for rate in plan.learning_rates])

    def _ablated(self) -> list[Treatment]:
        """The best rules by validation and, of each, all that is left without one component."""
        rules = [t for t in (*self._plan.named, *self._plan.found) if self.rate(t) is not None]
        best = sorted(dict.fromkeys(rules), key=self.validation, reverse=True)[: self._plan.ablate]
        return list(dict.fromkeys(t for whole in best for t in (whole, *ablations(whole))))

    def _stage(self, stage: str, wanted: Sequence[tuple[Treatment, float, int]]) -> None:
        """Runs what is missing of (treatment, learning rate, repeats)."""
        first = FIRST_REPLICATE[stage]
        all_of_it = [(t, rate, first + i) for t, rate, repeats in wanted for i in range(repeats)]
        missing = [w for w in all_of_it if (stage, str(w[0]), w[1], w[2]) not in self._ended]
        done, on_test = len(all_of_it) - len(missing), stage == "test"
        for rule, trainings in self._by_program(missing).items():
            workers = self._workplace(on_test, rule)
            for treatment, rate, replicate in trainings:
                workers.submit(Job((stage, str(treatment)), self._training(treatment, rate, replicate)))
            self._busy = True
            while not workers.idle:
                outcomes = workers.poll()
                for outcome in outcomes:
                    self._store(outcome)
                done += len(outcomes)
                self._watch(stage, done, len(all_of_it), outcomes)
                if self._stopping:
                    raise KeyboardInterrupt
            self._busy = False

    def _by_program(self, trainings: Sequence[Wanted]) -> dict[Expression | None, list[Wanted]]:
        """Chains share the interpreted program (None); any other rule has one of its own."""
        groups: dict[Expression | None, list[Wanted]] = {}
        for training in trainings:
            treatment = training[0]
            rule = treatment.expression if treatment.chain(self._max_parts) is None else None
            groups.setdefault(rule, []).append(training)
        return groups

    def _training(self, treatment: Treatment, rate: float, replicate: int) -> Training:
        equation = treatment.chain(self._max_parts) or treatment.expression
        return Training(equation, rate, replicate=replicate, transform=treatment.transform)

    def _store(self, outcome: Outcome) -> None:
        stage, text = outcome.job.tag
        e = self._database.add_row(stage, text, None, outcome)
        self.rows.append(e)
        self._ended.add((e.stage, e.equation, e.learning_rate, e.replicate))

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


def tuned_rate(evaluations: Sequence[Row], text: str) -> float | None:
    """The learning rate of a treatment with the best mean validation accuracy in "tuning"; a training that diverged counts
    as 0, ties go to the higher rate, as in the search. None if all diverged."""
    of_rate: dict[float, list[float]] = {}
    for e in evaluations:
        if (e.stage, e.equation) == ("tuning", text):
            of_rate.setdefault(e.learning_rate, []).append(e.accuracy or 0.0)
    means = {rate: statistics.mean(values) for rate, values in of_rate.items()}
    best = max(means, key=lambda rate: (means[rate], rate), default=None)
    return best if best is not None and means[best] > 0 else None
