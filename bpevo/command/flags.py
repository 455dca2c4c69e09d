"""Command-line flags shared by the commands, and the objects they describe. Everything is checked before anything compiles."""

import dataclasses
import math
import os
import zlib
from collections.abc import Sequence

import jax
from absl import flags

from bpevo import data, models
from bpevo.evolution import EvolutionSettings, Rung, SearchSpace
from bpevo.rules import NAMED, Equation, parse
from bpevo.runs.provenance import NUMERICS
from bpevo.search.search import Budget
from bpevo.training import (
    DTYPES,
    OPTIMIZERS,
    SCHEDULES,
    Examples,
    Task,
    Trainer,
    TrainingSettings,
    most_slots,
    to_examples,
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
    flags.DEFINE_enum("optimizer", _DEFAULTS.optimizer, OPTIMIZERS, "SGD without or with momentum 0.9.")
    flags.DEFINE_list("learning_rates", ["0.1"], "Each equation is trained with each of these; the best counts.")
    flags.DEFINE_float("weight_decay", _DEFAULTS.weight_decay, "L2 gradient on kernels, as a multiple of the weight.")
    flags.DEFINE_integer("batch_size", _DEFAULTS.batch_size, "Examples per step.")
    flags.DEFINE_integer("epochs", _DEFAULTS.epochs, "Epochs of each training.")
    flags.DEFINE_enum(
        "schedule",
        _DEFAULTS.schedule,
        SCHEDULES,
        "Learning rate over time; paper: constant up to 50 epochs, then warmup_cosine.",
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


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the flags of a training command describe, data loaded."""

    settings: TrainingSettings
    learning_rates: tuple[float, ...]
    dataset: data.Dataset
    split: data.Split
    seed: int

    def task(self) -> Task:
        return Task(
            self.settings, self.dataset.num_classes, len(self.split.train_labels), self.dataset.flip, self.dataset.pad
        )

    def examples(self) -> Examples:
        return to_examples(self.split, self.settings.batch_size)

    def trainer(self, max_parts: int, slots: int | None) -> Trainer:
        return Trainer(self.task(), self.examples(), slots, max_parts, self.seed)

    def fingerprint(self) -> dict:
        """What two runs must share to be comparable."""
        digest = zlib.crc32(self.split.train_images.tobytes() + self.split.eval_images.tobytes())
        return dataclasses.asdict(self.settings) | {
            "dataset": self.dataset.name,
            "dataset_crc32": digest,
            "train_examples": len(self.split.train_labels),
            "learning_rates": list(self.learning_rates),
            "seed": self.seed,
            "numerics": NUMERICS,
        }


def setup(values: flags.FlagValues) -> Setup:
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
            values.model,
            values.optimizer,
            values.weight_decay,
            values.batch_size,
            values.epochs,
            values.schedule,
            values.compute_dtype,
        )
        models.by_name(settings.model)
        dataset = data.load(values.dataset, values.data_dir)
        split = data.train_validation_split(dataset, values.train_examples)
        result = Setup(settings, rates, dataset, split, values.seed)
        if settings.epochs * result.task().steps_per_epoch > MAX_STEPS:
            raise UsageError(f"--epochs={settings.epochs} is more than {MAX_STEPS:,} steps")
    except data.DataError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    return result


@dataclasses.dataclass(frozen=True)
class SearchSetup:
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
    rungs = _rungs(values)
    slots = values.slots or most_slots(jax.local_devices())
    lag = values.lag or default_lag(slots, len(rates), values.epochs, rungs)
    try:
        space = SearchSpace(values.max_parts, values.operands, values.unaries, values.binaries)
        settings = EvolutionSettings(
            values.elite_size, values.elite_probability, _numbers("mutations", values.mutations), rungs, values.seed
        )
        initial = _initial(values.initial, values.max_parts)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    budget = Budget(values.max_evaluations, rates, lag, tuple(r.epoch for r in rungs), values.top, values.repeats)
    return SearchSetup(space, settings, initial, budget, values.equivalence)


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
