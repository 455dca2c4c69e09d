"""The process around a run: its signals, its exit codes, an output that may go away, flags that may be nonsense."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol

from absl import app, flags

from bpevo.command import flag_files
from bpevo.runs import printable

EXIT_ERROR = 2  # the command cannot do what was asked; starting again changes nothing
EXIT_AGAIN = 75  # a device failed (EX_TEMPFAIL): the same command continues
STOPPING = "stopping after the epoch in progress; once more stops at once"
EXIT_SIGNAL = 128  # plus the signal's number: 129 terminal closed, 130 Ctrl-C, 143 terminated


class Stoppable(Protocol):
    def stop(self) -> None: ...


class Interruption:
    """SIGINT, SIGTERM and SIGHUP stop `search` once what it has trained is stored; without one, or again, at once.

    Either way as a KeyboardInterrupt in the main thread. A signal that was ignored when the process began, as under
    nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.search: Stoppable | None = None
        # Shows a line in a live display, which would wipe what is written beside it; says whether there is one.
        self.notice: Callable[[str], bool] = lambda line: False
        self._first = signal.SIGINT
        self._installed = False

    def install(self) -> None:
        self._installed = True
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def restore(self) -> None:
        """Installs again what a library has taken over, if it was installed."""
        if self._installed:
            self.install()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Within a program of one's own: the handlers of before come back. Outside of the main thread nothing is installed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        self.install()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def code(self) -> int:
        return EXIT_SIGNAL + self._first

    def _handle(self, number: int, frame: Any) -> None:
        self._first = signal.Signals(number)
        if self.search is None:
            raise KeyboardInterrupt
        self.search.stop()
        if not self.notice(STOPPING):
            with contextlib.suppress(OSError):  # no print: the signal may have come in the middle of one
                os.write(2, f"{STOPPING}\n".encode())


class Output:
    """A stream that nothing brings down: after a failed write (closed terminal, broken pipe, full disk) it is silent."""

    def __init__(self, stream: IO[str] | None):
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (lives as long as the process)
        reconfigure = getattr(self._stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="replace")

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._silence()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._silence()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _silence(self) -> None:
        """What is still buffered goes nowhere, also when Python flushes at its end."""
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def time_limit(hours: float | None) -> Iterator[None]:
    """Sends this process SIGTERM after so many hours within; None: never."""
    if hours is None:
        yield
        return
    timer = threading.Timer(3600 * hours, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def fail(command: str, error: object, code: int = EXIT_ERROR) -> int:
    """Prints one message to standard error; returns the exit code."""
    with contextlib.suppress(OSError, AttributeError):
        sys.stderr.write(f"{command}: {printable(str(error))}\n")
        sys.stderr.flush()
    return code


def parse_flags(command: str):
    """For `app.run(flags_parser=...)`: a wrong flag or flag file is one message and EXIT_ERROR, --help is no error."""

    def parse(arguments: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS([arguments[0], *flag_files.expanded(arguments[1:])])
        except SystemExit:  # absl's --help, which would exit with 1
            sys.exit(0)
        except flags.Error as error:
            sys.exit(fail(command, f"{error}; --help lists the flags"))
        except ValueError as error:
            sys.exit(fail(command, error))
        if len(rest) > 1:
            sys.exit(fail(command, f"unknown argument {rest[1]!r}: settings are flags, --name=value"))
        return rest

    app.define_help_flags()
    return parse
