"""Runs: the database of a workdir and the driver that fills it, the ranking of its rows, where its numbers come from."""

from bpevo.runs.database import Glance, RunDatabase
from bpevo.runs.driver import Driver
from bpevo.runs.errors import RunError, printable
from bpevo.runs.ranking import backprop_on, fittest, joined, judged, networks, ranked
from bpevo.runs.rows import Row, Rows

__all__ = [
    "Driver",
    "Glance",
    "Row",
    "Rows",
    "RunDatabase",
    "RunError",
    "backprop_on",
    "fittest",
    "joined",
    "judged",
    "networks",
    "printable",
    "ranked",
]
