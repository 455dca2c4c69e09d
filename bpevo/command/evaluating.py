"""An evaluation from its plan to its verdict, whoever asks for it."""

from rich.console import Console

from bpevo import report
from bpevo.command import plans, process, selfcheck
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
