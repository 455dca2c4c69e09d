"""The evaluation: treatments tuned alike, selected on fresh seeds and tested once; standings and significance."""

from bpevo.evaluation.evaluation import Evaluation
from bpevo.evaluation.funnel import FunnelStage, Passed, passed, read_stages
from bpevo.evaluation.plan import EvaluationPlan
from bpevo.evaluation.standings import Standing, standings
from bpevo.evaluation.treatments import Treatment, controls
from bpevo.evaluation.verdict import verdict
from bpevo.evaluation.workplace import LocalWorkplace, PoolWorkplace, Program, Recipes, Workplace

__all__ = [
    "Evaluation",
    "EvaluationPlan",
    "FunnelStage",
    "LocalWorkplace",
    "Passed",
    "PoolWorkplace",
    "Program",
    "Recipes",
    "Program",
    "Standing",
    "Treatment",
    "Workplace",
    "controls",
    "passed",
    "read_stages",
    "standings",
    "verdict",
]
