"""A search from its plan to its leaderboard, whoever asks for it."""

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import jax
from rich.console import Console

from bpevo import report
from bpevo.command import plans, pools, process, selfcheck
from bpevo.evolution import CONTROLLERS, SameFunction, SameText
from bpevo.rules import parse
from bpevo.runs import Row, RunDatabase, RunError, provenance
from bpevo.search import CONTROL_KEYS, SEMANTICS, Search, fork
from bpevo.workers import Checkpoints, LocalWorkers, Pool, Recipe, Workers, WorkersByNetwork


def run(command: plans.SearchCommand, console: Console, interruption: process.Interruption | None = None) -> int:
    """Runs a search; returns the exit code."""
    if command.selfcheck:
        selfcheck.check()
    interruption = interruption or process.Interruption()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    with (
        process.time_limit(command.max_hours),
        RunDatabase.writing(command.workdir) as database,
        _pool(command, interruption, say) as pool,
    ):
        command = _settled(command, database, pools.versions(pool), say)
        plan, training = command.search, command.training
        say(f"{training.dataset.source}; {len(training.split.train_labels):,} training examples")
        watches: list[Callable[[Search, Sequence[Row]], None]] = []
        checkpoints: Checkpoints | None = None
        workers: Workers
        if pool is not None:
            workers = pool
            if command.checkpoint_minutes:
                say("a pool writes no checkpoints: a training that is cut off begins again")
        else:
            checkpoints = _checkpoints(command, say)
            trainers = _recipe(command).trainers()
            workers = WorkersByNetwork({name: LocalWorkers(each, checkpoints, say) for name, each in trainers.items()})
            forecast = report.Forecast(plan, list(trainers.values()), say)
            forecast.start()
            watches.append(forecast)
        duplicates = SameFunction() if plan.equivalence else SameText()
        controller = CONTROLLERS[plan.controller](plan.space, plan.evolution, plan.initial, duplicates)
        progress = report.Progress(console)
        watches.append(progress)
        interruption.notice = progress.notice

        def watching(search: Search, rows: Sequence[Row]) -> None:
            for watch in watches:
                watch(search, rows)

        search = interruption.search = Search(database, controller, workers, plan, watching)
        if command.metrics:
            metrics = report.Metrics(command.metrics, command.workdir, search.rows, _is_control, say)
            watches.append(lambda search, rows: metrics.add(rows, search.occupancy))
        code = 0
        try:
            with progress.running():
                search.run()
            if checkpoints:
                checkpoints.clear()
        except KeyboardInterrupt:
            code = interruption.code
            say("interrupted: every finished training is kept; the same command continues")
        if search.exhausted:
            say(search.exhausted)
        s = training.settings
        network = " / ".join(command.trainings)
        title = f"{network} on {training.dataset.name}, {s.optimizer}, {s.epochs} epochs, validation accuracy"
        board = report.leaderboard(search.judged, plan.top, plan.learning_rates, plan.networks)
        front = report.front(search.judged)
        database.store_tables(map(report.plain, board), (row.plain for row in front))
        console.print(report.table(board, title))
        if front:
            console.print(report.front_table(front))
        validation, held_out = len(training.split.eval_labels), training.held_out
        proposals, epochs = len(search.proposals), search.rows.slot_epochs
        spent = f"{search.done:,} trainings of {proposals:,} proposals, {epochs:,} slot-epochs in all."
        for line in [spent, *report.remarks(board, held_out, validation - held_out), *_next(command)]:
            say(line)
        return code


def _pool(command: plans.SearchCommand, interruption: process.Interruption, say) -> AbstractContextManager[Pool | None]:
    if command.pool is None:
        return contextlib.nullcontext()
    return pools.opened(command.pool, _recipe(command), command.selfcheck, interruption, say)


def _recipe(command: plans.SearchCommand) -> Recipe:
    training, search = command.training, command.search
    tasks = (of.task() for of in command.trainings.values())
    return Recipe(
        tasks=dict(zip(search.networks.names, tasks, strict=True)),
        examples=training.examples(),
        max_parts=search.space.max_parts,
        seed=training.seed,
        slots=command.slots,
    )


def _is_control(text: str) -> bool:
    return parse(text).key in CONTROL_KEYS


def _next(command: plans.SearchCommand) -> list[str]:
    """The commands that go on from here."""
    options = {"workdir": command.workdir} | ({"data_dir": command.data_dir} if command.data_dir else {})
    if command.search.networks.several:
        options["model"] = command.training.settings.model
    given = shlex.join(f"--{name}={value}" for name, value in options.items())
    workdir = shlex.quote(f"--workdir={command.workdir}")
    return [
        f"next: python -m bpevo.evaluate {given}  (tunes and tests these rules beside every control)",
        f"      python -m bpevo.report {workdir}  (a page with plots)",
    ]


def _settled(command: plans.SearchCommand, database: RunDatabase, versions: dict[str, str], say) -> plans.SearchCommand:
    """The command after the run's own settings were compared with it, or stored; a new run may begin as a fork."""
    stored = database.settings()
    forked = stored.get("fork")
    if stored:
        older = stored.get("semantics", 1)
        if older != SEMANTICS:
            raise RunError(
                f"{command.workdir} holds a search by version {older} of the rules of selection, this release has version "
                f"{SEMANTICS}: it can be read, reported and evaluated, but not continued. To go on with what it found: python -m "
                f"bpevo.launch … --workdir=ANOTHER_FOLDER --fork_from={command.workdir}"
            )
        command = dataclasses.replace(
            command, search=command.search.continuing(stored, command.lag, command.elite_size)
        )
        changed = provenance.changed_numerics(database.first_versions(), versions)
        if changed:
            say(f"not bit-identical to its beginning: {changed}")
        if command.fork_from and (forked or {}).get("from") != os.path.realpath(command.fork_from):
            raise RunError(
                f"{command.workdir} holds a run already: --fork_from={command.fork_from} needs another --workdir"
            )
    elif command.fork_from:
        plan, forked, line = fork.begin(database, command.fork_from, command.search, command.fingerprint(), versions)
        command = dataclasses.replace(command, search=plan)
        say(line)
    free = {"max_evaluations": command.search.max_evaluations, "fork": forked, "data_dir": command.data_dir}
    database.check_settings(command.fingerprint() | free, versions, free=tuple(free))
    return command


def _checkpoints(command: plans.SearchCommand, say) -> Checkpoints | None:
    if not command.checkpoint_minutes:
        return None
    versions = provenance.versions()
    identity = command.training.fingerprint() | {"max_parts": command.search.space.max_parts}
    identity |= {"device": jax.local_devices()[0].device_kind}
    kinds = ("bpevo", "jax", "jaxlib", "flax", "optax", "matmul precision", "XLA_FLAGS", "registered", "rules")
    identity |= {k: versions[k] for k in kinds}
    folder = os.path.join(command.workdir, "checkpoints")
    try:
        return Checkpoints(folder, identity, command.checkpoint_minutes, say)
    except OSError as error:
        raise RunError(
            f"cannot keep checkpoints in {folder}: {error.strerror}; --checkpoint_minutes=0 does without"
        ) from error
