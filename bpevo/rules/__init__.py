"""The language of backward equations: components, expressions, the chain genome, and rules ready to run.

`compile("unit_fro(g) + 0.5*g")` gives a rule for `bpevo.layers`; `InterpretedRule` runs equations as data; `register`
adds components to the language.
"""

from bpevo.rules.canonical import without_idle, without_one
from bpevo.rules.compiled import CompiledRule, compile
from bpevo.rules.components import (
    BINARIES,
    OPERANDS,
    STATISTICS,
    UNARIES,
    Affine,
    Binary,
    Operand,
    Statistic,
    Unary,
    extensions,
)
from bpevo.rules.equation import Equation
from bpevo.rules.export import export
from bpevo.rules.expression import Expression
from bpevo.rules.extending import register
from bpevo.rules.interpreter import InterpretedRule
from bpevo.rules.kernels import Kernel
from bpevo.rules.named import GROUPS, NAMED, PAPER, TABLE_1, listed, resolve
from bpevo.rules.own import FunctionRule, UnitView
from bpevo.rules.program import Program, assemble, blank_program
from bpevo.rules.text import parse
from bpevo.rules.tile_programs import takes
from bpevo.rules.tiled import TiledRule
from bpevo.rules.types import InfeasibleEquation, RuleSyntaxError
from bpevo.rules.unit import Rule, Unit, UnitShapes, Values

__all__ = [
    "BINARIES",
    "GROUPS",
    "NAMED",
    "OPERANDS",
    "PAPER",
    "STATISTICS",
    "TABLE_1",
    "UNARIES",
    "Affine",
    "Binary",
    "CompiledRule",
    "Equation",
    "Expression",
    "FunctionRule",
    "InfeasibleEquation",
    "InterpretedRule",
    "Kernel",
    "Operand",
    "Program",
    "Rule",
    "RuleSyntaxError",
    "Statistic",
    "TiledRule",
    "Unary",
    "Unit",
    "UnitShapes",
    "UnitView",
    "Values",
    "assemble",
    "blank_program",
    "compile",
    "export",
    "extensions",
    "listed",
    "parse",
    "register",
    "resolve",
    "takes",
    "without_idle",
    "without_one",
]
