"""Command-line flags shared by the commands, and the objects they describe. Everything is checked before anything compiles."""

import dataclasses
import math
import os
from collections.abc import Sequence

import jax
from absl import flags

from bpevo import data, models
from bpevo.evolution import CONTROLLERS, EvolutionSettings, Rung, SearchSpace
from bpevo.rules import NAMED, Equation, parse
from bpevo.search.search import Budget
from bpevo.training import (
    DTYPES,
    OPTIMIZERS,
    SCHEDULES,
    TrainingPlan,
    TrainingSettings,
    most_slots,
)

MAX_SLOTS, MAX_RATE, MAX_STEPS, MAX_FILE = 4096, 1e6, 2**31 - 1, 10**7

_DEFAULTS = TrainingSettings()


class UsageError(ValueError):
    """A flag that cannot be honoured; the message names it and says what to write."""


def define_common() -> None:
    """Flags of every command that trains."""
    flags.DEFINE_string("workdir", None, "Folder of the run: its database and reports. Starting again on it continues.")
    flags.DEFINE_string(
        "dataset", "cifar10", "digits (no download), cifar10, cifar100, svhn_cropped or another TFDS set."
    )
    flags.DEFINE_string("data_dir", None, "TFDS directory; where the dataset is, or is prepared. Default: TFDS's own.")
    flags.DEFINE_integer("train_examples", None, "Train on the first so many of the training examples. Default: all.")
    flags.DEFINE_string(
        "model", _DEFAULTS.model, "wrn-DEPTH-WIDTH (wrn-10-1, wrn-16-2, wrn-28-10) or mlp-HIDDEN-… (mlp-64-64)."
    )
    flags.DEFINE_string("optimizer", _DEFAULTS.optimizer, f"{', '.join(OPTIMIZERS)}: SGD without or with momentum 0.9.")
    flags.DEFINE_list("learning_rates", ["0.1"], "Each equation is trained with each of these; the best counts.")
    flags.DEFINE_float("weight_decay", _DEFAULTS.weight_decay, "L2 gradient on kernels, as a multiple of the weight.")
    flags.DEFINE_integer("batch_size", _DEFAULTS.batch_size, "Examples per step.")
    flags.DEFINE_integer("epochs", _DEFAULTS.epochs, "Epochs of each training.")
    flags.DEFINE_string(
        "schedule",
        _DEFAULTS.schedule,
        f"Learning rate over time: {', '.join(SCHEDULES)}; paper: constant up to 50 epochs, then warmup_cosine.",
    )
    flags.DEFINE_enum(
        "compute_dtype", _DEFAULTS.compute_dtype, tuple(DTYPES), "Of the network; rules compute in float32."
    )
    flags.DEFINE_integer(
        "slots",
        None,
        "Candidates in training at once, over all devices. Default: 4 a CPU device, what fits up to 16 an accelerator.",
    )
    flags.DEFINE_integer("seed", 0, "Root of everything random.")
    flags.DEFINE_bool("selfcheck", True, "Check first that this machine and this JAX compute right numbers.")


def define_search() -> None:
    flags.DEFINE_float(
        "checkpoint_minutes",
        10.0,
        "A training that lasts longer is saved so often, and continues from there. 0: never.",
    )
    flags.DEFINE_integer("max_evaluations", 1000, "Trainings of the search; controls and selection come on top.")
    flags.DEFINE_integer("max_parts", 3, "Parts of the longest equation.")
    flags.DEFINE_string(
        "controller",
        "paper",
        f"What draws the equations: {', '.join(CONTROLLERS)} (the paper's evolution, random search).",
    )
    flags.DEFINE_integer("elite_size", 1000, "N: parents come from the N best with probability p, else from the rest.")
    flags.DEFINE_float("elite_probability", 0.7, "p.")
    flags.DEFINE_list("mutations", ["1"], "Weights of k = 1, 2, … mutations at once.")
    flags.DEFINE_string(
        "initial", "random", "random (N equations), known (backprop and its kin), or a file, one equation per line."
    )
    flags.DEFINE_list("operands", [], "Only these, such as g,h,mean(g). Default: all.")
    flags.DEFINE_list("unaries", [], "Only these, such as relu,clip (all its constants),clip:0.5. Default: all.")
    flags.DEFINE_list("binaries", [], "Only these, such as add,mul,min. Default: all.")
    flags.DEFINE_integer(
        "lag",
        None,
        "Proposal n is drawn from the results up to n - lag. Default: what keeps the slots busy, at least 16.",
    )
    flags.DEFINE_list("stop_epochs", [], "Rungs: after these epochs the bad candidates stop.")
    flags.DEFINE_float(
        "stop_quantile", 0.5, "A candidate goes on only if it reaches this quantile of the earlier ones there."
    )
    flags.DEFINE_integer("halving_eta", 0, "Successive halving: rungs at epochs/η^k, go on in the top 1/η. 0: off.")
    flags.DEFINE_bool("equivalence", True, "Train rules that compute the same only once.")
    flags.DEFINE_integer("top", 5, "Best rules trained again on fresh seeds at the end.")
    flags.DEFINE_integer("repeats", 5, "Fresh seeds of each.")
    flags.DEFINE_string("fork_from", None, "Another run's workdir: a new run begins with what that one found.")


