"""Evaluate rules honestly: `python -m bpevo.evaluate --flagfile=launch/evaluate_a1.flags`.

Takes the best rules of the search in --workdir and its settings, or --rules, and beside them the controls: backprop, the
zero signal, backprop with other scales, normalised or clipped gradients, LARS and Adam. Tunes the learning rate of each alike
on the validation set, on a grid that grows until the best is inside, selects the search's rules on fresh seeds, and trains
the finalists on the full training set for their test accuracy: the only place where the test set is read. All results go
into the database in --workdir/--scenario; starting again runs only what is missing. `python -m bpevo.report --workdir=…`
makes tables, plots and a page of it.
"""

from bpevo.command import main, definitions, plans, process  # isort: skip (main comes before jax)
from absl import flags
from rich.console import Console

from bpevo.command.evaluating import run


def _run(values: flags.FlagValues, console: Console, interruption: process.Interruption) -> int:
    return run(plans.evaluation_command(values), console, interruption)


if __name__ == "__main__":
    main.start("bpevo.evaluate", (definitions.define_common, definitions.define_evaluation), _run)
