"""Rules with names: the classics, the controls and Table 1 of arXiv 1808.02822.

A Table 1 name says setup, column and place: `a2_momentum_1` is the first row under the baseline of A2, SGD with momentum.
`PAPER` holds the paper's test accuracy (mean and ± of 5 runs, %) for each; `a1_sgd_baseline` and its kin are backprop.
"""

import os

from bpevo.rules.components import BINARIES, OPERANDS, STATISTICS, UNARIES
from bpevo.rules.expression import Expression
from bpevo.rules.text import parse, suggestion
from bpevo.rules.types import RuleSyntaxError

CLASSICS: dict[str, str] = {
    "backprop": "g",
    "feedback_alignment": "fa",
    "direct_feedback_alignment": "dfa",
    "sign_symmetry": "(unit_col2(sgn_W) @ b_next.T).T * dh",  # uSF of 1510.05067
    "frsf": "((abs(R) * sgn_W) @ b_next.T).T * dh",  # fixed |random| · sign
}
CONTROLS: dict[str, str] = {"zero_signal": "g - g"}  # no hidden signal: only the head learns

_TABLE_1 = {
    "a1_sgd": (
        ("g", 77.11, 3.53),
        ("min(unit_fro(g), clip(h, 1.0))", 84.48, 0.45),
        ("unit_row2(g) + unit_elem0(mean(dh))", 84.41, 1.37),
        ("unit_fro(g)", 84.15, 0.66),
        ("unit_elem2(g)", 83.16, 0.90),
    ),
    "a1_momentum": (
        ("g", 83.00, 0.63),
        ("unit_elem2(g) / (mean(dfa) + 2.0)", 85.43, 1.59),
        ("unit_fro(g) + (0.5*g)", 85.36, 1.41),
        ("unit_fro(g)", 84.23, 0.88),
        ("unit_elem2(g)", 83.83, 1.27),
    ),
    "a2_sgd": (
        ("g", 73.10, 1.41),
        ("unit_elem_inf(g) * unit_mat1(std(dh))", 88.22, 0.55),
        ("clip((hp + 0.01) - relu(hp), 0.01) * unit_elem_inf(g)", 87.28, 0.29),
        ("unit_fro(g)", 87.17, 0.87),
        ("unit_elem2(g)", 85.30, 1.04),
    ),
    "a2_momentum": (
        ("g", 79.53, 2.89),
        ("max(gh - 10.0, unit_elem2(g))", 89.43, 0.99),
        ("(gh - 0.01) + unit_elem2(g)", 89.26, 0.67),
        ("unit_fro(g)", 89.63, 0.32),
        ("unit_elem2(g)", 89.05, 0.88),
    ),
    "a3_sgd": (
        ("g", 92.38, 0.10),
        ("unit_elem2(g) * sgn(bn(dh))", 92.97, 0.18),
        ("unit_elem2(g) - unit_mat_inf(mean(gh))", 92.90, 0.13),
        ("unit_fro(g)", 92.85, 0.14),
        ("unit_elem2(g)", 92.78, 0.13),
    ),
    "a3_momentum": (
        ("g", 93.75, 0.15),
        ("drop(g, 0.01) - unit_elem0(bn(dfah))", 93.72, 0.20),
        (None, 93.66, 0.12),  # misprinted in the paper, cannot be reproduced
        ("unit_fro(g)", 93.41, 0.18),
        ("unit_elem2(g)", 93.35, 0.15),
    ),
    "b1_sgd": (
        ("g", 87.13, 0.25),
        ("unit_mat1(g) + unit_elem2(gh)", 87.94, 0.22),
        ("unit_mat1(g) * clip(dh, 0.1)", 87.88, 0.39),
        ("unit_elem2(g) * sgn(bn(dh))", 87.82, 0.19),
        ("(0.5*g) / (std(dh) + 0.1)", 87.72, 0.25),
    ),
    "b1_momentum": (
        ("g", 88.94, 0.11),
        ("(2.0*g) + unit_elem1(bn(gh))", 89.04, 0.25),
        ("(dh - 0.5) * (2.0*g)", 88.95, 0.16),
        ("unit_elem_inf(std(gh)) * (2.0*g)", 88.94, 0.20),
        ("relu(dh) * clip(gh, 1.0)", 88.93, 0.14),
    ),
}

