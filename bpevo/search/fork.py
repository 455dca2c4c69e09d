"""Forks: a new run that begins with what another one found, under settings that the other may not take.

What both runs share decides what is taken over. If trainings are comparable (the same training settings, parts, rungs
and kind of keys), all proposals and trainings: the new settings hold from the next proposal on. If not, the
equations alone: the best ones, at most N, are the new run's initial equations and are trained again.
"""

import dataclasses
import json
import os
from typing import Any

from bpevo.rules import parse
from bpevo.runs import RunDatabase, RunError, ranked
from bpevo.search.plan import SearchPlan
from bpevo.workers import Stage

# Settings that two comparable runs need not share; of the evolution's, only the rungs are shared.
_FREE = ("controller", "operands", "unaries", "binaries", "initial", "lag", "max_evaluations", "fork", "data_dir")


def begin(
    database: RunDatabase,
    source: str | os.PathLike,
    plan: SearchPlan,
    settings: dict[str, Any],
    versions: dict[str, str],
) -> tuple[SearchPlan, dict[str, Any], str]:
    """Fills an empty run from the one in `source`, all or nothing; `settings` are the new run's.

    Returns the plan to go on with, what its settings say of the fork, and a line for the user. Raises RunError.
    """
    if os.path.realpath(source) == os.path.realpath(database.path.parent):
        raise RunError(f"--fork_from={source} is the workdir itself: a fork needs a new one")
    with RunDatabase.reading(source) as other:
        old, new = _shared(other.settings()), _shared(json.loads(json.dumps(settings)))
        differences = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        if not differences:
            fork = {"from": os.path.realpath(source), "proposals": len(other.proposals()), "trainings": True}
            database.take_over(other, settings | {"fork": fork}, versions)
            return plan, fork, f"forked from {source}: {fork['proposals']} proposals and their trainings are taken over"
        best = [row.equation for row in ranked(other.judged().of(stage=Stage.SEARCH))]
    initial = []
    for text in best:
        try:
            initial.append(parse(text).to_equation(plan.space.max_parts))
        except ValueError:  # more parts than this search allows
            continue
    initial = initial[: plan.evolution.elite_size]
    if not initial:
        raise RunError(f"there is no equation in {source} that this search could start from")
    fork = {"from": os.path.realpath(source), "proposals": len(initial), "trainings": False}
    line = (
        f"forked from {source}: its {len(initial)} best equations are the initial ones and train anew, "
        f"for {', '.join(differences)} differ"
    )
    return dataclasses.replace(plan, initial=tuple(initial)), fork, line


def _shared(settings: dict[str, Any]) -> dict[str, Any]:
    shared = {k: v for k, v in settings.items() if k not in _FREE}
    return shared | {"evolution": settings.get("evolution", {}).get("rungs")}
