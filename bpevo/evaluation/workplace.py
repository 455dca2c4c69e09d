"""Where an evaluation's trainings run: workers for each of its programs."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

from bpevo import data
from bpevo.rules import Expression, compile
from bpevo.training import Examples, TrainingPlan
from bpevo.workers import LocalWorkers, Pool, Recipe, Workers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What trains together, in the slots of one compiled program."""

    rule: Expression | None = None  # specialised to it; None: interpreted chains
    optimizer: str = ""  # instead of the evaluation's
    transforms: tuple[str, ...] = ()  # of the parameter gradient: what its trainings may choose


class Workplace(Protocol):
    """Workers by what they run. An extension point, as Workers are."""

    def __call__(self, on_test: bool, program: Program) -> Workers:
        """Workers on the full training set and the test set, or on validation. Asking for other workers may end those
        given before: they are idle by then."""


class Recipes:
    """What makes the slots of each program, the same recipe whenever it is asked for."""

    def __init__(
        self,
        training: TrainingPlan,
        test_split: Callable[[], data.Split],
        max_parts: int,
        slots: int | None = None,
        alignment: bool = False,
    ):
        """`test_split` is called when the test stage begins: nothing else reads the test set."""
        self._training, self._test_split, self._max_parts = training, test_split, max_parts
        self._slots, self._alignment = slots, alignment
        self._plans: dict[bool, tuple[TrainingPlan, Examples]] = {}  # read once, by whether they are for the test set
        self._made: dict[tuple[bool, Program], Recipe] = {}

    def __call__(self, on_test: bool, program: Program) -> Recipe:
        if (on_test, program) not in self._made:
            self._made[on_test, program] = self._make(on_test, program)
        return self._made[on_test, program]

    def _make(self, on_test: bool, program: Program) -> Recipe:
        if on_test not in self._plans:
            plan = self._training
            if on_test:
                plan = dataclasses.replace(plan, split=self._test_split())
            self._plans[on_test] = plan, plan.examples()
        plan, examples = self._plans[on_test]
        if program.optimizer:
            plan = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, optimizer=program.optimizer))
        return Recipe(
            tasks={"": plan.task(self._alignment, program.transforms)},
            examples=examples,
            max_parts=self._max_parts,
            seed=plan.seed,
            slots=self._slots,
            rule=None if program.rule is None else compile(program.rule),
        )


class LocalWorkplace:
    """This process's devices. One program at a time has its slots on them."""

    def __init__(self, recipes: Recipes):
        self._recipes = recipes
        self._kept: dict[Recipe, LocalWorkers] = {}  # at most one

    def __call__(self, on_test: bool, program: Program) -> LocalWorkers:
        recipe = self._recipes(on_test, program)
        if recipe not in self._kept:
            self._kept.clear()  # frees the slots before the next are allocated
            self._kept[recipe] = LocalWorkers(recipe.trainers()[""])
        return self._kept[recipe]


class PoolWorkplace:
    """A pool, whose workers change their slots with the program."""

    def __init__(self, recipes: Recipes, pool: Pool):
        self._recipes, self._pool = recipes, pool

    def __call__(self, on_test: bool, program: Program) -> Pool:
        self._pool.use(self._recipes(on_test, program))
        return self._pool
