"""The evaluation: treatments tuned alike, selected on fresh seeds and tested once; standings and significance."""

from bpevo.evaluation.evaluation import Evaluation, EvaluationPlan
from bpevo.evaluation.standings import Standing, standings, verdict
from bpevo.evaluation.treatments import BASELINES, Treatment

__all__ = ["BASELINES", "Evaluation", "EvaluationPlan", "Standing", "Treatment", "standings", "verdict"]
