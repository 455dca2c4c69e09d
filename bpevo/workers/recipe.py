"""What makes a Trainer, wherever that is to be: a Trainer itself never travels."""

import dataclasses

from bpevo.rules import CompiledRule
from bpevo.training import Examples, Task, Trainer


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """The arguments of a Trainer. `examples` may be large: recipes of one run share them."""

    task: Task
    examples: Examples
    max_parts: int
    seed: int
    slots: int | None  # None: as many as fit
    rule: CompiledRule | None = None  # the program is specialised to it

    def trainer(self) -> Trainer:
        """Raises OutOfMemory."""
        return Trainer(
            self.task, self.examples, capacity=self.slots, max_parts=self.max_parts, seed=self.seed, rule=self.rule
        )