def _numbers(name: str, texts: Sequence[str], kind=float) -> tuple:
    try:
        values = tuple(kind(t) for t in texts)
    except ValueError:
        values = (math.nan,)
    if not all(math.isfinite(v) for v in values):
        raise UsageError(
            f"--{name}={','.join(texts)} must be a list of numbers, such as {'0.1,0.05' if kind is float else '5,10'}"
        )
    return values


def _rates(values: flags.FlagValues) -> tuple[float, ...]:
    rates = _numbers("learning_rates", values.learning_rates)
    if not rates or min(rates) <= 0 or max(rates) > MAX_RATE or len(set(rates)) < len(rates):
        raise UsageError(
            f"--learning_rates={','.join(values.learning_rates)} must be different positive numbers up to {MAX_RATE:,.0f}"
        )
    return rates


def at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UsageError(f"--{name}={value} must be at least {least}")


def training_plan(values: flags.FlagValues) -> TrainingPlan:
    """Checks the common flags and loads the data.

    Raises UsageError or bpevo.data.DataError.
    """
    if not values.workdir:
        raise UsageError("--workdir=FOLDER is needed: where the run's database goes")
    for name in ("slots", "train_examples"):
        at_least(name, values[name].value, 1)
    at_least("seed", values.seed, 0)
    if values.seed >= 2**32:
        raise UsageError(f"--seed={values.seed} must be below 2^32")
    if (values.slots or 1) > MAX_SLOTS:
        raise UsageError(f"--slots={values.slots} must be at most {MAX_SLOTS}")
    rates = _rates(values)
    try:
        settings = TrainingSettings(
            model=values.model,
            optimizer=values.optimizer,
            weight_decay=values.weight_decay,
            batch_size=values.batch_size,
            epochs=values.epochs,
            schedule=values.schedule,
            compute_dtype=values.compute_dtype,
        )
        models.by_name(settings.model)
        dataset = data.load(values.dataset, values.data_dir)
        split = data.train_validation_split(dataset, values.train_examples)
        plan = TrainingPlan(settings=settings, learning_rates=rates, dataset=dataset, split=split, seed=values.seed)
        if settings.epochs * plan.task().steps_per_epoch > MAX_STEPS:
            raise UsageError(f"--epochs={settings.epochs} is more than {MAX_STEPS:,} steps")
    except data.DataError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    return plan


@dataclasses.dataclass(frozen=True)
class SearchSetup:
    controller: str  # one of CONTROLLERS
    space: SearchSpace
    evolution: EvolutionSettings
    initial: list[Equation]
    budget: Budget
    equivalence: bool

    def continuing(self, stored: dict, lag: int | None) -> "SearchSetup":
        """The plan of a run with the settings `stored`: without `lag` its own, however many slots there are now; a fork
        that took over equations alone keeps them as its initial ones."""
        fork, plan = stored.get("fork"), self
        if lag is None and "lag" in stored:
            plan = dataclasses.replace(plan, budget=dataclasses.replace(plan.budget, lag=stored["lag"]))
        if fork and not fork["trainings"]:
            initial = [parse(text).to_equation(self.space.max_parts) for text in stored["initial"]]
            plan = dataclasses.replace(plan, initial=initial)
        return plan

    def fingerprint(self) -> dict:
        space = self.space
        return {
            "controller": self.controller,
            "max_parts": space.max_parts,
            "operands": [str(o) for o in space.operands],
            "unaries": [f"{name}:{c}" for name, c in space.unaries],
            "binaries": space.binaries,
            "evolution": dataclasses.asdict(self.evolution),
            "initial": [str(e) for e in self.initial],
            "lag": self.budget.lag,
            "equivalence": self.equivalence,
        }


