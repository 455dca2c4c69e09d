"""Runs: the database of a workdir and the loop that drives a search into it."""

from bpevo.runs.database import Evaluation, RunDatabase, RunError
from bpevo.runs.search import CONTROLS, Budget, Search

__all__ = ["CONTROLS", "Budget", "Evaluation", "RunDatabase", "RunError", "Search"]
