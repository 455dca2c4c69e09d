"""Runs: the database of a workdir, the search and the evaluation that fill it, and what keeps it whole."""

from bpevo.runs.database import Evaluation, RunDatabase, RunError
from bpevo.runs.experiment import Experiment, Plan
from bpevo.runs.search import CONTROLS, Budget, Search
from bpevo.runs.treatments import BASELINES, Treatment

__all__ = [
    "BASELINES",
    "CONTROLS",
    "Budget",
    "Evaluation",
    "Experiment",
    "Plan",
    "RunDatabase",
    "RunError",
    "Search",
    "Treatment",
]
