"""The search: its loop from proposals to results, and forks of a run."""

from bpevo.search.search import CONTROLS, Budget, Search

__all__ = ["CONTROLS", "Budget", "Search"]
