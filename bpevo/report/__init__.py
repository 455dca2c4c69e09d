"""What people look at: live progress, the leaderboard, and the tables, plots and page of an evaluation."""

from bpevo.report.forecast import Forecast
from bpevo.report.front import FrontRow, front, front_table
from bpevo.report.funnel import funnel_notes, funnel_table
from bpevo.report.leaderboard import LeaderboardRow, leaderboard, plain, remarks, table
from bpevo.report.metrics import Metrics
from bpevo.report.overview import Found, Searches, SearchState, best_found, overview_table
from bpevo.report.progress import Progress, Stages
from bpevo.report.tables import standings_table

__all__ = [
    "Forecast",
    "Found",
    "FrontRow",
    "Metrics",
    "Progress",
    "LeaderboardRow",
    "SearchState",
    "Searches",
    "Stages",
    "best_found",
    "front",
    "front_table",
    "funnel_notes",
    "funnel_table",
    "leaderboard",
    "overview_table",
    "plain",
    "remarks",
    "standings_table",
    "table",
]
