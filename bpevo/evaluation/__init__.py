"""The evaluation: treatments tuned alike, selected on fresh seeds and tested once; standings and significance."""

from bpevo.evaluation.evaluation import Evaluation
from bpevo.evaluation.plan import EvaluationPlan
from bpevo.evaluation.standings import Standing, standings, verdict
from bpevo.evaluation.treatments import BASELINES, Treatment
from bpevo.evaluation.workplace import LocalWorkplace, Workplace

__all__ = [
    "BASELINES",
    "Evaluation",
    "EvaluationPlan",
    "LocalWorkplace",
    "Standing",
    "Treatment",
    "Workplace",
    "standings",
    "verdict",
]
