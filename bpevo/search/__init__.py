"""The search: its plan, its loop from proposals to results, and forks of a run."""

from bpevo.search.plan import SEMANTICS, SearchPlan
from bpevo.search.search import CONTROL_KEYS, CONTROLS, Search

__all__ = ["CONTROLS", "CONTROL_KEYS", "SEMANTICS", "Search", "SearchPlan"]
