"""An evaluation from its plan to its verdict, whoever asks for it."""

import contextlib
from collections.abc import Sequence

from rich.console import Console

from bpevo import report
from bpevo.command import plans, pools, process, selfcheck
from bpevo.evaluation import Evaluation, LocalWorkplace, PoolWorkplace, Program, Recipes, standings, verdict
from bpevo.evaluation.plan import FREE, SEMANTICS
from bpevo.runs import Row, RunDatabase, RunError


def run(command: plans.EvaluationCommand, console: Console, interruption: process.Interruption | None = None) -> int:
    """Runs an evaluation; returns the exit code."""
    interruption = interruption or process.Interruption()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if command.selfcheck:
        selfcheck.check()
    plan, training = command.evaluation, command.training
    recipes = Recipes(training, command.test_split, plan.max_parts, slots=command.slots, alignment=command.alignment)
    with (
        process.time_limit(command.max_hours),
        RunDatabase.writing(command.folder) as database,
        _pool(command, recipes, interruption, say) as pool,
    ):
        _check_version(command, database)
        database.check_settings(command.fingerprint(), pools.versions(pool), free=FREE)
        for line in (f"{training.dataset.source}; {len(plan.treatments)} rows", command.likeness):
            if line:
                say(line)
        workplace = LocalWorkplace(recipes) if pool is None else PoolWorkplace(recipes, pool)
        stages = report.Stages(console)
        metrics: report.Metrics | None = None

        def watching(stage: str, done: int, wanted: int, rows: Sequence[Row]) -> None:
            stages(stage, done, wanted, rows)
            if metrics:
                metrics.add(rows, evaluation.occupancy)

        evaluation = interruption.search = Evaluation(database, workplace, plan, watching)
        if command.metrics:
            controls = {str(t) for t in plan.controls}
            metrics = report.Metrics(command.metrics, command.folder, evaluation.rows, controls.__contains__, say)
        code = 0
        try:
            evaluation.run()
        except KeyboardInterrupt:
            code = interruption.code
            say("interrupted: every finished training is kept; the same command continues")
        if plan.repeats or not plan.compared:  # what compares without a test is a stage of a funnel, which has a table
            table = standings(evaluation.rows, database.settings())
            console.print(report.standings_table(table, command.folder.name))
            for sentence in verdict(table):
                console.print(sentence, highlight=False, markup=False)
        return code


def _pool(command: plans.EvaluationCommand, recipes: Recipes, interruption: process.Interruption, say):
    if command.pool is None:
        return contextlib.nullcontext()
    first = recipes(False, Program(transforms=command.evaluation.transforms("")))  # what the chains train with
    return pools.opened(command.pool, first, command.selfcheck, interruption, say)


def _check_version(command: plans.EvaluationCommand, database: RunDatabase) -> None:
    """Raises RunError where an evaluation by other rules would be continued."""
    stored = database.settings()
    older = stored.get("semantics", 1)
    if stored and older != SEMANTICS:
        raise RunError(
            f"{command.folder} holds an evaluation by version {older} of the rules of tuning and comparing, this release has "
            f"version {SEMANTICS}: it can be read and reported, but not continued; begin another with --scenario=ANOTHER_NAME"
        )
