"""Search for backward equations: `python -m bpevo.launch --flagfile=launch/quickstart.flags`.

Trains candidate equations in parallel slots on every local device and evolves them. All results go into the database
in --workdir; starting again on the same workdir continues. Ends, also after Ctrl-C, with a leaderboard in which
backprop and a control without any hidden signal stand beside the rules that were found.
"""

import logging
import os
import signal
import sys

import jax
from absl import app, flags
from rich.console import Console

from bpevo import report
from bpevo.data import DataError
from bpevo.evolution import Proposer, functional_key
from bpevo.runs import RunDatabase, RunError, Search
from bpevo.runs import flags as run_flags
from bpevo.training import OutOfMemory
from bpevo.workers import LocalWorkers

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


def configure_jax() -> None:
    """A device per core where there is no accelerator, and a persistent compilation cache. Before any other use of jax."""
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)  # tells which backends are absent
    if not os.environ.get("JAX_NUM_CPU_DEVICES") and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "bpevo", "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def run(values: flags.FlagValues, console: Console) -> int:
    """Runs the search that the flags describe; returns the exit code."""
    plan = run_flags.search_setup(values)
    training = run_flags.setup(values)
    with RunDatabase.writing(values.workdir) as database:
        database.check_settings(
            training.fingerprint() | plan.fingerprint() | {"max_evaluations": values.max_evaluations},
            run_flags.versions(),
            free=("max_evaluations",),
        )
        data = training.dataset
        console.print(f"{data.source}; {len(training.split.train_labels):,} training examples", highlight=False)
        workers = LocalWorkers(training.trainer(plan.space.max_parts, values.slots))
        key = functional_key if plan.equivalence else (lambda equation: equation.key)
        proposer = Proposer(plan.space, plan.evolution, plan.initial, key)
        progress = report.Progress(console)
        search = Search(database, proposer, workers, plan.budget, progress)
        code = 0
        try:
            with progress.running():
                search.run()
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
            console.print("interrupted: every finished training is kept; the same command continues", highlight=False)
        if search.exhausted:
            console.print(search.exhausted, highlight=False)
        rows = report.leaderboard(search.evaluations, database.costs(), plan.budget.top)
        title = f"{values.model} on {data.name}, {values.optimizer}, {values.epochs} epochs, validation accuracy"
        console.print(report.table(rows, title))
        return code


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}: settings are flags, --name=value")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    configure_jax()
    console = Console()
    try:
        code = run(flags.FLAGS, console)
    except (run_flags.UsageError, DataError, RunError, OutOfMemory) as error:
        print(f"bpevo.launch: {error}", file=sys.stderr)
        code = EXIT_ERROR
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    run_flags.define_common()
    run_flags.define_search()
    flags.adopt_module_key_flags(run_flags)  # for --help
    app.run(main)
