"""Search for backward equations: `python -m bpevo.launch --flagfile=launch/quickstart.flags`.

Trains candidate equations in parallel slots on every local device and evolves them. All results go into the database
in --workdir; starting again on the same workdir continues. Ends, also after Ctrl-C, with a leaderboard in which
backprop and a control without any hidden signal stand beside the rules that were found.
"""

from bpevo.command import main, definitions, plans, process  # isort: skip (main comes before jax)
from absl import flags
from rich.console import Console

from bpevo.command.searching import run


def _run(values: flags.FlagValues, console: Console, interruption: process.Interruption) -> int:
    return run(plans.search_command(values), console, interruption)


if __name__ == "__main__":
    main.start("bpevo.launch", (definitions.define_common, definitions.define_search), _run)