def search_setup(values: flags.FlagValues) -> SearchSetup:
    """Checks the search flags. Raises UsageError."""
    for name in ("max_evaluations", "max_parts", "elite_size", "lag", "top", "repeats"):
        at_least(name, values[name].value, 1)
    if not 0 <= values.checkpoint_minutes < math.inf:
        raise UsageError(f"--checkpoint_minutes={values.checkpoint_minutes} must be at least 0")
    if "\0" in (values.fork_from or ""):
        raise UsageError(f"--fork_from={values.fork_from!r} is no path")
    if values.max_parts > 8:
        raise UsageError(f"--max_parts={values.max_parts} must be at most 8")
    rates = _rates(values)
    if values.max_evaluations < len(rates):
        raise UsageError(
            f"--max_evaluations={values.max_evaluations} is less than one training for each of {len(rates)} learning rates"
        )
    if values.controller not in CONTROLLERS:
        raise UsageError(f"controller must be one of {', '.join(CONTROLLERS)}, not {values.controller!r}")
    rungs = _rungs(values)
    slots = values.slots or most_slots(jax.local_devices())
    lag = values.lag or default_lag(slots, len(rates), values.epochs, rungs)
    try:
        space = SearchSpace(values.max_parts, values.operands, values.unaries, values.binaries)
        settings = EvolutionSettings(
            elite_size=values.elite_size,
            elite_probability=values.elite_probability,
            mutations=_numbers("mutations", values.mutations),
            rungs=rungs,
            seed=values.seed,
        )
        initial = _initial(values.initial, values.max_parts)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    budget = Budget(values.max_evaluations, rates, lag, tuple(r.epoch for r in rungs), values.top, values.repeats)
    return SearchSetup(values.controller, space, settings, initial, budget, values.equivalence)


def _rungs(values: flags.FlagValues) -> tuple[Rung, ...]:
    eta, epochs = values.halving_eta, values.epochs
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
    stops = _numbers("stop_epochs", values.stop_epochs, int)
    if any(not 1 <= e < epochs for e in stops) or list(stops) != sorted(set(stops)):
        raise UsageError(f"--stop_epochs={','.join(values.stop_epochs)} must rise, from 1 to below --epochs={epochs}")
    return tuple(Rung(e, values.stop_quantile) for e in stops)


def default_lag(slots: int, rates: int, epochs: int, rungs: tuple[Rung, ...]) -> int:
    """So many proposals that while one trains to its end the other slots have work, were all others to stop at the first rung."""
    longest = max(4, math.ceil(epochs / rungs[0].epoch)) if rungs else 4
    return max(16, math.ceil(slots * longest / rates))


def _initial(choice: str, max_parts: int) -> list[Equation]:
    if choice == "random":
        return []
    if choice == "known":
        names = ("backprop", "feedback_alignment", "direct_feedback_alignment", "sign_symmetry", "frsf")
        known = [parse(NAMED[n]) for n in names]
        return [e.to_equation(max_parts) for e in known if len(e.to_equation(8).to_parts()) <= max_parts]
    return read_equations(choice, max_parts)


def read_equations(path: str | os.PathLike, max_parts: int) -> list[Equation]:
    """Equations of a text file, one per line (a text or a named rule); `#` starts a comment. Raises UsageError."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE + 1)  # bounded: /dev/zero has no end
        if len(content) > MAX_FILE:
            raise UsageError(f"{path} is longer than {MAX_FILE:,} bytes")
        lines = content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a UTF-8 text"
        raise UsageError(
            f"cannot read equations from {path}: {reason}; write random, known or a file's path"
        ) from error
    equations = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                equations.append(parse(NAMED.get(text, text)).to_equation(max_parts))
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: {error}") from error
    if not equations:
        raise UsageError(f"{path} holds no equation")
    return equations
