"""What makes Trainers, wherever they are to be: a Trainer itself never travels."""

import dataclasses
from collections.abc import Mapping

from bpevo.rules import CompiledRule
from bpevo.training import Examples, Task, Trainer


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """The arguments of a Trainer for each network. `examples` may be large: recipes of one run share them."""

    tasks: Mapping[str, Task]  # by the names of a search's networks, which differ in nothing else; "" of the only one
    examples: Examples
    max_parts: int
    seed: int
    slots: int | None  # None: as many as fit
    rule: CompiledRule | None = None  # the program is specialised to it

    def trainers(self) -> dict[str, Trainer]:
        """By network. Raises OutOfMemory."""
        return {
            network: Trainer(
                task, self.examples, capacity=self.slots, max_parts=self.max_parts, seed=self.seed, rule=self.rule
            )
            for network, task in self.tasks.items()
        }
