"""The main program that every command shares: flags, signals, jax, one message for what goes wrong, the exit code."""

import sys
from collections.abc import Callable, Sequence
from typing import IO, cast

from bpevo.command.jax_setup import configure_jax  # isort: skip (sets the log level before jax loads)
from absl import app, flags
from rich.console import Console

from bpevo.command import process
from bpevo.command.plans import UsageError
from bpevo.data import DataError
from bpevo.runs import RunError
from bpevo.training import DeviceLost, OutOfMemory
from bpevo.workers import PoolError

flags.disclaim_key_flags()
Run = Callable[[flags.FlagValues, Console, process.Interruption], int]


def on_a_pool(values: flags.FlagValues) -> bool:
    return "pool" in values and values.pool != "local"


def start(
    name: str,
    definitions: Sequence[Callable[[], None]],
    run: Run,
    elsewhere: Callable[[flags.FlagValues], bool] = on_a_pool,
) -> None:
    """Ends the process with what `run` returns, or with the exit code of its error.

    Args:
      name: the command's, such as `bpevo.launch`; its messages begin with it.
      definitions: each defines flags.
      run: does the command's work.
      elsewhere: whether other processes train, so that this one takes no accelerator.
    """
    for define in definitions:
        define()

    def main(argv: list[str]) -> None:
        interruption = process.Interruption()
        interruption.install()
        try:
            configure_jax(leave_accelerators=elsewhere(flags.FLAGS))
            code = run(flags.FLAGS, Console(file=cast(IO[str], process.Output(sys.stdout))), interruption)
        except (UsageError, DataError, RunError, OutOfMemory, PoolError) as error:
            code = process.fail(name, error)
        except DeviceLost as error:
            code = process.fail(name, error, process.EXIT_AGAIN)
        except KeyboardInterrupt:
            code = interruption.code
        sys.exit(code)

    app.run(main, flags_parser=process.parse_flags(name))
