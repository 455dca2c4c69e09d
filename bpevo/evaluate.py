"""Evaluate rules honestly: `python -m bpevo.evaluate --flagfile=launch/evaluate_a1.flags`.

Takes the best rules of the search in --workdir, or --rules, and beside them backprop, the zero signal and two hand-made
cousins of the paper's winners. Tunes the learning rate of each alike on the validation set, selects the search's rules on
fresh seeds, and trains the finalists on the full training set for their test accuracy: the only place where the
test set is read. All results go into the database in --workdir/--scenario; starting again runs only what is missing.
`python -m bpevo.report --workdir=…` makes tables, plots and a page of it.
"""

import sys

from bpevo.command.jax_setup import configure_jax  # isort: skip (sets the log level before jax loads)
from absl import app, flags
from rich.console import Console

from bpevo import report
from bpevo.command import flags as run_flags
from bpevo.command import process, selfcheck
from bpevo.data import DataError
from bpevo.evaluation import Evaluation, standings, verdict
from bpevo.evaluation import scenario as scenarios
from bpevo.runs import RunDatabase, RunError, provenance
from bpevo.training import DeviceLost, OutOfMemory


def run(values: flags.FlagValues, console: Console, interruption: process.Interruption | None = None) -> int:
    """Runs the evaluation that the flags describe; returns the exit code."""
    scenario = scenarios.scenario(values)
    interruption = interruption or process.Interruption()
    if values.selfcheck:
        selfcheck.check()
    with RunDatabase.writing(scenario.folder) as database:
        database.check_settings(scenario.fingerprint(), provenance.versions(), free=scenarios.FREE)
        console.print(f"{scenario.training.dataset.source}; {len(scenario.plan.treatments)} rows", highlight=False)
        progress = report.Stages(console)
        workplace = scenarios.Workplace(scenario)
        experiment = interruption.search = Evaluation(database, workplace, scenario.plan, scenario.max_parts, progress)
        code = 0
        try:
            experiment.run()
        except KeyboardInterrupt:
            code = interruption.code
            console.print("interrupted: every finished training is kept; the same command continues", highlight=False)
        rows = standings(experiment.rows, database.costs(), database.settings())
        console.print(report.standings_table(rows, scenario.folder.name))
        for sentence in verdict(rows):
            console.print(sentence, highlight=False, markup=False)
        return code


def main(argv: list[str]) -> None:
    interruption = process.Interruption()
    interruption.install()
    configure_jax()
    try:
        code = run(flags.FLAGS, Console(file=process.Output(sys.stdout)), interruption)
    except (run_flags.UsageError, DataError, RunError, OutOfMemory) as error:
        code = process.fail("bpevo.evaluate", error)
    except DeviceLost as error:
        code = process.fail("bpevo.evaluate", error, process.EXIT_AGAIN)
    except KeyboardInterrupt:
        code = interruption.code
    sys.exit(code)


if __name__ == "__main__":
    run_flags.define_common()
    scenarios.define_evaluation()
    flags.adopt_module_key_flags(run_flags)  # for --help
    flags.adopt_module_key_flags(scenarios)
    app.run(main, flags_parser=process.parse_flags("bpevo.evaluate"))
