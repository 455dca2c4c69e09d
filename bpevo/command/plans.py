"""The flags of a command, read once into typed plans. Everything is checked before anything compiles."""

import dataclasses
import itertools
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags

from bpevo import data
from bpevo.command.inherited import Inherited, compared
from bpevo.command.pools import PoolPlan
from bpevo.command.trainings import UsageError, at_least, networks_of, numbers, path_of, rates_of, training_plans
from bpevo.evaluation import EvaluationPlan
from bpevo.evaluation.duplicates import Firsts
from bpevo.evaluation.treatments import Treatment, controls, read_treatments, under, winners
from bpevo.evolution import CONTROLLERS, EvolutionSettings, Networks, Rung, SearchSpace, budget
from bpevo.rules import NAMED, Equation, listed, parse, resolve
from bpevo.runs import RunDatabase
from bpevo.search import MOST_REPEATS, SearchPlan
from bpevo.training import TrainingPlan, most_slots
from bpevo.training.plan import checksum

LEAST_VALIDATION = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchCommand:
    """What `bpevo.launch` was asked to do."""

    workdir: str
    trainings: dict[str, TrainingPlan]  # by the names of the search's networks
    search: SearchPlan
    lag: int | None  # as given; None: the run's own, or the default in `search`
    elite_size: int | None  # likewise
    slots: int | None
    checkpoint_minutes: float  # 0: none
    fork_from: str | None
    data_dir: str | None
    selfcheck: bool
    max_hours: float | None = None
    metrics: str | None = None  # one of bpevo.report.metrics.KINDS
    pool: PoolPlan | None = None  # None: this process's devices

    def fingerprint(self) -> dict[str, Any]:
        """What two sessions of a run must share to be comparable."""
        shared = self.training.fingerprint() | self.search.fingerprint()
        if self.search.networks.several:
            each = [plan.fingerprint() for plan in self.trainings.values()]
            shared |= {name: [f.get(name) for f in each] for name in ("model_crc32", "model_code_crc32")}
            shared["model"] = ";".join(self.trainings)
        return shared

    @property
    def training(self) -> TrainingPlan:
        """On the first network: all but the network is the same on the others."""
        return next(iter(self.trainings.values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationCommand:
    """What `bpevo.evaluate` was asked to do."""

    folder: pathlib.Path  # the scenario's, in the workdir
    training: TrainingPlan
    evaluation: EvaluationPlan
    likeness: str  # how the settings differ from those of the workdir's search; empty where there is none
    slots: int | None
    train_examples: int | None
    eval_examples: int | None
    alignment: bool
    selfcheck: bool
    max_hours: float | None = None
    metrics: str | None = None  # one of bpevo.report.metrics.KINDS
    pool: PoolPlan | None = None  # None: this process's devices

    def fingerprint(self) -> dict[str, Any]:
        """What two sessions of a run must share to be comparable, but for bpevo.evaluation.plan.FREE."""
        of_training = self.training.fingerprint()
        final = self.test_split()
        own = {
            "scenario": self.folder.name,
            "alignment": self.alignment,
            "final_train_examples": len(final.train_labels),
            "test_examples": len(final.eval_labels),
            "test_crc32": checksum(final.eval_images, final.eval_labels),
        }
        return of_training | own | self.evaluation.fingerprint()

    def test_split(self) -> data.Split:
        """The full training set and the test set."""
        split = data.full_training_split(self.training.dataset, self.train_examples)
        if self.eval_examples is None:
            return split
        order = np.random.default_rng(0).permutation(len(split.eval_labels))  # a file may have them sorted
        mixed = dataclasses.replace(split, eval_images=split.eval_images[order], eval_labels=split.eval_labels[order])
        return _shortened(mixed, self.eval_examples)


def pool_plan(values: flags.FlagValues) -> PoolPlan | None:
    """The flags of a pool; None where this process trains. Raises UsageError."""
    for name in ("workers", "worker_cpus"):
        at_least(name, values[name].value, 1)
    if values.pool == "local":
        for name in ("ray_address", "workers", "worker_cpus"):
            if values[name].value is not None:
                raise UsageError(f"--{name}={values[name].value} is of a pool: give --pool=ray too")
        return None
    return PoolPlan(address=values.ray_address, workers=values.workers, cpus=values.worker_cpus)


def _slots_in_all(values: flags.FlagValues) -> int:
    """By which the lag is chosen where none is given; never by what a pool happens to have. Raises UsageError."""
    if values.pool == "local":
        return values.slots or most_slots(jax.local_devices())
    if not values.lag and not (values.workers and values.slots):
        raise UsageError(
            "--pool=ray needs --workers and --slots, or --lag: how far proposals run ahead of results is settled at the start, "
            "and must not follow the workers that come and go"
        )
    return (values.workers or 1) * (values.slots or 1)


def search_plan(values: flags.FlagValues) -> SearchPlan:
    """Checks the search flags. Raises UsageError."""
    for name in ("max_evaluations", "max_parts", "elite_size", "tournament", "lag", "top", "repeats"):
        at_least(name, values[name].value, 1)
    if not 0 <= values.checkpoint_minutes < math.inf:
        raise UsageError(f"--checkpoint_minutes={values.checkpoint_minutes} must be at least 0")
    if values.fork_from and values.initial != "random":
        raise UsageError("--fork_from begins with what the other run found, so it takes no --initial")
    if "\0" in (values.fork_from or ""):
        raise UsageError(f"--fork_from={values.fork_from!r} is no path")
    if values.max_parts > 8:
        raise UsageError(f"--max_parts={values.max_parts} must be at most 8")
    rates, names = rates_of(values), networks_of(values.model)
    charge = budget.charge(len(rates), len(names))
    if values.max_evaluations < charge:
        each = f", on each of {len(names)} networks" if len(names) > 1 else ""
        raise UsageError(
            f"--max_evaluations={values.max_evaluations} is less than one equation costs: a trial for each of {len(rates)} "
            f"learning rates, and a training{each}"
        )
    if values.controller not in CONTROLLERS:
        raise UsageError(f"--controller={values.controller} must be one of {', '.join(CONTROLLERS)}")
    if values.repeats > MOST_REPEATS:
        raise UsageError(f"--repeats={values.repeats} must be at most {MOST_REPEATS}")
    rungs = _rungs(values)
    slots = _slots_in_all(values) * len(names)
    try:
        space = SearchSpace(values.max_parts, values.operands, values.unaries, values.binaries)
        initial = initial_equations(values.initial, values.max_parts)
        equations = budget.equations(values.max_evaluations, len(rates), len(names))
        elite_size = values.elite_size or budget.default_elite_size(equations)
        settings = EvolutionSettings(
            elite_size=elite_size,
            elite_probability=values.elite_probability,
            tournament=values.tournament,
            mutations=numbers("mutations", values.mutations),
            rungs=rungs,
            seed=values.seed,
        )
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    lag = values.lag or budget.busy_lag(slots, len(rates), values.epochs, rungs)
    if values.controller != "random":
        lag = values.lag or min(lag, budget.largest_lag(equations, elite_size=elite_size, initial=len(initial)))
        if not budget.bred(equations, elite_size=elite_size, initial=len(initial), lag=lag):
            least = budget.least_budget(
                len(rates), elite_size=elite_size, initial=len(initial), lag=lag, networks=len(names)
            )
            raise UsageError(
                f"--max_evaluations={values.max_evaluations} breeds nothing: {equations} equations at {len(rates)} learning "
                f"rates are all {'initial' if initial else 'random'} ones; give at least {least}, a smaller "
                f"{'--initial' if initial else '--elite_size'}, or ask for random search by --controller=random"
            )
    networks = Networks()
    if len(names) > 1:
        networks = Networks(names=names, epochs=values.epochs, over=values.fitness_over)
    return SearchPlan(
        controller=values.controller,
        space=space,
        evolution=settings,
        networks=networks,
        initial=tuple(initial),
        equivalence=values.equivalence,
        max_evaluations=values.max_evaluations,
        learning_rates=rates,
        trial_epochs=_trial_epochs(rungs, networks, values.epochs),
        lag=lag,
        top=values.top,
        repeats=values.repeats,
    )


def search_command(values: flags.FlagValues) -> SearchCommand:
    """All flags of `bpevo.launch`, data loaded. Raises UsageError or bpevo.data.DataError."""
    search, trainings = search_plan(values), training_plans(values)
    training = next(iter(trainings.values()))
    validation = len(training.split.eval_labels)
    if validation < LEAST_VALIDATION:
        raise UsageError(
            f"{training.dataset.name} leaves {validation} validation examples: a search needs at least {LEAST_VALIDATION}, "
            "for a third of them is kept for the fresh seeds"
        )
    return SearchCommand(
        workdir=path_of("workdir", values.workdir or ""),
        trainings={name: dataclasses.replace(plan, held_out=validation // 3) for name, plan in trainings.items()},
        search=search,
        lag=values.lag,
        elite_size=values.elite_size,
        slots=values.slots,
        checkpoint_minutes=values.checkpoint_minutes,
        fork_from=path_of("fork_from", values.fork_from) if values.fork_from else None,
        data_dir=values.data_dir,
        selfcheck=values.selfcheck,
        max_hours=values.max_hours,
        metrics=values.metrics,
        pool=pool_plan(values),
    )


def _rungs(values: flags.FlagValues) -> tuple[Rung, ...]:
    eta, networks = values.halving_eta, len(networks_of(values.model))
    epochs = values.epochs * networks
    if eta:
        at_least("halving_eta", eta, 2)
        if values.stop_epochs:
            raise UsageError("--halving_eta and --stop_epochs contradict each other: give one of them")
        marks = []
        while epochs // eta >= 1:
            epochs //= eta
            marks.append(epochs)
        return tuple(Rung(e, 1 - 1 / eta) for e in reversed(marks))
    if not 0 < values.stop_quantile < 1:
        raise UsageError(f"--stop_quantile={values.stop_quantile} must lie between 0 and 1")
    stops = numbers("stop_epochs", values.stop_epochs, int)
    limit = f"--epochs={values.epochs}" + (f" times {networks} networks" if networks > 1 else "")
    if any(not 1 <= e < epochs for e in stops) or list(stops) != sorted(set(stops)):
        raise UsageError(f"--stop_epochs={','.join(values.stop_epochs)} must rise, from 1 to below {limit}")
    return tuple(Rung(e, values.stop_quantile) for e in stops)


def _trial_epochs(rungs: tuple[Rung, ...], networks: Networks, epochs: int) -> int:
    """How long a trial is: to the first rung on any network, as it has no bars and the training goes on from its end."""
    marks = [(rung.epoch, rung.quantile) for rung in rungs]
    within = [epoch for place in range(len(networks.names)) for epoch, _ in networks.within(place, marks)]
    return min((epoch for epoch in within if epoch < epochs), default=max(1, epochs // 4))


def initial_equations(choice: str, max_parts: int) -> list[Equation]:
    """Those of `--initial`; none for random ones. Raises UsageError."""
    if choice == "random":
        return []
    if choice == "known":
        names = ("backprop", "feedback_alignment", "direct_feedback_alignment", "sign_symmetry", "frsf")
        known = [parse(NAMED[n]) for n in names]
        return [e.to_equation(max_parts) for e in known if len(e.to_equation(8).to_parts()) <= max_parts]
    try:
        texts = listed(path_of("initial", choice), "equation")
    except ValueError as error:
        raise UsageError(f"--initial: {error}; write random, known, equations or a file of them") from error
    equations = []
    for place, text in texts:
        try:
            equations.append(resolve(text).to_equation(max_parts))
        except ValueError as error:
            raise UsageError(f"--initial: {place}: {error}") from error
    return equations


def _shortened(split: data.Split, count: int | None) -> data.Split:
    """`split` with the first `count` evaluation examples."""
    return dataclasses.replace(split, eval_images=split.eval_images[:count], eval_labels=split.eval_labels[:count])


def evaluation_command(values: flags.FlagValues) -> EvaluationCommand:
    """All flags of `bpevo.evaluate`, data loaded, the search's winners read. Raises UsageError, DataError or RunError."""
    for name in ("top", "finalists", "tuning_repeats", "selection_repeats", "eval_examples"):
        at_least(name, values[name].value, 1)
    for name in ("repeats", "ablate"):
        at_least(name, values[name].value, 0)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", values.scenario):
        raise UsageError(f"--scenario={values.scenario} must be a name of letters, digits, _ and -")
    if values.scenario in ("report", "checkpoints"):
        raise UsageError(f"--scenario={values.scenario} is the name of a folder that runs use: take another")
    workdir = path_of("workdir", values.workdir or "")
    stored, winning = _search_in(workdir)
    if values.workdir and not stored and not values.rules:
        raise UsageError(f"there is no search in {workdir} to take rules from: give --rules, such as --rules=table1")
    inherited = Inherited(values, stored)
    if len(networks_of(inherited.model)) > 1:
        raise UsageError(
            f"--model={inherited.model}: an evaluation is on one network; give one, such as --model="
            f"{networks_of(inherited.model)[0]}, and each a --scenario of its own"
        )
    (training,) = training_plans(inherited).values()
    train_examples = inherited.train_examples
    if "train_examples" in inherited.names and train_examples == _most_examples(training.dataset):
        train_examples = None  # the search had all but the validation examples: the final training has these too
    likeness = compared(training.fingerprint(), stored, workdir) if stored else ""
    training = dataclasses.replace(training, split=_shortened(training.split, values.eval_examples))
    try:
        read = read_treatments(path_of("rules", values.rules)) if values.rules else []
    except ValueError as error:
        raise UsageError(f"--rules: {error}") from error
    optimizer = training.settings.optimizer
    first = Firsts([*controls(optimizer), *(under(t, optimizer) for t in read)])
    known = tuple(first)
    new = (t for t in winning if first[t] == t and t not in known)  # asks of no more rules than it takes to have --top
    plan = EvaluationPlan(
        controls=controls(optimizer),
        named=tuple(t for t in known if first[t] == t and t not in controls(optimizer)),
        found=tuple(itertools.islice(new, values.top)),
        same={str(t): str(alike) for t, alike in first.items() if t != alike},
        learning_rates=training.learning_rates,
        tuning_repeats=values.tuning_repeats,
        selection_repeats=values.selection_repeats,
        finalists=values.finalists,
        repeats=values.repeats,
        ablate=values.ablate,
    )
    return EvaluationCommand(
        folder=pathlib.Path(workdir) / values.scenario,
        training=training,
        evaluation=plan,
        likeness=likeness,
        slots=values.slots,
        train_examples=train_examples,
        eval_examples=values.eval_examples,
        alignment=values.alignment,
        selfcheck=values.selfcheck,
        max_hours=values.max_hours,
        metrics=values.metrics,
        pool=pool_plan(values),
    )


def _search_in(workdir: str) -> tuple[dict[str, Any], Iterator[Treatment]]:
    """Settings and rules of a workdir's search, best first; nothing where there is none. Raises RunError."""
    if not (pathlib.Path(workdir) / "run.sqlite").is_file():
        return {}, iter(())
    with RunDatabase.reading(workdir) as search:
        return search.settings(), winners(search)


def _most_examples(dataset: data.Dataset) -> int:
    """Training examples where nothing says how many."""
    return len(data.train_validation_split(dataset, None).train_labels)
