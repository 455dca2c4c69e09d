"""The search: its plan, its loop from proposals to results, and forks of a run."""

from bpevo.search.plan import SEMANTICS, SearchPlan
from bpevo.search.search import CONTROL_KEYS, CONTROLS, MOST_REPEATS, Search

__all__ = ["CONTROLS", "CONTROL_KEYS", "MOST_REPEATS", "SEMANTICS", "Search", "SearchPlan"]
