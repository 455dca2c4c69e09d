"""The driver of a run: jobs go to workers, their outcomes into the database. A search and an evaluation share it."""

from collections.abc import Callable, Iterator

from bpevo.runs.database import RunDatabase
from bpevo.runs.rows import Row, Rows
from bpevo.workers import Job, Outcome, Workers


class Driver:
    """All state is in the database: a driver made on it again knows what has ended."""

    def __init__(self, database: RunDatabase):
        self._database = database
        self._draining = self._stopping = False
        self.rows: Rows = database.rows()
        self._ended = {row.identity for row in self.rows}

    def missing(self, jobs: Iterator[Job]) -> list[Job]:
        """Those without a row."""
        return [job for job in jobs if job.identity not in self._ended]

    def drain(self, jobs: Iterator[Job | None], workers: Workers, stored: Callable[[list[Row]], None]) -> None:
        """Feeds jobs that have no row to free slots and stores what ends, until both are empty.

        `jobs` yields None where the next depends on outcomes that are still to come. `stored` is called after each epoch
        with the rows that came in. Raises KeyboardInterrupt once a `stop` is honoured.
        """
        exhausted = False

        def feed(ahead: bool) -> None:
            nonlocal exhausted
            while not exhausted and (workers.ahead if ahead else workers.wanted) > 0:
                try:
                    job = next(jobs)
                except StopIteration:
                    exhausted = True
                    return
                if job is None:
                    return
                if job.identity not in self._ended:
                    workers.submit(job)

        def store(outcomes: list[Outcome]) -> None:
            rows = self._database.add_rows(outcomes)
            self.rows += rows
            self._ended |= {row.identity for row in rows}
            stored(rows)

        self._draining = True
        while True:
            feed(ahead=False)
            if exhausted and workers.idle:
                self._draining = False
                return
            # While the devices work, the next jobs are drawn, as far as they depend on nothing that is to come.
            store(workers.poll(lambda: feed(ahead=True)))
            if self._stopping:
                store(workers.suspend())
                raise KeyboardInterrupt

    def stop(self) -> None:
        """For a signal handler: `drain` ends with KeyboardInterrupt as soon as the epoch in progress is over and stored.

        At once if nothing is trained whose result counts, and when called again.
        """
        if self._stopping or not self._draining:
            raise KeyboardInterrupt
        self._stopping = True
