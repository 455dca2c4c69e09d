"""Where an evaluation's trainings run: workers for each of its programs."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

from bpevo import data
from bpevo.rules import Expression, compile
from bpevo.training import Trainer, TrainingPlan
from bpevo.workers import LocalWorkers, Workers


class Workplace(Protocol):
    """Workers by what they run. An extension point, as Workers are."""

    def __call__(self, on_test: bool, rule: Expression | None) -> Workers:
        """Workers on the full training set and the test set, or on validation; of a program specialised to `rule`, or of
        interpreted chains where None. Asking for other workers may end those given before: they are idle by then."""


class LocalWorkplace:
    """This process's devices. The interpreted program of the data at hand is kept."""

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
        self._kept: dict[bool, LocalWorkers] = {}

    def __call__(self, on_test: bool, rule: Expression | None) -> LocalWorkers:
        if rule is not None:
            return self._make(on_test, rule)
        if on_test not in self._kept:
            self._kept.clear()  # frees the slots before the next are allocated
            self._kept[on_test] = self._make(on_test, None)
        return self._kept[on_test]

    def _make(self, on_test: bool, rule: Expression | None) -> LocalWorkers:
        plan = dataclasses.replace(self._training, split=self._test_split()) if on_test else self._training
        trainer = Trainer(
            plan.task(self._alignment),
            plan.examples(),
            capacity=self._slots,
            max_parts=self._max_parts,
            seed=plan.seed,
            rule=None if rule is None else compile(rule),
            transforms=True,
        )
        return LocalWorkers(trainer)
