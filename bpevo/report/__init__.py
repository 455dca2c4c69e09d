"""What people look at: live progress, the leaderboard, and the tables, plots and page of an evaluation."""

from bpevo.report.forecast import Forecast
from bpevo.report.front import FrontRow, front, front_table
from bpevo.report.funnel import funnel_notes, funnel_table
from bpevo.report.leaderboard import LeaderboardRow, leaderboard, plain, remarks, table
from bpevo.report.metrics import Metrics
from bpevo.report.progress import Progress, Stages
from bpevo.report.tables import standings_table

__all__ = [
    "Forecast",
    "FrontRow",
    "Metrics",
    "Progress",
    "LeaderboardRow",
    "Stages",
    "front",
    "front_table",
    "funnel_notes",
    "funnel_table",
    "leaderboard",
    "plain",
    "remarks",
    "standings_table",
    "table",
]
