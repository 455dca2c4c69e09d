"""The flags that every command which trains has: checked, with the data, into a training plan for each network."""

import importlib.util
import math
import os
from collections.abc import Sequence

from absl import flags

from bpevo import data, models
from bpevo.command.inherited import Inherited
from bpevo.rules import InterpretedRule, blank_program
from bpevo.training import DTYPES, TrainingPlan, TrainingSettings

MAX_SLOTS, MAX_RATE, MAX_STEPS = 4096, 1e6, 2**31 - 1


class UsageError(ValueError):
    """A flag that cannot be honoured; the message names it and says what to write."""


def numbers(name: str, texts: Sequence[str], kind=float) -> tuple:
    """The finite numbers that a flag lists. Raises UsageError."""
    try:
        values = tuple(kind(t) for t in texts)
    except ValueError:
        values = (math.nan,)
    if not all(math.isfinite(v) for v in values):
        raise UsageError(
            f"--{name}={','.join(texts)} must be a list of numbers, such as {'0.1,0.05' if kind is float else '5,10'}"
        )
    return values


def rates_of(values: flags.FlagValues | Inherited) -> tuple[float, ...]:
    """The learning rates. Raises UsageError."""
    rates = numbers("learning_rates", values.learning_rates)
    if not rates or min(rates) <= 0 or max(rates) > MAX_RATE or len(set(rates)) < len(rates):
        raise UsageError(
            f"--learning_rates={','.join(values.learning_rates)} must be different positive numbers up to {MAX_RATE:,.0f}"
        )
    return rates


def path_of(name: str, value: str) -> str:
    """The path that a flag gives, `~` replaced by the home directory. Raises UsageError where none is known."""
    path = os.path.expanduser(value)
    if path.startswith("~") and value.partition("/")[0] == "~":
        raise UsageError(f"--{name}={value}: no home directory is known; write the whole path")
    return path


def at_least(name: str, value: int | None, least: int) -> None:
    """Raises UsageError where a flag has a value below `least`."""
    if value is not None and value < least:
        raise UsageError(f"--{name}={value} must be at least {least}")


def training_plans(values: flags.FlagValues | Inherited) -> dict[str, TrainingPlan]:
    """Checks the common flags and loads the data; a plan for each network, by its name.

    Raises UsageError or bpevo.data.DataError.
    """
    if not values.workdir:
        raise UsageError("--workdir=FOLDER is needed: where the run's database goes")
    for name in ("slots", "train_examples"):
        at_least(name, values[name].value, 1)
    at_least("seed", values.seed, 0)
    if values.max_hours is not None and not 0 < values.max_hours < 10**5:
        raise UsageError(f"--max_hours={values.max_hours:g} must be above 0 and below 100,000")
    if values.metrics == "tensorboard" and not importlib.util.find_spec("tensorboardX"):
        raise UsageError("--metrics=tensorboard needs tensorboardX: pip install tensorboardX, or write --metrics=csv")
    if values.seed >= 2**32:
        raise UsageError(f"--seed={values.seed} must be below 2^32")
    if (values.slots or 1) > MAX_SLOTS:
        raise UsageError(f"--slots={values.slots} must be at most {MAX_SLOTS}")
    rates, names = rates_of(values), networks_of(values.model)
    plans: dict[str, TrainingPlan] = {}
    try:
        every = [
            TrainingSettings(
                model=name,
                optimizer=values.optimizer,
                weight_decay=values.weight_decay,
                batch_size=values.batch_size,
                epochs=values.epochs,
                schedule=values.schedule,
                compute_dtype=values.compute_dtype,
            )
            for name in names
        ]
        for settings in every:
            models.by_name(settings.model, dtype=DTYPES[settings.compute_dtype])
        dataset = data.load(values.dataset, values.data_dir)
        split = data.train_validation_split(dataset, values.train_examples)
        for settings in every:
            plan = TrainingPlan(settings=settings, learning_rates=rates, dataset=dataset, split=split, seed=values.seed)
            plans[settings.model] = plan
            if settings.epochs * plan.task().steps_per_epoch > MAX_STEPS:
                raise UsageError(f"--epochs={settings.epochs} is more than {MAX_STEPS:,} steps")
            sample = split.train_images.shape[1:]
            models.fingerprint(settings.model, dataset.num_classes, sample)  # one's own: it can be trained on them
            plan.task().blank(
                InterpretedRule(blank_program(1)), sample
            )  # any: it takes them, and its units take any rule
    except data.DataError:
        raise
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    return plans


def networks_of(model: str) -> tuple[str, ...]:
    """The networks that `--model` names. Raises UsageError."""
    names = tuple(name.strip() for name in model.split(";"))
    if len(names) > 1 and ("" in names or len(set(names)) < len(names)):
        raise UsageError(f"--model={model} must be a network, or different ones separated by ';'")
    return names
