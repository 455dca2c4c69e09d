"""A funnel from its stages to its table, whoever asks for it: evaluations one after the other, each of what the last one kept."""

import dataclasses
from collections.abc import Mapping

from absl import flags
from rich.console import Console

from bpevo import report
from bpevo.command import definitions, evaluating, plans, process
from bpevo.command.inherited import NAMES
from bpevo.evaluation import Passed, passed, read_stages
from bpevo.evaluation.duplicates import Firsts
from bpevo.evaluation.treatments import under
from bpevo.runs import RunDatabase


def run(values: flags.FlagValues, console: Console, interruption: process.Interruption | None = None) -> int:
    """Runs a funnel; returns the exit code."""
    return climb(funnel_commands(values), values.max_hours, console, interruption)


def climb(
    commands: Mapping[str, plans.EvaluationCommand],
    max_hours: float | None,
    console: Console,
    interruption: process.Interruption | None = None,
) -> int:
    """Runs the evaluations of `funnel_commands`; returns the exit code."""
    stages: list[Passed] = []
    code = 0
    with process.time_limit(max_hours):
        for title, command in commands.items():
            if stages:
                optimizer, plan = command.training.settings.optimizer, command.evaluation
                first = Firsts(
                    [*plan.controls, *(under(t, optimizer) for t in stages[-1].went_on)]
                )  # which may have changed
                found = tuple(t for t in first if first[t] == t and t not in plan.controls)
                plan = dataclasses.replace(plan, found=found)
                command = dataclasses.replace(command, evaluation=plan, selfcheck=False)
            line = f"{title}: {len(command.evaluation.found)} rules"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
            code = evaluating.run(command, console, interruption)
            with RunDatabase.reading(command.folder) as database:
                stages.append(passed(database.rows(), command.evaluation))
            if code:
                break
    console.print(report.funnel_table(stages))
    for sentence in report.funnel_notes(list(commands)[: len(stages)], stages):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    return code


def funnel_commands(values: flags.FlagValues) -> dict[str, plans.EvaluationCommand]:
    """The stages' evaluations by title, data loaded: in each the settings of the one before but for what it changes, seeds of
    its own, and no test but in the last. Raises UsageError, DataError or RunError."""
    if not values.stages:
        raise plans.UsageError("--stages is needed, such as --stages='train_examples=500 keep=20; epochs=10 keep=5'")
    try:
        stages = read_stages(values.stages, NAMES)
    except ValueError as error:
        raise plans.UsageError(f"--stages: {error}") from error
    if values["finalists"].present:
        raise plans.UsageError(f"--finalists={values.finalists} is of an evaluation: in a funnel keep says who goes on")
    changes: dict[str, str] = {}
    commands = {}
    for number, stage in enumerate(stages, 1):
        changes |= stage.changes
        last = number == len(stages)
        given = {"scenario": f"{values.scenario}-{number}", "finalists": stage.keep} | (
            {} if last else {"repeats": 0, "ablate": 0}
        )
        try:
            command = plans.evaluation_command(_changed(values, changes | given))
        except plans.UsageError as error:
            raise plans.UsageError(f"stage {number} of --stages: {error}") from error
        plan, training = command.evaluation, command.training
        found = tuple(dict.fromkeys([*plan.named, *plan.found]))
        changed = ", ".join(f"{name}={value}" for name, value in stage.changes.items())
        commands[f"stage {number} ({changed or 'as given'})"] = dataclasses.replace(
            command,
            training=dataclasses.replace(training, seed=(training.seed + number) % 2**32),
            evaluation=dataclasses.replace(plan, named=(), found=found, compared=True),
            max_hours=None,
        )
    return commands


def _changed(values: flags.FlagValues, changes: Mapping[str, object]) -> flags.FlagValues:
    """The flags of an evaluation as they were given, with some changed."""
    made = flags.FlagValues()
    for define in (definitions.define_common, definitions.define_evaluation):
        define(made)
    given = [values[name].serialize() for name in made if values[name].present]
    try:
        made(["", *given, *(f"--{name}={value}" for name, value in changes.items())])
    except flags.Error as error:
        raise plans.UsageError(str(error)) from None
    return made
