"""What is left of a rule when one of its components is removed."""

from bpevo.evaluation.treatments import Treatment
from bpevo.rules import InfeasibleEquation, without_one


def ablations(treatment: Treatment) -> list[Treatment]:
    """Every feasible rule that lacks one component: a unary function, a mean, std or bn, or one side of a binary function."""
    found: dict[str, Treatment] = {}
    for expression in without_one(treatment.expression):
        try:
            expression.check()
        except InfeasibleEquation:
            continue
        if expression != treatment.expression:
            found.setdefault(str(expression), Treatment(expression, treatment.transform))
    return list(found.values())
