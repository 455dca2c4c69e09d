"""Treatments: what the rows of an evaluation train with, and how they are named in flags and databases.

A treatment is a rule, optionally with a transform of the parameter gradient: `unit_fro(g)`, `g | block_normalised`.
"""

import dataclasses
import difflib
import pathlib

from bpevo.rules import NAMED, TABLE_1, Equation, Expression, RuleSyntaxError, resolve, without_idle
from bpevo.runs import RunDatabase, ranked
from bpevo.search import CONTROL_KEYS
from bpevo.training import TRANSFORMS
from bpevo.workers import Stage

TABLE = "table1"
SETUPS = tuple(dict.fromkeys(name.rpartition("_")[0] for name in TABLE_1))  # a1_sgd, a1_momentum, …


@dataclasses.dataclass(frozen=True)
class Treatment:
    """`str` is its identity in the database, `Treatment.parse` the inverse."""

    expression: Expression
    transform: str = ""

    def __str__(self) -> str:
        return f"{self.expression} | {self.transform}" if self.transform else str(self.expression)

    @classmethod
    def parse(cls, text: str) -> "Treatment":
        """The treatment of a text or a rule's name, with or without a transform. Raises RuleSyntaxError or InfeasibleEquation."""
        rule, bar, transform = (part.strip() for part in text.partition("|"))
        known = [name for name in TRANSFORMS if name]
        if bar and transform not in known:
            near = difflib.get_close_matches(transform, known, 1, 0.0)[0]
            raise RuleSyntaxError(f"there is no gradient transform {transform!r}; the nearest is {near!r}")
        return cls(without_idle(resolve(rule)).check(), transform)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its rule; none with a transform."""
        return () if self.transform else tuple(n for n, text in NAMED.items() if text == str(self.expression))

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


BACKPROP = Treatment(resolve("backprop"))
# In every evaluation, tuned like the rules: nothing below zero_signal has learned from its hidden signal, and the last
# two do to the parameter gradient what the paper's winners do to the signal.
BASELINES = (
    BACKPROP,
    Treatment(resolve("zero_signal")),
    Treatment(BACKPROP.expression, "block_normalised"),
    Treatment(BACKPROP.expression, "clip_global_norm"),
)


def read_treatments(choice: str) -> list[Treatment]:
    """The treatments of a flag: names or texts separated by `;`, among them `table1` or one of SETUPS; or a file, one per line.

    Each once, baselines left out. Raises ValueError.
    """
    if "\n" not in choice and pathlib.Path(choice).is_file():
        try:
            lines = pathlib.Path(choice).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not a UTF-8 text"
            raise ValueError(f"cannot read rules from {choice}: {reason}") from error
        texts, what, hint = [line.partition("#")[0] for line in lines], "line", ""
    else:
        texts, what = choice.split(";"), "rule"
        hint = ", which is no file" if len(texts) == 1 else ""
    found: dict[str, Treatment] = {}
    for number, text in enumerate(map(str.strip, texts), 1):
        for name in _expanded(text):
            try:
                treatment = Treatment.parse(name)
            except ValueError as error:
                raise ValueError(f"{what} {number} of {choice}{hint}: {error}") from error
            found.setdefault(str(treatment), treatment)
    if not found:
        raise ValueError(f"{choice} holds no rule")
    return [t for t in found.values() if t not in BASELINES]


def _expanded(text: str) -> list[str]:
    if text == TABLE or text in SETUPS:
        return [name for name in TABLE_1 if text == TABLE or name.rpartition("_")[0] == text]
    return [text] if text else []


def winners(search: RunDatabase, top: int) -> list[Treatment]:
    """The `top` rules of a search by its own fitness, best first; what computes as one of the search's controls is none."""
    finished = search.judged().of(stage=Stage.SEARCH, status="done")
    found = dict.fromkeys(Treatment.parse(row.equation) for row in ranked(finished, CONTROL_KEYS))
    return list(found)[:top]
