"""Runs: the database of a workdir, what it records of its origin, and the errors it raises."""

from bpevo.runs.database import Evaluation, RunDatabase
from bpevo.runs.errors import RunError, printable

__all__ = ["Evaluation", "RunDatabase", "RunError", "printable"]
