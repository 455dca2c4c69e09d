"""Evaluate rules honestly: `python -m bpevo.evaluate --flagfile=launch/evaluate_a1.flags`.

Takes the best rules of the search in --workdir and its settings, or --rules, and beside them the controls: backprop, the
zero signal, backprop with other scales, normalised or clipped gradients, LARS and Adam. Tunes the learning rate of each alike
on the validation set, on a grid that grows until the best is inside, selects the search's rules on fresh seeds, and trains
the finalists on the full training set for their test accuracy: the only place where the test set is read. All results go
into the database in --workdir/--scenario; starting again runs only what is missing. `python -m bpevo.report --workdir=…`
makes tables, plots and a page of it.
"""

from bpevo.command import main, definitions, plans, process, selfcheck  # isort: skip (main comes before jax)
from absl import flags
from rich.console import Console

from bpevo import report
from bpevo.evaluation import Evaluation, LocalWorkplace, standings, verdict
from bpevo.evaluation.plan import FREE, SEMANTICS
from bpevo.runs import RunDatabase, RunError, provenance


def run(command: plans.EvaluationCommand, console: Console, interruption: process.Interruption | None = None) -> int:
    """Runs an evaluation; returns the exit code."""
    interruption = interruption or process.Interruption()
    if command.selfcheck:
        selfcheck.check()
    plan, training = command.evaluation, command.training
    with process.time_limit(command.max_hours), RunDatabase.writing(command.folder) as database:
        _check_version(command, database)
        database.check_settings(command.fingerprint(), provenance.versions(), free=FREE)
        for line in (f"{training.dataset.source}; {len(plan.treatments)} rows", command.likeness):
            if line:
                console.print(line, highlight=False, markup=False, soft_wrap=True)
        workplace = LocalWorkplace(
            training, command.test_split, plan.max_parts, slots=command.slots, alignment=command.alignment
        )
        evaluation = interruption.search = Evaluation(database, workplace, plan, report.Stages(console))
        code = 0
        try:
            evaluation.run()
        except KeyboardInterrupt:
            code = interruption.code
            console.print("interrupted: every finished training is kept; the same command continues", highlight=False)
        table = standings(evaluation.rows, database.settings())
        console.print(report.standings_table(table, command.folder.name))
        for sentence in verdict(table):
            console.print(sentence, highlight=False, markup=False)
        return code


def _check_version(command: plans.EvaluationCommand, database: RunDatabase) -> None:
    """Raises RunError where an evaluation by other rules would be continued."""
    stored = database.settings()
    older = stored.get("semantics", 1)
    if stored and older != SEMANTICS:
        raise RunError(
            f"{command.folder} holds an evaluation by version {older} of the rules of tuning and comparing, this release has "
            f"version {SEMANTICS}: it can be read and reported, but not continued; begin another with --scenario=ANOTHER_NAME"
        )


def _run(values: flags.FlagValues, console: Console, interruption: process.Interruption) -> int:
    return run(plans.evaluation_command(values), console, interruption)


if __name__ == "__main__":
    main.start("bpevo.evaluate", (definitions.define_common, definitions.define_evaluation), _run)
