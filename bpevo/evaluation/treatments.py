"""Treatments: what the rows of an evaluation train with, and how they are named in flags and databases.

A treatment is a rule, optionally with a transform of the parameter gradient and with an optimizer of its own:
`unit_fro(g)`, `g | block_normalised`, `unit_fro(g) | grafted`, `g | adam`.
"""

import dataclasses
import difflib
from collections.abc import Iterator

from bpevo.rules import NAMED, Equation, Expression, RuleSyntaxError, listed, resolve, without_idle
from bpevo.runs import RunDatabase, ranked
from bpevo.search import CONTROL_KEYS
from bpevo.training import GRAFTED, OPTIMIZERS, TRANSFORMS
from bpevo.workers import Stage


@dataclasses.dataclass(frozen=True)
class Treatment:
    """`str` is its identity in the database, `Treatment.parse` the inverse."""

    expression: Expression
    transform: str = ""
    optimizer: str = ""  # instead of the evaluation's

    def __str__(self) -> str:
        return " | ".join(filter(None, (str(self.expression), self.transform, self.optimizer)))

    @classmethod
    def parse(cls, text: str) -> "Treatment":
        """The treatment of a text or a rule's name, with or without a transform and an optimizer.

        Raises RuleSyntaxError or InfeasibleEquation.
        """
        rule, *words = (part.strip() for part in text.split("|"))
        chosen: dict[str, str] = {}
        for word in words:
            of_kind = {name: "transform" for name in (*TRANSFORMS, GRAFTED) if name} | dict.fromkeys(
                OPTIMIZERS, "optimizer"
            )
            if word not in of_kind:
                near = difflib.get_close_matches(word, of_kind, 1, 0.0)[0]
                raise RuleSyntaxError(f"there is no gradient transform nor optimizer {word!r}; the nearest is {near!r}")
            if of_kind[word] in chosen:
                raise RuleSyntaxError(f"{text!r} has two {of_kind[word]}s: {chosen[of_kind[word]]} and {word}")
            chosen[of_kind[word]] = word
        return cls(without_idle(resolve(rule)).check(), **chosen)

    @property
    def plain(self) -> bool:
        """Whether it is a rule and nothing else."""
        return not self.transform and not self.optimizer

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its rule; none with a transform or an optimizer."""
        return () if not self.plain else tuple(n for n, text in NAMED.items() if text == str(self.expression))

    def chain(self, max_parts: int) -> Equation | None:
        """The genome that the interpreted slots run; None for a tree, or a chain of more parts: a program of its own."""
        try:
            return self.expression.to_equation(max_parts)
        except RuleSyntaxError:
            return None


def stored(text: str) -> Treatment | None:
    """The treatment of a database's text; None if it is none, for whatever wrote it."""
    try:
        return Treatment.parse(text)
    except ValueError:
        return None


BACKPROP, ZERO_SIGNAL = (Treatment(resolve(name)) for name in ("backprop", "zero_signal"))
CONTROLS = (
    BACKPROP,
    ZERO_SIGNAL,
    *(Treatment(resolve(f"{c}*g")) for c in (0.25, 0.5, 2.0, 4.0)),
    *(Treatment(BACKPROP.expression, transform) for transform in ("block_normalised", "clip_global_norm", "lars")),
    Treatment(BACKPROP.expression, optimizer="adam"),
)


def controls(optimizer: str) -> tuple[Treatment, ...]:
    """What stands in every evaluation under `optimizer`, tuned like the rules, and what a find has to beat: CONTROLS.

    Nothing below zero_signal has learned from its hidden signal. The others are what a rule may owe its lead to, with no new
    equation: another scale of the signal, a normalised or clipped gradient, an optimizer that rescales every entry.
    """
    return tuple(dict.fromkeys(under(t, optimizer) for t in CONTROLS))


def under(treatment: Treatment, optimizer: str) -> Treatment:
    """The treatment in an evaluation with that optimizer: to name it again is to say nothing."""
    return dataclasses.replace(treatment, optimizer="") if treatment.optimizer == optimizer else treatment


def read_treatments(choice: str) -> list[Treatment]:
    """The treatments of a flag, each once: what bpevo.rules.listed takes. Raises ValueError."""
    found: dict[str, Treatment] = {}
    for place, text in listed(choice, "rule"):
        try:
            treatment = Treatment.parse(text)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        found.setdefault(str(treatment), treatment)
    return list(found.values())


def winners(search: RunDatabase) -> Iterator[Treatment]:
    """A search's rules by its own fitness, best first, each once; what computes as one of the search's controls is none."""
    finished = search.judged().of(stage=Stage.SEARCH, status="done")
    texts = dict.fromkeys(row.equation for row in ranked(finished, CONTROL_KEYS))
    return map(Treatment.parse, texts)
