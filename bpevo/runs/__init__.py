"""Runs: the database of a workdir, what it records of its origin, and the errors it raises."""

from bpevo.runs.database import Row, RunDatabase
from bpevo.runs.errors import RunError, printable

__all__ = ["Row", "RunDatabase", "RunError", "printable"]
