"""What an evaluation is to do, as typed settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bpevo.evaluation.treatments import CONTROLS, Treatment
from bpevo.rules.equation import DEFAULT_PARTS

# Of what an evaluation trains and compares: raised whenever the same settings would lead to other trainings or rows. One of an
# older version is read and reported, never continued. Version 2: grids of rates that grow, more controls. Version 3: trainings on
# a CPU round otherwise. Version 4: grids grow down from a plateau on which nothing is learned.
SEMANTICS = 4

# May change when an evaluation is continued: they only add trainings.
FREE = ("rules", "found", "same", "selection_repeats", "finalists", "repeats", "ablate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What is evaluated, and how often. `fingerprint` is what its run records."""

    controls: tuple[Treatment, ...] = CONTROLS  # what a find has to beat: all are tested
    named: tuple[Treatment, ...] = ()  # given by hand: all are tested
    found: tuple[Treatment, ...] = ()  # the best of a search: selected first
    same: Mapping[str, str] = dataclasses.field(default_factory=dict)  # rules left out: text -> what trains alike
    learning_rates: tuple[float, ...]  # each treatment's grid begins with these
    tuning_repeats: int = 1
    selection_repeats: int = 5
    finalists: int = 10  # of `found` that are tested
    repeats: int = 10
    ablate: int = 0  # rules whose components are removed in turn
    compared: bool = False  # the controls train on the selection's fresh seeds too

    @property
    def treatments(self) -> list[Treatment]:
        """All that is tuned, each once."""
        return list(dict.fromkeys([*self.controls, *self.named, *self.found]))

    @property
    def selected(self) -> list[Treatment]:
        """All that trains on the selection's fresh seeds."""
        return [*(self.controls if self.compared else ()), *self.found]

    @property
    def max_parts(self) -> int:
        """Parts of the interpreted program: those of the longest chain that is evaluated, 3 to 8."""
        chains = [t.chain(8) for t in self.treatments]
        return max(DEFAULT_PARTS, *(len(c.to_parts()) for c in chains if c is not None))

    def transforms(self, optimizer: str) -> tuple[str, ...]:
        """Those that stand beside that optimizer of a treatment."""
        return tuple(sorted({t.transform for t in self.treatments if t.optimizer == optimizer} - {""}))

    def fingerprint(self) -> dict[str, Any]:
        """What may change between sessions only where FREE says so."""
        return {
            "semantics": SEMANTICS,
            "controls": [str(t) for t in self.controls],
            "rules": [str(t) for t in self.named],
            "found": [str(t) for t in self.found],
            "same": dict(self.same),
            "tuning_repeats": self.tuning_repeats,
            **{name: getattr(self, name) for name in FREE[3:]},
        }
