"""Progress of downloads and decoding: a bar on a terminal, log lines elsewhere, or the caller's own hook."""

import contextlib
import time
from collections.abc import Callable, Iterator

from absl import logging
from rich.console import Console
from rich.progress import Progress as Bars

Progress = Callable[[str, int, int], None]
"""Called as `progress(task, done, total)`: what is being done, and how many of how many units are finished."""

SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def reporter(progress: Progress | None = None) -> Iterator[Progress]:
    """Yields `progress` itself, or a hook that shows a bar on a terminal and writes log lines elsewhere."""
    if progress is not None:
        yield progress
        return
    console = Console(stderr=True)
    if not (
        console.is_interactive and console.file.isatty()
    ):  # a bar needs a cursor that moves; FORCE_COLOR gives none
        yield _line_hook()
        return
    with Bars(console=console, transient=True) as bars:
        yield _bar_hook(bars)


def _bar_hook(bars: Bars) -> Progress:
    tasks = {}

    def report(task: str, done: int, total: int) -> None:
        if task not in tasks:
            tasks[task] = bars.add_task(task, total=total)
        bars.update(tasks[task], completed=done, total=total)

    return report


def _line_hook() -> Progress:
    last_line: dict[str, float] = {}

    def report(task: str, done: int, total: int) -> None:
        now = time.monotonic()
        last = last_line.setdefault(task, now)
        if done == total or now - last >= SECONDS_BETWEEN_LINES:
            last_line[task] = now
            logging.info("%s: %d of %d", task, done, total)

    return report
