"""What a search costs the host does not grow with its length: counted here, timed by `python -m bpevo.bench --controller=…`."""

import collections
import io

import pytest
from rich.console import Console
from test_runs import StandIn, plan, search

from bpevo.report import Progress
from bpevo.runs import Rows, RunDatabase


class Watched(list):
    """A list that counts how many of its items are looked at."""

    def __init__(self, items=()):
        super().__init__(items)
        self.looked = 0

    def __iter__(self):
        for item in super().__iter__():
            self.looked += 1
            yield item

    def __getitem__(self, index):
        found = super().__getitem__(index)
        self.looked += len(found) if isinstance(index, slice) else 1
        return found


class WatchedRows(Watched, Rows):
    pass


@pytest.fixture(scope="module", params=[200, 800])
def costs(request, tmp_path_factory) -> dict[str, float]:
    """SQL statements, rows and proposals looked at, for each training of the second half of a search."""
    length, counts = request.param, collections.Counter()
    workdir = tmp_path_factory.mktemp("growth")
    progress = Progress(Console(file=io.StringIO(), width=200))

    def watch(made, rows):
        if not counts and made.done >= length / 2:
            made._database._connection.set_trace_callback(lambda statement: counts.update(statements=1))
            made._driver.rows, made.proposals = WatchedRows(made.rows), Watched(made.proposals)
            counts.update(first=made.done, statements=0)
        progress(made, rows)
        if counts and made.done >= length and "last" not in counts:
            made._database._connection.set_trace_callback(None)
            counts.update(last=made.done, rows=made.rows.looked, proposals=made.proposals.looked)

    search(workdir, plan(length, top=1, repeats=1, elite_size=20), StandIn(4), watch)
    trainings = counts["last"] - counts["first"]
    with RunDatabase.reading(workdir) as database:
        assert len(database.rows("search", "confirmation")) == length and trainings >= length / 2 - 4
    return {name: counts[name] / trainings for name in ("statements", "rows", "proposals")}


def test_a_training_costs_a_few_statements_and_looks_at_no_more_than_its_own_rows(costs):
    """A proposal and a row are stored, each in a transaction of three statements, the proposal's between two that say how
    long it waits for the disk; nothing is read."""
    assert 3 <= costs["statements"] <= 9
    assert costs["rows"] <= 1 and costs["proposals"] <= 2