TABLE_1: dict[str, str] = {}
PAPER: dict[str, tuple[float, float]] = {}
for _setup, _rows in _TABLE_1.items():
    for _place, (_text, _mean, _spread) in enumerate(_rows):
        if _text is not None:
            _name = f"{_setup}_{_place}" if _place else f"{_setup}_baseline"
            TABLE_1[_name], PAPER[_name] = _text, (_mean, _spread)

NAMED: dict[str, str] = CLASSICS | CONTROLS | TABLE_1
# Names of many rules, for what takes many: all of Table 1, and each of its columns.
GROUPS: dict[str, tuple[str, ...]] = {"table1": tuple(TABLE_1)} | {
    setup: tuple(name for name in TABLE_1 if name.rpartition("_")[0] == setup) for setup in _TABLE_1
}
MAX_FILE = 10**7


def resolve(name_or_text: str) -> Expression:
    """The expression of a named rule or of a text.

    Args:
        name_or_text: A name of NAMED, or an equation of the language.

    Returns:
        Its tree.

    Raises:
        RuleSyntaxError: It is neither.
        InfeasibleEquation: The shapes of the equation do not fit.

    >>> resolve("a1_sgd_1")
    parse('min(unit_fro(g), clip(h, 1.0))')
    """
    if not isinstance(name_or_text, str):
        return parse(name_or_text)  # which says that it is no text
    text = name_or_text.strip()
    if text in NAMED:
        return parse(NAMED[text])
    if text in GROUPS:
        raise RuleSyntaxError(
            f"{text!r} names {len(GROUPS[text])} rules, where one is wanted: {', '.join(GROUPS[text])}"
        )
    if text.isidentifier() and not any(text in table for table in (OPERANDS, UNARIES, BINARIES, STATISTICS)):
        valid = [*OPERANDS, *NAMED, *GROUPS]
        raise RuleSyntaxError(f"there is no rule and no operand {text!r}; {suggestion(text, valid)}")
    return parse(text)


def listed(choice: str, what: str) -> list[tuple[str, str]]:
    """Rules that are given together.

    Args:
        choice: Names or texts separated by `;`, or a file with one a line, where `#` starts a comment. A name of GROUPS stands
            for the names of its rules.
        what: A word for one of them, for messages.

    Returns:
        (place, name or text) of each; an error's message begins with its place.

    Raises:
        ValueError: The file cannot be read, or there are none.

    >>> listed("fa; unit_fro(g)", "rule")
    [('rule 1 of fa; unit_fro(g)', 'fa'), ('rule 2 of fa; unit_fro(g)', 'unit_fro(g)')]
    """
    if os.path.exists(choice) and not os.path.isdir(choice):
        texts, place, hint = [line.partition("#")[0] for line in _lines(choice, what)], "line", ""
    else:
        texts, place = choice.split(";"), what
        hint = ", which is no file" if len(texts) == 1 else ""
    found = [
        (f"{place} {number} of {choice}{hint}", name)
        for number, text in enumerate(map(str.strip, texts), 1)
        for name in GROUPS.get(text, (text,))
        if name
    ]
    if not found:
        raise ValueError(f"{choice} holds no {what}")
    return found


def _lines(path: str, what: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE + 1)  # bounded: /dev/zero has no end
        if len(content) > MAX_FILE:
            raise ValueError(f"{path} is longer than {MAX_FILE:,} bytes")
        return content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a UTF-8 text"
        raise ValueError(f"cannot read {what}s from {path}: {reason}") from error
