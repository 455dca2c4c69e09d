"""What a search is to do, as typed settings."""

import dataclasses
from typing import Any

from bpevo.evolution import ONE, EvolutionSettings, Networks, SearchSpace, budget
from bpevo.rules import Equation, parse

# Of what a search does: raised whenever the same settings would lead to other trainings, if only by their rounding, or the same
# results to other proposals, bars or ranks. A run of an older version is read, reported, evaluated and forked, never continued.
# Version 4: trainings on a CPU round otherwise.
SEMANTICS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """Everything about a search but its training. `fingerprint` is what its run records."""

    controller: str = "paper"  # one of bpevo.evolution.CONTROLLERS
    space: SearchSpace
    evolution: EvolutionSettings
    networks: Networks = ONE
    initial: tuple[Equation, ...] = ()  # empty: random ones
    equivalence: bool = True  # rules that compute the same are trained once
    max_evaluations: int  # trials, trainings and confirmations; controls and selection come on top
    learning_rates: tuple[float, ...]  # on each network an equation is tried with each and trained with the best
    trial_epochs: int  # after which the best one is chosen; of no use with one rate
    lag: int  # proposal n is drawn from the results with ids ≤ n - lag
    top: int  # rules trained again on fresh seeds
    repeats: int  # fresh seeds

    @property
    def rung_epochs(self) -> tuple[int, ...]:
        return tuple(rung.epoch for rung in self.evolution.rungs)

    @property
    def charge(self) -> int:
        """Trainings that an equation costs, where no bar spares some."""
        return budget.charge(len(self.learning_rates), len(self.networks.names))

    def continuing(self, stored: dict[str, Any], lag: int | None, elite_size: int | None) -> "SearchPlan":
        """The plan of a run with the settings `stored`: without `lag` and `elite_size` its own, however many slots and
        trainings there are now; a fork that took over equations alone keeps them as its initial ones."""
        fork, plan = stored.get("fork"), self
        if lag is None and "lag" in stored:
            plan = dataclasses.replace(plan, lag=stored["lag"])
        if elite_size is None and "evolution" in stored:
            evolution = dataclasses.replace(plan.evolution, elite_size=stored["evolution"]["elite_size"])
            plan = dataclasses.replace(plan, evolution=evolution)
        if fork and not fork["trainings"]:
            initial = tuple(parse(text).to_equation(self.space.max_parts) for text in stored["initial"])
            plan = dataclasses.replace(plan, initial=initial)
        return plan

    def fingerprint(self) -> dict[str, Any]:
        """What two sessions of a run must share to be the same search."""
        space, evolution = self.space, dataclasses.asdict(self.evolution)
        if self.evolution.tournament == EvolutionSettings.tournament:
            del evolution["tournament"]  # runs of before there were tournaments have none
        return {
            "semantics": SEMANTICS,
            "controller": self.controller,
            "max_parts": space.max_parts,
            "operands": [str(o) for o in space.operands],
            "unaries": [f"{name}:{c}" for name, c in space.unaries],
            "binaries": space.binaries,
            "evolution": evolution,
            "initial": [str(e) for e in self.initial],
            "lag": self.lag,
            "trial_epochs": self.trial_epochs,
            "equivalence": self.equivalence,
            **({"fitness_over": self.networks.over} if self.networks.several else {}),
        }
