"""The language of backward equations: components, expressions, the chain genome, and rules ready to run.

`compile("unit_fro(g) + 0.5*g")` gives a rule for `bpevo.layers`; `InterpretedRule` runs equations as data.
"""

from bpevo.rules.canonical import without_idle
from bpevo.rules.compiled import CompiledRule, compile
from bpevo.rules.components import BINARIES, MODIFIERS, OPERANDS, UNARIES
from bpevo.rules.equation import Equation
from bpevo.rules.expression import Expression
from bpevo.rules.interpreter import InterpretedRule
from bpevo.rules.named import NAMED, PAPER, TABLE_1, resolve
from bpevo.rules.program import Program, assemble, blank_program
from bpevo.rules.text import parse
from bpevo.rules.types import InfeasibleEquation, RuleSyntaxError
from bpevo.rules.unit import Rule, Unit, UnitShapes

__all__ = [
    "BINARIES",
    "MODIFIERS",
    "NAMED",
    "OPERANDS",
    "PAPER",
    "TABLE_1",
    "UNARIES",
    "CompiledRule",
    "Equation",
    "Expression",
    "InfeasibleEquation",
    "InterpretedRule",
    "Program",
    "Rule",
    "RuleSyntaxError",
    "Unit",
    "UnitShapes",
    "assemble",
    "blank_program",
    "compile",
    "parse",
    "resolve",
    "without_idle",
]
