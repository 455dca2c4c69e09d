"""Search for backward equations: `python -m bpevo.launch --flagfile=launch/quickstart.flags`.

Trains candidate equations in parallel slots on every local device and evolves them. All results go into the database
in --workdir; starting again on the same workdir continues. Ends, also after Ctrl-C, with a leaderboard in which
backprop and a control without any hidden signal stand beside the rules that were found.
"""

import contextlib
import os
import sys

from bpevo.command.jax_setup import configure_jax  # isort: skip (sets the log level before jax loads)
import jax
from absl import app, flags
from rich.console import Console

from bpevo import report
from bpevo.command import flags as run_flags
from bpevo.command import process, selfcheck
from bpevo.data import DataError
from bpevo.evolution import CONTROLLERS, functional_key
from bpevo.runs import RunDatabase, RunError, provenance
from bpevo.search import Search, fork
from bpevo.training import DeviceLost, OutOfMemory, TrainingPlan
from bpevo.workers import Checkpoints, LocalWorkers


def run(values: flags.FlagValues, console: Console, interruption: process.Interruption | None = None) -> int:
    """Runs the search that the flags describe; returns the exit code."""
    plan = run_flags.search_setup(values)
    training = run_flags.training_plan(values)
    if values.selfcheck:
        selfcheck.check()
    interruption = interruption or process.Interruption()
    with RunDatabase.writing(values.workdir) as database:
        plan = _settled(values, database, plan, training, console)
        data = training.dataset
        size = f"{len(training.split.train_labels):,} training examples"
        console.print(f"{data.source}; {size}", highlight=False, soft_wrap=True)
        checkpoints = _checkpoints(values, plan, training, console)
        trainer = training.trainer(plan.space.max_parts, values.slots)
        workers = LocalWorkers(trainer, checkpoints, lambda line: console.print(line, markup=False, highlight=False))
        key = functional_key if plan.equivalence else (lambda equation: equation.key)
        controller = CONTROLLERS[plan.controller](plan.space, plan.evolution, plan.initial, key)
        progress = report.Progress(console)
        search = interruption.search = Search(database, controller, workers, plan.budget, progress)
        code = 0
        try:
            with progress.running():
                search.run()
            if checkpoints:
                checkpoints.clear()
        except KeyboardInterrupt:
            code = interruption.code
            console.print("interrupted: every finished training is kept; the same command continues", highlight=False)
            with contextlib.suppress(KeyboardInterrupt):
                workers.suspend()
        if search.exhausted:
            console.print(search.exhausted, highlight=False)
        rows = report.leaderboard(search.rows, database.costs(), plan.budget.top)
        title = f"{values.model} on {data.name}, {values.optimizer}, {values.epochs} epochs, validation accuracy"
        console.print(report.table(rows, title))
        return code


def _settled(
    values: flags.FlagValues,
    database: RunDatabase,
    plan: run_flags.SearchSetup,
    training: TrainingPlan,
    console: Console,
) -> run_flags.SearchSetup:
    """The plan after the run's own settings were compared with it, or stored; a new run may begin as a fork."""
    stored, versions = database.settings(), provenance.versions()
    forked = stored.get("fork")
    if stored:
        plan = plan.continuing(stored, values.lag)
        changed = provenance.changed_numerics(database.versions(), versions)
        if changed:
            console.print(f"not bit-identical to its beginning: {changed}", markup=False, highlight=False)
        if values.fork_from and (forked or {}).get("from") != os.path.realpath(values.fork_from):
            raise RunError(
                f"{values.workdir} holds a run already: --fork_from={values.fork_from} needs another --workdir"
            )
    elif values.fork_from:
        plan, forked, line = fork.begin(database, values.fork_from, plan, training.fingerprint(), versions)
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    settings = training.fingerprint() | plan.fingerprint() | {"max_evaluations": values.max_evaluations, "fork": forked}
    database.check_settings(settings, versions, free=("max_evaluations", "fork"))
    return plan


def _checkpoints(
    values: flags.FlagValues, plan: run_flags.SearchSetup, training: TrainingPlan, console: Console
) -> Checkpoints | None:
    if not values.checkpoint_minutes:
        return None
    versions = provenance.versions()
    identity = training.fingerprint() | {"max_parts": plan.space.max_parts}
    identity |= {k: versions[k] for k in ("bpevo", "jax", "jaxlib", "flax", "optax")}
    identity |= {"device": jax.local_devices()[0].device_kind}
    try:
        return Checkpoints(
            os.path.join(values.workdir, "checkpoints"), identity, values.checkpoint_minutes,
            lambda line: console.print(line, markup=False, highlight=False),
        )  # fmt: skip
    except OSError as error:
        raise RunError(
            f"cannot keep checkpoints in {values.workdir}/checkpoints: {error.strerror}; --checkpoint_minutes=0 does without"
        ) from error


def main(argv: list[str]) -> None:
    interruption = process.Interruption()
    interruption.install()
    configure_jax()
    console = Console(file=process.Output(sys.stdout))
    try:
        code = run(flags.FLAGS, console, interruption)
    except (run_flags.UsageError, DataError, RunError, OutOfMemory) as error:
        code = process.fail("bpevo.launch", error)
    except DeviceLost as error:
        code = process.fail("bpevo.launch", error, process.EXIT_AGAIN)
    except KeyboardInterrupt:
        code = interruption.code
    sys.exit(code)


if __name__ == "__main__":
    run_flags.define_common()
    run_flags.define_search()
    flags.adopt_module_key_flags(run_flags)  # for --help
    app.run(main, flags_parser=process.parse_flags("bpevo.launch"))
