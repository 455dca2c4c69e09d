"""What an evaluation is to do, as typed settings."""

import dataclasses
from typing import Any

from bpevo.evaluation.treatments import BASELINES, Treatment
from bpevo.rules.equation import DEFAULT_PARTS

# May change when an evaluation is continued: they only add trainings.
FREE = ("rules", "found", "selection_repeats", "finalists", "repeats", "ablate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What is evaluated, and how often. `fingerprint` is what its run records."""

    named: tuple[Treatment, ...] = ()  # given by hand: all are tested
    found: tuple[Treatment, ...] = ()  # the best of a search: selected first
    learning_rates: tuple[float, ...]
    tuning_repeats: int = 1
    selection_repeats: int = 5
    finalists: int = 10  # of `found` that are tested
    repeats: int = 10
    ablate: int = 0  # rules whose components are removed in turn

    @property
    def treatments(self) -> list[Treatment]:
        """All that is tuned, each once."""
        return list(dict.fromkeys([*BASELINES, *self.named, *self.found]))

    @property
    def max_parts(self) -> int:
        """Parts of the interpreted program: those of the longest chain that is evaluated, 3 to 8."""
        chains = [t.chain(8) for t in self.treatments]
        return max(DEFAULT_PARTS, *(len(c.to_parts()) for c in chains if c is not None))

    def fingerprint(self) -> dict[str, Any]:
        """What may change between sessions only where FREE says so."""
        return {
            "rules": [str(t) for t in self.named],
            "found": [str(t) for t in self.found],
            "tuning_repeats": self.tuning_repeats,
            **{name: getattr(self, name) for name in FREE[2:]},
        }
