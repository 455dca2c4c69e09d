"""The flags of an evaluation, and the scenario they describe. A scenario is a folder of the workdir, named by `--scenario`,
with a database of its own; the workdir itself may hold the search whose winners are evaluated."""

import dataclasses
import pathlib
import re

from absl import flags

from bpevo import data
from bpevo.command import flags as run_flags
from bpevo.command.flags import UsageError
from bpevo.evaluation.evaluation import EvaluationPlan
from bpevo.evaluation.treatments import read_treatments, winners
from bpevo.rules import Expression, compile
from bpevo.rules.equation import DEFAULT_PARTS
from bpevo.runs.database import RunDatabase
from bpevo.training import Trainer, TrainingPlan
from bpevo.workers import LocalWorkers

# May change when a scenario is continued: they only add trainings.
FREE = ("rules", "found", "selection_repeats", "finalists", "repeats", "ablate")


def define_evaluation() -> None:
    """Flags of `bpevo.evaluate` beside the common ones."""
    flags.DEFINE_string(
        "scenario",
        "evaluation",
        "Name of the evaluation, a folder of the workdir. a1, a2, a3, b1: the paper's settings.",
    )
    flags.DEFINE_string(
        "rules",
        None,
        "Rules to test, beside the baselines: names or texts separated by ';', among them table1 or one of its columns "
        "(a1_sgd, b1_momentum, …); or a file, one per line.",
    )
    flags.DEFINE_integer(
        "top", 100, "Best rules of the workdir's search that enter the selection, if there is a search."
    )
    flags.DEFINE_integer("finalists", 10, "Rules of the search that go on from the selection to the test set.")
    flags.DEFINE_integer("tuning_repeats", 1, "Seeds of each learning rate in the tuning.")
    flags.DEFINE_integer("selection_repeats", 5, "Fresh seeds of each rule of the search in the selection.")
    flags.DEFINE_integer("repeats", 10, "Fresh seeds of each rule on the full training set, for the test accuracy.")
    flags.DEFINE_integer("eval_examples", None, "Only the first so many validation and test examples. Default: all.")
    flags.DEFINE_integer("ablate", 0, "Best rules (by validation) whose components are removed in turn.")
    flags.DEFINE_bool("alignment", False, "Measure angle and norm ratio to the true gradient's signal in every unit.")


@dataclasses.dataclass(frozen=True)
class Scenario:
    """An evaluation ready to start."""

    folder: pathlib.Path
    training: TrainingPlan
    plan: EvaluationPlan
    slots: int | None
    train_examples: int | None
    eval_examples: int | None
    alignment: bool

    @property
    def max_parts(self) -> int:
        """Parts of the interpreted program: those of the longest chain that is evaluated, 3 to 8."""
        chains = [t.chain(8) for t in self.plan.treatments]
        return max(DEFAULT_PARTS, *(int(c.parts) for c in chains if c is not None))

    def fingerprint(self) -> dict:
        """What may change between sessions only where FREE says so."""
        plan = self.plan
        return self.training.fingerprint() | {
            "scenario": self.folder.name,
            "alignment": self.alignment,
            "tuning_repeats": plan.tuning_repeats,
            "rules": [str(t) for t in plan.named],
            "found": [str(t) for t in plan.found],
            **{name: getattr(plan, name) for name in FREE[2:]},
        }


class Workplace:
    """Makes the workers of each program; the interpreted one of the data at hand is kept."""

    def __init__(self, scenario: Scenario):
        self._scenario = scenario
        self._kept: dict[bool, LocalWorkers] = {}

    def __call__(self, on_test: bool, rule: Expression | None) -> LocalWorkers:
        if rule is not None:
            return self._make(on_test, rule)
        if on_test not in self._kept:
            self._kept.clear()  # frees the slots before the next are allocated
            self._kept[on_test] = self._make(on_test, None)
        return self._kept[on_test]

    def _make(self, on_test: bool, rule: Expression | None) -> LocalWorkers:
        s = self._scenario
        training = s.training
        if on_test:  # nothing else reads the test set
            split = _shortened(data.full_training_split(training.dataset, s.train_examples), s.eval_examples)
            training = dataclasses.replace(training, split=split)
        return LocalWorkers(
            Trainer(
                training.task(measure_alignment=s.alignment),
                training.examples(),
                capacity=s.slots,
                max_parts=s.max_parts,
                seed=training.seed,
                rule=None if rule is None else compile(rule),
                transforms=True,
            )
        )


def _shortened(split: data.Split, count: int | None) -> data.Split:
    """`split` with the first `count` evaluation examples."""
    return dataclasses.replace(split, eval_images=split.eval_images[:count], eval_labels=split.eval_labels[:count])


def scenario(values: flags.FlagValues) -> Scenario:
    """Checks all flags, loads the data, reads the search's winners. Raises UsageError, DataError or RunError."""
    for name in ("top", "finalists", "tuning_repeats", "selection_repeats", "eval_examples"):
        run_flags.at_least(name, values[name].value, 1)
    for name in ("repeats", "ablate"):
        run_flags.at_least(name, values[name].value, 0)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", values.scenario):
        raise UsageError(f"--scenario={values.scenario} must be a name of letters, digits, _ and -")
    if values.scenario in ("report", "checkpoints"):
        raise UsageError(f"--scenario={values.scenario} is the name of a folder that runs use: take another")
    training = run_flags.training_plan(values)
    training = dataclasses.replace(training, split=_shortened(training.split, values.eval_examples))
    try:
        named = read_treatments(values.rules) if values.rules else []
    except ValueError as error:
        raise UsageError(f"--rules: {error}") from error
    found = []
    if (pathlib.Path(values.workdir) / "run.sqlite").is_file():
        with RunDatabase.reading(values.workdir) as search:
            found = [t for t in winners(search, values.top) if t not in named]
    elif not values.rules:
        raise UsageError(
            f"there is no search in {values.workdir} to take rules from: give --rules, such as --rules=table1"
        )
    plan = EvaluationPlan(
        tuple(named),
        tuple(found),
        training.learning_rates,
        values.tuning_repeats,
        values.selection_repeats,
        values.finalists,
        values.repeats,
        values.ablate,
    )
    folder = pathlib.Path(values.workdir) / values.scenario
    return Scenario(folder, training, plan, values.slots, values.train_examples, values.eval_examples, values.alignment)
