"""What people look at: live progress and the leaderboard."""

from bpevo.report.leaderboard import Row, leaderboard, table
from bpevo.report.progress import Progress

__all__ = ["Progress", "Row", "leaderboard", "table"]
